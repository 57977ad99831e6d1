//! The files of an archive or a wheel, before they are written.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Files by their paths, which have `/` between folders. They are sorted, so that results are the same each time.
pub(super) type Tree = BTreeMap<String, File>;

/// A file, and whether it can be executed.
#[derive(Debug, Clone)]
pub(super) struct File {
    pub(super) content: Content,
    pub(super) is_executable: bool,
}

/// Where the bytes of a file are.
#[derive(Debug, Clone)]
pub(super) enum Content {
    Of(PathBuf),
    Bytes(Vec<u8>),
}

impl File {
    /// A copy of the file at `path`.
    pub(super) fn copy(path: impl Into<PathBuf>) -> Self {
        Self { content: Content::Of(path.into()), is_executable: false }
    }

    /// A copy of the program at `path`.
    pub(super) fn program(path: impl Into<PathBuf>) -> Self {
        Self { is_executable: true, ..Self::copy(path) }
    }

    /// A file with these bytes.
    pub(super) fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self { content: Content::Bytes(bytes.into()), is_executable: false }
    }

    pub(super) fn read(&self) -> io::Result<Cow<'_, [u8]>> {
        match &self.content {
            Content::Bytes(bytes) => Ok(Cow::Borrowed(bytes)),
            Content::Of(path) => fs::read(path)
                .map(Cow::Owned)
                .map_err(|e| io::Error::new(e.kind(), format!("reading {}: {e}", path.display()))),
        }
    }

    /// The permissions: everybody may read the file.
    pub(super) fn mode(&self) -> u32 {
        if self.is_executable { 0o755 } else { 0o644 }
    }
}

/// The bytes of all files.
pub(super) fn size(tree: &Tree) -> io::Result<u64> {
    let size = |file: &File| match &file.content {
        Content::Bytes(bytes) => Ok(bytes.len() as u64),
        Content::Of(path) => fs::metadata(path).map(|metadata| metadata.len()),
    };
    tree.values().map(size).sum()
}

/// Writes the files into `folder`, and removes what was there.
pub(super) fn write(tree: &Tree, folder: &Path) -> io::Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    for (path, file) in tree {
        let to = folder.join(path);
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&to, file.read()?)?;
        set_mode(&to, file.mode())?;
    }
    Ok(())
}

#[cfg(unix)]
fn set_mode(file: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(file, std::os::unix::fs::PermissionsExt::from_mode(mode))
}

#[cfg(not(unix))]
fn set_mode(_: &Path, _: u32) -> io::Result<()> {
    Ok(())
}
