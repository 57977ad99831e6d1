//! What a model is given: text, or a conversation through its chat template.

use std::io::{self, Read};

use mlx_models::tokenizer::{
    Around, ChatEnd, ChatOptions, ChatTemplate, EncodeOptions, Json, Message, Tokenizer,
};

use crate::failure::Failure;

/// How text becomes a prompt.
#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Chat template")]
pub(crate) struct ChatArguments {
    /// What the model is told before the conversation
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) system_prompt: Option<String>,
    /// A variable of the chat template, such as enable_thinking=false; the value is JSON, or else text
    #[arg(long, value_name = "NAME=VALUE")]
    chat_template_arg: Vec<String>,
    /// Use the tokenizer's chat template of this name
    #[arg(long, value_name = "NAME")]
    chat_template: Option<String>,
}

impl ChatArguments {
    /// The messages before the first one of the user.
    pub(crate) fn beginning(&self) -> Vec<Message> {
        self.system_prompt.iter().map(|text| Message::system(text)).collect()
    }

    pub(crate) fn options(&self, end: ChatEnd) -> Result<ChatOptions, Failure> {
        let mut options = ChatOptions { end, ..ChatOptions::default() };
        if let Some(name) = &self.chat_template {
            options.template = ChatTemplate::Named(name.clone());
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

/// The text of a prompt; `-` is standard input.
pub(crate) fn read(prompt: String) -> Result<String, Failure> {
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

/// The ids of a text that goes behind others, without what a tokenizer puts around a whole text.
pub(crate) fn behind(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>, Failure> {
    let options = EncodeOptions { around: Around::Nothing, ..EncodeOptions::default() };
    Ok(tokenizer.encode_with(text, options)?)
}
