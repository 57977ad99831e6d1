//! `cargo xtask apple`: lints and links the workspace for Macs with Apple silicon, on Linux too, and then checks the linked
//! files with a reader of Mach-O files that shares no code with the linker. Nothing is run. `docs/platforms.md` says what
//! this proves.

mod linked;
mod target;
mod tools;

use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use target::TARGET;
use tools::Tools;

use workspace::python::{self, Environment};

/// Arguments of `cargo xtask apple`.
#[derive(clap::Args)]
#[command(after_help = EXIT_STATUS)]
pub(crate) struct Arguments {
    /// Lint only, and link nothing
    #[arg(long)]
    check: bool,
    /// Build for this version of macOS and newer ones
    #[arg(long, value_name = "VERSION", default_value = "14.0", value_parser = macos)]
    macos: String,
}

const EXIT_STATUS: &str = "Exit status: 0 if everything passed, 1 if something failed, 2 if an argument is wrong, 3 if \
                           Rust's standard library for aarch64-apple-darwin is missing and rustup cannot install it.";

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed,
    /// There is no standard library for Macs, so nothing was checked.
    NoTarget,
}

impl Outcome {
    fn status(self) -> u8 {
        match self {
            Self::Passed => 0,
            Self::Failed => 1,
            Self::NoTarget => 3,
        }
    }

    fn of(passed: bool) -> Self {
        if passed { Self::Passed } else { Self::Failed }
    }
}

/// A version of macOS as MLX's packages need it.
fn macos(text: &str) -> Result<String, String> {
    let (major, minor) = text.split_once('.').unwrap_or((text, "0"));
    match (major.parse::<u32>(), minor.parse::<u32>()) {
        (Ok(14..), Ok(_)) => Ok(format!("{major}.{minor}")),
        _ => Err("a version such as 14.0 or 26.2 is needed, and MLX needs 14.0 or newer".to_owned()),
    }
}

pub(crate) fn run(arguments: &Arguments) -> io::Result<ExitCode> {
    Ok(ExitCode::from(outcome(arguments)?.status()))
}

fn outcome(arguments: &Arguments) -> io::Result<Outcome> {
    if let Err(problem) = target::install()? {
        workspace::complain(&format!("error: NOTHING WAS CHECKED FOR MACS: {problem}"));
        return Ok(Outcome::NoTarget);
    }
    let interpreter = python::interpreter(Environment::Apple)?;
    let folder = workspace::target_folder(&workspace::root())?.join("apple");
    let tools = Tools::set_up(interpreter, folder, arguments.macos.clone())?;
    if !lint(&tools)? {
        return Ok(Outcome::Failed);
    }
    if arguments.check {
        announce("apple: everything compiles for Macs without a warning; nothing was linked")?;
        return Ok(Outcome::Passed);
    }
    let Some(programs) = link(&tools)? else { return Ok(Outcome::Failed) };
    announce(&format!("apple: linked {}", linked::summary(&programs)))?;
    Ok(Outcome::of(verify(&tools, &programs)?))
}

/// The tools that build for Macs on another system, for programs other than `cargo xtask apple`. What they make is in `folder`.
///
/// # Errors
///
/// There is no standard library for Macs, or the tools cannot be installed.
pub(crate) fn tools(folder: &Path, macos: &str) -> io::Result<Tools> {
    target::install()?.map_err(io::Error::other)?;
    Tools::set_up(python::interpreter(Environment::Apple)?, folder.to_path_buf(), macos.to_owned())
}

/// Reads a program and all libraries that it loads. Returns whether they can run on this macOS.
///
/// # Errors
///
/// The tools cannot be installed.
pub(crate) fn accepts(program: &Path, folder: &Path, macos: &str) -> io::Result<bool> {
    let mut check = tools(folder, macos)?.script("check_mach_o.py");
    Ok(check.args(["--macos", macos]).arg(program).stdout(io::stderr()).status()?.success())
}

/// Runs clippy, which also reports what the compiler does.
fn lint(tools: &Tools) -> io::Result<bool> {
    let mut clippy = tools.cargo(env!("CARGO"));
    clippy.args(["clippy", "--workspace", "--all-targets", "--target", TARGET, "--", "--deny", "warnings"]);
    Ok(clippy.status()?.success())
}

/// Links all programs, tests, examples and benchmarks. Returns `None` if cargo fails.
fn link(tools: &Tools) -> io::Result<Option<Vec<linked::Program>>> {
    let mut build = tools.cargo(tools.zigbuild());
    build
        .args(["zigbuild", "--workspace", "--all-targets", "--target", TARGET])
        .args(["--message-format", "json-render-diagnostics"])
        // A quarter of the time to link goes into descriptions for a debugger that nobody runs here.
        .env("CARGO_PROFILE_DEV_DEBUG", "false");
    let output = build.stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Ok(None);
    }
    linked::programs(&output.stdout).map(Some)
}

/// Reads the programs, and all libraries that they load.
fn verify(tools: &Tools, programs: &[linked::Program]) -> io::Result<bool> {
    let mut check: Command = tools.script("check_mach_o.py");
    check.args(["--macos", tools.macos(), "--controls"]).arg(tools.folder().join("controls"));
    check.args(programs.iter().map(|program| &program.file));
    Ok(check.status()?.success())
}

fn announce(line: &str) -> io::Result<()> {
    writeln!(io::stdout(), "{line}")
}

#[cfg(test)]
mod tests {
    use clap::{Args, Command};

    use super::*;

    fn parsed(line: &[&str]) -> Result<Arguments, String> {
        let command = Arguments::augment_args(Command::new("apple").no_binary_name(true));
        let matches = command.try_get_matches_from(line).map_err(|e| e.to_string())?;
        clap::FromArgMatches::from_arg_matches(&matches).map_err(|e: clap::Error| e.to_string())
    }

    #[test]
    fn versions_of_macos_that_mlx_does_not_have_are_refused() {
        assert_eq!(parsed(&[]).unwrap().macos, "14.0");
        assert_eq!(parsed(&["--macos", "26"]).unwrap().macos, "26.0");
        assert!(parsed(&["--check"]).unwrap().check);
        for version in ["13.5", "", "Sonoma", "14.x", "-14"] {
            let error = parsed(&[&format!("--macos={version}")]).err().unwrap();
            assert!(error.contains("MLX needs 14.0 or newer"), "{error}");
        }
    }

    #[test]
    fn a_missing_target_has_an_exit_status_of_its_own() {
        let outcomes = [Outcome::Passed, Outcome::Failed, Outcome::NoTarget];
        assert_eq!(outcomes.map(Outcome::status), [0, 1, 3]);
        assert_eq!([true, false].map(Outcome::of), [Outcome::Passed, Outcome::Failed]);
        let help = Arguments::augment_args(Command::new("apple")).render_help().to_string();
        assert!(help.contains("3 if Rust's standard library"), "{help}");
    }
}
