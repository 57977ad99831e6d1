//! Packages of the Python package index: downloads them with pip and keeps them.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::{
    Failure, Result, create_dir, install, is_complete, last_lines, run, variable, work_folder,
};
use crate::mac;

/// A wheel to download: one line of a requirements file, with its hashes.
pub struct Wheel {
    /// Name in the folder where downloads are kept.
    pub keep_as: String,
    /// File in `requirements/`.
    pub requirements: &'static str,
    /// Platform tag of the wheel, such as `manylinux_2_35_x86_64`.
    pub platform: String,
    /// Files that show that the unpacked wheel is complete.
    pub proof: &'static [&'static str],
    /// What the user can do instead of downloading, for error messages.
    pub instead: &'static str,
}

impl Wheel {
    /// The folder of the unpacked wheel in `home`. Downloads the wheel if the folder is missing.
    pub fn fetch(&self, home: &Path) -> Result<PathBuf> {
        let place = home.join(&self.keep_as);
        if is_complete(&place, self.proof) {
            return Ok(place);
        }
        let python = Python::find(self.instead)?;
        let work = work_folder(home, &self.keep_as)?;
        let result = self.download_and_unpack(&python, &work);
        let result = result.and_then(|unpacked| install(&unpacked, &place, self.proof));
        // After a failure too, so that no part of a download stays.
        let _ = std::fs::remove_dir_all(&work);
        result.map(|()| place)
    }

    fn download_and_unpack(&self, python: &Python, work: &Path) -> Result<PathBuf> {
        create_dir(work)?;
        let requirements =
            PathBuf::from(variable("CARGO_MANIFEST_DIR")?).join("requirements").join(self.requirements);
        let mut pip = python.download(&requirements, std::slice::from_ref(&self.platform), work);
        let answer = run(&mut pip)?.ok_or_else(|| python.gone())?;
        if !answer.status.success() {
            return Err(refused(&self.keep_as, &last_lines(&answer.stderr), self.instead));
        }
        let unpacked = work.join("unpacked");
        python.unpack(&wheel_in(work, self.instead)?, &unpacked)?;
        Ok(unpacked)
    }
}

/// The wheel that pip has downloaded into a folder.
pub fn wheel_in(folder: &Path, instead: &str) -> Result<PathBuf> {
    std::fs::read_dir(folder)
        .map_err(|e| Failure::io("listing the download", e))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .ok_or_else(|| Failure::new("pip downloaded no wheel", instead))
}

/// The failure that pip's error output stands for.
pub fn refused(name: &str, said: &str, instead: &str) -> Failure {
    let said_lower = said.to_lowercase();
    if said_lower.contains("do not match the hashes") {
        return Failure::new(
            format!(
                "the downloaded {name} is not the file that this crate expects (its hash differs):\n{said}"
            ),
            "clear pip's cache (`python3 -m pip cache purge`) and check PIP_INDEX_URL and PIP_FIND_LINKS",
        );
    }
    if ["no space left", "disk quota exceeded"].iter().any(|sign| said_lower.contains(sign)) {
        return Failure::new(
            format!("there is no room for {name}:\n{said}"),
            "free some space where MLX is kept and where temporary files are, or name a folder on another disk in \
             MLX_SYS_HOME; then build again",
        );
    }
    let unreachable = [
        "connection",
        "timed out",
        "name resolution",
        "retries",
        "network",
        "no matching distribution",
        "proxy",
    ];
    if unreachable.iter().any(|sign| said_lower.contains(sign)) {
        return Failure::new(
            format!("pip cannot reach a package index that has {name}:\n{said}"),
            format!(
                "connect to the network for the first build (later builds do not need it), or {}",
                instead
            ),
        );
    }
    Failure::new(format!("pip cannot download {name}:\n{said}"), instead)
}

/// What pip is told of the Python to download for. MLX's packages contain no code for Python that is used here, but ask for 3.10
/// or newer, and the Python of Apple's command line tools is 3.9.
const PYTHON_VERSION: &str = "3.14";

pub struct Python {
    program: String,
}

impl Python {
    pub fn find(instead: &str) -> Result<Self> {
        println!("cargo::rerun-if-env-changed=PYTHON");
        let program = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
        let python = Self { program };
        let version = run(python.command().arg("--version"))?;
        if !version.is_some_and(|answer| answer.status.success()) {
            return Err(python.absent(instead));
        }
        let pip = run(python.command().args(["-m", "pip", "--version"]))?.ok_or_else(|| python.gone())?;
        if !pip.status.success() {
            return Err(Failure::new(
                format!("{} has no pip, which downloads MLX by name and checks its hash", python.program),
                format!(
                    "install it ({}), or {instead}",
                    if mac::is_host() {
                        "`python3 -m ensurepip`), name another Python in PYTHON (Apple's is /usr/bin/python3"
                    } else {
                        "Debian and Ubuntu: `apt install python3-pip`"
                    }
                ),
            ));
        }
        Ok(python)
    }

    fn command(&self) -> Command {
        Command::new(&self.program)
    }

    /// The command that downloads the wheels of a requirements file, for any of these platform tags, into a folder.
    pub fn download(&self, requirements: &Path, platforms: &[String], to: &Path) -> Command {
        let mut pip = self.command();
        pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"])
            .args(["--only-binary", ":all:", "--python-version", PYTHON_VERSION])
            .args(platforms.iter().flat_map(|platform| ["--platform", platform]))
            .arg("--dest")
            .arg(to)
            .arg("--requirement")
            .arg(requirements)
            // Where the user has pip refuse to work outside of a virtual environment: nothing is installed.
            .env("PIP_REQUIRE_VIRTUALENV", "0");
        pip
    }

    /// Unpacks a wheel into a folder, which may hold others.
    pub fn unpack(&self, wheel: &Path, to: &Path) -> Result<()> {
        let mut unpack = self.command();
        unpack.args(["-m", "zipfile", "-e"]).arg(wheel).arg(to);
        let answer = run(&mut unpack)?.ok_or_else(|| self.gone())?;
        if !answer.status.success() {
            return Err(Failure::new(
                format!("{} cannot be unpacked:\n{}", wheel.display(), last_lines(&answer.stderr)),
                "check the free space there, then build again",
            ));
        }
        Ok(())
    }

    fn absent(&self, instead: &str) -> Failure {
        Failure::new(
            format!("there is no Python 3 called `{}`, whose pip downloads MLX", self.program),
            format!(
                "install it ({}), name one in PYTHON, or {instead}",
                if mac::is_host() {
                    "it is part of Apple's command line tools: `xcode-select --install`"
                } else {
                    "Debian and Ubuntu: `apt install python3 python3-pip`"
                }
            ),
        )
    }

    pub fn gone(&self) -> Failure {
        Failure::new(format!("{} disappeared during the build", self.program), "build again")
    }
}
