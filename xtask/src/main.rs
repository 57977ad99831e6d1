//! Maintenance commands of this workspace: `cargo xtask COMMAND`.
//!
//! One file per command. Commands for users are in the program `mlx-models`, never here.

mod bench;
mod ci;
mod fixtures;
mod fuzz;
mod interrupt;
mod mutations;
mod parity;
mod plot_rope;
mod python;
mod random_caches;
mod random_model;
mod speed;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The allocator of the program for users, so that benchmarks measure what users get.
#[cfg(target_os = "linux")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Maintenance commands of mlx-models")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compare our models with reference results (docs/parity.md)
    Parity(parity::Arguments),
    /// Generate the committed fixtures again with the reference programs, or check them
    Fixtures(fixtures::Arguments),
    /// Break a copy of the code in many ways, and check that parity catches each
    Mutations(mutations::Arguments),
    /// Compare speed and memory with mlx-lm, as ratios
    Bench(bench::Arguments),
    /// Compare speed on the CPU with mlx-lm and llama.cpp, on models with random weights
    Speed(speed::Arguments),
    /// Set up a Python environment of the project's scripts, and print its interpreter
    Python(python::Arguments),
    /// Draw docs/rope.svg from the crate's own numbers
    PlotRope,
    /// Run many random sequences of operations on every kind of cache
    RandomCaches(random_caches::Arguments),
    /// Change files and options at random, and check that each use gives a result or an error (docs/fuzzing.md)
    Fuzz(fuzz::Arguments),
    /// Write a checkpoint with random weights in the shape of a real model
    RandomModel(random_model::Arguments),
    /// Check what the compiler and clippy cannot: layers, module docs, file sizes, paths
    Tidy,
    /// Run everything that a change must pass, as continuous integration does
    Ci,
}

fn main() -> ExitCode {
    let command = Arguments::parse().command;
    // Results that are compared with a reference bit by bit need stock MLX.
    mlx_sys::cpu_kernels::set_enabled(matches!(command, Command::Bench(_) | Command::Speed(_)));
    let answer = match command {
        Command::Parity(arguments) => parity::run(&arguments),
        Command::Fixtures(arguments) => fixtures::run(&arguments),
        Command::Mutations(arguments) => mutations::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Speed(arguments) => speed::run(&arguments),
        Command::Python(arguments) => python::run(&arguments),
        Command::PlotRope => plot_rope::run(),
        Command::RandomCaches(arguments) => random_caches::run(&arguments),
        Command::Fuzz(arguments) => fuzz::run(&arguments),
        Command::RandomModel(arguments) => random_model::run(&arguments),
        Command::Tidy => tidy::run(),
        Command::Ci => ci::run(),
    };
    match answer {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        // A closed pipe, as in `cargo xtask parity | head`, is not an error.
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
        Err(e) => {
            complain(&format!("error: {e}"));
            ExitCode::FAILURE
        }
    }
}

/// The workspace's root folder.
fn root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask).to_path_buf()
}

/// Prints a message on standard error, so that it does not get into a pipe.
fn complain(message: &str) {
    use std::io::Write;
    // Nothing can be done about a closed standard error.
    let _ = writeln!(std::io::stderr(), "{message}");
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Arguments::command().debug_assert();
    }
}
