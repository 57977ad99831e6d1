//! `mlx-models perplexity`: measures how well a model predicts a text.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use mlx_files::LARGEST_TEXT;
use mlx_models::generate::{Perplexity, PerplexityOptions, perplexity};
use mlx_models::tokenizer::Tokenizer;
use serde_json::json;

use crate::engine::unless_cancelled;
use crate::failure::Failure;
use crate::model::ModelArguments;
use crate::progress::{Progress, Unit};
use crate::{interrupt, prompt};

/// Arguments of `mlx-models perplexity`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    /// Read the text from this file; - reads standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Cut the text into pieces of this many tokens, and score each piece alone
    #[arg(long, value_name = "N", default_value_t = 512)]
    sequence_length: usize,
    /// Overlap the pieces by this many tokens, so that each token is scored after at least this many others
    #[arg(long, value_name = "N", default_value_t = 0)]
    stride: usize,
    /// Omit the beginning-of-text token from the pieces, as mlx-lm does
    #[arg(long)]
    no_bos: bool,
    /// Skip the end of the text where it is shorter than a piece, as mlx-lm does
    #[arg(long)]
    whole_pieces: bool,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let text = text(&arguments.file)?;
    let Arguments { model, sequence_length, stride, no_bos, whole_pieces, json, .. } = arguments;
    let mut loaded = model.load()?;
    let mut tokens = loaded.tokenizer.encode(&text)?;
    let begin = if no_bos { None } else { beginning(&loaded.tokenizer, &tokens) };
    if begin.is_some() {
        // Each piece gets a token of its own.
        tokens.remove(0);
    }
    if stride >= sequence_length.saturating_sub(usize::from(begin.is_some())).max(1) {
        return Err(Failure::Usage(format!(
            "--stride {stride} leaves no tokens to score in pieces of {sequence_length} tokens; use a smaller --stride or a \
             larger --sequence-length"
        )));
    }
    let options =
        PerplexityOptions { piece: sequence_length, begin, context: stride, with_rest: !whole_pieces };
    interrupt::install();
    let started = Instant::now();
    let mut bar = Progress::new(Unit::Count).worth_lines_above(sequence_length.saturating_mul(8));
    let found = perplexity(&mut *loaded.model, &tokens, options, |read, total| {
        bar.set(read as u64, total as u64, "tokens of the text");
        if interrupt::requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    bar.clear();
    let Some(found) = unless_cancelled(found)? else { return Ok(()) };
    let rate = tokens.len() as f64 / started.elapsed().as_secs_f64();
    if !json {
        return print(&found, rate);
    }
    let object = json!({
        "perplexity": found.perplexity(),
        "mean_nll": found.mean_nll,
        "standard_error": found.standard_error,
        "tokens": found.tokens,
        "tokens_per_second": rate,
        "sequence_length": sequence_length,
        "stride": stride,
        "bos": begin.is_some(),
        "whole_pieces": whole_pieces,
    });
    Ok(writeln!(io::stdout(), "{object}")?)
}

/// Prints the results as a table.
fn print(found: &Perplexity, rate: f64) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    // The error of the loss times the slope of exp, as in mlx-lm.
    let spread = found.perplexity() * found.standard_error;
    writeln!(out, "perplexity            {:.3} ± {spread:.3}", found.perplexity())?;
    writeln!(out, "loss                  {:.4} nats a token", found.mean_nll)?;
    writeln!(out, "tokens                {}", found.tokens)?;
    writeln!(out, "speed                 {rate:.1} tokens/s")?;
    Ok(())
}

/// The text of a file, or of standard input for `-`.
fn text(file: &Path) -> Result<String, Failure> {
    if file.as_os_str() == "-" {
        return prompt::read_stdin();
    }
    mlx_files::read_to_string(file, LARGEST_TEXT)
        .map_err(|source| Failure::Io { doing: format!("reading {}", file.display()), source })
}

/// The beginning-of-text token, if the tokenizer puts it before every text and these tokens begin with it.
fn beginning(tokenizer: &Tokenizer, tokens: &[u32]) -> Option<u32> {
    let bos = tokenizer.token_id(tokenizer.special_token("bos_token")?)?;
    let adds_it = tokenizer.encode("a").is_ok_and(|tokens| tokens.first() == Some(&bos));
    (adds_it && tokens.first() == Some(&bos)).then_some(bos)
}
