//! Maintenance commands of this workspace: `cargo xtask COMMAND`.
//!
//! One file per command. Commands that run models are in the crate `mlx-lab`, which links MLX; they are passed on to it.
//! Commands for users are in the program `mlx-models`, never here.

mod apple;
mod ci;
mod dist;
mod fixtures;
mod gpu_check;
mod mutations;
mod random_caches;
mod tidy;
mod workflows;

use std::ffi::OsString;
use std::io;
use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand, value_parser};
use workspace::lab::{self, LabCommand};
use workspace::python;

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Maintenance commands of mlx-models",
    disable_help_subcommand = true
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Check what the compiler and clippy cannot: layers, module docs, file sizes, paths
    Tidy(tidy::Arguments),
    /// Run the checks that a change must pass, as continuous integration does (docs/ci.md)
    Ci(ci::Arguments),
    /// Pack the program for people without a compiler: an archive and a Python wheel (docs/releasing.md)
    Dist(dist::Arguments),
    /// Break a copy of the code in many ways, and check that parity catches each
    Mutations(mutations::Arguments),
    /// Generate the committed fixtures again with the reference programs, or check them
    Fixtures(fixtures::Arguments),
    /// Set up a Python environment of the project's scripts, and print its interpreter
    Python(python::Arguments),
    /// Run many random sequences of operations on every kind of cache
    RandomCaches(random_caches::Arguments),
    /// Check the build for NVIDIA GPUs, and make a folder that checks it on a machine with one (docs/platforms.md)
    GpuCheck(gpu_check::Arguments),
    /// Check the workflows of .github with actionlint, and shell scripts with shellcheck
    Workflows,
    /// Lint and link everything for Macs on any machine, and check the linked files (docs/platforms.md)
    Apple(apple::Arguments),
}

fn main() -> ExitCode {
    match run(&command_line().get_matches()) {
        Ok(status) => status,
        // A closed pipe, as in `cargo xtask mutations --list | head`, is not an error.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
        Err(e) => {
            workspace::complain(&format!("error: {e}"));
            ExitCode::FAILURE
        }
    }
}

/// The commands of this program, and those of `mlx-lab`, whose arguments only `mlx-lab` knows.
fn command_line() -> clap::Command {
    let passed_on = |command: &LabCommand| {
        let arguments = Arg::new("arguments")
            .action(ArgAction::Append)
            .num_args(0..)
            .trailing_var_arg(true)
            .allow_hyphen_values(true)
            .value_parser(value_parser!(OsString));
        clap::Command::new(command.name).about(command.about).disable_help_flag(true).arg(arguments)
    };
    Arguments::command().subcommands(lab::COMMANDS.iter().map(passed_on))
}

fn run(matches: &ArgMatches) -> io::Result<ExitCode> {
    let status = |passed| if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if let Some((name, matches)) = matches.subcommand()
        && let Some(command) = lab::COMMANDS.iter().find(|command| command.name == name)
    {
        let arguments = matches.get_many::<OsString>("arguments").into_iter().flatten().cloned();
        return command.run(arguments).map(status);
    }
    let passed = match Arguments::from_arg_matches(matches).unwrap_or_else(|e| e.exit()).command {
        Command::Tidy(arguments) => tidy::run(&arguments),
        Command::Ci(arguments) => ci::run(&arguments),
        Command::Dist(arguments) => dist::run(&arguments),
        Command::Mutations(arguments) => mutations::run(&arguments),
        Command::Fixtures(arguments) => fixtures::run(&arguments),
        Command::Python(arguments) => python::run(&arguments),
        Command::RandomCaches(arguments) => random_caches::run(&arguments),
        Command::GpuCheck(arguments) => gpu_check::run(&arguments),
        Command::Workflows => workflows::run(),
        Command::Apple(arguments) => return apple::run(&arguments),
    };
    passed.map(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command_line().debug_assert();
    }

    #[test]
    fn arguments_of_other_programs_are_passed_on_as_they_are() {
        let given = ["--help", "--filter", "a b", "--", "-x", "speed"];
        for command in lab::COMMANDS {
            let line = ["cargo xtask", command.name].into_iter().chain(given);
            let matches = command_line().try_get_matches_from(line).unwrap();
            let (name, matches) = matches.subcommand().unwrap();
            let passed: Vec<&OsString> = matches.get_many("arguments").unwrap().collect();
            assert_eq!((name, passed), (command.name, given.map(OsString::from).iter().collect()));
        }
    }
}
