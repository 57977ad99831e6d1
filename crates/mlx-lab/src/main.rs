//! Maintenance commands that run models, and so link MLX. `cargo xtask COMMAND` builds this program and runs it.
//!
//! | command | what it is for | where |
//! |---|---|---|
//! | `parity` | shows that our models compute what the reference programs compute: runs every case, or compares one checkpoint layer by layer | `parity`, `docs/parity.md` |
//! | `bench` | shows whether a change made loading, prefill or decoding slower: we and mlx-lm take turns on one model | `bench`, `docs/performance-notes.md` |
//! | `speed` | shows how far the CPU kernels are from the machine's limits, beside llama.cpp, OpenVINO and mlx-lm | `speed`, `docs/performance.md` |
//! | `real` | proves a real model beside mlx-lm, transformers and llama.cpp | `real`, `docs/real-models.md` |
//! | `random-model` | writes a model in the shape of a real one, for `speed` and for trials without a download | `random_model.rs` |
//! | `plot-rope` | draws the picture of `docs/rope.md` again after a change of `mlx-rope` | `plot_rope.rs` |
//! | `fuzz` | looks for files and options that make a library or the program panic, hang or use too much memory | `fuzz`, `docs/fuzzing.md` |
//!
//! Commands that run no model are in `xtask`, which compiles in seconds.

#[cfg(test)]
mod alone;
mod bench;
mod fuzz;
mod interrupt;
mod memory;
mod parity;
mod plot_rope;
mod process;
mod random_model;
mod real;
mod real_model;
mod speed;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use mlx_models::device::DeviceChoice;

/// The allocator of the program for users, so that benchmarks measure what users get.
#[cfg(target_os = "linux")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Maintenance commands of mlx-models that run models"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compare our models with reference results (docs/parity.md)
    Parity(parity::Arguments),
    /// Compare speed and memory with mlx-lm, as ratios
    Bench(bench::Arguments),
    /// Compare speed on the CPU with llama.cpp and other programs (docs/performance.md)
    Speed(speed::Arguments),
    /// Compare a real model with mlx-lm, transformers and llama.cpp (docs/real-models.md)
    Real(real::Arguments),
    /// Write a checkpoint with random weights in the shape of a real model
    RandomModel(random_model::Arguments),
    /// Draw docs/rope.svg from the crate's own numbers
    PlotRope,
    /// Change files and options at random, and check that each use gives a result or an error (docs/fuzzing.md)
    Fuzz(fuzz::Arguments),
}

fn main() -> ExitCode {
    let command = Arguments::parse().command;
    // Results that are compared with a reference bit by bit need stock MLX.
    mlx_sys::cpu_kernels::set_enabled(matches!(
        command,
        Command::Bench(_) | Command::Speed(_) | Command::Real(_)
    ));
    let device = match &command {
        Command::Parity(arguments) => arguments.device,
        // They compare programs on the CPU.
        Command::Speed(_) | Command::Real(_) => Some(DeviceChoice::Cpu),
        _ => None,
    };
    let device = match mlx_models::device::select(device) {
        Ok(device) => device,
        Err(e) => {
            workspace::complain(&format!("error: {e}"));
            return ExitCode::FAILURE;
        }
    };
    let answer = match command {
        Command::Parity(arguments) => parity::run(&arguments, &device),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Speed(arguments) => speed::run(&arguments),
        Command::Real(arguments) => real::run(&arguments),
        Command::RandomModel(arguments) => random_model::run(&arguments),
        Command::PlotRope => plot_rope::run(),
        Command::Fuzz(arguments) => fuzz::run(&arguments),
    };
    match answer {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        // A closed pipe, as in `cargo xtask parity | head`, is not an error.
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
        Err(e) => {
            workspace::complain(&format!("error: {e}"));
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn cargo_xtask_lists_these_commands() {
        let command_line = Arguments::command();
        let here: Vec<(&str, String)> = command_line
            .get_subcommands()
            .map(|command| (command.get_name(), command.get_about().unwrap().to_string()))
            .collect();
        let there: Vec<(&str, String)> =
            workspace::lab::COMMANDS.iter().map(|command| (command.name, command.about.to_owned())).collect();
        assert_eq!(here, there);
    }
}
