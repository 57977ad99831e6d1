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
mod inspect;
mod interrupt;
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

/// MLX makes thousands of small objects for each token on one thread and frees them on another, which this
/// allocator does in a fraction of the time; MLX itself gets it too.
#[cfg(target_os = "linux")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(name = "mlx-models", version, about = "Language models on MLX")]
#[command(
    after_help = "Exit status: 0 done, 1 an error, 2 wrong arguments; stopped by a signal: 130 by SIGINT (Ctrl-C), 143 by \
                  SIGTERM, 129 by SIGHUP."
)]
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
    /// Measure a model's perplexity on a text
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
    let messages = tracing_subscriber::fmt().with_writer(|| style::Stderr).with_ansi(false);
    messages.without_time().with_target(false).init();
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
        Ok(()) => interrupt::exit_status().map_or(ExitCode::SUCCESS, ExitCode::from),
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
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    /// Options in backticks, such as `--model`.
    fn options(cell: &str) -> BTreeSet<String> {
        cell.split('`').skip(1).step_by(2).filter(|text| text.starts_with('-')).map(str::to_owned).collect()
    }

    /// All names of the options of a subcommand, and those of them that are shown in its help.
    fn ours(command: &str) -> (BTreeSet<String>, BTreeSet<String>) {
        let program = Arguments::command();
        let command = program.find_subcommand(command).unwrap();
        let (mut names, mut shown) = (BTreeSet::new(), BTreeSet::new());
        for argument in command.get_arguments() {
            shown.extend(argument.get_long().map(|name| format!("--{name}")));
            shown.extend(argument.get_short().map(|name| format!("-{name}")));
            names.extend(argument.get_all_aliases().iter().flatten().map(|name| format!("--{name}")));
        }
        names.extend(shown.clone());
        (names, shown)
    }

    #[test]
    fn the_table_beside_mlx_lms_options_is_true_and_whole() {
        let document = include_str!("../../../docs/generation.md");
        let fixture = include_str!("../tests/fixtures/mlx_lm_options.json");
        let fixture: serde_json::Value = serde_json::from_str(fixture).unwrap();
        let (mut programs, mut named) = (BTreeSet::new(), BTreeMap::<_, BTreeSet<String>>::new());
        for section in document.split("\n## ").filter(|section| section.starts_with("`mlx_lm.")) {
            let mut names = section.split('`').skip(1).step_by(2);
            let program = names.next().unwrap().strip_prefix("mlx_lm.").unwrap();
            let command = names.next().unwrap().strip_prefix("mlx-models ").unwrap();
            let (mut theirs, known) = (BTreeSet::new(), ours(command).0);
            for row in section.lines().filter_map(|line| line.strip_prefix('|')) {
                let cells: Vec<&str> = row.split('|').collect();
                let here = options(cells[1]);
                let unknown: Vec<_> = here.difference(&known).collect();
                assert!(unknown.is_empty(), "{command} has no {unknown:?}");
                let is_option = cells[0].contains("`-");
                assert_eq!(cells[2].contains("missing"), is_option && here.is_empty(), "{row}");
                named.entry(command).or_default().extend(here);
                theirs.extend(options(cells[0]));
            }
            let expected: Vec<Vec<String>> =
                serde_json::from_value(fixture["programs"][program].clone()).unwrap();
            assert_eq!(theirs, expected.concat().into_iter().collect(), "options of mlx_lm.{program}");
            programs.insert(program);
        }
        assert_eq!(programs.len(), fixture["programs"].as_object().unwrap().len());
        for (command, named) in named {
            let missing: Vec<_> = ours(command).1.into_iter().filter(|name| !named.contains(name)).collect();
            assert!(missing.is_empty(), "the table of {command} lacks {missing:?}");
        }
    }
}
