//! Prompts: text from the command line or standard input, and options of the chat template.

use std::io::{self, Read};

use mlx_files::LARGEST_TEXT;
use mlx_models::tokenizer::{
    Around, ChatEnd, ChatOptions, ChatTemplate, EncodeOptions, Json, Message, Tokenizer,
};

use crate::failure::Failure;

/// The names and values of a chat template's variables.
type Variables = serde_json::Map<String, serde_json::Value>;

fn variables(text: &str) -> Result<Variables, String> {
    serde_json::from_str(text).map_err(|e| format!("must be a JSON object: {e}"))
}

/// Options of how a message becomes a prompt.
#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Chat template")]
pub(crate) struct ChatArguments {
    /// Begin the conversation with this system prompt
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) system_prompt: Option<String>,
    /// Set a variable of the chat template, such as enable_thinking=false; can be repeated. The value is read as JSON, or
    /// as text if it is not valid JSON
    #[arg(long, value_name = "NAME=VALUE")]
    chat_template_arg: Vec<String>,
    /// Set variables of the chat template with one JSON object, such as '{"enable_thinking": false}'
    #[arg(long, value_name = "JSON", value_parser = variables)]
    chat_template_config: Option<Variables>,
    /// Use the chat template with this name, where the tokenizer has several
    #[arg(long, value_name = "NAME")]
    chat_template: Option<String>,
}

impl ChatArguments {
    /// The messages before the user's first message.
    pub(crate) fn beginning(&self) -> Vec<Message> {
        self.system_prompt.iter().map(|text| Message::system(text)).collect()
    }

    pub(crate) fn options(&self, end: ChatEnd) -> Result<ChatOptions, Failure> {
        let mut options = ChatOptions { end, ..ChatOptions::default() };
        if let Some(name) = &self.chat_template {
            options.template = ChatTemplate::Named(name.clone());
        }
        for (name, value) in self.chat_template_config.iter().flatten() {
            let value = Json::new(value).map_err(|e| Failure::Arguments(format!("{name}: {e}")))?;
            options.variables.insert(name.clone(), value);
        }
        for argument in &self.chat_template_arg {
            let Some((name, value)) = argument.split_once('=') else {
                return Err(Failure::Arguments(format!(
                    "--chat-template-arg {argument}: NAME=VALUE is needed, such as enable_thinking=false"
                )));
            };
            let value: serde_json::Value =
                serde_json::from_str(value).unwrap_or_else(|_| serde_json::Value::String(value.to_owned()));
            let value = Json::new(&value).map_err(|e| Failure::Arguments(format!("{argument}: {e}")))?;
            options.variables.insert(name.to_owned(), value);
        }
        Ok(options)
    }
}

/// Stands for a message, to find the place where the template writes it. mlx-lm uses the same text.
const PLACEHOLDER: &str = "<query>";

/// The tokens of a message whose beginning `cache-prompt` has cached: without the text that the template writes before the
/// message, since the cache has that text.
pub(crate) fn rest_of_message(
    tokenizer: &Tokenizer,
    message: &str,
    answer: Option<&str>,
    options: &ChatOptions,
) -> Result<Vec<u32>, Failure> {
    let text = |message: &str| {
        let messages = [Message::user(message)].into_iter().chain(answer.map(Message::assistant));
        tokenizer.chat_text(&messages.collect::<Vec<_>>(), options)
    };
    let start = text(PLACEHOLDER)?.find(PLACEHOLDER);
    let whole = text(message)?;
    match start.and_then(|start| whole.get(start..)) {
        Some(rest) => behind(tokenizer, rest),
        None => Err(Failure::Arguments(
            "the chat template changes the message, so that the message cannot continue a cached one; use \
             --ignore-chat-template"
                .to_owned(),
        )),
    }
}

/// All of standard input.
pub(crate) fn read_stdin() -> Result<String, Failure> {
    let failed =
        |source| Failure::Io { doing: "reading standard input, which must be UTF-8 text".to_owned(), source };
    let mut text = String::new();
    io::stdin().lock().take(LARGEST_TEXT + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > LARGEST_TEXT {
        return Err(failed(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("the limit for a text is {LARGEST_TEXT} bytes"),
        )));
    }
    Ok(text)
}

/// `\n` and `\t` as a line break and a tab, as in mlx-lm.
pub(crate) fn unescaped(prompt: &str) -> String {
    prompt.replace("\\n", "\n").replace("\\t", "\t")
}

/// The tokens of a text that follows other tokens: without the special tokens that a tokenizer puts around a whole text.
pub(crate) fn behind(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>, Failure> {
    let options = EncodeOptions { around: Around::Nothing, ..EncodeOptions::default() };
    Ok(tokenizer.encode_with(text, options)?)
}
