//! `mlx-models generate`: continues a prompt.

use std::io::{self, IsTerminal, Read, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use mlx_models::generate::{FinishReason, GenerateError, GenerateOptions, Session, generate_with_progress};
use mlx_models::tokenizer::Tokenizer;
use mlx_models::{CacheOptions, CausalLm, LoadOptions};
use serde::Serialize;

use crate::demo::Source;
use crate::failure::Failure;
use crate::interrupt;
use crate::sampling::SamplingArguments;

/// Arguments of `mlx-models generate`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Checkpoint folder, or demo:NAME; without it, a small demo model that tells stories
    #[arg(long, value_name = "DIR")]
    model: Option<Source>,
    /// Folder of adapters for it (LoRA, DoRA), as mlx-lm writes them
    #[arg(long, value_name = "DIR")]
    adapters: Option<PathBuf>,
    /// The text to continue; - reads it from standard input
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: String,
    /// Stop after this many tokens
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_tokens: usize,
    /// Not stop before this many tokens
    #[arg(long, value_name = "N", default_value_t = 0)]
    min_tokens: usize,
    /// Put the N most probable tokens of each step into the JSON object, with their log-probabilities
    #[arg(long, value_name = "N", default_value_t = 0, requires = "json")]
    top_logprobs: usize,
    /// Write one JSON object instead of text, when all is done
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sampling: SamplingArguments,
}

/// Tokens of the prompt that are read between two looks at Ctrl-C.
const PREFILL_CHUNK: usize = 512;

/// What `--json` writes.
#[derive(Serialize)]
struct Report {
    text: String,
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
    /// Ids and log-probabilities, for each token.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    alternatives: Vec<Vec<(u32, f32)>>,
    finish_reason: &'static str,
    prompt_tokens: usize,
    generation_tokens: usize,
    load_seconds: f64,
    prompt_tokens_per_second: f64,
    generation_tokens_per_second: f64,
    peak_memory_bytes: usize,
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let prompt = read_prompt(arguments.prompt)?;
    let folder = arguments.model.unwrap_or_default().folder()?;
    let started = Instant::now();
    let options = LoadOptions { adapters: arguments.adapters, ..LoadOptions::default() };
    let mut model = mlx_models::load_with(&folder, &options)?;
    let tokenizer = Tokenizer::from_folder(&folder)?;
    let prompt = tokenizer.encode(&prompt)?;
    // Now, and not during the prompt, so that the times below mean what they say.
    mlx_rs::transforms::eval_params(model.parameters())?;
    let load = started.elapsed();

    let options = GenerateOptions {
        max_tokens: arguments.max_tokens,
        stop_tokens: tokenizer.stop_tokens().to_vec(),
        min_tokens: arguments.min_tokens,
        penalties: arguments.sampling.penalties(&tokenizer)?,
        sampling: arguments.sampling.sampling(&tokenizer)?,
        top_logprobs: arguments.top_logprobs,
        prefill_chunk: PREFILL_CHUNK,
        ..GenerateOptions::default()
    };
    interrupt::install();
    let report = continue_prompt(&mut *model, &tokenizer, &prompt, options, load, arguments.json)?;
    if arguments.json {
        let mut out = io::stdout().lock();
        serde_json::to_writer(&mut out, &report).map_err(io::Error::from)?;
        writeln!(out)?;
    }
    report.summarize();
    Ok(())
}

fn read_prompt(prompt: String) -> Result<String, Failure> {
    if prompt != "-" {
        return Ok(prompt);
    }
    let mut text = String::new();
    io::stdin().lock().read_to_string(&mut text).map_err(|source| Failure::Io {
        doing: "reading the prompt from standard input, which must be UTF-8 text".to_owned(),
        source,
    })?;
    Ok(text)
}

