//! A file or folder that is written beside its place.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::check_replaceable;

/// What every partial name ends with.
const SUFFIX: &str = ".partial";

/// A file or folder under a name of its own, beside the place that it gets by [`commit`](Self::commit).
///
/// Nobody sees half of it: until then what was there before stays, and a partial that is dropped is removed. One that a
/// killed program left behind is removed by the next one for the same place. So that nobody removes what is still
/// being written, each is locked (`flock`) while its program lives.
///
/// Its name is `.NAME.PROCESS-NUMBER.partial`.
#[derive(Debug)]
pub struct Partial {
    /// Where it goes.
    target: PathBuf,
    path: PathBuf,
    /// Open and locked.
    file: File,
    is_folder: bool,
    is_done: bool,
}

impl Partial {
    /// An empty file, for the place `target`. Where that is a link, the file that it leads to is replaced.
    ///
    /// # Errors
    ///
    /// What the system says; as of [`check_replaceable`] where something other than a regular file is at `target`.
    pub fn file(target: impl AsRef<Path>) -> io::Result<Self> {
        let target = target.as_ref();
        check_replaceable(target)?;
        let target = if target.is_symlink() { fs::canonicalize(target)? } else { target.to_path_buf() };
        Self::new(target, false)
    }

    /// An empty folder, for the place `target`, where there must be nothing, or an empty folder. Where that is a link,
    /// the folder that it leads to is replaced.
    ///
    /// # Errors
    ///
    /// What the system says; [`ErrorKind::AlreadyExists`] where something is at `target`.
    pub fn folder(target: impl AsRef<Path>) -> io::Result<Self> {
        let target = target.as_ref();
        if fs::symlink_metadata(target).is_err() {
            return Self::new(target.to_path_buf(), true);
        }
        if !is_empty_folder(target) {
            let problem = format!("{} exists, and is no empty folder", target.display());
            return Err(io::Error::new(ErrorKind::AlreadyExists, problem));
        }
        // Also `.`, which is no name.
        Self::new(fs::canonicalize(target)?, true)
    }

    fn new(target: PathBuf, is_folder: bool) -> io::Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = target.file_name().ok_or_else(|| {
            let problem = format!("{} has no name that a file could have", target.display());
            io::Error::new(ErrorKind::InvalidInput, problem)
        })?;
        let parent = parent(&target);
        remove_stale(&target);
        loop {
            let mut partial = std::ffi::OsString::from(".");
            // A long name would grow too long.
            partial.push(shortened(name));
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            partial.push(format!(".{}-{number}{SUFFIX}", std::process::id()));
            let path = parent.join(partial);
            let made = if is_folder {
                fs::create_dir(&path).and_then(|()| File::open(&path).inspect_err(|_| remove(&path, true)))
            } else {
                OpenOptions::new().read(true).write(true).create_new(true).open(&path)
            };
            let file = match made {
                Ok(file) => file,
                // Of a program that was killed and had this number.
                Err(e) if e.kind() == ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(e),
            };
            let partial = Self { target: target.clone(), path, file, is_folder, is_done: false };
            // Where a file system knows no locks, nothing is ever taken for stale either.
            let _ = partial.file.try_lock();
            // Between the two lines above another program may have taken it for stale.
            if partial.path.exists() {
                return Ok(partial);
            }
        }
    }

    /// Where it is now. What is written may be written to this path, or into this folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file.
    pub fn as_file(&self) -> &File {
        &self.file
    }

    /// Puts it in its place.
    ///
    /// # Errors
    ///
    /// What the system says; then it is removed, and what was there before stays. As of [`check_replaceable`] where
    /// something other than a regular file has come to its place.
    pub fn commit(mut self) -> io::Result<()> {
        if !self.is_folder {
            check_replaceable(&self.target)?;
            self.file.sync_all()?;
        }
        fs::rename(&self.path, &self.target)?;
        self.is_done = true;
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.is_done {
            remove(&self.path, self.is_folder);
        }
    }
}

fn parent(target: &Path) -> &Path {
    target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A name that leaves room for what is put around it: file systems take 255 bytes.
fn shortened(name: &std::ffi::OsStr) -> std::ffi::OsString {
    const LONGEST: usize = 200;
    if name.len() <= LONGEST {
        return name.to_owned();
    }
    let name = name.to_string_lossy();
    let end = (0..=LONGEST).rev().find(|&end| name.is_char_boundary(end)).unwrap_or(0);
    name[..end].into()
}

fn is_empty_folder(path: &Path) -> bool {
    fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}

/// Removes what programs left behind that were killed while they wrote for this place.
fn remove_stale(target: &Path) {
    let Some(name) = target.file_name() else { return };
    let name = shortened(name);
    let (Some(name), Ok(entries)) = (name.to_str(), fs::read_dir(parent(target))) else { return };
    for entry in entries.flatten() {
        let file_name = entry.file_name();
        let is_partial = file_name.to_str().is_some_and(|found| is_partial_of(found, name));
        let Ok(kind) = entry.file_type() else { continue };
        if !is_partial || !(kind.is_file() || kind.is_dir()) {
            continue;
        }
        let path = entry.path();
        // Its program lives where the lock is taken.
        if File::open(&path).is_ok_and(|file| file.try_lock().is_ok()) {
            remove(&path, kind.is_dir());
        }
    }
}

/// Whether `found` is `.NAME.PROCESS-NUMBER.partial`.
fn is_partial_of(found: &str, name: &str) -> bool {
    let numbers = || found.strip_prefix('.')?.strip_prefix(name)?.strip_prefix('.')?.strip_suffix(SUFFIX);
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    numbers()
        .and_then(|numbers| numbers.split_once('-'))
        .is_some_and(|(process, number)| is_number(process) && is_number(number))
}

fn remove(path: &Path, is_folder: bool) {
    // Nothing is left to do for what cannot be removed.
    let _ = if is_folder { fs::remove_dir_all(path) } else { fs::remove_file(path) };
}
