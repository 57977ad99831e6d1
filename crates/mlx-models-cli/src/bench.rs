//! `mlx-models bench`: how fast a model is here.

use std::io::{self, Write};
use std::time::Instant;

use mlx_models::CacheOptions;
use mlx_models::generate::{GenerateOptions, PREFILL_CHUNK, Session, generate};
use serde::Serialize;

use crate::engine::ModelArguments;
use crate::failure::Failure;
use crate::interrupt;
use crate::progress::{Progress, Unit};

/// Arguments of `mlx-models bench`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    /// Length of the prompt
    #[arg(long, short, value_name = "P", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    prompt_tokens: u32,
    /// Tokens to generate
    #[arg(long, short, alias = "generation-tokens", value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(2..))]
    gen_tokens: u32,
    /// How often everything is measured, loading too
    #[arg(long, short = 'n', alias = "num-trials", value_name = "R", default_value_t = 5,
          value_parser = clap::value_parser!(u32).range(1..))]
    repeats: u32,
    /// Tokens of the prompt that are read in one call
    #[arg(long, value_name = "N", default_value_t = PREFILL_CHUNK)]
    prefill_step_size: usize,
    /// Write one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

/// What `--json` writes.
#[derive(Serialize)]
struct Figures {
    /// Tokens of the prompt per second, up to the first token of the answer.
    prefill_tps: Spread,
    /// Tokens of the answer per second, from the second on.
    decode_tps: Spread,
    /// Seconds until the weights are in memory.
    load_s: Spread,
    /// Seconds from the start of loading to the first token.
    first_token_s: Spread,
    /// Largest memory that MLX held.
    peak_memory_bytes: Spread,
}

#[derive(Serialize)]
struct Spread {
    min: f64,
    median: f64,
    max: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        let middle = values.len() / 2;
        let median = if values.len().is_multiple_of(2) {
            f64::midpoint(at(middle - 1), at(middle))
        } else {
            at(middle)
        };
        Self { min: at(0), median, max: at(values.len().saturating_sub(1)) }
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    interrupt::install();
    let mut bar = Progress::new(Unit::Count);
    let (prompt_tokens, gen_tokens) = (arguments.prompt_tokens as usize, arguments.gen_tokens as usize);
    let [mut prefill, mut decode, mut load, mut first, mut peak] = [(); 5].map(|()| Vec::new());
    for round in 0..arguments.repeats {
        bar.set(round.into(), arguments.repeats.into(), "rounds");
        mlx_rs::memory::reset_peak_memory()?;
        let started = Instant::now();
        let mut loaded = arguments.model.clone().load_model()?;
        load.push(started.elapsed().as_secs_f64());
        let model = &mut *loaded;
        let vocab_size = u32::try_from(model.info().vocab_size).unwrap_or(1);
        // Spread over the vocabulary: 7919 is a prime.
        let prompt: Vec<u32> =
            (1..=arguments.prompt_tokens).map(|i| i.wrapping_mul(7919) % vocab_size).collect();
        let mut session = Session::new(model.new_cache(&CacheOptions::default())?);
        let options = GenerateOptions {
            max_tokens: gen_tokens,
            prefill_chunk: arguments.prefill_step_size,
            ..GenerateOptions::default()
        };

        let began = Instant::now();
        let mut stream = generate(model, &mut session, &prompt, options)?;
        let token = stream.next().transpose()?;
        prefill.push(prompt_tokens as f64 / began.elapsed().as_secs_f64());
        first.push(started.elapsed().as_secs_f64());
        let began = Instant::now();
        let mut count = usize::from(token.is_some());
        for token in stream.by_ref() {
            token?;
            count += 1;
            if interrupt::requested() {
                bar.clear();
                return Ok(());
            }
        }
        if count < gen_tokens {
            return Err(Failure::Arguments(format!(
                "the model's context of {} tokens ends after {count} of {gen_tokens}; ask for fewer --gen-tokens",
                loaded.info().context_length
            )));
        }
        decode.push((count - 1) as f64 / began.elapsed().as_secs_f64());
        peak.push(mlx_rs::memory::peak_memory()? as f64);
    }
    bar.clear();
    let figures = Figures {
        prefill_tps: Spread::of(prefill),
        decode_tps: Spread::of(decode),
        load_s: Spread::of(load),
        first_token_s: Spread::of(first),
        peak_memory_bytes: Spread::of(peak),
    };
    let mut out = io::stdout().lock();
    if arguments.json {
        serde_json::to_writer(&mut out, &figures).map_err(io::Error::from)?;
        writeln!(out)?;
        return Ok(());
    }
    writeln!(out, "{:28}{:>12}{:>12}{:>12}", "", "min", "median", "max")?;
    let rows = [
        ("prompt, tokens/s", &figures.prefill_tps, 1.0, 1),
        ("generation, tokens/s", &figures.decode_tps, 1.0, 1),
        ("load, ms", &figures.load_s, 1e3, 1),
        ("start to first token, ms", &figures.first_token_s, 1e3, 1),
        ("peak memory, MB", &figures.peak_memory_bytes, 1e-6, 1),
    ];
    for (name, Spread { min, median, max }, scale, digits) in rows {
        let [min, median, max] = [min, median, max].map(|value| value * scale);
        writeln!(out, "{name:28}{min:>12.digits$}{median:>12.digits$}{max:>12.digits$}")?;
    }
    Ok(())
}
