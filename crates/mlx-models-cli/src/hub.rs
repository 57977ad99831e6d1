//! Checkpoints from the hub, in the cache that its own Python library has.
//!
//! A model is a folder `models--OWNER--NAME` of the cache. `blobs` has the files' contents, each under the name that the
//! hub gives it (for large files their SHA-256); `snapshots/COMMIT` has a link to a blob for every file, and is the
//! checkpoint folder; `refs/REVISION` has the commit that a branch or tag last stood for. What either program has
//! downloaded, the other finds. A blob that is not whole yet has the ending `.incomplete`, and is gone on with.

use std::env;
use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use serde::Deserialize;
use sha2::{Digest, Sha256};
use ureq::http::{HeaderMap, Method, Request, Response};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

/// Where the hub is, unless HF_ENDPOINT says otherwise.
const ENDPOINT: &str = "https://huggingface.co";

/// What is asked for where no revision is named.
pub(crate) const MAIN: &str = "main";

/// How often a request is made that fails without having brought anything.
const ATTEMPTS: u32 = 5;

/// The wait before the second attempt; each further one is twice as long.
const PAUSE: Duration = Duration::from_secs(1);

/// How long a connection may be silent.
const SILENCE: Duration = Duration::from_secs(30);

/// Bytes that are read at once.
const CHUNK: usize = 1 << 20;

/// Redirects that are followed, one after the other.
const REDIRECTS: usize = 5;

/// The name of a blob whose contents are elsewhere.
const LINKED_ETAG: &str = "x-linked-etag";

/// A model on the hub: `OWNER/NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HubId(String);

impl FromStr for HubId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // The hub's own rule.
        let part_is_fine = |part: &str| {
            !part.is_empty()
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
                && !part.starts_with(['-', '.'])
                && !part.ends_with(['-', '.'])
                && !part.contains("--")
                && !part.contains("..")
        };
        match text.split_once('/') {
            Some((owner, name)) if part_is_fine(owner) && part_is_fine(name) && text.len() <= 96 => {
                Ok(Self(text.to_owned()))
            }
            _ => Err(format!("{text:?} is not a hub id, which has the form owner/name")),
        }
    }
}

