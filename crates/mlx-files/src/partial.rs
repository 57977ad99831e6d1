//! Files and folders that are written beside their place and then renamed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::check_replaceable;

/// What the name of every partial ends with.
const SUFFIX: &str = ".partial";

/// Replaces a file by these bytes in one step: see [`Partial`].
///
/// # Errors
///
/// What the system says. Then the file is what it was before.
pub fn write(path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> io::Result<()> {
    write_with(path, |out| out.write_all(bytes.as_ref()))
}

/// Replaces a file in one step by what `write_contents` writes: see [`Partial`].
///
/// # Errors
///
/// What the system or `write_contents` says. Then the file is what it was before.
pub fn write_with<R>(
    path: impl AsRef<Path>,
    write_contents: impl FnOnce(&mut BufWriter<&File>) -> io::Result<R>,
) -> io::Result<R> {
    let partial = Partial::file(path)?;
    let mut out = BufWriter::new(partial.as_file());
    let answer = write_contents(&mut out)?;
    out.flush()?;
    drop(out);
    partial.commit()?;
    Ok(answer)
}

/// A file or folder that is being written under a temporary name beside its place, and that
/// [`commit`](Self::commit) renames to its place.
///
/// No reader sees half of it: until the commit its place is as it was, and a partial that is dropped is removed. A
/// partial that a killed program left behind is removed by the next partial for the same place. Each is locked
/// (`flock`) while its program lives, so that no other program removes it meanwhile.
///
/// The temporary name is `.NAME.PROCESS-NUMBER.partial`.
#[derive(Debug)]
pub struct Partial {
    /// Where the commit puts it.
    target: PathBuf,
    /// Where it is until then.
    path: PathBuf,
    /// The file or folder itself, open and locked.
    file: File,
    is_folder: bool,
    is_done: bool,
}

impl Partial {
    /// An empty file for the place `target`. If `target` is a link, the file that it leads to is replaced.
    ///
    /// # Errors
    ///
    /// What the system says; those of [`check_replaceable`] if something other than a regular file is at `target`.
    pub fn file(target: impl AsRef<Path>) -> io::Result<Self> {
        let target = target.as_ref();
        check_replaceable(target)?;
        let target = if target.is_symlink() { fs::canonicalize(target)? } else { target.to_path_buf() };
        Self::new(target, false)
    }

    /// An empty folder for the place `target`, where nothing or an empty folder must be. If `target` is a link, the
    /// folder that it leads to is replaced.
    ///
    /// # Errors
    ///
    /// What the system says; [`ErrorKind::AlreadyExists`] if something else is at `target`.
    pub fn folder(target: impl AsRef<Path>) -> io::Result<Self> {
        let target = target.as_ref();
        if fs::symlink_metadata(target).is_err() {
            return Self::new(target.to_path_buf(), true);
        }
        if !is_empty_folder(target) {
            let problem = format!("{} exists, and is not an empty folder", target.display());
            return Err(io::Error::new(ErrorKind::AlreadyExists, problem));
        }
        // A path such as `.` does not end with a name.
        Self::new(fs::canonicalize(target)?, true)
    }

    fn new(target: PathBuf, is_folder: bool) -> io::Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = target.file_name().ok_or_else(|| {
            let problem = format!("{} does not end with the name of a file", target.display());
            io::Error::new(ErrorKind::InvalidInput, problem)
        })?;
        let parent = parent(&target);
        remove_stale(&target);
        loop {
            let mut partial = std::ffi::OsString::from(".");
            // The name of a partial is longer than that of its place.
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
                // A killed program with the same number left it.
                Err(e) if e.kind() == ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(e),
            };
            let partial = Self { target: target.clone(), path, file, is_folder, is_done: false };
            // On a file system without locks no partial is ever taken for stale, so a failure does no harm.
            let _ = partial.file.try_lock();
            // Before it was locked another program may have taken it for stale and removed it.
            if partial.path.exists() {
                return Ok(partial);
            }
        }
    }

    /// Where it is before the commit: the path to write to, or the folder to write into.
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
    /// What the system says; those of [`check_replaceable`] if something other than a regular file has come to its place.
    /// Then the partial is removed, and its place stays as it was.
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

/// The beginning of a long name, so that the name of its partial fits into the 255 bytes that file systems allow.
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

/// Removes the partials for this place that killed programs left behind.
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
        // A lock that can be taken belongs to no living program.
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
    // If it cannot be removed, nothing better can be done here.
    let _ = if is_folder { fs::remove_dir_all(path) } else { fs::remove_file(path) };
}
