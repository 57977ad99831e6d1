//! `mlx-models perplexity`: how well a model foretells a text.

use std::fs;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use mlx_models::generate::{PerplexityOptions, perplexity};
use serde_json::json;

use crate::engine::{ModelArguments, unless_cancelled};
use crate::failure::Failure;
use crate::progress::{Progress, Unit};
use crate::{interrupt, prompt};

/// Arguments of `mlx-models perplexity`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    /// The file with the text; - reads standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Tokens of a piece; each is read with an empty cache
    #[arg(long, value_name = "N", default_value_t = 512)]
    sequence_length: usize,
    /// Leave out the rest of the text that is shorter than a piece, as mlx-lm does
    #[arg(long)]
    whole_pieces: bool,
    /// Write one JSON object instead of lines
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let text = if arguments.file.as_os_str() == "-" {
        prompt::read("-".to_owned())?
    } else {
        let doing = format!("reading {}, which must be UTF-8 text", arguments.file.display());
        fs::read_to_string(&arguments.file).map_err(|source| Failure::Io { doing, source })?
    };
    let mut loaded = arguments.model.load()?;
    let tokens = loaded.tokenizer.encode(&text)?;
    let options = PerplexityOptions { piece: arguments.sequence_length, with_rest: !arguments.whole_pieces };
    interrupt::install();
    let started = Instant::now();
    let mut bar = Progress::new(Unit::Count).worth_lines_above(8 * arguments.sequence_length);
    let found = perplexity(&mut *loaded.model, &tokens, options, |read, total| {
        bar.set(read as u64, total as u64, "tokens of the text");
        if interrupt::requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    bar.clear();
    let Some(found) = unless_cancelled(found)? else { return Ok(()) };
    let rate = tokens.len() as f64 / started.elapsed().as_secs_f64();
    let mut out = io::stdout().lock();
    if arguments.json {
        let object = json!({
            "perplexity": found.perplexity(),
            "mean_nll": found.mean_nll,
            "standard_error": found.standard_error,
            "tokens": found.tokens,
            "tokens_per_second": rate,
        });
        serde_json::to_writer(&mut out, &object).map_err(io::Error::from)?;
        writeln!(out)?;
        return Ok(());
    }
    // By the slope of exp, as in mlx-lm.
    let spread = found.perplexity() * found.standard_error;
    writeln!(out, "perplexity            {:.3} ± {spread:.3}", found.perplexity())?;
    writeln!(out, "loss                  {:.4} nats a token", found.mean_nll)?;
    writeln!(out, "tokens                {}", found.tokens)?;
    writeln!(out, "speed                 {rate:.1} tokens/s")?;
    Ok(())
}
