//! Checkpoints from the hub, in the cache that its own Python library has.
//!
//! A model is a folder `models--OWNER--NAME` of the cache. `blobs` has the files' contents, each under the name that the
//! hub gives it (for large files their SHA-256); `snapshots/COMMIT` has a link to a blob for every file, and is the
//! checkpoint folder; `refs/REVISION` has the commit that a branch or tag last stood for. What either program has
//! downloaded, the other finds. A blob that is not whole yet has the ending `.incomplete`, and is gone on with. Beside
//! these, `.mlx-models/COMMIT.json` has the names of all files of a commit, so that a snapshot is known to be whole.
//!
//! What a server sends is bounded: the list of files, the names in it, the size of each file, and how slow it may come.

mod cache;
mod names;
mod pace;

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use mlx_files::{LARGEST_CONFIG, LARGEST_TOKENIZER};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use ureq::http::{HeaderMap, Method, Request, Response, Uri};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use cache::{Found, ModelFolder};
pub(crate) use names::{HubId, Revision};
use names::{escaped, is_commit, is_inside, is_needed, origin, redirected, shortened};
use pace::Pace;

/// Where the hub is, unless HF_ENDPOINT says otherwise.
const ENDPOINT: &str = "https://huggingface.co";

/// How often a request is made that fails without having brought anything.
const ATTEMPTS: u32 = 5;

/// The wait before the second attempt; each further one is twice as long.
const PAUSE: Duration = Duration::from_secs(1);

/// How long a connection may be silent.
const SILENCE: Duration = Duration::from_secs(30);

/// How long the list of a model's files may take to come.
const LISTING_TIME: Duration = Duration::from_secs(120);

/// The largest list of a model's files, in bytes. Those of large models have some hundred kilobytes.
const LARGEST_LISTING: u64 = 16 << 20;

/// Files that a model may have. Large ones have some hundred.
const MOST_FILES: usize = 10_000;

/// The longest name of a blob. Those of the hub have 40 or 64 characters.
const LONGEST_ETAG: usize = 128;

/// The largest file whose length the hub does not say, in bytes. Those of large models have 5 or 10 GB.
const LARGEST_UNSIZED: u64 = 16 << 30;

/// How old a part of a file is that nobody goes on with.
const STALE: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// The largest file with a token, in bytes.
const LARGEST_TOKEN: u64 = 64 << 10;

/// Bytes that are read at once.
const CHUNK: usize = 1 << 20;

/// Redirects that are followed, one after the other.
const REDIRECTS: usize = 5;

/// The name of a blob whose contents are elsewhere.
const LINKED_ETAG: &str = "x-linked-etag";

/// Why a model could not be had from the hub.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HubError {
    #[error(
        "the hub has no model {id}, or only for some; for a private one a token is needed, in HF_TOKEN or in {token_file}"
    )]
    NoModel { id: HubId, token_file: String },
    #[error("the model {id} has no revision {revision}")]
    NoRevision { id: HubId, revision: String },
    #[error("the model {id} has no file {file} any more")]
    NoFile { id: HubId, file: String },
    #[error(
        "the model {id} is only for those who have accepted its conditions: do that on its page, {endpoint}/{id}, and \
         give a token of yours in HF_TOKEN or in {token_file}"
    )]
    Gated { id: HubId, endpoint: String, token_file: String },
    #[error("the hub does not accept the token from {source_of_token} ({status})")]
    Token { source_of_token: String, status: u16 },
    #[error("the model {id} has no {missing}, which a checkpoint needs; {instead}")]
    NoCheckpoint { id: HubId, missing: &'static str, instead: &'static str },
    #[error(
        "the revision {revision} has no place in the cache, since {} is there for another revision; remove that if the \
         other revision is no longer needed", taken.display()
    )]
    Revisions { revision: String, taken: PathBuf },
    #[error(
        "the model {id} has the model_type {found:?}, which is not supported; supported are {}. Only its config was \
         downloaded", known.join(", ")
    )]
    Unsupported { id: HubId, found: String, known: Vec<&'static str> },
    #[error("the hub at {endpoint} cannot be reached: {problem}")]
    Unreachable { endpoint: String, problem: String },
    #[error("{what}: the hub answers with status {status}{message}")]
    Status { what: String, status: u16, message: String },
    #[error("{what}: the hub's answer makes no sense: {problem}")]
    Answer { what: String, problem: String },
    #[error(
        "the connection broke off at {done}{} bytes of {file}, and again after {attempts} attempts: {problem}; run it \
         again to go on from there", total.map(|total| format!(" of {total}")).unwrap_or_default()
    )]
    Broken { file: String, done: u64, total: Option<u64>, attempts: u32, problem: String },
    #[error(
        "{file} came with other contents than the hub says: SHA-256 {found} in place of {expected}; it was removed, so \
         run it again"
    )]
    Hash { file: String, expected: String, found: String },
    #[error("{file} came with {found} bytes in place of {expected}; it was removed, so run it again")]
    Size { file: String, expected: u64, found: u64 },
    #[error(
        "{file} goes on behind the {expected} bytes that the hub says it has; it was removed, so run it again"
    )]
    TooLong { file: String, expected: u64 },
    #[error(
        "{file} goes on behind {limit} bytes, and a file whose length the hub does not say may have no more; it was removed"
    )]
    Endless { file: String, limit: u64 },
    #[error("{file} of the model {id} has {size} bytes, and may have at most {limit}")]
    TooLarge { id: HubId, file: String, size: u64, limit: u64 },
    #[error(
        "{id} is not in the cache at {} as a whole: {missing} is missing, and HF_HUB_OFFLINE forbids to download it",
        cache.display()
    )]
    Offline { id: HubId, cache: PathBuf, missing: String },
    #[error("writing {}; what has come so far stays, and running it again goes on from there", file.display())]
    Write { file: PathBuf, source: io::Error },
    #[error("reading {}", file.display())]
    Read { file: PathBuf, source: io::Error },
    #[error("{variable}: {problem}")]
    Setting { variable: String, problem: String },
}

