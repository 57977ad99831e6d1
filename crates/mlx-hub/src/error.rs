//! Why a model could not be downloaded.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::names::HubId;

/// Why a model could not be downloaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// The Hub has no model of this name, or shows it to some users only.
    #[error("the Hub has no public model {id}; a private model needs a token, in {token_places}")]
    NoModel {
        /// The model.
        id: HubId,
        /// Where a token is looked for.
        token_places: String,
    },
    /// The model has no branch, tag or commit of this name.
    #[error("the model {id} has no revision {revision}")]
    NoRevision {
        /// The model.
        id: HubId,
        /// The branch, tag or commit.
        revision: String,
    },
    /// A file that the Hub listed is gone.
    #[error("the model {id} no longer has the file {file}")]
    NoFile {
        /// The model.
        id: HubId,
        /// The file.
        file: String,
    },
    /// The model's owner asks users to accept conditions first.
    #[error(
        "the model {id} is gated: accept its conditions at {endpoint}/{id}, and put your token in {token_places}"
    )]
    Gated {
        /// The model.
        id: HubId,
        /// The Hub's address.
        endpoint: String,
        /// Where a token is looked for.
        token_places: String,
    },
    /// The Hub refused the token.
    #[error("the Hub does not accept the token from {found_in} (status {status})")]
    Token {
        /// Where the token was found.
        found_in: String,
        /// The status of the Hub's answer.
        status: u16,
    },
    /// The model lacks a file that every checkpoint has.
    #[error("the model {id} has no {missing}, which a checkpoint needs; {instead}")]
    NoCheckpoint {
        /// The model.
        id: HubId,
        /// The file that is missing.
        missing: &'static str,
        /// What the model has in place of a checkpoint.
        instead: OtherForm,
    },
    /// The config names a `model_type` that the caller does not support.
    #[error(
        "the model {id} has the model_type {found:?}, which is not supported; supported are {}. Only its config was \
         downloaded", supported.join(", ")
    )]
    Unsupported {
        /// The model.
        id: HubId,
        /// The `model_type` of its config.
        found: String,
        /// What the caller supports.
        supported: Vec<String>,
    },
    /// The cache stores revisions as files, and the place of this one is taken.
    #[error(
        "the revision {revision} cannot be stored in the cache: {} is in its place, and belongs to another revision; \
         remove it if you no longer need that revision", taken.display()
    )]
    RevisionTaken {
        /// The branch or tag.
        revision: String,
        /// The file or folder in its place.
        taken: PathBuf,
    },
    /// No connection, or no useful answer after several attempts.
    #[error("the Hub at {endpoint} cannot be reached: {problem}")]
    Unreachable {
        /// The Hub's address.
        endpoint: String,
        /// What went wrong at the last attempt.
        problem: String,
    },
    /// The Hub refused the request, for a reason that has no variant of its own.
    #[error("{what}: the Hub answers with status {status}{message}")]
    Status {
        /// What was asked for.
        what: String,
        /// The status of the Hub's answer.
        status: u16,
        /// The Hub's own message after a colon, or nothing.
        message: String,
    },
    /// The Hub's answer breaks a rule or a limit.
    #[error("{what}: the Hub's answer is not valid: {problem}")]
    Answer {
        /// What was asked for.
        what: String,
        /// What is wrong with the answer.
        problem: String,
    },
    /// The connection broke again and again. What was downloaded is kept.
    #[error(
        "the download of {file} stopped at {done}{} bytes after {attempts} attempts: {problem}; run the download \
         again to continue from there", total.map(|total| format!(" of {total}")).unwrap_or_default()
    )]
    Broken {
        /// The file.
        file: String,
        /// Bytes that are in the cache.
        done: u64,
        /// The length of the file in bytes, where the Hub says it.
        total: Option<u64>,
        /// How many attempts in a row failed.
        attempts: u32,
        /// What went wrong at the last attempt.
        problem: String,
    },
    /// A file arrived with other contents than the Hub announced. It was removed.
    #[error(
        "{file} arrived damaged: its SHA-256 is {found}, and the Hub announced {expected}; the file was removed, so run \
         the download again"
    )]
    Hash {
        /// The file.
        file: String,
        /// The SHA-256 that the Hub announced.
        expected: String,
        /// The SHA-256 of what arrived.
        found: String,
    },
    /// A file goes on after the length that the Hub announced. It was removed.
    #[error("{file} is longer than the {expected} bytes that the Hub announced; it was removed")]
    TooLong {
        /// The file.
        file: String,
        /// The length in bytes that the Hub announced.
        expected: u64,
    },
    /// A file without an announced length goes on after the limit for such files. It was removed.
    #[error(
        "{file} is longer than {limit} bytes, the limit for a file whose length the Hub does not announce; it was removed"
    )]
    Endless {
        /// The file.
        file: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// The announced length is over the limit for a file of this kind.
    #[error("{file} of the model {id} has {size} bytes; the limit is {limit}")]
    TooLarge {
        /// The model.
        id: HubId,
        /// The file.
        file: String,
        /// Its length in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// Downloads are switched off, and the cache lacks a file of the model.
    #[error(
        "the cache at {} does not have all of {id}: {missing} is missing, and downloads are off (HF_HUB_OFFLINE)",
        cache.display()
    )]
    Offline {
        /// The model.
        id: HubId,
        /// The cache folder.
        cache: PathBuf,
        /// The first file, or the revision, that is missing.
        missing: String,
    },
    /// A file of the cache cannot be written.
    #[error(
        "cannot write {}; what was downloaded so far is kept, and the next run continues from there", file.display()
    )]
    Write {
        /// The file.
        file: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file cannot be read.
    #[error("cannot read {}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A setting, or the environment variable that it comes from, has a value that cannot be used.
    #[error("{name}: {problem}")]
    Setting {
        /// The setting or the environment variable.
        name: String,
        /// What is wrong with its value.
        problem: String,
    },
    /// The caller [cancelled](crate::Cancel) the download. What was downloaded is kept.
    #[error(
        "the download was cancelled; what was downloaded so far is kept, and the next run continues from there"
    )]
    Cancelled,
}

/// What a model on the Hub has in place of a checkpoint in safetensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum OtherForm {
    /// Adapters for another model.
    Adapters,
    /// Files in llama.cpp's format.
    Gguf,
    /// Weights that PyTorch wrote.
    PyTorch,
    /// None of these.
    Unknown,
}

impl fmt::Display for OtherForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Adapters => {
                "it holds adapters: name their base model as the model, and a folder with these files as its adapters"
            }
            Self::Gguf => "it has only GGUF files: download one, and name the file as the model",
            Self::PyTorch => "its weights are files of PyTorch, which are not supported",
            Self::Unknown => "files of other formats are not supported",
        })
    }
}