impl fmt::Display for HubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a model could not be had from the hub.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HubError {
    #[error(
        "the hub has no model {id}, or only for some; for a private one a token is needed, in HF_TOKEN or in {}",
        token_file.display()
    )]
    NoModel { id: HubId, token_file: PathBuf },
    #[error("the model {id} has no revision {revision:?}")]
    NoRevision { id: HubId, revision: String },
    #[error("the model {id} has no file {file} any more")]
    NoFile { id: HubId, file: String },
    #[error(
        "the model {id} is only for those who have accepted its conditions: do that on its page, {endpoint}/{id}, and \
         give a token of yours in HF_TOKEN or in {}",
        token_file.display()
    )]
    Gated { id: HubId, endpoint: String, token_file: PathBuf },
    #[error("the hub does not accept the token from {source_of_token} ({status})")]
    Token { source_of_token: String, status: u16 },
    #[error("the model {id} has no {missing}, which a checkpoint needs; files of other formats are not read")]
    NoCheckpoint { id: HubId, missing: &'static str },
    #[error("the hub at {endpoint} cannot be reached: {problem}")]
    Unreachable { endpoint: String, problem: String },
    #[error("{what}: the hub answers with status {status}{message}")]
    Status { what: String, status: u16, message: String },
    #[error("{what}: the hub's answer makes no sense: {problem}")]
    Answer { what: String, problem: String },
    #[error(
        "the connection broke off at {done} of {total} bytes of {file}, and again after {attempts} attempts: {problem}; \
         run it again to go on from there"
    )]
    Broken { file: String, done: u64, total: u64, attempts: u32, problem: String },
    #[error(
        "{file} came with other contents than the hub says: SHA-256 {found} in place of {expected}; it was removed, so \
         run it again"
    )]
    Hash { file: String, expected: String, found: String },
    #[error("{file} came with {found} bytes in place of {expected}; it was removed, so run it again")]
    Size { file: String, expected: u64, found: u64 },
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
    /// The hub cannot be reached, and what is in the cache is used.
    Unreachable { problem: &'a str },
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
    token_file: PathBuf,
    offline: bool,
    agent: Agent,
    pause: Duration,
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
        let path = |name| named(name).map(|path| at_home(PathBuf::from(path)));
        let is_set = |name| {
            let value = named(name).unwrap_or_default().to_string_lossy().to_uppercase();
            ["1", "ON", "YES", "TRUE"].contains(&&*value)
        };
        let home = path("HF_HOME").unwrap_or_else(|| {
            let cache = path("XDG_CACHE_HOME").unwrap_or_else(|| at_home(PathBuf::from("~/.cache")));
            cache.join("huggingface")
        });
        let cache = path("HF_HUB_CACHE")
            .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
            .unwrap_or_else(|| home.join("hub"));
        let token_file = path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
        let given = |name: &'static str| {
            let value = env::var(name).ok().filter(|value| !value.trim().is_empty())?;
            Some((value, name.to_owned()))
        };
        let in_file = || Some((fs::read_to_string(&token_file).ok()?, token_file.display().to_string()));
        let found = given("HF_TOKEN").or_else(|| given("HUGGING_FACE_HUB_TOKEN")).or_else(in_file);
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
        let certificates = path("SSL_CERT_FILE");
        Ok(Self {
            endpoint,
            cache,
            token,
            token_file,
            offline: is_set("HF_HUB_OFFLINE") || is_set("TRANSFORMERS_OFFLINE"),
            agent: agent(certificates.as_deref())?,
            pause: PAUSE,
        })
    }

    /// Sees to it that a model is in the cache.
    pub(crate) fn fetch(
        &self,
        id: &HubId,
        revision: &str,
        on: &mut dyn FnMut(Event<'_>),
    ) -> Result<Snapshot, HubError> {
        let here = self.in_cache(id, revision);
        if self.offline {
            return here.map_err(|missing| HubError::Offline {
                id: id.clone(),
                cache: self.cache.clone(),
                missing,
            });
        }
        // A commit never changes.
        if is_commit(revision)
            && let Ok(here) = here
        {
            return Ok(here);
        }
        let info = match self.model_info(id, revision, here.is_ok(), on) {
            Ok(info) => info,
            Err(HubError::Unreachable { problem, .. }) if here.is_ok() => {
                on(Event::Unreachable { problem: &problem });
                return here.map_err(|missing| HubError::Offline {
                    id: id.clone(),
                    cache: self.cache.clone(),
                    missing,
                });
            }
            Err(e) => return Err(e),
        };
        let what = || format!("the model {id}");
        if !is_commit(&info.sha) {
            return Err(HubError::Answer { what: what(), problem: format!("{:?} is no commit", info.sha) });
        }
        let files: Vec<String> =
            info.siblings.into_iter().map(|file| file.rfilename).filter(|file| is_needed(file)).collect();
        if let Some(file) = files.iter().find(|file| !is_inside(file)) {
            return Err(HubError::Answer { what: what(), problem: format!("a file named {file:?}") });
        }
        for (missing, is_there) in [
            ("config.json", files.iter().any(|file| file == "config.json")),
            ("model*.safetensors", files.iter().any(|file| file.ends_with(".safetensors"))),
        ] {
            if !is_there {
                return Err(HubError::NoCheckpoint { id: id.clone(), missing });
            }
        }

        let model = self.folder(id);
        let folder = model.join("snapshots").join(&info.sha);
        let mut downloaded = 0;
        let missing: Vec<&String> = files.iter().filter(|file| !folder.join(file).is_file()).collect();
        let mut infos = Vec::with_capacity(missing.len());
        for file in missing {
            infos.push(self.file_info(id, &info.sha, file, on)?);
        }
        let total = infos.iter().filter_map(|file| file.size).sum();
        let mut before = 0;
        for file in &infos {
            let mut tell = |event: Event<'_>| match event {
                Event::Bytes { done, file, .. } => on(Event::Bytes { done: before + done, total, file }),
                other => on(other),
            };
            downloaded += self.fetch_file(id, &info.sha, file, &mut tell)?;
            before += file.size.unwrap_or_default();
        }
        // Last, so that an older snapshot is what a revision means until this one is whole.
        if !is_commit(revision) {
            let file = model.join("refs").join(revision);
            write_whole(&file, &info.sha).map_err(|source| HubError::Write { file, source })?;
        }
        Ok(Snapshot { folder, commit: info.sha, files, downloaded })
    }

    /// Where the cache has a model.
    fn folder(&self, id: &HubId) -> PathBuf {
        self.cache.join(format!("models--{}", id.0.replace('/', "--")))
    }

    /// A model that is in the cache as a whole, or else what is missing.
    fn in_cache(&self, id: &HubId, revision: &str) -> Result<Snapshot, String> {
        let model = self.folder(id);
        let commit = if is_commit(revision) {
            revision.to_owned()
        } else if is_inside(revision) {
            let known = fs::read_to_string(model.join("refs").join(revision));
            known.map_err(|_| format!("the revision {revision}"))?.trim().to_owned()
        } else {
            return Err(format!("the revision {revision}"));
        };
        let folder = model.join("snapshots").join(&commit);
        if !is_commit(&commit) || !folder.join("config.json").is_file() {
            return Err("config.json".to_owned());
        }
        let index = fs::read_to_string(folder.join("model.safetensors.index.json")).unwrap_or_default();
        let index: serde_json::Value = serde_json::from_str(&index).unwrap_or_default();
        let shards = index.get("weight_map").and_then(serde_json::Value::as_object).into_iter().flatten();
        let shards: std::collections::BTreeSet<&str> =
            shards.filter_map(|(_, shard)| shard.as_str()).collect();
        let single = "model.safetensors";
        if !folder.join(single).is_file() {
            if let Some(missing) = shards.iter().find(|shard| !folder.join(shard).is_file()) {
                return Err((*missing).to_owned());
            }
            let names = fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
            if shards.is_empty()
                && !names.into_iter().any(|name| name.to_string_lossy().ends_with(".safetensors"))
            {
                return Err(single.to_owned());
            }
        }
        // Of a download that was broken off, the files that no index names.
        let names = fs::read_dir(&folder).into_iter().flatten().flatten();
        let files =
            names.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| is_needed(name));
        let mut files: Vec<String> = files.collect();
        files.sort();
        Ok(Snapshot { folder, commit, files, downloaded: 0 })
    }

    /// The commit and the files of a revision. `once` where something else serves if the hub cannot be reached.
    fn model_info(
        &self,
        id: &HubId,
        revision: &str,
        once: bool,
        on: &mut dyn FnMut(Event<'_>),
    ) -> Result<ModelInfo, HubError> {
        let url = format!("{}/api/models/{id}/revision/{}", self.endpoint, escaped(revision, false));
        let what = format!("the model {id}");
        self.attempt(if once { 1 } else { ATTEMPTS }, on, || {
            let answer = self.ask(Method::GET, &url, 0)?;
            self.check(&answer, id, revision, None)?;
            let text = answer.into_body().read_to_string().map_err(|e| Failed::ForNow(e.to_string()))?;
            let info = serde_json::from_str(&text);
            info.map_err(|e| HubError::Answer { what: what.clone(), problem: e.to_string() }.into())
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
            let answer = self.ask(Method::HEAD, &url, 0)?;
            self.check(&answer, id, commit, Some(file))?;
            let headers = answer.headers();
            let etag = text(headers, LINKED_ETAG).or_else(|| text(headers, "etag")).unwrap_or_default();
            let etag = etag.trim_start_matches("W/").trim_matches('"').to_owned();
            let is_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            if etag.is_empty() || !etag.chars().all(is_name) {
                let problem = format!("its ETag is {etag:?}");
                return Err(HubError::Answer { what: what.clone(), problem }.into());
            }
            let redirected = answer.status().is_redirection();
            let size = text(headers, "x-linked-size")
                .or_else(|| text(headers, "content-length").filter(|_| !redirected))
                .and_then(|size| size.parse().ok());
            Ok(FileInfo { name: file.to_owned(), etag, size })
        })
    }

    /// Puts a file into the cache, unless it is there. Answers how many bytes came.
    fn fetch_file(
        &self,
        id: &HubId,
        commit: &str,
        file: &FileInfo,
        on: &mut dyn FnMut(Event<'_>),
    ) -> Result<u64, HubError> {
        let model = self.folder(id);
        let blob = model.join("blobs").join(&file.etag);
        let partial = model.join("blobs").join(format!("{}.incomplete", file.etag));
        let mut downloaded = 0;
        if !blob.is_file() {
            let failed = |source| HubError::Write { file: partial.clone(), source };
            fs::create_dir_all(model.join("blobs")).map_err(failed)?;
            let open = || {
                let mut options = OpenOptions::new();
                options.read(true).write(true).create(true).truncate(false).open(&partial).map_err(failed)
            };
            let mut out = open()?;
            while let Err(TryLockError::WouldBlock) = out.try_lock() {
                on(Event::Waiting { file: &file.name });
                out.lock().map_err(failed)?;
                if blob.is_file() {
                    break;
                }
                // The other run may have removed what it had.
                out = open()?;
            }
            if !blob.is_file() {
                downloaded = self.fetch_blob(id, commit, file, &partial, &mut out, on)?;
                fs::rename(&partial, &blob).map_err(failed)?;
            }
        }
        let pointer = model.join("snapshots").join(commit).join(&file.name);
        link(&model, &blob, &pointer).map_err(|source| HubError::Write { file: pointer, source })?;
        Ok(downloaded)
    }

    /// Downloads what is missing of a blob, and checks all of it.
    fn fetch_blob(
        &self,
        id: &HubId,
        commit: &str,
        file: &FileInfo,
        partial: &Path,
        out: &mut File,
        on: &mut dyn FnMut(Event<'_>),
    ) -> Result<u64, HubError> {
        let url = self.url(id, commit, &file.name);
        let write = |source| HubError::Write { file: partial.to_path_buf(), source };
        let read = |source| HubError::Read { file: partial.to_path_buf(), source };
        let (mut failures, mut downloaded) = (0, 0);
        let mut hash = Sha256::new();
        let mut done = 0;
        let held = out.metadata().map_err(read)?.len();
        let seen = pour(&mut Read::by_ref(out).take(held), &mut io::sink(), &mut |bytes| {
            hash.update(bytes);
            done += bytes.len() as u64;
        });
        seen.map_err(|(Poured::Reading(e) | Poured::Writing(e))| read(e))?;
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
            let problem = match self.receive(id, commit, file, &url, before, out, partial, &mut arrived) {
                Ok(Received::All) if file.size.is_none_or(|size| done >= size) => break,
                Ok(Received::All) => format!("it ended early, at {done} bytes"),
                Ok(Received::FromTheBeginning) => {
                    done = 0;
                    "it does not go on from the middle".to_owned()
                }
                Err(Failed::ForGood(error)) => return Err(error),
                Err(Failed::ForNow(problem)) => problem,
            };
            failures = if done > before { 1 } else { failures + 1 };
            if failures >= ATTEMPTS {
                let (file, total) = (file.name.clone(), file.size.unwrap_or_default());
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
        commit: &str,
        file: &FileInfo,
        url: &str,
        done: u64,
        out: &mut File,
        partial: &Path,
        arrived: &mut dyn FnMut(&[u8]),
    ) -> Result<Received, Failed> {
        let answer = self.ask(Method::GET, url, done)?;
        if done > 0 && (answer.status() == 416 || answer.status() == 200) {
            return Ok(Received::FromTheBeginning);
        }
        self.check(&answer, id, commit, Some(&file.name))?;
        let from = text(answer.headers(), "content-range");
        if done > 0 && from.is_some_and(|from| !from.starts_with(&format!("bytes {done}-"))) {
            return Ok(Received::FromTheBeginning);
        }
        let mut body = answer.into_body().into_reader();
        pour(&mut body, out, arrived).map_err(|failed| match failed {
            Poured::Reading(e) => Failed::ForNow(e.to_string()),
            Poured::Writing(source) => HubError::Write { file: partial.to_path_buf(), source }.into(),
        })?;
        Ok(Received::All)
    }

    fn url(&self, id: &HubId, commit: &str, file: &str) -> String {
        format!("{}/{id}/resolve/{commit}/{}", self.endpoint, escaped(file, true))
    }

    /// An answer to a request, for what comes after `from` bytes. The token goes to the hub and nowhere else, whatever
    /// the hub redirects to.
    ///
    /// Of a file whose contents are elsewhere, the hub's own answer is what says its name and size.
    fn ask(&self, method: Method, url: &str, from: u64) -> Result<Response<Body>, Failed> {
        let for_now = |problem: String| Failed::ForNow(problem);
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
            let request = request.body(()).map_err(|e| for_now(e.to_string()))?;
            let answer = self.agent.run(request).map_err(|e| for_now(e.to_string()))?;
            let known = method == Method::HEAD && answer.headers().contains_key(LINKED_ETAG);
            let place =
                text(answer.headers(), "location").filter(|_| answer.status().is_redirection() && !known);
            let Some(place) = place else { return Ok(answer) };
            url = if place.starts_with('/') { format!("{}{place}", origin(&url)) } else { place.to_owned() };
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
                let message = message.map(|message| format!(": {message}")).unwrap_or_default();
                HubError::Status { what: format!("the model {id}"), status, message }
            }
        };
        Err(error.into())
    }
}

/// How a request for the rest of a file ended.
enum Received {
    /// At its end.
    All,
    /// The rest alone is not to be had.
    FromTheBeginning,
}

/// Why bytes stopped.
enum Poured {
    Reading(io::Error),
    Writing(io::Error),
}

/// Copies everything, and tells of each piece that is written.
fn pour(from: &mut dyn Read, to: &mut dyn Write, arrived: &mut dyn FnMut(&[u8])) -> Result<(), Poured> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => {
                to.write_all(&buffer[..length]).map_err(Poured::Writing)?;
                arrived(&buffer[..length]);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Poured::Reading(e)),
        }
    }
}