/// What happens on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event<'a> {
    /// So many bytes are here, of so many of all files; this file is underway.
    Bytes { done: u64, total: u64, file: &'a str },
    /// Another run downloads this file, and is waited for.
    Waiting { file: &'a str },
    /// Something went wrong that may go right the next time.
    Again { problem: &'a str },
    /// The hub does not give the model, and what is in the cache is used.
    FromCache { problem: &'a str },
}

/// A model that is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// The checkpoint folder.
    pub(crate) folder: PathBuf,
    pub(crate) commit: String,
    /// The files of the model that are needed.
    pub(crate) files: Vec<String>,
    /// Bytes that came over the network.
    pub(crate) downloaded: u64,
}

/// The hub and the cache.
pub(crate) struct Hub {
    endpoint: String,
    cache: PathBuf,
    token: Option<Token>,
    /// Where a token may be, in words.
    token_file: String,
    offline: bool,
    agent: Agent,
    pause: Duration,
    /// [`LARGEST_UNSIZED`].
    largest_unsized: u64,
    /// Models of other kinds are not downloaded.
    model_types: Vec<&'static str>,
}

struct Token {
    /// `Bearer ...`; never written anywhere but into a request.
    header: ureq::http::HeaderValue,
    from: String,
}

/// What the hub says of a model.
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

/// What the hub says of a file.
struct FileInfo {
    name: String,
    commit: String,
    /// The blob's name.
    etag: String,
    size: Option<u64>,
}

/// Why a request failed.
enum Failed {
    /// The next one may not.
    ForNow(String),
    /// It will always.
    ForGood(HubError),
}

impl From<HubError> for Failed {
    fn from(error: HubError) -> Self {
        Self::ForGood(error)
    }
}

impl Hub {
    /// As the environment says: HF_ENDPOINT, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_TOKEN, HF_TOKEN_PATH,
    /// SSL_CERT_FILE, and the usual names of proxies.
    pub(crate) fn from_environment() -> Result<Self, HubError> {
        let named = |name| env::var_os(name).filter(|value| !value.is_empty());
        let home = env::home_dir();
        let in_home = |name, path| at_home(name, path, home.as_deref());
        let path = |name| named(name).map(|path| in_home(name, PathBuf::from(path))).transpose();
        let is_set = |name| {
            let value = named(name).unwrap_or_default().to_string_lossy().to_uppercase();
            ["1", "ON", "YES", "TRUE"].contains(&&*value)
        };
        let folder = match (path("HF_HOME")?, crate::demo::named_cache(home.as_deref())) {
            (Some(folder), _) => Ok(folder),
            (None, Some(cache)) => Ok(cache.join("huggingface")),
            (None, None) => in_home("HF_HOME", PathBuf::from("~/.cache/huggingface")),
        };
        let cache = match (path("HF_HUB_CACHE")?, path("HUGGINGFACE_HUB_CACHE")?) {
            (Some(cache), _) | (None, Some(cache)) => cache,
            (None, None) => {
                folder.as_ref().map(|folder| folder.join("hub")).map_err(|_| HubError::Setting {
                    variable: "HF_HOME".to_owned(),
                    problem: "models have no place to go to, since HOME is not set; name a folder in HF_HOME"
                        .to_owned(),
                })?
            }
        };
        let token_file = path("HF_TOKEN_PATH")?.or_else(|| Some(folder.ok()?.join("token")));
        let given = |name: &'static str| {
            let value = env::var(name).ok().filter(|value| !value.trim().is_empty())?;
            Some((value, name.to_owned()))
        };
        let found = match given("HF_TOKEN").or_else(|| given("HUGGING_FACE_HUB_TOKEN")) {
            None => token_file.as_deref().map(token_in).transpose()?.flatten(),
            given => given,
        };
        let token = match found.filter(|(token, _)| !token.trim().is_empty()) {
            None => None,
            Some((token, from)) => {
                let header = format!("Bearer {}", token.trim()).parse::<ureq::http::HeaderValue>();
                let problem = "the token has characters that no token has".to_owned();
                let header = header.map_err(|_| HubError::Setting { variable: from.clone(), problem })?;
                Some(Token { header, from })
            }
        };
        let endpoint = env::var("HF_ENDPOINT").ok().filter(|endpoint| !endpoint.is_empty());
        let endpoint = endpoint.unwrap_or_else(|| ENDPOINT.to_owned()).trim_end_matches('/').to_owned();
        let address = endpoint.parse::<Uri>().ok().filter(|address| address.host().is_some());
        if !address.is_some_and(|address| matches!(address.scheme_str(), Some("http" | "https"))) {
            let problem = format!("{} is no address of the web", shortened(&format!("{endpoint:?}")));
            return Err(HubError::Setting { variable: "HF_ENDPOINT".to_owned(), problem });
        }
        let certificates = path("SSL_CERT_FILE")?;
        Ok(Self {
            endpoint,
            cache,
            token,
            token_file: match token_file {
                Some(file) => file.display().to_string(),
                None => "the file that HF_TOKEN_PATH names".to_owned(),
            },
            offline: is_set("HF_HUB_OFFLINE") || is_set("TRANSFORMERS_OFFLINE"),
            agent: agent(certificates.as_deref())?,
            pause: PAUSE,
            largest_unsized: LARGEST_UNSIZED,
            model_types: mlx_models::known_model_types(),
        })
    }

    /// Sees to it that a model is in the cache.
    pub(crate) fn fetch(
        &self,
        id: &HubId,
        revision: &Revision,
        on: &mut dyn FnMut(Event<'_>),
    ) -> Result<Snapshot, HubError> {
        let model = ModelFolder::new(&self.cache, id);
        let here = model.find(revision);
        if self.offline {
            let missing = |missing| HubError::Offline { id: id.clone(), cache: self.cache.clone(), missing };
            return here.map(|found| found.snapshot).map_err(missing);
        }
        let here = match here {
            // A commit never changes.
            Ok(Found { snapshot, is_listed: true }) if revision.is_commit() => return Ok(snapshot),
            here => here.ok().map(|found| found.snapshot),
        };
        let info = match (self.model_info(id, revision, here.is_some(), on), here) {
            (Ok(info), _) => info,
            (Err(error), Some(here))
                if revision.is_commit() || matches!(error, HubError::Unreachable { .. }) =>
            {
                on(Event::FromCache { problem: &error.to_string() });
                return Ok(here);
            }
            (Err(error), _) => return Err(error),
        };
        let files = self.needed_files(id, revision, &info)?;
        if !revision.is_commit() {
            model.check_revision(revision)?;
        }
        model.remember_files(&info.sha, &files);
        let folder = model.snapshot(&info.sha);
        let is_missing = |file: &&String| !folder.join(file).is_file();
        let mut missing: Vec<&String> = files.iter().filter(is_missing).collect();
        let (mut downloaded, mut before, mut total) = (0, 0, 0_u64);
        let mut infos = Vec::with_capacity(missing.len());
        // First the config, which says whether the others are of any use.
        if let Some(place) = missing.iter().position(|file| *file == "config.json") {
            let config = self.file_info(id, &info.sha, missing.swap_remove(place), on)?;
            // Nobody needs a bar for it.
            let mut tell = |event: Event<'_>| {
                if !matches!(event, Event::Bytes { .. }) {
                    on(event)
                }
            };
            downloaded += self.fetch_file(&model, id, &config, &mut tell)?;
            before = model.length(&config);
            total = before;
            missing.sort();
            infos.push(config);
        }
        if !missing.is_empty() {
            self.check_architecture(id, &folder)?;
        }
        let come = infos.len();
        for file in missing {
            let file = self.file_info(id, &info.sha, file, on)?;
            total = total.saturating_add(file.size.unwrap_or_default());
            infos.push(file);
        }
        check_sizes(&infos)?;
        for file in &infos[come..] {
            let mut tell = |event: Event<'_>| match event {
                Event::Bytes { done, file, .. } => {
                    let done = before.saturating_add(done);
                    // Files whose lengths the hub does not say are not in the sum.
                    on(Event::Bytes { done, total: total.max(done), file })
                }
                other => on(other),
            };
            downloaded += self.fetch_file(&model, id, file, &mut tell)?;
            let length = model.length(file);
            before = before.saturating_add(length);
            if file.size.is_none() {
                total = total.saturating_add(length);
            }
        }
        if downloaded > 0 {
            model.remove_stale_parts();
        }
        // Last, so that an older snapshot is what a revision means until this one is whole.
        if !revision.is_commit() {
            model.set_revision(revision, &info.sha)?;
        }
        Ok(Snapshot { folder, commit: info.sha, files, downloaded })
    }

    /// Those of a model's files that are downloaded, if what the hub says of the model makes sense.
    fn needed_files(
        &self,
        id: &HubId,
        revision: &Revision,
        info: &ModelInfo,
    ) -> Result<Vec<String>, HubError> {
        let wrong = |problem: String| HubError::Answer { what: format!("the model {id}"), problem };
        let quoted = |text: &str| shortened(&format!("{text:?}"));
        if !is_commit(&info.sha) {
            return Err(wrong(format!("{} is no commit", quoted(&info.sha))));
        }
        if revision.is_commit() && info.sha != revision.as_str() {
            return Err(wrong(format!("it is the commit {}, and another one was asked for", info.sha)));
        }
        let names = info.siblings.iter().map(|file| &file.rfilename).filter(|file| is_needed(file));
        let files: BTreeSet<&String> = names.collect();
        if let Some(file) = files.iter().find(|file| !is_inside(file)) {
            return Err(wrong(format!("a file named {}", quoted(file))));
        }
        if files.len() > MOST_FILES {
            return Err(wrong(format!("it has {} files, and a model may have {MOST_FILES}", files.len())));
        }
        for (missing, is_there) in [
            ("config.json", files.iter().any(|file| *file == "config.json")),
            ("model*.safetensors", files.iter().any(|file| file.ends_with(".safetensors"))),
        ] {
            if !is_there {
                return Err(HubError::NoCheckpoint {
                    id: id.clone(),
                    missing,
                    instead: instead(&info.siblings),
                });
            }
        }
        Ok(files.into_iter().cloned().collect())
    }

    /// Whether the model with this config can be loaded at all.
    fn check_architecture(&self, id: &HubId, folder: &Path) -> Result<(), HubError> {
        let file = folder.join("config.json");
        let text =
            mlx_files::read(&file, LARGEST_CONFIG).map_err(|source| HubError::Read { file, source })?;
        let wrong =
            |problem: String| HubError::Answer { what: format!("config.json of the model {id}"), problem };
        let config: serde_json::Value = serde_json::from_slice(&text).map_err(|e| wrong(e.to_string()))?;
        let found = config.get("model_type").and_then(serde_json::Value::as_str);
        let found = found.ok_or_else(|| wrong("it has no model_type".to_owned()))?;
        if self.model_types.contains(&found) {
            return Ok(());
        }
        Err(HubError::Unsupported {
            id: id.clone(),
            found: shortened(found),
            known: self.model_types.clone(),
        })
    }

    /// The commit and the files of a revision. `once` where something else serves if the hub cannot be reached.
    fn model_info(
        &self,
        id: &HubId,
        revision: &Revision,
        once: bool,
        on: &mut dyn FnMut(Event<'_>),
    ) -> Result<ModelInfo, HubError> {
        let url = format!("{}/api/models/{id}/revision/{}", self.endpoint, escaped(revision.as_str(), false));
        let what = format!("the model {id}");
        self.attempt(if once { 1 } else { ATTEMPTS }, on, || {
            let answer = self.ask(Method::GET, &url, 0, Some(LISTING_TIME))?;
            self.check(&answer, id, revision.as_str(), None)?;
            let mut text = Vec::new();
            let mut body = answer.into_body().into_reader().take(LARGEST_LISTING + 1);
            body.read_to_end(&mut text).map_err(|e| Failed::ForNow(e.to_string()))?;
            let wrong = |problem: String| HubError::Answer { what: what.clone(), problem };
            if text.len() as u64 > LARGEST_LISTING {
                return Err(wrong(format!("it has more than {LARGEST_LISTING} bytes")).into());
            }
            let info: ModelInfo =
                serde_json::from_slice(&text).map_err(|e| wrong(shortened(&e.to_string())))?;
            Ok(ModelInfo { sha: info.sha.to_ascii_lowercase(), ..info })
        })
    }

    /// The name and size of a file's blob.
    fn file_info(
        &self,
        id: &HubId,
        commit: &str,
        file: &str,
        on: &mut dyn FnMut(Event<'_>),
    ) -> Result<FileInfo, HubError> {
        let what = format!("{file} of the model {id}");
        let url = self.url(id, commit, file);
        self.attempt(ATTEMPTS, on, || {
            let answer = self.ask(Method::HEAD, &url, 0, None)?;
            self.check(&answer, id, commit, Some(file))?;
            let headers = answer.headers();
            let etag = text(headers, LINKED_ETAG).or_else(|| text(headers, "etag")).unwrap_or_default();
            let mut etag = etag.trim_start_matches("W/").trim_matches('"').to_owned();
            if matches!(etag.len(), 40 | 64) && etag.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                etag.make_ascii_lowercase(); // a hash
            }
            let is_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            if etag.is_empty() || etag.len() > LONGEST_ETAG || !etag.chars().all(is_name) {
                let problem = format!("its ETag is {}", shortened(&format!("{etag:?}")));
                return Err(HubError::Answer { what: what.clone(), problem }.into());
            }
            let redirected = answer.status().is_redirection();
            let size = text(headers, "x-linked-size")
                .or_else(|| text(headers, "content-length").filter(|_| !redirected));
            let no_size = |size: &str| HubError::Answer {
                what: what.clone(),
                problem: format!("its size is {}", shortened(&format!("{size:?}"))),
            };
            let size: Option<u64> =
                size.map(|size| size.trim().parse().map_err(|_| no_size(size))).transpose()?;
            let limit = largest(file);
            if let Some(size) = size.filter(|&size| size > limit) {
                return Err(HubError::TooLarge { id: id.clone(), file: file.to_owned(), size, limit }.into());
            }
            Ok(FileInfo { name: file.to_owned(), commit: commit.to_owned(), etag, size })
        })
    }

    /// Puts a file into the cache, unless it is there. Answers how many bytes came.
    fn fetch_file(
        &self,
        model: &ModelFolder,
        id: &HubId,
        file: &FileInfo,
        on: &mut dyn FnMut(Event<'_>),
    ) -> Result<u64, HubError> {
        let blob = model.blob(file);
        let partial = model.blobs().join(format!("{}.incomplete", file.etag));
        // One of another length is damaged, and comes again.
        let is_whole = || {
            let about = fs::metadata(&blob).ok().filter(fs::Metadata::is_file);
            about.is_some_and(|about| file.size.is_none_or(|size| about.len() == size))
        };
        let mut downloaded = 0;
        if is_whole() {
            // Another program may have brought it, and nobody goes on with a part then.
            if mlx_files::open(&partial).is_ok_and(|part| part.try_lock().is_ok()) {
                let _ = fs::remove_file(&partial);
            }
        } else {
            let failed = |source| HubError::Write { file: partial.clone(), source };
            fs::create_dir_all(model.blobs()).map_err(failed)?;
            let open = || open_part(&partial).map_err(failed);
            let mut out = open()?;
            while let Err(TryLockError::WouldBlock) = out.try_lock() {
                on(Event::Waiting { file: &file.name });
                out.lock().map_err(failed)?;
                if is_whole() {
                    break;
                }
                // The other run may have removed what it had.
                out = open()?;
            }
            if !is_whole() {
                downloaded = self.fetch_blob(id, file, &partial, &mut out, on)?;
                fs::rename(&partial, &blob).map_err(failed)?;
            }
        }
        model.link(&blob, &model.snapshot(&file.commit).join(&file.name))?;
        Ok(downloaded)
    }

    /// Downloads what is missing of a blob, and checks all of it.
    fn fetch_blob(
        &self,
        id: &HubId,
        file: &FileInfo,
        partial: &Path,
        out: &mut File,
        on: &mut dyn FnMut(Event<'_>),
    ) -> Result<u64, HubError> {
        let url = self.url(id, &file.commit, &file.name);
        let write = |source| HubError::Write { file: partial.to_path_buf(), source };
        let read = |source| HubError::Read { file: partial.to_path_buf(), source };
        let (mut failures, mut restarts, mut downloaded) = (0, 0, 0);
        let mut hash = Sha256::new();
        let mut done = 0;
        let held = out.metadata().map_err(read)?.len();
        let mut buffer = vec![0; CHUNK];
        let mut beginning = Read::by_ref(out).take(held);
        loop {
            match beginning.read(&mut buffer).map_err(read)? {
                0 => break,
                length => {
                    hash.update(&buffer[..length]);
                    done += length as u64;
                }
            }
        }
        if file.size.is_some_and(|size| done > size) {
            done = 0;
        }
        loop {
            if done == 0 {
                if out.metadata().map_err(read)?.len() > 0 {
                    out.set_len(0).map_err(write)?;
                }
                out.seek(SeekFrom::Start(0)).map_err(write)?;
                hash = Sha256::new();
            }
            on(Event::Bytes { done, total: file.size.unwrap_or_default(), file: &file.name });
            if file.size == Some(done) {
                break;
            }
            let before = done;
            let mut arrived = |bytes: &[u8]| {
                hash.update(bytes);
                done += bytes.len() as u64;
                downloaded += bytes.len() as u64;
                on(Event::Bytes { done, total: file.size.unwrap_or_default(), file: &file.name });
            };
            let problem = match self.receive(id, file, &url, before, out, partial, &mut arrived) {
                Ok(Received::All) if file.size.is_none_or(|size| done >= size) => break,
                Ok(Received::All) => format!("it ended early, at {done} bytes"),
                Ok(Received::TooMuch) => {
                    fs::remove_file(partial).map_err(write)?;
                    let name = file.name.clone();
                    return Err(match file.size {
                        Some(expected) => HubError::TooLong { file: name, expected },
                        None => HubError::Endless { file: name, limit: done },
                    });
                }
                Ok(Received::FromTheBeginning) => {
                    done = 0;
                    restarts += 1;
                    "it does not go on from the middle".to_owned()
                }
                Err(Failed::ForGood(error)) => return Err(error),
                Err(Failed::ForNow(problem)) => problem,
            };
            // Else a server could keep the program forever, with a byte for each connection or the same bytes again.
            failures = if restarts == 0 && done >= before + pace::LEAST { 1 } else { failures + 1 };
            if failures >= ATTEMPTS {
                let (file, total) = (file.name.clone(), file.size);
                return Err(HubError::Broken { file, done, total, attempts: ATTEMPTS, problem });
            }
            on(Event::Again { problem: &format!("{}: {problem}", file.name) });
            thread::sleep(self.pause * (1 << (failures - 1)));
        }
        let remove = || fs::remove_file(partial).map_err(write);
        if let Some(expected) = file.size.filter(|&size| size != done) {
            remove()?;
            return Err(HubError::Size { file: file.name.clone(), expected, found: done });
        }
        let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        // Small files have the name of a Git object, which is another hash.
        if file.etag.len() == found.len() && file.etag != found {
            remove()?;
            return Err(HubError::Hash { file: file.name.clone(), expected: file.etag.clone(), found });
        }
        out.sync_all().map_err(write)?;
        Ok(downloaded)
    }

    /// One request for what comes after `done` bytes, as far as it gets.
    #[expect(clippy::too_many_arguments, reason = "one step of the function above, which has all of these")]
    fn receive(
        &self,
        id: &HubId,
        file: &FileInfo,
        url: &str,
        done: u64,
        out: &mut File,
        partial: &Path,
        arrived: &mut dyn FnMut(&[u8]),
    ) -> Result<Received, Failed> {
        let answer = self.ask(Method::GET, url, done, None)?;
        if done > 0 && (answer.status() == 416 || answer.status() == 200) {
            return Ok(Received::FromTheBeginning);
        }
        self.check(&answer, id, &file.commit, Some(&file.name))?;
        let from = text(answer.headers(), "content-range");
        if done > 0 && from.is_some_and(|from| !from.starts_with(&format!("bytes {done}-"))) {
            return Ok(Received::FromTheBeginning);
        }
        let most = file.size.unwrap_or_else(|| largest(&file.name).min(self.largest_unsized));
        let left = most.saturating_sub(done);
        let mut body = answer.into_body().into_reader();
        match pour(&mut body, out, left, arrived) {
            Ok(received) => Ok(received),
            Err(Poured::Reading(e)) => Err(Failed::ForNow(e.to_string())),
            Err(Poured::Writing(source)) => {
                Err(HubError::Write { file: partial.to_path_buf(), source }.into())
            }
        }
    }

    fn url(&self, id: &HubId, commit: &str, file: &str) -> String {
        format!("{}/{id}/resolve/{commit}/{}", self.endpoint, escaped(file, true))
    }

    /// An answer to a request, for what comes after `from` bytes. The token goes to the hub and nowhere else, whatever
    /// the hub redirects to.
    ///
    /// Of a file whose contents are elsewhere, the hub's own answer is what says its name and size.
    /// All of it comes `within` this time, if one is given.
    fn ask(
        &self,
        method: Method,
        url: &str,
        from: u64,
        within: Option<Duration>,
    ) -> Result<Response<Body>, Failed> {
        let for_now = |problem: String| Failed::ForNow(shortened(&problem));
        let wrong = |problem: String| HubError::Answer { what: url.to_owned(), problem };
        let mut url = url.to_owned();
        for _ in 0..=REDIRECTS {
            let mut request =
                Request::builder().method(&method).uri(&url).header("Accept-Encoding", "identity");
            if from > 0 {
                request = request.header("Range", format!("bytes={from}-"));
            }
            if let Some(token) = self.token.as_ref().filter(|_| origin(&url) == origin(&self.endpoint)) {
                request = request.header("Authorization", token.header.clone());
            }
            let request = request.body(()).map_err(|e| wrong(e.to_string()))?;
            let request = self.agent.configure_request(request).timeout_global(within).build();
            let answer = self.agent.run(request).map_err(|e| for_now(e.to_string()))?;
            let known = method == Method::HEAD && answer.headers().contains_key(LINKED_ETAG);
            let place =
                text(answer.headers(), "location").filter(|_| answer.status().is_redirection() && !known);
            let Some(place) = place else { return Ok(answer) };
            url = redirected(&url, place).map_err(wrong)?;
        }
        Err(for_now("redirects without end".to_owned()))
    }

    /// Does it until it works, or fails for good or too often.
    fn attempt<T>(
        &self,
        attempts: u32,
        on: &mut dyn FnMut(Event<'_>),
        mut request: impl FnMut() -> Result<T, Failed>,
    ) -> Result<T, HubError> {
        let mut failures = 0;
        loop {
            let problem = match request() {
                Ok(done) => return Ok(done),
                Err(Failed::ForGood(error)) => return Err(error),
                Err(Failed::ForNow(problem)) => problem,
            };
            failures += 1;
            if failures >= attempts {
                return Err(HubError::Unreachable { endpoint: self.endpoint.clone(), problem });
            }
            on(Event::Again { problem: &problem });
            thread::sleep(self.pause * (1 << (failures - 1)));
        }
    }

    /// What an answer's status means.
    fn check(
        &self,
        answer: &Response<Body>,
        id: &HubId,
        revision: &str,
        file: Option<&str>,
    ) -> Result<(), Failed> {
        let status = answer.status();
        if status.is_success() || status.is_redirection() {
            return Ok(());
        }
        let headers = answer.headers();
        let code = text(headers, "x-error-code").unwrap_or_default();
        let message = text(headers, "x-error-message");
        let (id, token_file) = (id.clone(), self.token_file.clone());
        let error = match (status.as_u16(), code) {
            (429 | 500..=599, _) => {
                return Err(Failed::ForNow(format!("the hub answers with status {status}")));
            }
            (401 | 403, "GatedRepo") => HubError::Gated { id, endpoint: self.endpoint.clone(), token_file },
            (404, "RevisionNotFound") => HubError::NoRevision { id, revision: revision.to_owned() },
            (404, "EntryNotFound") => {
                HubError::NoFile { id, file: file.unwrap_or("of this name").to_owned() }
            }
            (401 | 404, "RepoNotFound") | (404, _) => HubError::NoModel { id, token_file },
            (401 | 403, _) => match &self.token {
                Some(token) => {
                    HubError::Token { source_of_token: token.from.clone(), status: status.as_u16() }
                }
                None => HubError::NoModel { id, token_file },
            },
            (status, _) => {
                let message = message.map(|message| format!(": {}", shortened(message))).unwrap_or_default();
                HubError::Status { what: format!("the model {id}"), status, message }
            }
        };
        Err(error.into())
    }
}

/// How a request for the rest of a file ended.
#[derive(Debug, PartialEq, Eq)]
enum Received {
    /// At its end.
    All,
    /// The rest alone is not to be had.
    FromTheBeginning,
    /// It goes on where it should end.
    TooMuch,
}

/// Why bytes stopped.
#[derive(Debug)]
enum Poured {
    Reading(io::Error),
    Writing(io::Error),
}

/// Copies everything that comes, up to `most` bytes, and tells of each piece that is written.
fn pour(
    from: &mut dyn Read,
    to: &mut dyn Write,
    most: u64,
    arrived: &mut dyn FnMut(&[u8]),
) -> Result<Received, Poured> {
    let mut buffer = vec![0; CHUNK];
    let (mut pace, started, mut left) = (Pace::default(), Instant::now(), most);
    loop {
        let length = match from.read(&mut buffer) {
            Ok(0) => return Ok(Received::All),
            Ok(length) => length,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => return Err(Poured::Reading(e)),
        };
        let wanted = length.min(usize::try_from(left).unwrap_or(usize::MAX));
        to.write_all(&buffer[..wanted]).map_err(Poured::Writing)?;
        arrived(&buffer[..wanted]);
        left -= wanted as u64;
        if wanted < length {
            return Ok(Received::TooMuch);
        }
        if !pace.is_fast_enough(length, started.elapsed()) {
            let problem = format!("fewer than {} bytes came in a minute", pace::LEAST);
            return Err(Poured::Reading(io::Error::new(ErrorKind::TimedOut, problem)));
        }
    }
}

/// Opens the part of a file that is here, or an empty one. What is there instead of a regular file is removed: nobody
/// writes through a link to another place.
fn open_part(partial: &Path) -> io::Result<File> {
    if fs::symlink_metadata(partial).is_ok_and(|about| !about.is_file()) {
        fs::remove_file(partial)?;
    }
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, nix::libc::O_NOFOLLOW);
    options.read(true).write(true).create(true).truncate(false).open(partial)
}

/// Files of one name in the cache have the same contents, so that they have one size.
fn check_sizes(files: &[FileInfo]) -> Result<(), HubError> {
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

/// What a model without a checkpoint has in place of it.
fn instead(files: &[Sibling]) -> &'static str {
    let has = |is_it: fn(&str) -> bool| files.iter().any(|file| is_it(&file.rfilename));
    if has(|file| file == "adapter_config.json") {
        "it holds adapters: name its base model in --model, and a folder with these files in --adapters"
    } else if has(|file| file.ends_with(".gguf")) {
        "it has only GGUF files, which are not read"
    } else if has(|file| file.ends_with(".bin") || file.ends_with(".pth") || file.ends_with(".pt")) {
        "its weights are files of PyTorch, which are not read"
    } else {
        "files of other formats are not read"
    }
}

/// How many bytes a file may have.
fn largest(file: &str) -> u64 {
    // A tokenizer is the largest of the others.
    if file.ends_with(".safetensors") { u64::MAX } else { LARGEST_TOKENIZER }
}

/// The token in a file, where there is one, with the file's name.
fn token_in(file: &Path) -> Result<Option<(String, String)>, HubError> {
    match mlx_files::read_to_string(file, LARGEST_TOKEN) {
        Ok(token) => Ok(Some((token, file.display().to_string()))),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(source) => Err(HubError::Read { file: file.to_path_buf(), source }),
    }
}

/// What makes requests; `certificates` is a file of those to trust, in place of the usual ones.
fn agent(certificates: Option<&Path>) -> Result<Agent, HubError> {
    let mut tls = TlsConfig::builder();
    if let Some(file) = certificates {
        let wrong = |problem: String| HubError::Setting { variable: "SSL_CERT_FILE".to_owned(), problem };
        let pem =
            mlx_files::read(file, LARGEST_CONFIG).map_err(|e| wrong(format!("{}: {e}", file.display())))?;
        let mut trusted = Vec::new();
        for item in parse_pem(&pem) {
            if let PemItem::Certificate(certificate) = item.map_err(|e| wrong(e.to_string()))? {
                trusted.push(certificate);
            }
        }
        tls = tls.root_certs(RootCerts::Specific(Arc::new(trusted)));
    }
    let config = Agent::config_builder()
        .tls_config(tls.build())
        .http_status_as_error(false)
        .user_agent(concat!("mlx-models/", env!("CARGO_PKG_VERSION")))
        .max_redirects(0)
        .max_redirects_will_error(false)
        .timeout_connect(Some(SILENCE))
        .timeout_recv_response(Some(SILENCE))
        .timeout_per_read(Some(SILENCE));
    Ok(config.build().into())
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The path that a variable names, in which `~` is the home folder.
fn at_home(variable: &str, path: PathBuf, home: Option<&Path>) -> Result<PathBuf, HubError> {
    let Ok(rest) = path.strip_prefix("~") else {
        if path.to_string_lossy().starts_with('~') {
            let problem = format!("{} begins with ~; write the home folder out", path.display());
            return Err(HubError::Setting { variable: variable.to_owned(), problem });
        }
        return Ok(path);
    };
    // An empty one is none.
    let home = home.filter(|home| !home.as_os_str().is_empty());
    let problem = || format!("{} is in the home folder, and HOME is not set", path.display());
    home.map(|home| home.join(rest))
        .ok_or_else(|| HubError::Setting { variable: variable.to_owned(), problem: problem() })
}

#[cfg(test)]
#[path = "hub/tests.rs"]
mod tests;
