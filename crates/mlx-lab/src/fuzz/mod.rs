//! `cargo xtask fuzz`: changes files and options at random, and checks that each use gives a result or an
//! error.
//!
//! Whatever a model's folder, a prompt cache or an option contains, the libraries and the program must give a
//! result or an error. A panic, a signal, an endless loop, unlimited memory, an endless message or a file
//! written in the wrong place is a fault. A case follows from a seed and a number, so that it can be run again
//! alone. The cases start from the demo models and from models of parity cases. They run one after the other in
//! a separate process, which is replaced if a case kills it. `docs/fuzzing.md` lists the changes.

mod case;
mod folder;
mod gguf;
mod json;
mod kind;
mod library;
mod options;
mod program;
mod random;
mod template;
mod tensors;
mod tokenizer;
mod values;
mod words;
mod worker;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::interrupt;
use kind::{Kind, Settings, Verdict};
use worker::{Ran, Worker};

/// Arguments of `cargo xtask fuzz`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Start no new case after this many seconds
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u64,
    /// The seed of the cases
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// Start with the case of this number
    #[arg(long, value_name = "N", default_value_t = 0)]
    from: u64,
    /// Run only cases of this kind, by its name in the table at the end
    #[arg(long, value_name = "KIND", value_parser = Kind::named)]
    kind: Option<Kind>,
    /// Run only this case, print each step, and keep its folder
    #[arg(long, value_name = "N", conflicts_with_all = ["seconds", "from"])]
    case: Option<u64>,
    /// Treat a case as endless after this many seconds; most take a tenth of a second
    #[arg(long, value_name = "N", default_value_t = 40)]
    longest: u64,
    /// List every kind of error at the end
    #[arg(long)]
    errors: bool,
    /// Run this program in the cases about options, instead of building mlx-models
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// Run the cases whose numbers come on standard input, in this folder
    #[arg(long, value_name = "DIR", hide = true)]
    worker: Option<PathBuf>,
}

/// The time between two progress messages.
const PROGRESS: Duration = Duration::from_secs(30);
/// After this many faults a run ends: they probably have one cause.
const MOST_FAULTS: usize = 100;

/// If this many cases of a kind run, some must give a result.
const ENOUGH: usize = 60;

pub(crate) fn run(arguments: &Arguments) -> io::Result<bool> {
    let longest = Duration::from_secs(arguments.longest);
    let settings = |program| Settings { seed: arguments.seed, longest, program };
    if let Some(folder) = &arguments.worker {
        return worker::work(settings(arguments.program.clone().unwrap_or_default()), folder);
    }
    interrupt::install()?;
    let scratch = tempfile::Builder::new().prefix("fuzz-").tempdir()?;
    let program = scratch.path().join("mlx-models");
    if arguments.case.map(Kind::of).or(arguments.kind).is_none_or(|kind| kind == Kind::Program) {
        // A copy, so that a build during the run does not change the program that is run.
        let built = match &arguments.program {
            Some(program) => program.clone(),
            None => build_program()?,
        };
        std::fs::hard_link(&built, &program).or_else(|_| std::fs::copy(&built, &program).map(drop))?;
    }
    let settings = settings(program);
    match arguments.case {
        Some(case) => run_one(&settings, case),
        None => run_many(&settings, arguments, scratch.path()),
    }
}

/// The program as `cargo run` builds it.
fn build_program() -> io::Result<PathBuf> {
    let mut command = Command::new(env!("CARGO"));
    command.args([
        "build",
        "--quiet",
        "--package",
        "mlx-models-cli",
        "--message-format",
        "json-render-diagnostics",
    ]);
    let output = command.current_dir(workspace::root()).stderr(Stdio::inherit()).output()?;
    let messages = String::from_utf8_lossy(&output.stdout);
    let mut executable = messages.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        Some(PathBuf::from(message["executable"].as_str()?))
    });
    let found = executable.rfind(|_| output.status.success());
    found.ok_or_else(|| io::Error::other("the program mlx-models does not build"))
}

/// The outcomes of a kind's cases.
#[derive(Default)]
struct Tally {
    accepted: usize,
    refused: usize,
    faults: usize,
    /// The error messages, without the parts that differ from case to case.
    messages: BTreeMap<String, usize>,
}

