//! The folders and files of the workspace.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

/// The workspace's root folder.
#[must_use]
pub fn root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask).to_path_buf()
}

/// The folder into which cargo builds.
///
/// # Errors
///
/// Cargo cannot read the workspace.
pub fn target_folder(root: &Path) -> io::Result<PathBuf> {
    #[derive(Deserialize)]
    struct Metadata {
        target_directory: PathBuf,
    }
    let mut command = Command::new(env!("CARGO"));
    command.args(["metadata", "--no-deps", "--format-version", "1"]).current_dir(root);
    let output = command.output()?;
    if !output.status.success() {
        return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    Ok(serde_json::from_slice::<Metadata>(&output.stdout)?.target_directory)
}

/// The files that git tracks, and new ones that it does not ignore.
///
/// # Errors
///
/// The folder is no git checkout.
pub fn tracked_files(root: &Path) -> io::Result<Vec<String>> {
    // New files are included, so that a problem shows before the commit.
    let arguments = ["ls-files", "--cached", "--others", "--exclude-standard"];
    let output = Command::new("git").args(arguments).current_dir(root).output()?;
    if !output.status.success() {
        return Err(io::Error::other("git ls-files failed; this needs a git checkout"));
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.lines().filter(|file| root.join(file).is_file()).map(str::to_owned).collect())
}

/// Prints a message on standard error, so that it does not get into a pipe.
pub fn complain(message: &str) {
    // Nothing can be done about a closed standard error.
    let _ = writeln!(io::stderr(), "{message}");
}
