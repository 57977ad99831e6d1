//! What the Hub says of a model and of its files, checked before anything is written.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use mlx_files::LARGEST_TOKENIZER;
use serde::Deserialize;
use ureq::Body;
use ureq::http::{HeaderMap, Response};

use crate::error::{HubError, OtherForm};
use crate::http::{Failed, LINKED_ETAG, header};
use crate::names::{HubId, Revision, is_commit, is_inside, is_needed, shortened};

/// The largest list of a model's files, in bytes. Those of large models have some hundred kilobytes.
const LARGEST_LISTING: u64 = 16 << 20;

/// Files that a model may have. Large models have some hundred.
const MOST_FILES: usize = 10_000;

/// The longest name of a blob. Those of the Hub have 40 or 64 characters.
const LONGEST_ETAG: usize = 128;

/// The commit that a revision stands for, and the files of the model.
pub(crate) struct Listing {
    pub(crate) commit: String,
    files: Vec<String>,
}

/// [`Listing`] as the Hub writes it.
#[derive(Deserialize)]
struct ModelInfo {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

impl Listing {
    pub(crate) fn read(id: &HubId, answer: Response<Body>) -> Result<Self, Failed> {
        let wrong = |problem: String| HubError::Answer { what: format!("the model {id}"), problem };
        let mut text = Vec::new();
        let mut body = answer.into_body().into_reader().take(LARGEST_LISTING + 1);
        body.read_to_end(&mut text).map_err(|e| Failed::ForNow(e.to_string()))?;
        if text.len() as u64 > LARGEST_LISTING {
            return Err(wrong(format!("it has more than {LARGEST_LISTING} bytes")).into());
        }
        let info: ModelInfo = serde_json::from_slice(&text).map_err(|e| wrong(shortened(&e.to_string())))?;
        Ok(Self {
            commit: info.sha.to_ascii_lowercase(),
            files: info.siblings.into_iter().map(|sibling| sibling.rfilename).collect(),
        })
    }

    /// The names of the files to download, sorted, if the list follows the rules.
    pub(crate) fn needed_files(&self, id: &HubId, revision: &Revision) -> Result<Vec<String>, HubError> {
        let wrong = |problem: String| HubError::Answer { what: format!("the model {id}"), problem };
        let quoted = |text: &str| shortened(&format!("{text:?}"));
        if !is_commit(&self.commit) {
            return Err(wrong(format!("{} is not the name of a commit", quoted(&self.commit))));
        }
        if revision.is_commit() && self.commit != revision.as_str() {
            return Err(wrong(format!("it describes the commit {}, not the one asked for", self.commit)));
        }
        let files: BTreeSet<&String> = self.files.iter().filter(|file| is_needed(file)).collect();
        if let Some(file) = files.iter().find(|file| !is_inside(file)) {
            return Err(wrong(format!("it has a file named {}", quoted(file))));
        }
        if files.len() > MOST_FILES {
            return Err(wrong(format!("it has {} files; the limit is {MOST_FILES}", files.len())));
        }
        for (missing, is_there) in [
            ("config.json", files.iter().any(|file| *file == "config.json")),
            ("model*.safetensors", files.iter().any(|file| file.ends_with(".safetensors"))),
        ] {
            if !is_there {
                return Err(HubError::NoCheckpoint { id: id.clone(), missing, instead: self.other_form() });
            }
        }
        Ok(files.into_iter().cloned().collect())
    }

    /// What a model without a checkpoint has in place of it.
    fn other_form(&self) -> OtherForm {
        let has = |is_it: fn(&str) -> bool| self.files.iter().any(|file| is_it(file));
        if has(|file| file == "adapter_config.json") {
            OtherForm::Adapters
        } else if has(|file| file.ends_with(".gguf")) {
            OtherForm::Gguf
        } else if has(|file| file.ends_with(".bin") || file.ends_with(".pth") || file.ends_with(".pt")) {
            OtherForm::PyTorch
        } else {
            OtherForm::Unknown
        }
    }
}

/// A file of a commit.
pub(crate) struct RemoteFile {
    pub(crate) name: String,
    pub(crate) commit: String,
    /// The name of its contents: for large files their SHA-256.
    pub(crate) etag: String,
    /// Its length in bytes, where the Hub announces it.
    pub(crate) size: Option<u64>,
}

impl RemoteFile {
    /// What the Hub's answer to a request for the headers of a file says.
    pub(crate) fn read(
        id: &HubId,
        commit: &str,
        file: &str,
        answer: &Response<Body>,
    ) -> Result<Self, HubError> {
        let wrong = |problem: String| HubError::Answer { what: format!("{file} of the model {id}"), problem };
        let etag = etag(answer.headers()).map_err(wrong)?;
        let size = size(answer).map_err(wrong)?;
        let limit = largest(file);
        if let Some(size) = size.filter(|&size| size > limit) {
            return Err(HubError::TooLarge { id: id.clone(), file: file.to_owned(), size, limit });
        }
        Ok(Self { name: file.to_owned(), commit: commit.to_owned(), etag, size })
    }
}

/// The name of a file's contents, or what is wrong with it.
fn etag(headers: &HeaderMap) -> Result<String, String> {
    let etag = header(headers, LINKED_ETAG).or_else(|| header(headers, "etag")).unwrap_or_default();
    let mut etag = etag.trim_start_matches("W/").trim_matches('"').to_owned();
    let is_hash = matches!(etag.len(), 40 | 64) && etag.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_hash {
        etag.make_ascii_lowercase();
    }
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if etag.is_empty() || etag.len() > LONGEST_ETAG || !etag.chars().all(is_name) {
        return Err(format!("its ETag is {}", shortened(&format!("{etag:?}"))));
    }
    Ok(etag)
}

/// The length of a file, or what is wrong with it.
fn size(answer: &Response<Body>) -> Result<Option<u64>, String> {
    let headers = answer.headers();
    let is_redirected = answer.status().is_redirection();
    let size = header(headers, "x-linked-size")
        .or_else(|| header(headers, "content-length").filter(|_| !is_redirected));
    let parse = |size: &str| {
        size.trim().parse().map_err(|_| format!("its size is {}", shortened(&format!("{size:?}"))))
    };
    size.map(parse).transpose()
}

/// How many bytes a file may have.
pub(crate) fn largest(file: &str) -> u64 {
    // A tokenizer is the largest of the files that are not weights.
    if file.ends_with(".safetensors") { u64::MAX } else { LARGEST_TOKENIZER }
}

/// Fails where files with the same contents have different sizes: the cache holds the contents once.
pub(crate) fn check_sizes(files: &[RemoteFile]) -> Result<(), HubError> {
    let mut known: BTreeMap<&str, (&str, u64)> = BTreeMap::new();
    for file in files {
        let Some(size) = file.size else { continue };
        let (other, other_size) = *known.entry(&file.etag).or_insert((&file.name, size));
        if size != other_size {
            return Err(HubError::Answer {
                what: file.name.clone(),
                problem: format!("it has {size} bytes and the ETag of {other}, which has {other_size}"),
            });
        }
    }
    Ok(())
}
