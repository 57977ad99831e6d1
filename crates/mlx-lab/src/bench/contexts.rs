//! `cargo xtask bench --contexts`: the speed of decoding after contexts of several lengths.
//!
//! Reading 16000 tokens takes minutes, and decoding costs the same whichever tokens they are. So mlx-lm writes
//! prompt caches of random keys and values once, and both programs continue from these files.

use std::io::{self, Write};
use std::path::Path;
use std::process::Command;

use mlx_models::generate::{GenerateOptions, Session};
use mlx_models::{CacheOptions, CausalLm, Limit};
use serde::{Deserialize, Serialize};
use workspace::python;

use super::{Arguments, Failure, in_turns, rates_behind};

/// The number of first tokens that a rotating cache keeps, as in mlx-lm.
const SINKS: i32 = 4;
/// The default number of decoded tokens.
const MOST_TOKENS: usize = 64;

/// The figures for one file.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Behind {
    decode_tps: f64,
    peak_memory_bytes: f64,
}

pub(super) fn run(model: &Path, python: &Path, arguments: &Arguments) -> io::Result<()> {
    let folder = tempfile::tempdir()?;
    let kinds = [("full", None), ("rotating", Some(arguments.max_kv_size))];
    let (mut rows, mut options) = (Vec::new(), Vec::new());
    for (kind, limit) in kinds {
        for context in &arguments.contexts {
            let file = folder.path().join(format!("{kind}-{context}.safetensors"));
            write_cache(python, model, &file, *context, limit)?;
            options.extend(["--cache".to_owned(), file.display().to_string()]);
            rows.push((kind, *context));
        }
    }
    let count = arguments.gen_tokens.min(MOST_TOKENS);
    options.extend(["--gen-tokens".to_owned(), count.to_string()]);
    options.extend(["--max-kv-size".to_owned(), arguments.max_kv_size.to_string()]);
    let turns = in_turns::<Vec<Behind>>(model, python, arguments.repeats, &options)?;

    let mut out = io::stdout().lock();
    writeln!(out, "decoding {count} tokens, medians; rotating caches keep {} tokens", arguments.max_kv_size)?;
    writeln!(
        out,
        "{:9} {:>7} | {:>10} {:>10} {:>6} | {:>10} {:>10} {:>6}",
        "cache", "context", "tokens/s", "mlx-lm", "ratio", "peak, MB", "mlx-lm", "ratio"
    )?;
    for (row, (kind, context)) in rows.iter().enumerate() {
        let at = |figure: fn(&Behind) -> f64| {
            turns.medians(|turn: &Vec<Behind>| turn.get(row).map_or(f64::NAN, figure))
        };
        let (speed, their_speed) = at(|behind| behind.decode_tps);
        let (peak, their_peak) = at(|behind| behind.peak_memory_bytes / 1e6);
        writeln!(
            out,
            "{kind:9} {context:7} | {speed:10.1} {their_speed:10.1} {:6.2} | {peak:10.1} {their_peak:10.1} {:6.2}",
            speed / their_speed,
            peak / their_peak
        )?;
    }
    Ok(())
}

/// Has mlx-lm write a prompt cache.
fn write_cache(python: &Path, model: &Path, file: &Path, context: i32, limit: Option<i32>) -> io::Result<()> {
    let mut command: Command = python::script(python, "bench_mlx_lm.py");
    command.arg("--model").arg(model).arg("--write-cache").arg(file);
    command.args(["--context", &context.to_string()]);
    if let Some(limit) = limit {
        command.args(["--max-kv-size", &limit.to_string()]);
    }
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("bench_mlx_lm.py failed:\n{}", python::last_lines(&output.stderr))))
}

/// One turn of ours: each file once as a warm-up, and once measured.
pub(super) fn measure(folder: &Path, arguments: &Arguments) -> Result<Vec<Behind>, Failure> {
    let mut model = mlx_models::load(folder)?;
    mlx_rs::transforms::eval_params(model.parameters())?;
    let mut figures = Vec::new();
    for file in &arguments.cache {
        behind(&mut *model, file, arguments.max_kv_size, 2)?;
        mlx_rs::memory::clear_cache()?;
        mlx_rs::memory::reset_peak_memory()?;
        let decode_tps = behind(&mut *model, file, arguments.max_kv_size, arguments.gen_tokens)?;
        figures.push(Behind { decode_tps, peak_memory_bytes: mlx_rs::memory::peak_memory()? as f64 });
    }
    Ok(figures)
}

/// Tokens per second when continuing from a prompt cache file.
fn behind(model: &mut dyn CausalLm, file: &Path, limit: i32, count: usize) -> Result<f64, Failure> {
    let rotating = file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("rotating"));
    let limit = rotating.then_some(Limit { max_size: limit, keep: SINKS });
    let mut session = Session::load(model, file, &CacheOptions { limit, ..CacheOptions::default() })?;
    session.cache().eval()?;
    let options = GenerateOptions { max_tokens: count, ..GenerateOptions::new(&[]) };
    Ok(rates_behind(model, &mut session, &[1], options)?.1)
}