/// Generates, and writes the text as it comes unless `quiet`.
fn continue_prompt(
    model: &mut dyn CausalLm,
    tokenizer: &Tokenizer,
    prompt: &[u32],
    options: GenerateOptions,
    load: Duration,
    quiet: bool,
) -> Result<Report, Failure> {
    let mut session = Session::new(model.new_cache(&CacheOptions::default())?);
    let mut report = Report {
        text: String::new(),
        tokens: Vec::new(),
        logprobs: Vec::new(),
        alternatives: Vec::new(),
        finish_reason: "interrupted",
        prompt_tokens: 0,
        generation_tokens: 0,
        load_seconds: load.as_secs_f64(),
        prompt_tokens_per_second: 0.0,
        generation_tokens_per_second: 0.0,
        peak_memory_bytes: 0,
    };

    let started = Instant::now();
    let progress = Progress::new();
    let stream = generate_with_progress(model, &mut session, prompt, options, |read, total| {
        progress.show(read, total);
        report.prompt_tokens = read;
        if interrupt::requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    progress.clear();
    let mut stream = match stream {
        Ok(stream) => Some(stream),
        Err(GenerateError::Cancelled) => None,
        Err(e) => return Err(e.into()),
    };
    report.prompt_tokens_per_second = report.prompt_tokens as f64 / started.elapsed().as_secs_f64();

    let started = Instant::now();
    let mut text = tokenizer.stream();
    let emit = |piece: String, report: &mut Report| -> Result<(), Failure> {
        if !quiet && !piece.is_empty() {
            let mut out = io::stdout().lock();
            out.write_all(piece.as_bytes())?;
            out.flush()?;
        }
        report.text += &piece;
        Ok(())
    };
    while !interrupt::requested()
        && let Some(token) = stream.as_mut().and_then(Iterator::next)
    {
        let token = token?;
        report.tokens.push(token.id);
        report.logprobs.push(token.logprob);
        if !token.alternatives.is_empty() {
            report.alternatives.push(token.alternatives);
        }
        emit(text.push(token.id)?, &mut report)?;
    }
    if let Some(reason) = stream.and_then(|stream| stream.finish_reason()) {
        report.finish_reason = name(reason);
    }
    emit(text.finish()?, &mut report)?;
    if !quiet {
        writeln!(io::stdout())?;
    }
    report.generation_tokens = report.tokens.len();
    report.generation_tokens_per_second = report.tokens.len() as f64 / started.elapsed().as_secs_f64();
    report.peak_memory_bytes = mlx_rs::memory::peak_memory()?;
    Ok(report)
}

fn name(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::StopToken => "stop_token",
        FinishReason::MaxTokens => "max_tokens",
        FinishReason::ContextFull => "context_full",
        _ => "other",
    }
}

impl Report {
    /// The figures, for a person.
    fn summarize(&self) {
        let text = format!(
            "prompt: {} tokens, {:.1} tokens/s\ngeneration: {} tokens, {:.1} tokens/s ({})\npeak memory: {:.1} MB",
            self.prompt_tokens,
            self.prompt_tokens_per_second,
            self.generation_tokens,
            self.generation_tokens_per_second,
            self.finish_reason,
            self.peak_memory_bytes as f64 / 1e6,
        );
        // Nothing is left to do for a closed standard error.
        let _ = writeln!(io::stderr(), "{text}");
    }
}

/// How much of the prompt was read: on one line of a terminal, in lines elsewhere, where a short
/// prompt is not worth one.
struct Progress {
    terminal: bool,
}

impl Progress {
    fn new() -> Self {
        Self { terminal: io::stderr().is_terminal() }
    }

    fn show(&self, read: usize, total: usize) {
        let line = format!("reading the prompt: {read} of {total} tokens");
        // Nothing is left to do for a closed standard error.
        let _ = if self.terminal {
            write!(io::stderr(), "\r\x1b[K{line}")
        } else if total > PREFILL_CHUNK && read > 0 {
            writeln!(io::stderr(), "{line}")
        } else {
            Ok(())
        };
    }

    fn clear(&self) {
        if self.terminal {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
