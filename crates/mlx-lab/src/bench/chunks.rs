//! `cargo xtask bench --chunks`: the speed and memory of reading a prompt in chunks of several sizes.

use std::io::{self, Write};
use std::path::Path;

use mlx_models::CacheOptions;
use mlx_models::generate::{GenerateOptions, Session};
use serde::{Deserialize, Serialize};

use super::{Arguments, Failure, in_turns, prompt, rates_behind};

/// The figures for one size.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Pieces {
    prefill_tps: f64,
    peak_memory_bytes: f64,
}

pub(super) fn run(model: &Path, python: &Path, arguments: &Arguments) -> io::Result<()> {
    let chunks: Vec<String> = arguments.chunks.iter().map(ToString::to_string).collect();
    let options = ["--chunks", &chunks.join(","), "--prompt-tokens", &arguments.prompt_tokens.to_string()];
    let turns = in_turns::<Vec<Pieces>>(model, python, arguments.repeats, &options.map(str::to_owned))?;

    let mut out = io::stdout().lock();
    writeln!(out, "a prompt of {} tokens, medians", arguments.prompt_tokens)?;
    writeln!(
        out,
        "{:>6} | {:>10} {:>10} {:>6} | {:>10} {:>10} {:>6}",
        "piece", "tokens/s", "mlx-lm", "ratio", "peak, MB", "mlx-lm", "ratio"
    )?;
    for (row, chunk) in arguments.chunks.iter().enumerate() {
        let at = |figure: fn(&Pieces) -> f64| {
            turns.medians(|turn: &Vec<Pieces>| turn.get(row).map_or(f64::NAN, figure))
        };
        let (speed, their_speed) = at(|pieces| pieces.prefill_tps);
        let (peak, their_peak) = at(|pieces| pieces.peak_memory_bytes / 1e6);
        writeln!(
            out,
            "{chunk:6} | {speed:10.1} {their_speed:10.1} {:6.2} | {peak:10.1} {their_peak:10.1} {:6.2}",
            speed / their_speed,
            peak / their_peak
        )?;
    }
    Ok(())
}

/// One turn of ours: a short prompt as a warm-up, then the prompt in chunks of each size.
pub(super) fn measure(folder: &Path, arguments: &Arguments) -> Result<Vec<Pieces>, Failure> {
    let mut model = mlx_models::load(folder)?;
    mlx_rs::transforms::eval_params(model.parameters())?;
    let prompt = prompt(&*model, arguments.prompt_tokens);
    let mut read = |prompt: &[u32], chunk| -> Result<f64, Failure> {
        let mut session = Session::new(model.new_cache(&CacheOptions::default())?);
        let options =
            GenerateOptions { max_tokens: 1, prefill_chunk: Some(chunk), ..GenerateOptions::new(&[]) };
        Ok(rates_behind(&mut *model, &mut session, prompt, options)?.0)
    };
    read(&prompt[..prompt.len().min(16)], 16)?;
    let mut figures = Vec::new();
    for chunk in &arguments.chunks {
        mlx_rs::memory::clear_cache()?;
        mlx_rs::memory::reset_peak_memory()?;
        let prefill_tps = read(&prompt, *chunk)?;
        figures.push(Pieces { prefill_tps, peak_memory_bytes: mlx_rs::memory::peak_memory()? as f64 });
    }
    Ok(figures)
}
