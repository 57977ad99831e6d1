//! The program `mlx-models`: runs language models on MLX at a terminal.

mod answer;
mod bench;
mod cache;
mod cache_prompt;
mod chat;
mod convert;
mod decoding;
mod demo;
mod device;
mod download;
mod drafting;
mod engine;
mod failure;
mod generate;
mod inspect;
mod interrupt;
mod memory;
mod model;
mod models;
mod perplexity;
mod progress;
mod prompt;
mod sampling;
mod style;
mod threads;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use failure::Failure;

/// MLX creates thousands of small objects for each token on one thread and frees them on another. This allocator does that
/// in a fraction of the time, and serves MLX as well.
#[cfg(target_os = "linux")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(name = "mlx-models", version, about = "Run language models on MLX")]
#[command(
    after_help = "Exit status: 0 for success, 1 for an error, 2 for wrong arguments; 130 after SIGINT (Ctrl-C), 143 after \
                  SIGTERM, 129 after SIGHUP."
)]
struct Arguments {
    #[command(flatten)]
    device: device::DeviceArguments,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Generate text from a prompt
    Generate(Box<generate::Arguments>),
    /// Chat with a model
    Chat(Box<chat::Arguments>),
    /// Save the cache of a prompt, to generate many answers from it
    CachePrompt(cache_prompt::Arguments),
    /// Measure a model's perplexity on a text
    Perplexity(perplexity::Arguments),
    /// Measure a model's speed and memory use
    Bench(bench::Arguments),
    /// Convert a model: quantize it, dequantize it, change its dtype, fuse adapters into it, or write a GGUF file
    Convert(convert::Arguments),
    /// Download a model from the Hugging Face Hub
    Download(download::Arguments),
    /// Show a model's architecture, size, quantization and context length, and whether it fits into memory
    Inspect(inspect::Arguments),
    /// Show the architectures, the released models that were checked, and what is not supported
    Models(models::Arguments),
    /// Print a completion script for a shell
    Completions {
        /// Print the script for this shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // The libraries print nothing; their `tracing` messages are printed here.
    let messages = tracing_subscriber::fmt().with_writer(|| style::Stderr).with_ansi(false);
    messages.without_time().with_target(false).init();
    match run(arguments) {
        Ok(()) => interrupt::exit_status().map_or(ExitCode::SUCCESS, ExitCode::from),
        Err(failure) => failure.report(),
    }
}

fn run(Arguments { device, command }: Arguments) -> Result<(), Failure> {
    // Subcommands that run no model work without the device that was chosen.
    let select = || device.select();
    match command {
        Command::Generate(arguments) => generate::run(*arguments, &select()?),
        Command::Chat(arguments) => select().and_then(|_| chat::run(*arguments)),
        Command::CachePrompt(arguments) => select().and_then(|_| cache_prompt::run(arguments)),
        Command::Perplexity(arguments) => select().and_then(|_| perplexity::run(arguments)),
        Command::Bench(arguments) => bench::run(&arguments, &select()?),
        Command::Convert(arguments) => select().and_then(|_| convert::run(arguments)),
        Command::Download(arguments) => download::run(arguments),
        Command::Inspect(arguments) => inspect::run(arguments, select()?),
        Command::Models(arguments) => models::run(arguments),
        Command::Completions { shell } => completions(shell),
        Command::Man => man(),
    }
}

fn completions(shell: clap_complete::Shell) -> Result<(), Failure> {
    // Into memory first: `clap_complete` would panic if the reader of a pipe left.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "mlx-models", &mut script);
    if shell == clap_complete::Shell::Bash {
        // `clap_complete` writes a program's hyphen in two ways, so that no subcommand would be completed
        // (https://github.com/clap-rs/clap/issues/6421).
        script = String::from_utf8_lossy(&script).replace("mlx__subcmd__models", "mlx__models").into_bytes();
    }
    Ok(io::stdout().write_all(&script)?)
}

/// Prints the page of the program, followed by those of its subcommands.
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
mod tests;
