//! `cargo xtask workflows`: checks the workflows of `.github` with actionlint, and shell scripts with shellcheck.
//!
//! actionlint runs shellcheck on the scripts inside the workflows. Neither needs a network, once pip has installed them
//! from `xtask/python/requirements-linters.txt`.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use workspace::python::{self, Environment};

/// The folder of the workflows, from the workspace's root.
const WORKFLOWS: &str = ".github/workflows/";

/// A workflow with a mistake of each kind that the check is for: a key and a variable that do not exist, and a script that
/// breaks on a folder with a space. The check fails if one of them is not found.
const BROKEN: &str = "on: push
jobs:
  broken:
    runs-on: ubuntu-24.04
    timeout: 5
    steps:
      - run: cd $HOME/folder
      - run: echo ${{ matrix.os }}
";

/// What is said about the mistakes.
const MISTAKES: [&str; 3] = ["unexpected key \"timeout\"", "SC2086", "property \"os\" is not defined"];

pub(crate) fn run() -> io::Result<bool> {
    let linters = Linters {
        actionlint: python::program(Environment::Linters, "actionlint")?,
        shellcheck: python::program(Environment::Linters, "shellcheck")?,
    };
    let root = workspace::root();
    linters.find_the_mistakes()?;
    let files = workspace::tracked_files(&root)?;
    let (workflows, scripts) = (workflows(&files), scripts(&root, &files)?);
    let workflows_pass = linters.actionlint(&root).args(&workflows).status()?.success();
    let scripts_pass = linters.shellcheck(&root).args(&scripts).status()?.success();
    let verdict = if workflows_pass && scripts_pass { "no problems" } else { "see above" };
    writeln!(io::stdout(), "{} workflows, {} shell scripts: {verdict}", workflows.len(), scripts.len())?;
    Ok(workflows_pass && scripts_pass)
}

struct Linters {
    actionlint: PathBuf,
    shellcheck: PathBuf,
}

impl Linters {
    fn actionlint(&self, folder: &Path) -> Command {
        let mut command = Command::new(&self.actionlint);
        // No linter that this machine happens to have, so that all machines find the same.
        command.arg("-no-color").args(["-pyflakes", "", "-shellcheck"]).arg(&self.shellcheck);
        command.current_dir(folder);
        command
    }

    fn shellcheck(&self, folder: &Path) -> Command {
        let mut command = Command::new(&self.shellcheck);
        command.args(["--norc", "--color=never"]).current_dir(folder);
        command
    }

    /// Checks that the linters find each mistake in a broken workflow.
    fn find_the_mistakes(&self) -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        fs::write(folder.path().join("broken.yml"), BROKEN)?;
        let output = self.actionlint(folder.path()).arg("broken.yml").output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        match MISTAKES.iter().find(|mistake| !said.contains(*mistake)) {
            None if !output.status.success() => Ok(()),
            missed => Err(io::Error::other(format!(
                "actionlint does not find a mistake in a broken workflow ({missed:?}); it says:\n{said}{}",
                String::from_utf8_lossy(&output.stderr)
            ))),
        }
    }
}

fn workflows(files: &[String]) -> Vec<&String> {
    files.iter().filter(|file| file.starts_with(WORKFLOWS)).collect()
}

/// The files that a shell runs: by their names, or by their first line.
fn scripts<'a>(root: &Path, files: &'a [String]) -> io::Result<Vec<&'a String>> {
    let mut scripts = Vec::new();
    for file in files {
        let has_extension = file.rsplit('/').next().is_some_and(|name| name.contains('.'));
        let is_script = if has_extension {
            file.ends_with(".sh")
        } else {
            fs::read(root.join(file))?.split(|byte| *byte == b'\n').next().is_some_and(is_shell)
        };
        if is_script {
            scripts.push(file);
        }
    }
    Ok(scripts)
}

fn is_shell(first_line: &[u8]) -> bool {
    let line = String::from_utf8_lossy(first_line);
    line.starts_with("#!") && line.split(['/', ' ']).any(|word| ["sh", "bash", "dash"].contains(&word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workflows_and_the_script_of_ci_are_checked() {
        let root = workspace::root();
        let files = workspace::tracked_files(&root).unwrap();
        assert!(workflows(&files).contains(&&".github/workflows/ci.yml".to_owned()));
        assert!(scripts(&root, &files).unwrap().contains(&&".ci/run".to_owned()));
        assert!(!scripts(&root, &files).unwrap().contains(&&"README.md".to_owned()));
    }

    #[test]
    fn shells_are_known_by_the_first_line() {
        for (line, expected) in [
            ("#!/bin/sh", true),
            ("#!/usr/bin/env bash", true),
            ("#!/usr/bin/env python3", false),
            ("MIT License", false),
        ] {
            assert_eq!(is_shell(line.as_bytes()), expected, "{line}");
        }
    }
}
