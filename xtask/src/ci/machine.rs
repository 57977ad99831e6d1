//! What this machine has for the checks of other platforms.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::Command;

/// The programs that some steps need, each with the package of Debian and Ubuntu that has it.
const PROGRAMS: &[(&str, &str)] =
    &[("aarch64-linux-gnu-g++", "g++-aarch64-linux-gnu"), ("qemu-aarch64-static", "qemu-user-static")];

/// What is installed.
#[derive(Debug, Default)]
pub(super) struct Machine {
    /// The targets for which Rust's standard library is installed.
    targets: BTreeSet<String>,
    /// The programs of [`PROGRAMS`] that are in `PATH`.
    programs: BTreeSet<&'static str>,
}

impl Machine {
    /// Looks at the machine on which this runs.
    ///
    /// # Errors
    ///
    /// The Rust compiler cannot be started.
    pub(super) fn look(root: &Path) -> io::Result<Self> {
        let output = Command::new("rustc").args(["--print", "sysroot"]).current_dir(root).output()?;
        let sysroot = String::from_utf8_lossy(&output.stdout).into_owned();
        let path = std::env::var_os("PATH").unwrap_or_default();
        Ok(Self { targets: targets(Path::new(sysroot.trim())), programs: programs(&path) })
    }

    /// What a step lacks here that needs Rust's standard library for `target` and these programs, and how to install it.
    pub(super) fn lacks(&self, target: &str, programs: &[&str]) -> Option<String> {
        let mut lacking = Vec::new();
        if !self.targets.contains(target) {
            lacking.push(format!("Rust's standard library for {target} (`rustup target add {target}`)"));
        }
        for name in programs.iter().filter(|name| !self.programs.contains(*name)) {
            let package = PROGRAMS.iter().find(|(program, _)| program == name).map_or(*name, |row| row.1);
            lacking.push(format!("{name} (`apt install {package}`)"));
        }
        (!lacking.is_empty()).then(|| format!("this machine lacks {}", lacking.join(" and ")))
    }
}

fn targets(sysroot: &Path) -> BTreeSet<String> {
    let folders = std::fs::read_dir(sysroot.join("lib/rustlib")).into_iter().flatten().flatten();
    let installed = folders.filter(|folder| folder.path().join("lib").is_dir());
    installed.map(|folder| folder.file_name().to_string_lossy().into_owned()).collect()
}

fn programs(path: &OsStr) -> BTreeSet<&'static str> {
    let is_there = |name: &&str| std::env::split_paths(path).any(|folder| folder.join(name).is_file());
    PROGRAMS.iter().map(|(name, _)| *name).filter(is_there).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_missing_is_named_with_the_command_that_installs_it() {
        let machine = Machine::default();
        assert_eq!(
            machine.lacks("a-b", &["qemu-aarch64-static"]).unwrap(),
            "this machine lacks Rust's standard library for a-b (`rustup target add a-b`) and \
             qemu-aarch64-static (`apt install qemu-user-static`)"
        );
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("lib/rustlib/a-b/lib")).unwrap();
        // The folder of a component that is no target.
        fs::create_dir_all(folder.path().join("lib/rustlib/etc")).unwrap();
        fs::write(folder.path().join("qemu-aarch64-static"), "").unwrap();
        let targets = targets(folder.path());
        assert_eq!(targets, BTreeSet::from(["a-b".to_owned()]));
        let machine = Machine { targets, programs: programs(folder.path().as_os_str()) };
        assert_eq!(machine.lacks("a-b", &["qemu-aarch64-static"]), None);
        assert!(machine.lacks("a-b", &["aarch64-linux-gnu-g++"]).unwrap().contains("g++-aarch64-linux-gnu"));
    }

    #[test]
    fn the_target_of_this_program_is_found() {
        let root = workspace::root();
        let output = Command::new("rustc").arg("-vV").current_dir(&root).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let host = text.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
        assert_eq!(Machine::look(&root).unwrap().lacks(host, &[]), None);
    }
}
