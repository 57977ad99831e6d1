//! `cargo xtask bench`: compares our speed and memory with mlx-lm's, in one call on one machine.
//!
//! The two programs take turns, and each turn is a separate process, so a machine that slows down affects both.
//! The output shows ratios of medians, and the medians. `--contexts` and `--chunks` compare two other things in
//! the same way: decoding after contexts of several lengths, and a prompt in chunks of several sizes.

mod chunks;
mod contexts;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use mlx_models::generate::{GenerateError, GenerateOptions, Overflow, Session, generate};
use mlx_models::tokenizer::Tokenizer;
use mlx_models::{CacheOptions, CausalLm};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use workspace::python::{self, Environment};

/// Arguments of `cargo xtask bench`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A Python with mlx-lm; the default is the project's own environment with the pinned version
    #[arg(long, value_name = "PROGRAM")]
    python: Option<PathBuf>,
    /// The checkpoint folder; the default is the demo's
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// The length of the prompt, in tokens
    #[arg(long, value_name = "P", default_value_t = 256)]
    prompt_tokens: usize,
    /// The number of tokens to generate
    #[arg(long, value_name = "N", default_value_t = 200)]
    gen_tokens: usize,
    /// The number of turns of each program
    #[arg(long, value_name = "R", default_value_t = 5)]
    repeats: usize,
    /// Measure decoding after contexts of these lengths, in full and in rotating caches, such as
    /// 100,1000,4000,16000
    #[arg(long, value_name = "N,...", value_delimiter = ',', conflicts_with_all = ["prompt_tokens", "chunks"])]
    contexts: Vec<i32>,
    /// The number of tokens that the rotating caches of --contexts keep
    #[arg(long, value_name = "N", default_value_t = 512)]
    max_kv_size: i32,
    /// Measure reading the prompt in chunks of these sizes, such as 64,256,1024
    #[arg(long, value_name = "N,...", value_delimiter = ',', conflicts_with = "gen_tokens")]
    chunks: Vec<usize>,
    /// Continue from the prompt cache in this file
    #[arg(long, hide = true)]
    cache: Vec<PathBuf>,
    /// Only load a model and its tokenizer, and generate one token
    #[arg(long, hide = true)]
    first_token: bool,
    /// Only measure this program, once, and print the figures as JSON
    #[arg(long, hide = true)]
    one: bool,
}

/// The figures of one turn; `xtask/python/bench_mlx_lm.py` prints the same keys.
#[derive(Debug, Serialize, Deserialize)]
struct Turn {
    load_s: Spread,
    prefill_tps: Spread,
    decode_tps: Spread,
    peak_memory_bytes: f64,
    max_rss_bytes: f64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Spread {
    min: f64,
    median: f64,
    max: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        Self { min: at(0), median: at(values.len() / 2), max: at(values.len().saturating_sub(1)) }
    }
}

pub(crate) fn run(arguments: &Arguments) -> io::Result<bool> {
    let root = workspace::root();
    // The script runs in the workspace's root folder.
    let model = match &arguments.model {
        Some(model) => std::path::absolute(model)?,
        None => root.join("crates/mlx-models-cli/demo/lille-130m"),
    };
    if arguments.first_token {
        first_token(&model).map_err(io::Error::other)?;
        return Ok(true);
    }
    if arguments.one {
        let figures = if !arguments.cache.is_empty() {
            serde_json::to_string(&contexts::measure(&model, arguments).map_err(io::Error::other)?)?
        } else if !arguments.chunks.is_empty() {
            serde_json::to_string(&chunks::measure(&model, arguments).map_err(io::Error::other)?)?
        } else {
            serde_json::to_string(&measure(&model, arguments).map_err(io::Error::other)?)?
        };
        writeln!(io::stdout(), "{figures}")?;
        return Ok(true);
    }
    if cfg!(debug_assertions) {
        workspace::complain("note: not an optimized build; `cargo xtask bench` makes one");
    }

    let python = match &arguments.python {
        Some(python) => python.clone(),
        None => python::interpreter(Environment::MlxLm)?,
    };
    if !arguments.contexts.is_empty() {
        contexts::run(&model, &python, arguments)?;
    } else if !arguments.chunks.is_empty() {
        chunks::run(&model, &python, arguments)?;
    } else {
        let sizes = [("--prompt-tokens", arguments.prompt_tokens), ("--gen-tokens", arguments.gen_tokens)];
        let sizes: Vec<String> =
            sizes.iter().flat_map(|(name, size)| [(*name).to_owned(), size.to_string()]).collect();
        let turns = in_turns(&model, &python, arguments.repeats, &sizes)?;
        let starts = starts(&model, &python, arguments.repeats)?;
        report(&turns, &starts)?;
    }
    Ok(true)
}

