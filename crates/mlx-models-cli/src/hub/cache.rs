//! A model's folder in the cache of the hub's own library.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use mlx_files::{LARGEST_CONFIG, Partial};

use super::names::{HubId, Revision, is_commit, is_inside, is_needed};
use super::{FileInfo, HubError, STALE, Snapshot};

/// The largest file that says which commit a branch stands for.
const LARGEST_REFERENCE: u64 = 1 << 10;

/// The folder of one model.
pub(super) struct ModelFolder(PathBuf);

/// A snapshot that is in the cache, with all files that it is known to need.
pub(super) struct Found {
    pub(super) snapshot: Snapshot,
    /// Whether the hub has said which files the commit has. Otherwise another program downloaded it, and a file that
    /// nothing here names may be missing.
    pub(super) is_listed: bool,
}

impl ModelFolder {
    pub(super) fn new(cache: &Path, id: &HubId) -> Self {
        Self(cache.join(id.folder_name()))
    }

    /// Where the contents of files are.
    pub(super) fn blobs(&self) -> PathBuf {
        self.0.join("blobs")
    }

    /// Where the contents of a file are.
    pub(super) fn blob(&self, file: &FileInfo) -> PathBuf {
        self.blobs().join(&file.etag)
    }

    /// The length of a file that is here, as the hub says it, or else as it came.
    pub(super) fn length(&self, file: &FileInfo) -> u64 {
        file.size.unwrap_or_else(|| fs::metadata(self.blob(file)).map_or(0, |about| about.len()))
    }

    /// Removes parts of files that no download has written to for a long time. The hub's own library locks other files
    /// than these, so that time alone says that nobody writes.
    pub(super) fn remove_stale_parts(&self) {
        for entry in fs::read_dir(self.blobs()).into_iter().flatten().flatten() {
            let path = entry.path();
            let is_part = path.extension().is_some_and(|end| end == "incomplete");
            let about = entry.metadata().ok().filter(|about| is_part && about.is_file());
            let age = about.and_then(|about| about.modified().ok()?.elapsed().ok());
            if age.is_some_and(|age| age > STALE)
                && mlx_files::open(&path).is_ok_and(|part| part.try_lock().is_ok())
            {
                let _ = fs::remove_file(path);
            }
        }
    }

