//! Renders conversations with chat templates.

use std::collections::BTreeMap;

use jiff::civil::DateTime;
use serde::{Deserialize, Deserializer, Serialize};

use crate::json::Data;
use crate::template::{self, Context};
use crate::{Around, EncodeOptions, Json, Tokenizer, TokenizerError};

/// A message of a conversation: an object with `role` and `content`, or with other fields that a template
/// reads, such as `tool_calls`.
///
/// Messages with other fields than those of the constructors can be made from JSON, with [`Message::from_json`]
/// or serde.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Message(Json);

impl Message {
    /// A message of this role.
    pub fn new(role: &str, content: &str) -> Self {
        let text = |text: &str| Data::Text(text.to_owned());
        let fields = vec![("role".to_owned(), text(role)), ("content".to_owned(), text(content))];
        Self(Json(Data::Map(fields)))
    }

    /// A message of the user.
    pub fn user(content: &str) -> Self {
        Self::new("user", content)
    }

    /// A message of the model.
    pub fn assistant(content: &str) -> Self {
        Self::new("assistant", content)
    }

    /// Instructions for the model, before the conversation.
    pub fn system(content: &str) -> Self {
        Self::new("system", content)
    }

    /// The role.
    pub fn role(&self) -> Option<String> {
        self.text("role")
    }

    /// The content, if it is a single text.
    pub fn content(&self) -> Option<String> {
        self.text("content")
    }

    fn text(&self, key: &str) -> Option<String> {
        self.0.0.get(key)?.as_str().map(str::to_owned)
    }

    /// The message with this JSON object's fields. Another JSON value is an error.
    pub fn from_json(object: Json) -> Option<Self> {
        matches!(object.0, Data::Map(_)).then_some(Self(object))
    }
}

impl<'de> Deserialize<'de> for Message {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let object = Json::deserialize(deserializer)?;
        let problem = format!("{object} is not a message; a message is an object with a role and a content");
        Self::from_json(object).ok_or_else(|| serde::de::Error::custom(problem))
    }
}

/// How a conversation becomes a prompt.
#[derive(Debug, Clone, Default)]
pub struct ChatOptions {
    /// How the prompt ends.
    pub end: ChatEnd,
    /// Tools that the model may call, as JSON schemas in the form that the template expects.
    pub tools: Option<Vec<Json>>,
    /// Documents that the answer should use, each with a `title` and a `text`.
    pub documents: Option<Vec<Json>>,
    /// More variables for the template, such as `enable_thinking`. They replace variables that the tokenizer
    /// defines.
    ///
    /// By default, `enable_thinking` is true if the tokenizer has tokens that mark a model's thoughts, as in
    /// mlx-lm.
    pub variables: BTreeMap<String, Json>,
    /// The template.
    pub template: ChatTemplate,
    /// The local time for the template; the default is the system's clock.
    pub now: Option<DateTime>,
}

/// How a prompt ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ChatEnd {
    /// With the header of the model's turn (`add_generation_prompt`).
    #[default]
    Answer,
    /// After the last message.
    Nothing,
    /// Inside the last message, which the model continues (`continue_final_message`).
    Continue,
}

/// Selects a template.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ChatTemplate {
    /// `tool_use` if there are tools and a template of this name, otherwise `default`.
    #[default]
    Default,
    /// The template of this name.
    Named(String),
    /// This template, instead of the tokenizer's.
    Text(String),
}

/// A conversation as a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChatPrompt {
    /// The text, including special tokens.
    pub text: String,
    /// The token ids of the text. No special tokens are added, because the template writes them.
    pub tokens: Vec<u32>,
}

