//! `mlx-models bench`: measures a model's speed and memory use on this machine.

use std::io::{self, Write};
use std::time::Instant;

use mlx_models::CacheOptions;
use mlx_models::device::Device;
use mlx_models::generate::{GenerateOptions, Session, generate};
use serde::Serialize;

use crate::failure::Failure;
use crate::interrupt;
use crate::model::ModelArguments;
use crate::progress::{Progress, Unit};

/// Arguments of `mlx-models bench`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    /// Measure the prefill of a prompt of this many tokens
    #[arg(long, short, value_name = "P", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    prompt_tokens: u32,
    /// Measure the generation of this many tokens
    #[arg(long, short, alias = "generation-tokens", value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(2..))]
    gen_tokens: u32,
    /// Repeat the measurement this many times; the model is loaded anew each time
    #[arg(long, short = 'n', alias = "num-trials", value_name = "R", default_value_t = 5,
          value_parser = clap::value_parser!(u32).range(1..))]
    repeats: u32,
    /// Read the prompt in chunks of this many tokens [default: 512, or 2048 on a GPU]
    #[arg(long, value_name = "N")]
    prefill_step_size: Option<usize>,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

/// What `--json` writes.
#[derive(Serialize)]
struct Figures {
    /// The device that was measured: `gpu` or `cpu`.
    device: &'static str,
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

/// What one round measures, in the units of [`Figures`].
struct Round {
    prefill_tps: f64,
    decode_tps: f64,
    load_s: f64,
    first_token_s: f64,
    peak_memory_bytes: f64,
}

pub(crate) fn run(arguments: &Arguments, device: &Device) -> Result<(), Failure> {
    interrupt::install();
    let mut bar = Progress::new(Unit::Count);
    let mut rounds = Vec::new();
    for number in 0..arguments.repeats {
        bar.set(number.into(), arguments.repeats.into(), "rounds");
        let Some(round) = measure(arguments)? else { return Ok(()) };
        rounds.push(round);
    }
    bar.clear();
    let spread = |of: fn(&Round) -> f64| Spread::of(rounds.iter().map(of).collect());
    let figures = Figures {
        device: device.kind.name(),
        prefill_tps: spread(|round| round.prefill_tps),
        decode_tps: spread(|round| round.decode_tps),
        load_s: spread(|round| round.load_s),
        first_token_s: spread(|round| round.first_token_s),
        peak_memory_bytes: spread(|round| round.peak_memory_bytes),
    };
    if arguments.json {
        let mut out = io::stdout().lock();
        serde_json::to_writer(&mut out, &figures).map_err(io::Error::from)?;
        return Ok(writeln!(out)?);
    }
    print(device, &figures)
}

/// Loads the model, reads a prompt and generates; `None` if a signal stopped it.
fn measure(arguments: &Arguments) -> Result<Option<Round>, Failure> {
    mlx_rs::memory::reset_peak_memory()?;
    let started = Instant::now();
    let mut loaded = arguments.model.clone().load_model()?;
    let load_s = started.elapsed().as_secs_f64();
    let model = &mut *loaded;
    let vocab_size = u32::try_from(model.info().vocab_size).unwrap_or(1);
    // Tokens from all over the vocabulary: 7919 is a prime number.
    let prompt: Vec<u32> = (1..=arguments.prompt_tokens).map(|i| i.wrapping_mul(7919) % vocab_size).collect();
    let mut session = Session::new(model.new_cache(&CacheOptions::default())?);
    let gen_tokens = arguments.gen_tokens as usize;
    let options = GenerateOptions {
        max_tokens: gen_tokens,
        prefill_chunk: arguments.prefill_step_size,
        ..GenerateOptions::new(&[])
    };

    let began = Instant::now();
    let mut stream = generate(model, &mut session, &prompt, options)?;
    let token = stream.next().transpose()?;
    let prefill_tps = f64::from(arguments.prompt_tokens) / began.elapsed().as_secs_f64();
    let first_token_s = started.elapsed().as_secs_f64();
    let began = Instant::now();
    let mut count = usize::from(token.is_some());
    for token in stream.by_ref() {
        token?;
        count += 1;
        if interrupt::requested() {
            return Ok(None);
        }
    }
    if count < gen_tokens {
        return Err(Failure::Arguments(format!(
            "the model's context of {} tokens ends after {count} of {gen_tokens}; ask for fewer --gen-tokens",
            loaded.info().context_length
        )));
    }
    Ok(Some(Round {
        prefill_tps,
        decode_tps: (count - 1) as f64 / began.elapsed().as_secs_f64(),
        load_s,
        first_token_s,
        peak_memory_bytes: mlx_rs::memory::peak_memory()? as f64,
    }))
}

/// Prints the figures as a table.
fn print(device: &Device, figures: &Figures) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    writeln!(out, "device: {device}")?;
    writeln!(out, "{:28}{:>12}{:>12}{:>12}", "", "min", "median", "max")?;
    let rows = [
        ("prompt, tokens/s", &figures.prefill_tps, 1.0),
        ("generation, tokens/s", &figures.decode_tps, 1.0),
        ("load, ms", &figures.load_s, 1e3),
        ("start to first token, ms", &figures.first_token_s, 1e3),
        ("peak memory, MB", &figures.peak_memory_bytes, 1e-6),
    ];
    for (name, Spread { min, median, max }, scale) in rows {
        let [min, median, max] = [min, median, max].map(|value| value * scale);
        writeln!(out, "{name:28}{min:>12.1}{median:>12.1}{max:>12.1}")?;
    }
    Ok(())
}
