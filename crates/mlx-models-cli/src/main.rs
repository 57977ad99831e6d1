//! The program `mlx-models`: language models on MLX at a terminal.

mod demo;
mod failure;
mod generate;
mod inspect;
mod interrupt;
mod sampling;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "mlx-models", version, about = "Language models on MLX")]
#[command(after_help = "Exit status: 0 done, 1 an error, 2 wrong arguments, 130 interrupted.")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Continue a prompt
    Generate(Box<generate::Arguments>),
    /// Say what is in a checkpoint folder
    Inspect(inspect::Arguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Libraries do not print; what they have to say comes out here.
    tracing_subscriber::fmt().with_writer(std::io::stderr).without_time().with_target(false).init();
    let outcome = match arguments.command {
        Command::Generate(arguments) => generate::run(*arguments),
        Command::Inspect(arguments) => inspect::run(arguments),
    };
    match outcome {
        Ok(()) if interrupt::requested() => ExitCode::from(interrupt::EXIT_STATUS),
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
