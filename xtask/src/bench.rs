//! `cargo xtask bench`: our speed and memory beside mlx-lm's, in one run on one machine.
//!
//! The two take turns, each in a process of its own, so that a machine that becomes slower becomes
//! slower for both. What is printed are ratios of medians, with the figures beside them.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use mlx_models::generate::{GenerateOptions, Session, generate};
use mlx_models::{CacheOptions, CausalLm};
use serde::{Deserialize, Serialize};

use crate::python::{self, Environment};

/// Arguments of `cargo xtask bench`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A Python with some mlx-lm; without it, the project's own environment with the pinned one
    #[arg(long, value_name = "PROGRAM")]
    python: Option<PathBuf>,
    /// Checkpoint folder; without it, the demo's
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Length of the prompt
    #[arg(long, value_name = "P", default_value_t = 256)]
    prompt_tokens: usize,
    /// Tokens to generate
    #[arg(long, value_name = "N", default_value_t = 200)]
    gen_tokens: usize,
    /// How often each program takes its turn
    #[arg(long, value_name = "R", default_value_t = 5)]
    repeats: usize,
    /// Only measure this program, once, and print the figures as JSON
    #[arg(long, hide = true)]
    one: bool,
}

/// The figures of one turn; `xtask/python/bench_mlx_lm.py` prints the same.
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
    let root = crate::root();
    // The script runs in the workspace's root folder.
    let model = match &arguments.model {
        Some(model) => std::path::absolute(model)?,
        None => root.join("crates/mlx-models-cli/demo/lille-130m"),
    };
    if arguments.one {
        let turn = measure(&model, arguments).map_err(io::Error::other)?;
        writeln!(io::stdout(), "{}", serde_json::to_string(&turn)?)?;
        return Ok(true);
    }
    if cfg!(debug_assertions) {
        crate::complain("note: not an optimized build; use `cargo run --release --package xtask -- bench`");
    }

    let python = match &arguments.python {
        Some(python) => python.clone(),
        None => python::interpreter(Environment::MlxLm)?,
    };
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for repeat in 0..arguments.repeats {
        crate::complain(&format!("turn {} of {}", repeat + 1, arguments.repeats));
        let mut us = Command::new(std::env::current_exe()?);
        us.args(["bench", "--one"]);
        ours.push(turn(us, &model, arguments, "this program")?);
        let mut them = python::script(&python, "bench_mlx_lm.py");
        them.args(["--repeats", "1"]);
        theirs.push(turn(them, &model, arguments, &python.display().to_string())?);
    }
    report(&ours, &theirs)?;
    Ok(true)
}

fn turn(mut command: Command, model: &Path, arguments: &Arguments, name: &str) -> io::Result<Turn> {
    command
        .arg("--model")
        .arg(model)
        .args(["--prompt-tokens", &arguments.prompt_tokens.to_string()])
        .args(["--gen-tokens", &arguments.gen_tokens.to_string()]);
    let output = command.output().map_err(|e| io::Error::new(e.kind(), format!("starting {name}: {e}")))?;
    if !output.status.success() {
        return Err(io::Error::other(format!("{name} failed: {}", String::from_utf8_lossy(&output.stderr))));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// One turn of ours: load, a short run to warm up, then the one that counts.
fn measure(folder: &Path, arguments: &Arguments) -> Result<Turn, Box<dyn std::error::Error + Send + Sync>> {
    let started = Instant::now();
    let mut model = mlx_models::load(folder)?;
    mlx_rs::transforms::eval_params(model.parameters())?;
    let load = started.elapsed().as_secs_f64();

    // Any tokens do: the work is the same for all. A linear congruence is random enough.
    let vocab_size = model.info().vocab_size as u32;
    let prompt: Vec<u32> = (0..arguments.prompt_tokens as u32)
        .map(|i| i.wrapping_mul(1_664_525).wrapping_add(1) % vocab_size)
        .collect();
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

/// Tokens per second of the prompt up to the first token, and of the tokens after that one.
fn rates(
    model: &mut dyn CausalLm,
    prompt: &[u32],
    count: usize,
) -> Result<(f64, f64), mlx_models::generate::GenerateError> {
    let mut session = Session::new(model.new_cache(&CacheOptions::default())?);
    let started = Instant::now();
    let options = GenerateOptions { max_tokens: count, ..GenerateOptions::default() };
    let mut stream = generate(model, &mut session, prompt, options)?;
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

/// The most memory that this process had resident, in bytes; unknown (NaN) where there is no `/proc`.
fn peak_rss() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next());
    kib.and_then(|kib| kib.parse::<f64>().ok()).map_or(f64::NAN, |kib| kib * 1024.0)
}

/// One number of a turn.
type Figure = fn(&Turn) -> f64;

fn report(ours: &[Turn], theirs: &[Turn]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{:28} {:>12} {:>12} {:>8}", "median of the turns", "mlx-models", "mlx-lm", "ratio")?;
    let rows: [(&str, Figure); 5] = [
        ("load, ms", |turn| turn.load_s.median * 1e3),
        ("prompt, tokens/s", |turn| turn.prefill_tps.median),
        ("decode, tokens/s", |turn| turn.decode_tps.median),
        ("peak memory of MLX, MB", |turn| turn.peak_memory_bytes / 1e6),
        ("peak memory of process, MB", |turn| turn.max_rss_bytes / 1e6),
    ];
    for (name, figure) in rows {
        let median = |turns: &[Turn]| Spread::of(turns.iter().map(figure).collect()).median;
        let (us, them) = (median(ours), median(theirs));
        writeln!(out, "{name:28} {us:12.1} {them:12.1} {:8.2}", us / them)?;
    }
    Ok(())
}
