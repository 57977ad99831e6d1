//! The program `mlx-models`: language models on MLX at a terminal.

mod bench;
mod cache_prompt;
mod chat;
mod convert;
mod demo;
mod download;
mod engine;
mod failure;
mod generate;
mod hub;
mod inspect;
mod interrupt;
mod perplexity;
mod progress;
mod prompt;
mod sampling;
mod style;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use failure::Failure;

#[derive(Parser)]
#[command(name = "mlx-models", version, about = "Language models on MLX")]
#[command(after_help = "Exit status: 0 done, 1 an error, 2 wrong arguments, 130 interrupted.")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Continue a prompt, or answer it
    Generate(Box<generate::Arguments>),
    /// Talk with a model
    Chat(Box<chat::Arguments>),
    /// Read a prompt once, for many answers
    CachePrompt(cache_prompt::Arguments),
    /// Say how well a model foretells a text
    Perplexity(perplexity::Arguments),
    /// Measure how fast a model is
    Bench(bench::Arguments),
    /// Write a model in another form: quantized, in full precision, with adapters added
    Convert(convert::Arguments),
    /// Bring a model from the hub into the cache
    Download(download::Arguments),
    /// Say what is in a checkpoint folder
    Inspect(inspect::Arguments),
    /// Write a completion script for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Write the manual page
    Man,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Libraries do not print; what they have to say comes out here.
    tracing_subscriber::fmt().with_writer(std::io::stderr).without_time().with_target(false).init();
    let outcome = match arguments.command {
        Command::Generate(arguments) => generate::run(*arguments),
        Command::Chat(arguments) => chat::run(*arguments),
        Command::CachePrompt(arguments) => cache_prompt::run(arguments),
        Command::Perplexity(arguments) => perplexity::run(arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Convert(arguments) => convert::run(arguments),
        Command::Download(arguments) => download::run(arguments),
        Command::Inspect(arguments) => inspect::run(arguments),
        Command::Completions { shell } => completions(shell),
        Command::Man => man(),
    };
    match outcome {
        Ok(()) if interrupt::requested() => ExitCode::from(interrupt::EXIT_STATUS),
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn completions(shell: clap_complete::Shell) -> Result<(), Failure> {
    // Into memory first: a reader that leaves is no panic then.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "mlx-models", &mut script);
    Ok(io::stdout().write_all(&script)?)
}

/// The page of the program, and those of its subcommands behind it.
fn man() -> Result<(), Failure> {
    let mut pages = Vec::new();
    let mut command = Arguments::command();
    command.build();
    clap_mangen::Man::new(command.clone()).render(&mut pages)?;
    for subcommand in command.get_subcommands().filter(|subcommand| subcommand.get_name() != "help") {
        clap_mangen::Man::new(subcommand.clone()).render(&mut pages)?;
    }
    Ok(io::stdout().write_all(&pages)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