/// The measurements of both programs, turn by turn.
#[derive(Debug)]
struct Turns<T> {
    ours: Vec<T>,
    theirs: Vec<T>,
}

impl<T> Turns<T> {
    /// The medians of a figure: ours and theirs.
    fn medians(&self, figure: impl Fn(&T) -> f64) -> (f64, f64) {
        let median = |turns: &[T]| Spread::of(turns.iter().map(&figure).collect()).median;
        (median(&self.ours), median(&self.theirs))
    }
}

/// Runs both programs alternately, each in a separate process, for this many turns. Each prints one `T` as
/// JSON.
fn in_turns<T: DeserializeOwned>(
    model: &Path,
    python: &Path,
    repeats: usize,
    options: &[String],
) -> io::Result<Turns<T>> {
    let mut turns = Turns { ours: Vec::new(), theirs: Vec::new() };
    for repeat in 0..repeats {
        workspace::complain(&format!("turn {} of {repeats}", repeat + 1));
        let mut us = Command::new(std::env::current_exe()?);
        us.args(["bench", "--one"]);
        turns.ours.push(turn(us, model, options, "this program")?);
        let mut them = python::script(python, "bench_mlx_lm.py");
        them.args(["--repeats", "1"]);
        turns.theirs.push(turn(them, model, options, &python.display().to_string())?);
    }
    Ok(turns)
}

