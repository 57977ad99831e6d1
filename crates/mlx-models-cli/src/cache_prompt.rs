//! `mlx-models cache-prompt`: reads a prompt and saves its cache, for many answers.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;

use mlx_models::generate::{GenerateError, Session, default_prefill_chunk};
use mlx_models::tokenizer::{ChatEnd, Message};
use serde_json::json;

use crate::cache::CacheArguments;
use crate::engine::unless_cancelled;
use crate::failure::Failure;
use crate::model::ModelArguments;
use crate::progress::{Progress, Unit};
use crate::prompt::ChatArguments;
use crate::style::say;
use crate::{interrupt, prompt};

/// Arguments of `mlx-models cache-prompt`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    /// Read this text; - reads standard input. If the tokenizer has a chat template, the text is the beginning of the
    /// user's message, which `generate` continues
    #[arg(long, short, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: String,
    /// Write the cache to this file, for `generate --prompt-cache-file` or mlx-lm
    #[arg(long, value_name = "FILE")]
    prompt_cache_file: PathBuf,
    /// Read the text without the tokenizer's chat template
    #[arg(long, conflicts_with = "system_prompt")]
    ignore_chat_template: bool,
    /// Print one JSON object at the end
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    chat: ChatArguments,
    #[command(flatten)]
    cache: CacheArguments,
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let text = if arguments.prompt == "-" { prompt::read_stdin()? } else { arguments.prompt };
    // Before the model is loaded, which may take long.
    mlx_models::check_destination(&arguments.prompt_cache_file).map_err(GenerateError::from)?;
    // mlx-lm's program needs these two entries: the name of the model, and the settings of its tokenizer.
    let name = arguments.model.model.clone().unwrap_or_default().for_mlx_lm()?;
    let metadata = [("model", name), ("tokenizer_config", "{}".to_owned())];
    let metadata = metadata.map(|(name, value)| (name.to_owned(), value)).into();
    let mut loaded = arguments.model.load()?;
    let model = &mut *loaded.model;
    let (tokenizer, chat) = (&loaded.tokenizer, &arguments.chat);
    let has_template = tokenizer.chat_templates().next().is_some();
    let tokens = if !arguments.ignore_chat_template && (has_template || chat.system_prompt.is_some()) {
        let messages = [chat.beginning(), vec![Message::user(&text)]].concat();
        tokenizer.chat(&messages, &chat.options(ChatEnd::Continue)?)?.tokens
    } else {
        tokenizer.encode(&text)?
    };
    if tokens.is_empty() {
        return Err(Failure::Arguments("the prompt is empty".to_owned()));
    }
    let mut session = Session::new(model.new_cache(&arguments.cache.options(model, 0))?);
    arguments.cache.quantize(model, &mut session)?;
    arguments.cache.say_kv_group_size(model);

    interrupt::install();
    let step = arguments.cache.prefill_step_size.unwrap_or_else(default_prefill_chunk).max(1);
    let mut bar = Progress::new(Unit::Count).worth_lines_above(step);
    let read = session.read_all(model, &tokens, step, |read, total| {
        bar.set(read as u64, total as u64, "tokens of the prompt");
        if interrupt::requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    bar.clear();
    if unless_cancelled(read)?.is_none() {
        return Ok(());
    }
    session.save_with(model, &arguments.prompt_cache_file, &metadata)?;
    let bytes = session.cache().nbytes();
    if arguments.json {
        let object = json!({ "file": arguments.prompt_cache_file, "tokens": tokens.len(), "bytes": bytes });
        writeln!(io::stdout(), "{object}")?;
        return Ok(());
    }
    say(&format!(
        "{} tokens, {:.1} MB in memory, in {}",
        tokens.len(),
        bytes as f64 / 1e6,
        arguments.prompt_cache_file.display()
    ));
    Ok(())
}
