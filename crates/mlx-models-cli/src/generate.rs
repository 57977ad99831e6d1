//! `mlx-models generate`: continues a prompt, or answers it.

use std::io::{self, Write};
use std::path::PathBuf;

use mlx_models::tokenizer::{ChatEnd, Message};

use crate::engine::{DecodingArguments, Engine, ModelArguments};
use crate::failure::Failure;
use crate::prompt::ChatArguments;
use crate::style::{say, shown};
use crate::{interrupt, prompt};

/// Arguments of `mlx-models generate`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    /// The text to continue, or the question where the tokenizer has a chat template; \n and \t in it are a line break
    /// and a tab; - reads it from standard input
    #[arg(long, short, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: String,
    /// Keep \n and \t in --prompt as they are written
    #[arg(long)]
    no_escape: bool,
    /// Continue the prompt as it is, also where the tokenizer has a chat template
    #[arg(long, conflicts_with_all = ["system_prompt", "prefill_response"])]
    ignore_chat_template: bool,
    /// The beginning of the answer
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    prefill_response: Option<String>,
    /// Go on behind what this file holds, of `cache-prompt` or mlx-lm's
    #[arg(long, value_name = "FILE")]
    prompt_cache_file: Option<PathBuf>,
    /// Put the N most probable tokens of each step into the JSON object, with their log-probabilities; those that are
    /// impossible are left out
    #[arg(long, value_name = "N", default_value_t = 0, requires = "json")]
    top_logprobs: usize,
    /// Write one JSON object instead of text, when all is done
    #[arg(long)]
    json: bool,
    /// Whether the figures are said after the text: true (T) or false (F)
    #[arg(long, value_name = "BOOL", default_value = "true", value_parser = boolean,
          action = clap::ArgAction::Set)]
    verbose: bool,
    #[command(flatten)]
    chat: ChatArguments,
    #[command(flatten)]
    decoding: DecodingArguments,
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments { model, chat, decoding, prefill_response, .. } = arguments;
    let text = match &*arguments.prompt {
        "-" => prompt::read_stdin()?,
        text if arguments.no_escape => text.to_owned(),
        text => prompt::unescaped(text),
    };
    let loaded = model.load()?;
    let load = loaded.time;
    let mut engine = Engine::new(loaded, decoding, 0)?;
    engine.options.top_logprobs = arguments.top_logprobs;
    if let Some(file) = &arguments.prompt_cache_file {
        engine.load_session(file)?;
    }

    let has_template = engine.tokenizer.chat_templates().next().is_some();
    let asks_for_template = chat.system_prompt.is_some() || prefill_response.is_some();
    let with_template = !arguments.ignore_chat_template && (has_template || asks_for_template);
    if with_template {
        say("note: chat template applied; --ignore-chat-template continues the text as it is");
    }
    let prompt = if with_template && engine.session.offset() > 0 {
        if chat.system_prompt.is_some() {
            return Err(Failure::Usage(
                "--system-prompt comes before what the cache holds; give it to cache-prompt".to_owned(),
            ));
        }
        let end = if prefill_response.is_some() { ChatEnd::Continue } else { ChatEnd::Answer };
        let options = chat.options(end)?;
        prompt::rest_of_message(&engine.tokenizer, &text, prefill_response.as_deref(), &options)?
    } else if with_template {
        let mut messages = chat.beginning();
        messages.push(Message::user(&text));
        let end = match &prefill_response {
            Some(beginning) => {
                messages.push(Message::assistant(beginning));
                ChatEnd::Continue
            }
            None => ChatEnd::Answer,
        };
        engine.tokenizer.chat(&messages, &chat.options(end)?)?.tokens
    } else if engine.session.offset() > 0 {
        prompt::behind(&engine.tokenizer, &text)?
    } else {
        engine.tokenizer.encode(&text)?
    };

    interrupt::install();
    let quiet = arguments.json;
    let mut answer = engine.answer(&prompt, &mut |piece| {
        if quiet {
            return Ok(());
        }
        let mut out = io::stdout().lock();
        out.write_all(shown(piece).as_bytes())?;
        out.flush()
    })?;
    answer.load_seconds = load.as_secs_f64();
    let mut out = io::stdout().lock();
    if quiet {
        serde_json::to_writer(&mut out, &answer).map_err(io::Error::from)?;
    }
    writeln!(out)?;
    if arguments.verbose {
        answer.summarize();
    }
    Ok(())
}

/// As mlx-lm reads it, but that other words are refused.
fn boolean(text: &str) -> Result<bool, String> {
    match &*text.to_ascii_lowercase() {
        "true" | "t" => Ok(true),
        "false" | "f" => Ok(false),
        _ => Err("must be true or false".to_owned()),
    }
}
