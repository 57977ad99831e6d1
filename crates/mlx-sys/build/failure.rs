//! A failed build: what went wrong, and what the person who started it can do.

use std::fmt;
use std::io;
use std::path::Path;
use std::process::{Command, Output};

pub type Result<T> = std::result::Result<T, Failure>;

#[derive(Debug)]
pub struct Failure {
    what: String,
    remedy: String,
}

impl Failure {
    pub fn new(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), remedy: remedy.into() }
    }

    /// A file operation that failed for a reason that only the operating system knows.
    pub fn io(doing: impl fmt::Display, error: io::Error) -> Self {
        Self::new(format!("{doing} failed: {error}"), "check the free space and the permissions there")
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mlx-sys: {}", self.what)?;
        if !self.remedy.is_empty() {
            write!(f, "\nwhat to do: {}", self.remedy)?;
        }
        Ok(())
    }
}

/// A variable that cargo sets for every build script.
pub fn variable(name: &str) -> Result<String> {
    std::env::var(name).map_err(|_| {
        Failure::new(
            format!("{name} is not set"),
            "run this program through cargo, as the build script that it is",
        )
    })
}

/// Runs a command to its end; `None` where there is no such program.
pub fn run(command: &mut Command) -> Result<Option<Output>> {
    match command.output() {
        Ok(output) => Ok(Some(output)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Failure::io(format!("running {:?}", command.get_program()), e)),
    }
}

/// The end of what a program said, for a message: enough to see the cause, not pages of it.
pub fn last_lines(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}

pub fn create_dir(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path)
        .map_err(|e| Failure::io(format!("creating the folder {}", path.display()), e))
}

/// Whether a folder holds all of these, and so is whole.
pub fn is_whole(folder: &Path, proof: &[&str]) -> bool {
    proof.iter().all(|file| folder.join(file).is_file())
}

/// Moves a finished folder to its place. Where another build was faster, its work stays; where
/// something damaged lies there, it goes.
pub fn install(finished: &Path, place: &Path, proof: &[&str]) -> Result<()> {
    if !is_whole(place, proof) {
        let _ = std::fs::remove_dir_all(place);
        let moved = std::fs::rename(finished, place);
        if let Err(e) = moved
            && !is_whole(place, proof)
        {
            return Err(Failure::io(format!("moving a folder to {}", place.display()), e));
        }
    }
    if is_whole(place, proof) {
        return Ok(());
    }
    Err(Failure::new(
        format!("{} is not whole after it was made: it lacks one of {}", place.display(), proof.join(", ")),
        format!("remove {} and build again", place.display()),
    ))
}
