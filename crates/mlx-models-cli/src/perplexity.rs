//! `mlx-models perplexity`: measures how well a model predicts a text.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use mlx_files::LARGEST_TEXT;
use mlx_models::generate::{PerplexityOptions, perplexity};
use mlx_models::tokenizer::Tokenizer;
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
    /// Cut the text into pieces of this many tokens, each of which is read alone
    #[arg(long, value_name = "N", default_value_t = 512)]
    sequence_length: usize,
    /// Let pieces overlap, so that each token is scored behind at least this many others
    #[arg(long, value_name = "N", default_value_t = 0)]
    stride: usize,
    /// Begin pieces without the beginning-of-text token, as mlx-lm does
    #[arg(long)]
    no_bos: bool,
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
        let doing = format!("reading {}", arguments.file.display());
        let text = mlx_files::read_to_string(&arguments.file, LARGEST_TEXT);
        text.map_err(|source| Failure::Io { doing, source })?
    };
    let mut loaded = arguments.model.load()?;
    let mut tokens = loaded.tokenizer.encode(&text)?;
    let begin = if arguments.no_bos { None } else { beginning(&loaded.tokenizer, &tokens) };
    if begin.is_some() {
        // Each piece gets its own.
        tokens.remove(0);
    }
    if arguments.stride >= arguments.sequence_length.saturating_sub(usize::from(begin.is_some())).max(1) {
        return Err(Failure::Usage(format!(
            "--stride {} leaves nothing to score in pieces of {} tokens; make it smaller, or --sequence-length larger",
            arguments.stride, arguments.sequence_length
        )));
    }
    let options = PerplexityOptions {
        piece: arguments.sequence_length,
        begin,
        context: arguments.stride,
        with_rest: !arguments.whole_pieces,
    };
    interrupt::install();
    let started = Instant::now();
    let mut bar = Progress::new(Unit::Count).worth_lines_above(arguments.sequence_length.saturating_mul(8));
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
            "sequence_length": arguments.sequence_length,
            "stride": arguments.stride,
            "bos": begin.is_some(),
            "whole_pieces": arguments.whole_pieces,
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

/// The beginning-of-text token, where the tokenizer puts it before a text and these are such a text's tokens.
fn beginning(tokenizer: &Tokenizer, tokens: &[u32]) -> Option<u32> {
    let bos = tokenizer.token_id(tokenizer.special_token("bos_token")?)?;
    let adds_it = tokenizer.encode("a").is_ok_and(|tokens| tokens.first() == Some(&bos));
    (adds_it && tokens.first() == Some(&bos)).then_some(bos)
}
