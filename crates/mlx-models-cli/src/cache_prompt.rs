//! `mlx-models cache-prompt`: reads a prompt once, for many answers.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;

use mlx_models::generate::Session;

use crate::engine::{CacheArguments, ModelArguments, unless_cancelled};
use crate::failure::Failure;
use crate::progress::{Progress, Unit};
use crate::{interrupt, prompt};

/// Arguments of `mlx-models cache-prompt`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    /// The text to read; - reads it from standard input
    #[arg(long, short, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: String,
    /// The file to write, for `generate --prompt-cache-file` and for mlx-lm
    #[arg(long, value_name = "FILE")]
    prompt_cache_file: PathBuf,
    #[command(flatten)]
    cache: CacheArguments,
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let text = prompt::read(arguments.prompt)?;
    let mut loaded = arguments.model.load()?;
    let model = &mut *loaded.model;
    let tokens = loaded.tokenizer.encode(&text)?;
    if tokens.is_empty() {
        return Err(Failure::Arguments("the prompt is empty; there is nothing to read".to_owned()));
    }
    let mut session = Session::new(model.new_cache(&arguments.cache.options(model, 0))?);
    arguments.cache.quantize(model, &mut session)?;

    interrupt::install();
    let step = arguments.cache.prefill_step_size().max(1);
    let mut bar = Progress::new(Unit::Count).worth_lines_above(step);
    let read = session.read_all(model, &tokens, step, |read, total| {
        bar.set(read as u64, total as u64, "tokens of the prompt");
        if interrupt::requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    bar.clear();
    if unless_cancelled(read)?.is_none() {
        return Ok(());
    }
    session.save(model, &arguments.prompt_cache_file)?;
    let bytes = session.cache().nbytes();
    let _ = writeln!(
        io::stderr(),
        "{} tokens, {:.1} MB in memory, in {}",
        tokens.len(),
        bytes as f64 / 1e6,
        arguments.prompt_cache_file.display()
    );
    Ok(())
}
