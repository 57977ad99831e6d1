//! A model's folder in the cache, in the layout of the Hub's own Python library.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mlx_files::LARGEST_CONFIG;

use crate::error::HubError;
use crate::names::{HubId, Revision, is_commit, is_inside, is_needed};
use crate::remote::RemoteFile;

/// The largest file that says which commit a branch stands for, in bytes.
const LARGEST_REFERENCE: u64 = 1 << 10;

/// The age at which the part of a file is removed, if no download has continued it.
const STALE: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// A model in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    /// The checkpoint folder.
    pub folder: PathBuf,
    /// The commit that the files are from.
    pub commit: String,
    /// The names of the model's files in the folder, sorted. Files that no checkpoint needs are not among them.
    pub files: Vec<String>,
    /// Bytes that came over the network in this run.
    pub downloaded: u64,
}

/// The folder of one model.
pub(crate) struct ModelFolder(PathBuf);

/// A snapshot in the cache that has every file it is known to need.
pub(crate) struct Found {
    pub(crate) snapshot: Snapshot,
    /// Whether the Hub has said which files the commit has. If not, another program downloaded it, and a file that
    /// no other file names may be missing.
    pub(crate) is_listed: bool,
}

impl ModelFolder {
    pub(crate) fn new(cache: &Path, id: &HubId) -> Self {
        Self(cache.join(id.folder_name()))
    }

    /// The folder of the files' contents.
    pub(crate) fn blobs(&self) -> PathBuf {
        self.0.join("blobs")
    }

    /// The place of a file's contents.
    pub(crate) fn blob(&self, file: &RemoteFile) -> PathBuf {
        self.blobs().join(&file.etag)
    }

    /// The place of a file's contents while they are not complete.
    pub(crate) fn part(&self, file: &RemoteFile) -> PathBuf {
        self.blobs().join(format!("{}.incomplete", file.etag))
    }

    /// Whether the contents of a file are here. Contents of another length are damaged, and count as missing.
    pub(crate) fn has_blob(&self, file: &RemoteFile) -> bool {
        let about = fs::metadata(self.blob(file)).ok().filter(fs::Metadata::is_file);
        about.is_some_and(|about| file.size.is_none_or(|size| about.len() == size))
    }

    /// The length of a file that is here: as the Hub announces it, or else as it came.
    pub(crate) fn length(&self, file: &RemoteFile) -> u64 {
        file.size.unwrap_or_else(|| fs::metadata(self.blob(file)).map_or(0, |about| about.len()))
    }

    /// Removes the part of a file whose contents another program has brought.
    pub(crate) fn remove_part(&self, file: &RemoteFile) {
        let part = self.part(file);
        if is_unlocked(&part) {
            let _ = fs::remove_file(part);
        }
    }

    /// Removes parts of files that no download has continued for a long time. The Python library locks other files than
    /// these, so that only the age shows that it does not write to one.
    pub(crate) fn remove_stale_parts(&self) {
        for entry in fs::read_dir(self.blobs()).into_iter().flatten().flatten() {
            let path = entry.path();
            let is_part = path.extension().is_some_and(|end| end == "incomplete");
            let about = entry.metadata().ok().filter(|about| is_part && about.is_file());
            let age = about.and_then(|about| about.modified().ok()?.elapsed().ok());
            if age.is_some_and(|age| age > STALE) && is_unlocked(&path) {
                let _ = fs::remove_file(path);
            }
        }
    }

    /// The checkpoint folder of a commit.
    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.0.join("snapshots").join(commit)
    }

    /// The file that lists the files of a commit. The Python library has no such file, and ignores it.
    fn list(&self, commit: &str) -> PathBuf {
        self.0.join(".mlx-models").join(format!("{commit}.json"))
    }

    /// Remembers the names of a commit's files, so that later runs know whether all of them are here. Where the list cannot
    /// be written, as in a read-only cache, the next run asks the Hub again.
    pub(crate) fn remember_files(&self, commit: &str, files: &[String]) {
        if self.files(commit).is_none() {
            let _ = write_whole(&self.list(commit), &serde_json::json!(files).to_string());
        }
    }

    /// The files of a commit that are needed, where the Hub has listed them.
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
    pub(crate) fn set_revision(&self, revision: &Revision, commit: &str) -> Result<(), HubError> {
        if self.known_commit(revision).is_ok_and(|known| known == commit) {
            return Ok(()); // also in a read-only cache
        }
        write_whole(&self.reference(revision), commit)
    }

    /// Fails where the cache cannot store a branch or tag, since the branch `a` is a file and `a/b` needs a folder of that
    /// name. A repository can have had both, one after the other.
    pub(crate) fn check_revision(&self, revision: &Revision) -> Result<(), HubError> {
        let (refs, file) = (self.0.join("refs"), self.reference(revision));
        let folders = file.ancestors().skip(1).take_while(|folder| **folder != *refs);
        let is_taken = |folder: &&Path| folder.symlink_metadata().is_ok_and(|about| !about.is_dir());
        let taken = folders.filter(is_taken).last().or_else(|| file.is_dir().then_some(&*file));
        taken.map_or(Ok(()), |taken| {
            Err(HubError::RevisionTaken { revision: revision.to_string(), taken: taken.to_path_buf() })
        })
    }

    /// A revision of which the cache has all files, or else what is missing.
    pub(crate) fn find(&self, revision: &Revision) -> Result<Found, String> {
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

    /// Puts a relative link to a blob into a snapshot, or a copy where the file system has no links.
    pub(crate) fn link(&self, blob: &Path, pointer: &Path) -> Result<(), HubError> {
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
            fs::remove_file(pointer)?; // a broken link
        }
        #[cfg(unix)]
        let linked = std::os::unix::fs::symlink(&target, pointer);
        #[cfg(not(unix))]
        let linked: io::Result<()> = Err(io::ErrorKind::Unsupported.into());
        match linked {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()), // another run was faster
            Err(_) => {
                let mut contents = mlx_files::open(blob)?;
                mlx_files::write_with(pointer, |out| io::copy(&mut contents, out)).map(|_| ())
            }
            Ok(()) => Ok(()),
        }
    }
}

/// The files of a snapshot that another program downloaded, or else which of its weights are missing. Nothing says whether
/// other files are missing.
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

/// Whether a file is there and no process has locked it.
fn is_unlocked(file: &Path) -> bool {
    mlx_files::open(file).is_ok_and(|file| file.try_lock().is_ok())
}

/// Replaces a small file in one step, in a folder that may not be there yet.
fn write_whole(file: &Path, text: &str) -> Result<(), HubError> {
    let written = fs::create_dir_all(file.parent().unwrap_or(Path::new(".")))
        .and_then(|()| mlx_files::write(file, text));
    written.map_err(|source| HubError::Write { file: file.to_path_buf(), source })
}