impl Tokenizer {
    /// Renders a conversation in the format that the model was trained on, and encodes it.
    ///
    /// Messages are inserted as they are. A special token in a message becomes a special token for the model,
    /// as in mlx-lm. [`Tokenizer::encode_with`] can encode text without this effect.
    ///
    /// ```no_run
    /// use mlx_tokenizer::{ChatOptions, Message, Tokenizer};
    ///
    /// let tokenizer = Tokenizer::from_folder("path/to/checkpoint")?;
    /// let messages = [Message::system("Be short."), Message::user("Why is the sky blue?")];
    /// let prompt = tokenizer.chat(&messages, &ChatOptions::default())?;
    /// println!("{} is {} tokens", prompt.text, prompt.tokens.len());
    /// # Ok::<(), mlx_tokenizer::TokenizerError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// - [`TokenizerError::NoChatTemplate`], [`TokenizerError::UnknownChatTemplate`]: there is no such
    ///   template;
    /// - [`TokenizerError::ChatRefused`]: the template refuses the conversation, for instance its
    ///   order of roles;
    /// - [`TokenizerError::ChatTemplate`]: the template is invalid, or uses a feature that is not supported;
    /// - [`TokenizerError::Conversation`]: there are no messages, or the last one cannot be continued;
    /// - [`TokenizerError::Encode`]: the tokenizer has no token for a part of the text.
    ///
    /// # Reference
    ///
    /// `apply_chat_template` of transformers 5.23.
    pub fn chat(&self, messages: &[Message], options: &ChatOptions) -> Result<ChatPrompt, TokenizerError> {
        let text = self.chat_text(messages, options)?;
        let tokens =
            self.encode_with(&text, EncodeOptions { around: Around::Nothing, ..Default::default() })?;
        Ok(ChatPrompt { text, tokens })
    }

    /// Renders the text of [`Tokenizer::chat`] without encoding it.
    ///
    /// # Errors
    ///
    /// The same as for [`Tokenizer::chat`], except the last.
    pub fn chat_text(&self, messages: &[Message], options: &ChatOptions) -> Result<String, TokenizerError> {
        let (name, source) = self.template(options)?;
        if messages.is_empty() {
            return Err(conversation("there are no messages; a chat needs at least one".to_owned()));
        }
        let mut messages: Vec<Fields> = messages.iter().map(fields).collect();
        let open = match options.end {
            ChatEnd::Continue => Some(leave_open(&mut messages, source)?),
            ChatEnd::Answer | ChatEnd::Nothing => None,
        };

        let list = |values: &Option<Vec<Json>>| match values {
            Some(values) => Data::List(values.iter().map(|value| value.0.clone()).collect()),
            None => Data::Null,
        };
        let mut variables: BTreeMap<String, Data> = self
            .parts
            .special
            .iter()
            .map(|(name, token)| (name.clone(), Data::Text(token.clone())))
            .collect();
        variables.insert("enable_thinking".to_owned(), Data::Bool(self.thinks()));
        // These variables come from the model's files, so they do not raise the limits as the user's input
        // does.
        let own: usize = variables.values().map(Data::size).sum();
        variables.extend(options.variables.iter().map(|(name, value)| (name.clone(), value.0.clone())));
        let messages = messages.into_iter().map(Data::Map).collect();
        variables.insert("messages".to_owned(), Data::List(messages));
        variables.insert("tools".to_owned(), list(&options.tools));
        variables.insert("documents".to_owned(), list(&options.documents));
        let answer = options.end == ChatEnd::Answer;
        variables.insert("add_generation_prompt".to_owned(), Data::Bool(answer));

        let given = variables.values().map(Data::size).sum::<usize>().saturating_sub(own);
        let variables = variables.into_iter().collect();
        let text = template::render(name, source, Context { variables, given, now: options.now })?;
        match open {
            Some(last) => cut_open(text, &last),
            None => Ok(text),
        }
    }

    /// The names of the chat templates. The list is empty if the model is not a chat model.
    pub fn chat_templates(&self) -> impl Iterator<Item = &str> {
        self.parts.templates.keys().map(String::as_str)
    }