fn run_many(settings: &Settings, arguments: &Arguments, scratch: &Path) -> io::Result<bool> {
    let Arguments { seconds, seed, from, .. } = *arguments;
    let mut worker = Worker::new(settings, scratch.to_path_buf());
    let mut tallies: BTreeMap<Kind, Tally> = BTreeMap::new();
    let (started, mut said) = (Instant::now(), Instant::now());
    let (mut slowest, mut largest) = ((Duration::ZERO, 0), (0, 0));
    let (mut cases, mut faults) = (0, 0);
    let mut number = from;
    while started.elapsed() < Duration::from_secs(seconds) && faults < MOST_FAULTS && !interrupt::requested()
    {
        if arguments.kind.is_some_and(|kind| kind != Kind::of(number)) {
            number += 1;
            continue;
        }
        let began = Instant::now();
        let ran = run_and_clean(&mut worker, number, scratch)?;
        slowest = slowest.max((began.elapsed(), number));
        largest = largest.max((ran.peak, number));
        let tally = tallies.entry(Kind::of(number)).or_default();
        match ran.verdict {
            Verdict::Accepted => tally.accepted += 1,
            Verdict::Refused(message) => {
                tally.refused += 1;
                *tally.messages.entry(pattern(&message)).or_default() += 1;
            }
            Verdict::Fault(fault) => {
                tally.faults += 1;
                faults += 1;
                say(&format!("FAULT in case {number} ({}): {fault}", Kind::of(number).name()))?;
                say(&format!("  at: {}", ran.steps.last().map_or("the beginning", |(_, step)| step)))?;
                say(&format!("  repeat: cargo xtask fuzz --seed {seed} --case {number}"))?;
            }
        }
        cases += 1;
        if said.elapsed() > PROGRESS {
            said = Instant::now();
            say(&format!("{} cases in {} s, {faults} faults", cases, started.elapsed().as_secs()))?;
        }
        number += 1;
    }
    say_table(&tallies, arguments.errors)?;
    say(&format!(
        "slowest: case {} with {:.1} s; most memory: case {} with {} MB",
        slowest.1,
        slowest.0.as_secs_f64(),
        largest.1,
        largest.0 >> 20
    ))?;
    say(&format!("seed {seed}: {} cases in {} s, {faults} faults", cases, started.elapsed().as_secs()))?;
    // If all cases of a kind end with an error, only the first check was tested.
    let refused = tallies.iter().filter(|(_, tally)| tally.accepted == 0 && tally.refused >= ENOUGH);
    let refused: Vec<&str> = refused.map(|(kind, _)| kind.name()).collect();
    for kind in &refused {
        say(&format!("no case of this kind gave a result: {kind}"))?;
    }
    interrupt::check()?;
    Ok(faults == 0 && refused.is_empty())
}

/// Runs a case and removes what it wrote. A case that wrote outside of its own folder has a fault.
fn run_and_clean(worker: &mut Worker, number: u64, scratch: &Path) -> io::Result<Ran> {
    let mut ran = worker.run(number).map_err(|e| io::Error::other(format!("case {number}: {e}")))?;
    case::clean(&scratch.join("case"))
        .map_err(|e| io::Error::other(format!("cleaning up after case {number}: {e}")))?;
    if let Some(stray) = worker.strays()?.first() {
        ran.verdict = Verdict::Fault(format!("{} was written", stray.display()));
        std::fs::remove_dir_all(stray).or_else(|_| std::fs::remove_file(stray))?;
    }
    Ok(ran)
}

/// Prints a row for each kind, and if asked for, its errors.
fn say_table(tallies: &BTreeMap<Kind, Tally>, with_errors: bool) -> io::Result<()> {
    say(&format!(
        "{:>20} {:>8} {:>8} {:>8} {:>8}  kinds of errors",
        "", "cases", "results", "errors", "faults"
    ))?;
    for (kind, tally) in tallies {
        let Tally { accepted, refused, faults, ref messages } = *tally;
        let all = accepted + refused + faults;
        say(&format!(
            "{:>20} {all:>8} {accepted:>8} {refused:>8} {faults:>8}  {}",
            kind.name(),
            messages.len()
        ))?;
    }
    for (kind, tally) in tallies.iter().filter(|_| with_errors) {
        say(&format!("{}:", kind.name()))?;
        for (message, count) in &tally.messages {
            say(&format!("{count:>8} {message}"))?;
        }
    }
    Ok(())
}

fn run_one(settings: &Settings, case: u64) -> io::Result<bool> {
    let target = workspace::target_folder(&workspace::root())?;
    let folder = target.join("fuzz").join(format!("{}-{case}", settings.seed));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder)?;
    let ran = Worker::new(settings, folder.clone()).run(case)?;
    for (began, step) in &ran.steps {
        say(&format!("{:>7.2} s  {step}", began.as_secs_f64()))?;
    }
    let (outcome, passed) = match ran.verdict {
        Verdict::Accepted => ("answered".to_owned(), true),
        Verdict::Refused(message) => (format!("refused: {message}"), true),
        Verdict::Fault(fault) => (format!("FAULT: {fault}"), false),
    };
    say(&format!(
        "case {case} ({}), {} MB, {}: {outcome}",
        Kind::of(case).name(),
        ran.peak >> 20,
        folder.display()
    ))?;
    Ok(passed)
}

/// A message without its numbers and quoted parts, so that errors of one kind count once.
fn pattern(message: &str) -> String {
    let (mut pattern, mut is_quoted) = (String::new(), false);
    for c in message.lines().next().unwrap_or_default().chars() {
        is_quoted ^= c == '"';
        if !is_quoted && !c.is_ascii_digit() {
            pattern.push(c);
        }
    }
    pattern.truncate(pattern.floor_char_boundary(160));
    pattern
}

fn say(line: &str) -> io::Result<()> {
    let line: String = line.chars().map(|c| if c.is_control() && c != '\t' { '·' } else { c }).collect();
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn errors_of_one_kind_have_one_pattern() {
        assert_eq!(pattern("/a/1: \"x\" is 12\nmore"), pattern("/a/2: \"yz\" is 3"));
        assert_ne!(pattern("a is missing"), pattern("a is wrong"));
    }

    #[test]
    fn every_kind_has_its_turn() {
        let kinds: BTreeSet<Kind> = (0..100).map(Kind::of).collect();
        assert_eq!(kinds.len(), Kind::ALL.len());
    }
}
