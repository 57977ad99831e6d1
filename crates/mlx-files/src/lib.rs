//! Reads files within limits, and writes files as a whole or not at all.
//!
//! API for crates that read or write checkpoints, caches and conversations. The folder of a model may hold anything: a
//! named pipe instead of `config.json` would block a program forever, and a link to an endless device would fill its
//! memory. So everything here accepts regular files only, and reading has a limit in bytes.
//!
//! | | |
//! |---|---|
//! | [`open`] | opens a regular file to read from it |
//! | [`read`], [`read_to_string`] | read a whole regular file, up to a limit |
//! | [`is_present`] | says whether a file is there; a link that leads nowhere is an error |
//! | [`check_replaceable`] | says whether a file may be written to a path |
//! | [`write()`], [`write_with`] | replace a file in one step |
//! | [`Partial`] | a file or folder that is written beside its place and then renamed |
//! | [`shortened`], [`without_source_place`] | texts from outside, as messages show them |
//!
//! ```
//! # let folder = tempfile::tempdir()?;
//! let path = folder.path().join("notes.txt");
//! mlx_files::write(&path, "all of it")?;
//! assert_eq!(mlx_files::read_to_string(&path, 100)?, "all of it");
//! assert!(mlx_files::read_to_string(&path, 8).is_err());
//! # Ok::<(), std::io::Error>(())
//! ```

mod messages;
mod partial;

use std::fs::{self, File, FileType, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::path::Path;

pub use messages::{shortened, without_source_place};
pub use partial::{Partial, write, write_with};

/// Bytes of the largest JSON file that describes a model, such as a config or an index of shards. Those of released
/// models have at most a few megabytes.
pub const LARGEST_CONFIG: u64 = 64 << 20;

/// Bytes of the largest `tokenizer.json`. Those of released models have up to 35 MB.
pub const LARGEST_TOKENIZER: u64 = 512 << 20;

/// Bytes of the largest text that a user gives in one file: a prompt, a conversation, a text to score.
pub const LARGEST_TEXT: u64 = 256 << 20;

/// Opens a regular file, or a link to one, to read from it. It never blocks.
///
/// # Errors
///
/// Those of [`File::open`]; [`ErrorKind::InvalidInput`] for a folder, a named pipe, a device or a socket;
/// [`ErrorKind::Other`] for a link that leads nowhere.
pub fn open(path: impl AsRef<Path>) -> io::Result<File> {
    let path = path.as_ref();
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        // Without the flag, opening a named pipe would block until something writes to it. On regular files the flag
        // has no effect.
        options.custom_flags(O_NONBLOCK);
    }
    // Opening a device may have effects, so devices are refused before they are opened.
    match fs::metadata(path) {
        Ok(about) => check_regular(about.file_type())?,
        Err(e) => return Err(absent(path, e)),
    }
    let file = options.open(path)?;
    check_regular(file.metadata()?.file_type())?;
    Ok(file)
}

#[cfg(any(target_os = "linux", target_os = "android"))]
const O_NONBLOCK: i32 = 0o4000;
#[cfg(all(unix, not(any(target_os = "linux", target_os = "android"))))]
const O_NONBLOCK: i32 = 0x4;

/// Reads a whole regular file of at most `limit` bytes.
///
/// # Errors
///
/// Those of [`open`] and of reading; [`ErrorKind::FileTooLarge`] for a larger file, of which no more than the limit is
/// read.
pub fn read(path: impl AsRef<Path>, limit: u64) -> io::Result<Vec<u8>> {
    let file = open(path)?;
    let size = file.metadata()?.len();
    if size > limit {
        return Err(too_large(size, limit));
    }
    let mut bytes = Vec::with_capacity(size as usize);
    // One byte more than the limit shows that a file is too large: it may have grown, and files of the kernel say
    // that they are empty.
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(too_large(bytes.len() as u64, limit));
    }
    Ok(bytes)
}

/// Reads a whole regular file of at most `limit` bytes as text.
///
/// # Errors
///
/// Those of [`read`], and [`ErrorKind::InvalidData`] where the bytes are not UTF-8.
pub fn read_to_string(path: impl AsRef<Path>, limit: u64) -> io::Result<String> {
    String::from_utf8(read(path, limit)?).map_err(|e| {
        let place = e.utf8_error().valid_up_to();
        io::Error::new(ErrorKind::InvalidData, format!("it is not UTF-8 text: byte {place} is wrong"))
    })
}

/// Whether a regular file is there.
///
/// # Errors
///
/// [`ErrorKind::InvalidInput`] for something other than a regular file; [`ErrorKind::Other`] for a link that leads
/// nowhere, since a link is made for a file that should be there.
pub fn is_present(path: impl AsRef<Path>) -> io::Result<bool> {
    let path = path.as_ref();
    match fs::metadata(path) {
        Ok(about) => check_regular(about.file_type()).map(|()| true),
        Err(e) => match absent(path, e) {
            e if e.kind() == ErrorKind::NotFound => Ok(false),
            e => Err(e),
        },
    }
}

/// Checks that a file may be written to this path: nothing is there, or a regular file, or a link to one.
///
/// # Errors
///
/// [`ErrorKind::InvalidInput`] if a folder, a device, a named pipe or a socket would be replaced.
pub fn check_replaceable(path: impl AsRef<Path>) -> io::Result<()> {
    is_present(path).map(drop)
}

fn check_regular(file_type: FileType) -> io::Result<()> {
    if file_type.is_file() {
        return Ok(());
    }
    let problem = format!("it is {}, and must be a regular file", kind_of(file_type));
    Err(io::Error::new(ErrorKind::InvalidInput, problem))
}

fn kind_of(file_type: FileType) -> &'static str {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if file_type.is_fifo() {
            return "a named pipe";
        }
        if file_type.is_socket() {
            return "a socket";
        }
        if file_type.is_char_device() || file_type.is_block_device() {
            return "a device";
        }
    }
    if file_type.is_dir() { "a folder" } else { "something else" }
}

/// The error for a file that is not there; `e` is the error of the system.
fn absent(path: &Path, e: io::Error) -> io::Error {
    if e.kind() == ErrorKind::NotFound
        && let Ok(target) = fs::read_link(path)
    {
        let problem = format!("it is a link to {}, and there is no such file", target.display());
        return io::Error::other(problem);
    }
    e
}

fn too_large(size: u64, limit: u64) -> io::Error {
    let problem = format!("it has {size} bytes or more, and may have at most {limit}");
    io::Error::new(ErrorKind::FileTooLarge, problem)
}

/// Compiles the README's example.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
