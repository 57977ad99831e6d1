//! Runs an archive and a wheel in root file systems that have no compiler, no Rust and no `~/.mlx`, without a network.
//!
//! Nothing stays in the root file systems: what a trial writes goes into memory.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use workspace::python::{self, Environment};

use super::platform::Platform;
use super::program;

/// What is tried in a root file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trial {
    /// The archive.
    Archive,
    /// The wheel, installed in each way that there is.
    Wheel,
    /// The archive and the wheel on a system that is too old for MLX: the message has to say so.
    Refused,
}

/// A root file system.
struct Root {
    name: &'static str,
    /// The name of the release for debootstrap.
    suite: &'static str,
    /// Arguments of debootstrap: packages beside the smallest set.
    extra: &'static [&'static str],
    trials: &'static [Trial],
}

const PYTHON: &[&str] = &["--components=main", "--include=python3-pip,python3-venv"];
const PYTHON_OF_UBUNTU: &[&str] = &["--components=main,universe", "--include=python3-pip,python3-venv"];

/// All root file systems: the oldest systems that MLX's package runs on, and one that is older.
const ROOTS: [Root; 4] = [
    Root { name: "debian-12", suite: "bookworm", extra: &[], trials: &[Trial::Archive] },
    Root { name: "debian-12-python", suite: "bookworm", extra: PYTHON, trials: &[Trial::Wheel] },
    Root {
        name: "ubuntu-22.04-python",
        suite: "jammy",
        extra: PYTHON_OF_UBUNTU,
        trials: &[Trial::Archive, Trial::Wheel],
    },
    Root { name: "debian-11-python", suite: "bullseye", extra: PYTHON, trials: &[Trial::Refused] },
];

/// Enters a root file system: `$1` is its folder, `$2` a folder for what is written, `$3` a folder that it sees as `/try`,
/// and the rest is a command. What is written there is in memory and disappears with this process.
const ENTER: &str = r#"set -eu
root=$1 work=$2 try=$3; shift 3
mount --make-rprivate /
mount -t tmpfs tmpfs "$work"
mkdir "$work/upper" "$work/own" "$work/root"
mount -t overlay overlay -o "lowerdir=$root,upperdir=$work/upper,workdir=$work/own" "$work/root"
mkdir -p "$work/root/try"
mount --bind -o ro "$try" "$work/root/try"
mount -t proc proc "$work/root/proc"
exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/home LANG=C.UTF-8 \
    chroot "$work/root" "$@"
"#;

/// Tries what was made for a platform. Returns whether everything went well.
pub(super) fn run(
    platform: Platform,
    host: Platform,
    archive: &Path,
    wheel: &Path,
    roots: &Path,
    dist: &Path,
) -> io::Result<bool> {
    if platform != host || platform.is_mac() {
        return Err(io::Error::other("--try: only what is made for this machine can run, and only on Linux"));
    }
    let folder = dist.join("try");
    prepare(platform, archive, wheel, &folder)?;
    fs::create_dir_all(roots)?;
    let roots = roots.canonicalize()?;
    let mut passed = true;
    for root in &ROOTS {
        let at = roots.join(root.name);
        if !at.is_dir() {
            make(root, &at)?;
        }
        for trial in root.trials {
            let outcome = enter(&at, *trial, &folder, dist)?;
            let verdict = if outcome { "passed" } else { "FAILED" };
            writeln!(io::stdout(), "{}: {trial:?}: {verdict}", root.name)?;
            passed &= outcome;
        }
    }
    Ok(passed)
}

/// Puts what a trial reads into a folder: the scripts, the archive, wheels, and uv.
fn prepare(platform: Platform, archive: &Path, wheel: &Path, folder: &Path) -> io::Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    let wheels = folder.join("wheels");
    fs::create_dir_all(&wheels)?;
    fs::copy(archive, folder.join("archive.tar.gz"))?;
    fs::copy(wheel, wheels.join(wheel.file_name().unwrap_or_default()))?;
    let root = workspace::root();
    for script in ["try-common.sh", "try-archive.sh", "try-wheel.sh", "try-refused.sh"] {
        fs::copy(root.join("xtask/dist").join(script), folder.join(script))?;
    }
    let interpreter = python::interpreter(Environment::Dist)?;
    for program in ["uv", "uvx"] {
        fs::copy(interpreter.with_file_name(program), folder.join(program))?;
    }
    let mut pip = python::isolated(&interpreter);
    pip.args([
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--require-hashes",
    ])
    .args(["--only-binary", ":all:", "--platform", platform.tag, "--dest"])
    .arg(&wheels)
    .arg("--requirement")
    .arg(program::requirements(platform, &root));
    if pip.status()?.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("pip cannot download {}", platform.mlx)))
}

/// Makes a root file system with debootstrap.
fn make(root: &Root, at: &Path) -> io::Result<()> {
    workspace::complain(&format!("making the root file system {} (once)", at.display()));
    let partial = at.with_extension("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial)?;
    }
    let mut debootstrap = Command::new("debootstrap");
    debootstrap.arg("--variant=minbase").args(root.extra).arg(root.suite).arg(&partial);
    let output = debootstrap.stdin(Stdio::null()).output().map_err(|e| {
        io::Error::new(e.kind(), format!("debootstrap: {e} (on Debian and Ubuntu: apt install debootstrap)"))
    })?;
    if !output.status.success() {
        return Err(io::Error::other(format!(
            "debootstrap cannot make {}; a root file system of {} may also be put there by hand:\n{}",
            at.display(),
            root.suite,
            python::last_lines(&[output.stdout, output.stderr].concat())
        )));
    }
    fs::rename(partial, at)
}

/// Runs a trial in a root file system, with namespaces of its own for files, processes and the network.
fn enter(root: &Path, trial: Trial, folder: &Path, dist: &Path) -> io::Result<bool> {
    let work: PathBuf = dist.join("memory");
    fs::create_dir_all(&work)?;
    let script = match trial {
        Trial::Archive => "/try/try-archive.sh",
        Trial::Wheel => "/try/try-wheel.sh",
        Trial::Refused => "/try/try-refused.sh",
    };
    let mut unshare = Command::new("unshare");
    unshare.args([
        "--mount",
        "--net",
        "--pid",
        "--ipc",
        "--fork",
        "--kill-child",
        "sh",
        "-c",
        ENTER,
        "enter",
    ]);
    unshare.arg(root).arg(&work).arg(folder).args(["/bin/sh", script]);
    Ok(unshare.stdin(Stdio::null()).status()?.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_trial_has_a_root_and_each_root_a_name_of_its_own() {
        for trial in [Trial::Archive, Trial::Wheel, Trial::Refused] {
            assert!(ROOTS.iter().any(|root| root.trials.contains(&trial)));
        }
        let names: std::collections::BTreeSet<&str> = ROOTS.iter().map(|root| root.name).collect();
        assert_eq!(names.len(), ROOTS.len());
        // Where the wheel is tried there is Python, and where only the archive is tried there is none.
        for root in &ROOTS {
            let has_python = root.extra.iter().any(|argument| argument.contains("python3"));
            assert_eq!(has_python, root.trials != [Trial::Archive], "{}", root.name);
        }
    }
}
