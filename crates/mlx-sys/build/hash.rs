//! A name for what is built, from all that it depends on.

use std::path::{Path, PathBuf};

use crate::failure::{Failure, Result};

/// The hash FNV-1a with 64 bits, which is the same in every version of Rust.
pub struct Fnv(u64);

impl Fnv {
    pub fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    pub fn update(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    /// The names and contents of all files below a folder, or those of a file.
    pub fn update_files(&mut self, folder: &Path) -> Result<()> {
        for file in files_below(folder)? {
            let name = file.strip_prefix(folder).unwrap_or(&file);
            self.update(name.to_string_lossy().as_bytes());
            let contents = std::fs::read(&file);
            self.update(&contents.map_err(|e| Failure::io(format!("reading {}", file.display()), e))?);
        }
        Ok(())
    }

    pub fn hex(&self) -> String {
        format!("{:016x}", self.0)
    }
}

/// All files in a folder and its folders, in a fixed order; a file is itself.
pub fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    if folder.is_file() {
        return Ok(vec![folder.to_path_buf()]);
    }
    let failed = |e| Failure::io(format!("listing {}", folder.display()), e);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.is_dir() {
            files.extend(files_below(&path)?);
        } else {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