fn turn<T: DeserializeOwned>(
    mut command: Command,
    model: &Path,
    options: &[String],
    name: &str,
) -> io::Result<T> {
    let output = command
        .arg("--model")
        .arg(model)
        .args(options)
        .output()
        .map_err(|e| io::Error::new(e.kind(), format!("starting {name}: {e}")))?;
    if !output.status.success() {
        return Err(io::Error::other(format!("{name} failed: {}", String::from_utf8_lossy(&output.stderr))));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Any text; its content does not matter.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The seconds of a whole process that loads a model and its tokenizer, reads a few words and generates one
/// token.
fn starts(model: &Path, python: &Path, repeats: usize) -> io::Result<Turns<f64>> {
    let seconds = |mut command: Command, name: &str| {
        command.arg("--model").arg(model).arg("--first-token");
        let started = Instant::now();
        let output = command.output()?;
        let seconds = started.elapsed().as_secs_f64();
        if output.status.success() {
            return Ok(seconds);
        }
        Err(io::Error::other(format!("{name} failed:\n{}", python::last_lines(&output.stderr))))
    };
    let mut starts = Turns { ours: Vec::new(), theirs: Vec::new() };
    for _ in 0..repeats {
        let mut us = Command::new(std::env::current_exe()?);
        us.arg("bench");
        starts.ours.push(seconds(us, "this program")?);
        starts.theirs.push(seconds(python::script(python, "bench_mlx_lm.py"), "bench_mlx_lm.py")?);
    }
    Ok(starts)
}

/// The work of the process that [`starts`] runs with this program.
fn first_token(folder: &Path) -> Result<(), Failure> {
    let mut model = mlx_models::load(folder)?;
    let prompt = Tokenizer::from_folder(folder)?.encode("Once upon a time")?;
    let mut session = Session::new(model.new_cache(&CacheOptions::default())?);
    let options = GenerateOptions { max_tokens: 1, ..GenerateOptions::new(&[]) };
    generate(&mut *model, &mut session, &prompt, options)?.next().transpose()?;
    Ok(())
}

/// One turn of ours: load, a short run as a warm-up, then the measured run.
fn measure(folder: &Path, arguments: &Arguments) -> Result<Turn, Failure> {
    let started = Instant::now();
    let mut model = mlx_models::load(folder)?;
    mlx_rs::transforms::eval_params(model.parameters())?;
    let load = started.elapsed().as_secs_f64();

    let prompt = prompt(&*model, arguments.prompt_tokens);
    rates(&mut *model, &prompt, 2)?;
    let (prefill, decode) = rates(&mut *model, &prompt, arguments.gen_tokens)?;
    Ok(Turn {
        load_s: Spread::of(vec![load]),
        prefill_tps: Spread::of(vec![prefill]),
        decode_tps: Spread::of(vec![decode]),
        peak_memory_bytes: mlx_rs::memory::peak_memory()? as f64,
        max_rss_bytes: peak_rss(),
    })
}

/// Any tokens: the work is the same for all. A linear congruential generator is random enough.
fn prompt(model: &dyn CausalLm, tokens: usize) -> Vec<u32> {
    let vocab_size = model.info().vocab_size as u32;
    (0..tokens as u32).map(|i| i.wrapping_mul(1_664_525).wrapping_add(1) % vocab_size).collect()
}

/// The rate of the prompt up to the first token, and of the tokens after it, in tokens per second.
fn rates(model: &mut dyn CausalLm, prompt: &[u32], count: usize) -> Result<(f64, f64), GenerateError> {
    let mut session = Session::new(model.new_cache(&CacheOptions::default())?);
    let options = GenerateOptions { max_tokens: count, ..GenerateOptions::new(&[]) };
    rates_behind(model, &mut session, prompt, options)
}

/// The same, when continuing from the session's tokens.
fn rates_behind(
    model: &mut dyn CausalLm,
    session: &mut Session,
    prompt: &[u32],
    options: GenerateOptions,
) -> Result<(f64, f64), GenerateError> {
    // The text may go beyond the context length of the model: the work is the same.
    let options = GenerateOptions { overflow: Overflow::Slide, ..options };
    let started = Instant::now();
    let mut stream = generate(model, session, prompt, options)?;
    stream.next().transpose()?;
    let first = Instant::now();
    let mut rest = 0;
    for token in stream {
        token?;
        rest += 1;
    }
    let prefill = prompt.len() as f64 / (first - started).as_secs_f64();
    Ok((prefill, f64::from(rest) / first.elapsed().as_secs_f64()))
}

/// The peak resident memory of this process, in bytes; NaN on systems without `/proc`.
fn peak_rss() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next());
    kib.and_then(|kib| kib.parse::<f64>().ok()).map_or(f64::NAN, |kib| kib * 1024.0)
}

/// One figure of a turn.
type Figure = fn(&Turn) -> f64;

fn report(turns: &Turns<Turn>, starts: &Turns<f64>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{:28} {:>12} {:>12} {:>8}", "median of the turns", "mlx-models", "mlx-lm", "ratio")?;
    let rows: [(&str, Figure); 5] = [
        ("load, ms", |turn| turn.load_s.median * 1e3),
        ("prompt, tokens/s", |turn| turn.prefill_tps.median),
        ("decode, tokens/s", |turn| turn.decode_tps.median),
        ("peak memory of MLX, MB", |turn| turn.peak_memory_bytes / 1e6),
        ("peak memory of process, MB", |turn| turn.max_rss_bytes / 1e6),
    ];
    let start = ("start to first token, ms", starts.medians(|seconds| seconds * 1e3));
    for (name, (us, them)) in
        rows.into_iter().map(|(name, figure)| (name, turns.medians(figure))).chain([start])
    {
        writeln!(out, "{name:28} {us:12.1} {them:12.1} {:8.2}", us / them)?;
    }
    Ok(())
}