/// What makes requests; `certificates` is a file of those to trust, in place of the usual ones.
fn agent(certificates: Option<&Path>) -> Result<Agent, HubError> {
    let mut tls = TlsConfig::builder();
    if let Some(file) = certificates {
        let wrong = |problem: String| HubError::Setting { variable: "SSL_CERT_FILE".to_owned(), problem };
        let pem = fs::read(file).map_err(|e| wrong(format!("{}: {e}", file.display())))?;
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

/// Who answers at an address: all before the path.
fn origin(url: &str) -> &str {
    let start = url.find("://").map_or(0, |scheme| scheme + 3);
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |length| start + length);
    &url[..end]
}

/// `~` is the home folder.
fn at_home(path: PathBuf) -> PathBuf {
    match (path.strip_prefix("~"), env::var_os("HOME")) {
        (Ok(rest), Some(home)) => PathBuf::from(home).join(rest),
        _ => path,
    }
}

/// Whether this is the name of a commit.
fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether a path stays inside of the folder that it begins at.
fn is_inside(path: &str) -> bool {
    !path.is_empty() && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}

/// Whether a file of a model is one that is downloaded: those that mlx-lm downloads, so that it finds all that it
/// wants.
fn is_needed(file: &str) -> bool {
    let ends = [".json", ".py", ".tiktoken", ".txt", ".jsonl", ".jinja"];
    file == "tokenizer.model"
        || ends.iter().any(|end| file.ends_with(end))
        || (file.starts_with("model") && file.ends_with(".safetensors"))
}

/// A part of an address.
fn escaped(text: &str, slashes: bool) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                escaped.push(char::from(byte))
            }
            b'/' if slashes => escaped.push('/'),
            other => escaped += &format!("%{other:02X}"),
        }
    }
    escaped
}