    fn template<'a>(&'a self, options: &'a ChatOptions) -> Result<(&'a str, &'a str), TokenizerError> {
        let names = match &options.template {
            ChatTemplate::Text(text) => return Ok(("the template of the call", text)),
            ChatTemplate::Named(name) => vec![&**name],
            ChatTemplate::Default if options.tools.is_some() => vec!["tool_use", "default"],
            ChatTemplate::Default => vec!["default"],
        };
        if self.parts.templates.is_empty() {
            return Err(TokenizerError::NoChatTemplate);
        }
        let found = names.iter().find_map(|&name| self.parts.templates.get_key_value(name));
        found.map(|(name, text)| (&**name, &**text)).ok_or_else(|| TokenizerError::UnknownChatTemplate {
            name: names.last().copied().unwrap_or_default().to_owned(),
            known: self.parts.templates.keys().cloned().collect(),
        })
    }
}

/// The fields of a message, in order.
type Fields = Vec<(String, Data)>;

/// The names of the field with a model's thoughts. Most templates read the first one.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// The fields that a template sees, prepared as in transformers: without null fields, which templates would
/// print as `None`, and with the thoughts under the names that templates read.
fn fields(message: &Message) -> Fields {
    let Data::Map(entries) = &message.0.0 else { return Fields::new() };
    let mut fields: Fields =
        entries.iter().filter(|(_, value)| !matches!(value, Data::Null)).cloned().collect();
    let reasoning = REASONING.iter().find_map(|name| get(&fields, name).cloned());
    if let Some(reasoning) = reasoning {
        if get(&fields, "thinking").is_none() {
            fields.insert(0, ("thinking".to_owned(), reasoning.clone()));
        }
        match fields.iter_mut().find(|(name, _)| name == "reasoning_content") {
            Some((_, value)) => *value = reasoning,
            None => fields.push(("reasoning_content".to_owned(), reasoning)),
        }
    }
    fields
}

fn get<'a>(fields: &'a Fields, name: &str) -> Option<&'a Data> {
    fields.iter().find(|(field, _)| field == name).map(|(_, value)| value)
}

fn conversation(problem: String) -> TokenizerError {
    TokenizerError::Conversation { problem }
}

/// Marks the end of the last message in the rendered text. The space at its end shows whether the template
/// trims messages.
const TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// Appends the mark to the last message, and returns the original message.
fn leave_open(messages: &mut [Fields], template: &str) -> Result<String, TokenizerError> {
    let last = messages.last_mut().and_then(|last| last.iter_mut().find(|(name, _)| name == "content"));
    let Some((_, content)) = last else {
        return Err(conversation("the last message has no content to continue".to_owned()));
    };
    if !template.contains("content") {
        return Err(conversation(
            "the chat template does not read the content of messages, so the last message cannot be continued".to_owned(),
        ));
    }
    if let Data::Text(content) = content {
        let text = content.clone();
        *content += TAG;
        return Ok(text);
    }
    // The content is a list of parts: use the last text.
    let parts = if let Data::List(parts) = content { parts.as_mut_slice() } else { &mut [] };
    let last = parts.iter_mut().rev().find_map(|part| {
        let Data::Map(fields) = part else { return None };
        fields.iter_mut().find_map(|(name, value)| match value {
            Data::Text(text) if name == "text" => Some(text),
            _ => None,
        })
    });
    let Some(content) = last else {
        return Err(conversation("the last message has no text to continue".to_owned()));
    };
    let text = content.clone();
    *content += TAG;
    Ok(text)
}

/// The text up to the end of the last message.
fn cut_open(mut text: String, last: &str) -> Result<String, TokenizerError> {
    let place = text.rfind(TAG.trim_end()).filter(|_| text.contains(last.trim()));
    let Some(place) = place else {
        let problem = "the chat template does not write the last message, so it cannot be continued";
        return Err(conversation(problem.to_owned()));
    };
    let trimmed = !text[place..].starts_with(TAG);
    text.truncate(place);
    if trimmed {
        text.truncate(text.trim_end().len());
    }
    Ok(text)
}
