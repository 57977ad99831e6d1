//! A failed build: what went wrong, and what the user can do about it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

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

    /// A file operation that the operating system refused.
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
            "build with cargo, which runs this program as a build script",
        )
    })
}

/// Shows a line at once: on the terminal, or else on standard error. Cargo keeps what a build script writes until it ends, and
/// shows standard error only after a failure or with `-vv`.
pub fn tell(line: &str) {
    use std::io::Write;
    let told = std::fs::File::options()
        .append(true)
        .open("/dev/tty")
        .and_then(|mut terminal| terminal.write_all(format!("\r\x1b[K{line}\n").as_bytes()));
    if told.is_err() {
        let _ = writeln!(io::stderr(), "{line}");
    }
}

/// Runs a command to its end. `None` if the program does not exist.
pub fn run(command: &mut Command) -> Result<Option<Output>> {
    match command.output() {
        Ok(output) => Ok(Some(output)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Failure::io(format!("running {:?}", command.get_program()), e)),
    }
}

/// The last 12 lines of a program's output, for an error message.
pub fn last_lines(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}

pub fn create_dir(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).map_err(|e| {
        Failure::new(
            format!("creating the folder {} failed: {e}", path.display()),
            "check the free space and the permissions there; MLX_SYS_HOME names another folder to keep MLX in",
        )
    })
}

/// A new folder in `home` to make `name` in. No other process has it, even one of a container with the same number.
pub fn work_folder(home: &Path, name: &str) -> Result<PathBuf> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let work = home.join(format!(".{name}-{}-{}", std::process::id(), now.as_nanos()));
    create_dir(&work)?;
    Ok(work)
}

/// Whether a folder is complete: whether it has all of these files.
pub fn is_complete(folder: &Path, proof: &[&str]) -> bool {
    proof.iter().all(|file| folder.join(file).is_file())
}

/// Moves a finished folder to its place. If another build has put a complete folder there, that folder stays; an
/// incomplete folder is replaced.
///
/// The files get an old date. Cargo takes a file that is newer than the start of this build for a change, and would run
/// the build script again, and compile all that depends on this crate, for the next command.
pub fn install(finished: &Path, place: &Path, proof: &[&str]) -> Result<()> {
    if !is_complete(place, proof) {
        let old = SystemTime::UNIX_EPOCH + Duration::from_secs(86_400);
        for file in proof.iter().map(|file| finished.join(file)) {
            // A missing file is reported below. Without the old date the next build only takes longer.
            let _ = std::fs::File::options().write(true).open(file).and_then(|file| file.set_modified(old));
        }
        // An empty place is taken in one step. One that is not empty is removed only if it is incomplete.
        let mut moved = std::fs::rename(finished, place);
        if moved.is_err() && !is_complete(place, proof) {
            let _ = std::fs::remove_dir_all(place);
            moved = std::fs::rename(finished, place);
        }
        if let Err(e) = moved
            && !is_complete(place, proof)
        {
            return Err(Failure::io(format!("moving a folder to {}", place.display()), e));
        }
    }
    if is_complete(place, proof) {
        return Ok(());
    }
    Err(Failure::new(
        format!("{} is incomplete after it was made: it lacks one of {}", place.display(), proof.join(", ")),
        format!("remove {} and build again", place.display()),
    ))
}