    /// The checkpoint folder of a commit.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.0.join("snapshots").join(commit)
    }

    /// The file that says which files a commit has. The hub's own library has none such, and ignores it.
    fn list(&self, commit: &str) -> PathBuf {
        self.0.join(".mlx-models").join(format!("{commit}.json"))
    }

    /// Remembers the names of a commit's files, so that it is known from now on whether all are here. Where that cannot
    /// be written, in a cache that is only read, the hub is asked again the next time.
    pub(super) fn remember_files(&self, commit: &str, files: &[String]) {
        if self.files(commit).is_none() {
            let _ = write_whole(&self.list(commit), &serde_json::json!(files).to_string());
        }
    }

    /// The files of a commit that are needed, where the hub has said it.
    fn files(&self, commit: &str) -> Option<Vec<String>> {
        let text = mlx_files::read(self.list(commit), LARGEST_CONFIG).ok()?;
        let files: Vec<String> = serde_json::from_slice(&text).ok()?;
        Some(files.into_iter().filter(|file| is_needed(file) && is_inside(file)).collect())
    }

    /// The file that says which commit a branch or tag stands for.
    fn reference(&self, revision: &Revision) -> PathBuf {
        self.0.join("refs").join(revision.as_str())
    }

    /// The commit that a branch or tag last stood for.
    fn known_commit(&self, revision: &Revision) -> io::Result<String> {
        let known = mlx_files::read_to_string(self.reference(revision), LARGEST_REFERENCE)?;
        Ok(known.trim().to_owned())
    }

    /// Remembers which commit a branch or tag stands for.
    pub(super) fn set_revision(&self, revision: &Revision, commit: &str) -> Result<(), HubError> {
        if self.known_commit(revision).is_ok_and(|known| known == commit) {
            return Ok(()); // also in a cache that is only read
        }
        write_whole(&self.reference(revision), commit)
    }

    /// Whether the cache can know a branch or tag: not where another one is a file that this one needs as a folder, or
    /// the other way round. A repository has had both, one after the other.
    pub(super) fn check_revision(&self, revision: &Revision) -> Result<(), HubError> {
        let (refs, file) = (self.0.join("refs"), self.reference(revision));
        let folders = file.ancestors().skip(1).take_while(|folder| **folder != *refs);
        let is_taken = |folder: &&Path| folder.symlink_metadata().is_ok_and(|about| !about.is_dir());
        let taken = folders.filter(is_taken).last().or_else(|| file.is_dir().then_some(&*file));
        taken.map_or(Ok(()), |taken| {
            Err(HubError::Revisions { revision: revision.to_string(), taken: taken.to_path_buf() })
        })
    }

    /// A revision that is in the cache as a whole, or else what is missing.
    pub(super) fn find(&self, revision: &Revision) -> Result<Found, String> {
        let commit = if revision.is_commit() {
            revision.to_string()
        } else {
            self.known_commit(revision).map_err(|_| format!("the revision {revision}"))?
        };
        let folder = self.snapshot(&commit);
        if !is_commit(&commit) || !folder.join("config.json").is_file() {
            return Err("config.json".to_owned());
        }
        let listed = self.files(&commit);
        let is_listed = listed.is_some();
        let files = match listed {
            Some(files) => match files.iter().find(|file| !folder.join(file).is_file()) {
                Some(missing) => return Err(missing.clone()),
                None => files,
            },
            None => files_of_another(&folder)?,
        };
        Ok(Found { snapshot: Snapshot { folder, commit, files, downloaded: 0 }, is_listed })
    }

    /// Puts a link to a blob into a snapshot, as a path from there; a copy where there are no links.
    pub(super) fn link(&self, blob: &Path, pointer: &Path) -> Result<(), HubError> {
        self.try_link(blob, pointer).map_err(|source| HubError::Write { file: pointer.to_path_buf(), source })
    }

    fn try_link(&self, blob: &Path, pointer: &Path) -> io::Result<()> {
        if pointer.is_file() {
            return Ok(());
        }
        let folder = pointer.parent().unwrap_or(&self.0);
        fs::create_dir_all(folder)?;
        let depth = folder.strip_prefix(&self.0).unwrap_or(Path::new("")).components().count();
        let target = blob.strip_prefix(&self.0).unwrap_or(blob);
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
            Err(_) => {
                let partial = Partial::file(pointer)?;
                io::copy(&mut mlx_files::open(blob)?, &mut partial.as_file())?;
                partial.commit()
            }
            Ok(()) => Ok(()),
        }
    }
}

/// The files of a snapshot that another program downloaded, as far as it can be seen that it is whole, or else what is
/// missing: the config and the weights.
fn files_of_another(folder: &Path) -> Result<Vec<String>, String> {
    let index =
        mlx_files::read(folder.join("model.safetensors.index.json"), LARGEST_CONFIG).unwrap_or_default();
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap_or_default();
    let shards = index.get("weight_map").and_then(serde_json::Value::as_object).into_iter().flatten();
    let shards: BTreeSet<&str> = shards.filter_map(|(_, shard)| shard.as_str()).collect();
    let names = fs::read_dir(folder).into_iter().flatten().flatten();
    let files = names.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| is_needed(name));
    let mut files: Vec<String> = files.filter(|name| folder.join(name).is_file()).collect();
    files.sort();
    let single = "model.safetensors";
    if !files.iter().any(|file| file == single) {
        if let Some(missing) = shards.iter().find(|shard| !folder.join(shard).is_file()) {
            return Err((*missing).to_owned());
        }
        if shards.is_empty() && !files.iter().any(|file| file.ends_with(".safetensors")) {
            return Err(single.to_owned());
        }
    }
    Ok(files)
}

/// Writes a small file beside its place, and moves it there.
fn write_whole(file: &Path, text: &str) -> Result<(), HubError> {
    let written = || {
        fs::create_dir_all(file.parent().unwrap_or(Path::new(".")))?;
        let partial = Partial::file(file)?;
        partial.as_file().write_all(text.as_bytes())?;
        partial.commit()
    };
    written().map_err(|source| HubError::Write { file: file.to_path_buf(), source })
}