/// Writes a small file beside its place, and moves it there.
fn write_whole(file: &Path, text: &str) -> io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let partial = folder.join(format!(".partial-{}-{number}", std::process::id()));
    fs::write(&partial, text)?;
    fs::rename(&partial, file)
}

/// Puts a link to a blob into a snapshot, as a path from there; a copy where there are no links.
fn link(model: &Path, blob: &Path, pointer: &Path) -> io::Result<()> {
    if pointer.is_file() {
        return Ok(());
    }
    let folder = pointer.parent().unwrap_or(model);
    fs::create_dir_all(folder)?;
    let depth = folder.strip_prefix(model).unwrap_or(Path::new("")).components().count();
    let target = blob.strip_prefix(model).unwrap_or(blob);
    let target: PathBuf = std::iter::repeat_n(Path::new(".."), depth).chain([target]).collect();
    if pointer.symlink_metadata().is_ok() && !pointer.exists() {
        fs::remove_file(pointer)?; // a link that leads nowhere
    }
    #[cfg(unix)]
    let linked = std::os::unix::fs::symlink(&target, pointer);
    #[cfg(not(unix))]
    let linked: io::Result<()> = Err(io::ErrorKind::Unsupported.into());
    match linked {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()), // another run was faster
        Err(_) => fs::copy(blob, pointer).map(drop),
        Ok(()) => Ok(()),
    }
}

#[cfg(test)]
#[path = "hub/tests.rs"]
mod tests;
