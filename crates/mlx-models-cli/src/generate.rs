//! `mlx-models generate`: generates text from a prompt.

use std::io::{self, Write};
use std::path::PathBuf;

use mlx_models::device::Device;
use mlx_models::tokenizer::{ChatEnd, Message};

use crate::decoding::DecodingArguments;
use crate::engine::Engine;
use crate::failure::Failure;
use crate::model::ModelArguments;
use crate::prompt::ChatArguments;
use crate::style::{say, shown};
use crate::{interrupt, prompt};

/// Arguments of `mlx-models generate`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    /// Continue this text, or answer it if the tokenizer has a chat template; - reads standard input. \n and \t stand for
    /// a line break and a tab
    #[arg(long, short, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: String,
    /// Keep \n and \t in --prompt as written
    #[arg(long)]
    no_escape: bool,
    /// Continue the prompt without the tokenizer's chat template
    #[arg(long, conflicts_with_all = ["system_prompt", "prefill_response"])]
    ignore_chat_template: bool,
    /// Begin the answer with this text
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    prefill_response: Option<String>,
    /// Continue the cached prompt in this file, which `cache-prompt` or mlx-lm wrote
    #[arg(long, value_name = "FILE")]
    prompt_cache_file: Option<PathBuf>,
    /// Add the N most probable tokens of each step to the JSON object, with their log-probabilities; impossible tokens
    /// are left out
    #[arg(long, value_name = "N", default_value_t = 0, requires = "json")]
    top_logprobs: usize,
    /// Print one JSON object at the end instead of text
    #[arg(long)]
    json: bool,
    /// Print the device, the speed and the memory use after the text: true (T) or false (F)
    #[arg(long, value_name = "BOOL", default_value = "true", value_parser = boolean,
          action = clap::ArgAction::Set)]
    verbose: bool,
    #[command(flatten)]
    chat: ChatArguments,
    #[command(flatten)]
    decoding: DecodingArguments,
}

pub(crate) fn run(arguments: Arguments, device: &Device) -> Result<(), Failure> {
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

    let prompt = tokens(&engine, &text, &chat, prefill_response.as_deref(), arguments.ignore_chat_template)?;
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
        answer.summarize(device);
    }
    Ok(())
}

/// The tokens of the prompt: in the chat template where there is one, and without what the session has read already.
fn tokens(
    engine: &Engine,
    text: &str,
    chat: &ChatArguments,
    beginning: Option<&str>,
    ignore_chat_template: bool,
) -> Result<Vec<u32>, Failure> {
    let (tokenizer, is_cached) = (&engine.tokenizer, engine.session.offset() > 0);
    let has_template = tokenizer.chat_templates().next().is_some();
    let needs_template = chat.system_prompt.is_some() || beginning.is_some();
    if ignore_chat_template || !(has_template || needs_template) {
        return if is_cached { prompt::behind(tokenizer, text) } else { Ok(tokenizer.encode(text)?) };
    }
    say("note: chat template applied; --ignore-chat-template continues the text without it");
    if is_cached && chat.system_prompt.is_some() {
        return Err(Failure::Usage(
            "the cache has the beginning of the conversation already; give --system-prompt to cache-prompt instead"
                .to_owned(),
        ));
    }
    let options = chat.options(if beginning.is_some() { ChatEnd::Continue } else { ChatEnd::Answer })?;
    if is_cached {
        return prompt::rest_of_message(tokenizer, text, beginning, &options);
    }
    let mut messages = chat.beginning();
    messages.push(Message::user(text));
    messages.extend(beginning.map(Message::assistant));
    Ok(tokenizer.chat(&messages, &options)?.tokens)
}

/// Reads a truth value as mlx-lm does, but refuses other words.
fn boolean(text: &str) -> Result<bool, String> {
    match &*text.to_ascii_lowercase() {
        "true" | "t" => Ok(true),
        "false" | "f" => Ok(false),
        _ => Err("must be true or false".to_owned()),
    }
}
