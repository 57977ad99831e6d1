//! Conversations to text: what a chat template is given, and what it answers.

use std::collections::BTreeMap;

use jiff::civil::DateTime;
use serde::{Deserialize, Deserializer, Serialize};

use crate::json::Data;
use crate::template::{self, Context};
use crate::{Around, EncodeOptions, Json, Tokenizer, TokenizerError};

/// A message of a conversation: an object with `role` and `content`, or whatever else a template
/// reads, such as `tool_calls`.
///
/// Other messages than those of the constructors come from JSON, as in [`Message::from_json`] or
/// through serde.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Message(Json);

impl Message {
    /// What this role says.
    pub fn new(role: &str, content: &str) -> Self {
        let text = |text: &str| Data::Text(text.to_owned());
        let fields = vec![("role".to_owned(), text(role)), ("content".to_owned(), text(content))];
        Self(Json(Data::Map(fields)))
    }

    /// What the user says.
    pub fn user(content: &str) -> Self {
        Self::new("user", content)
    }

    /// What the model said.
    pub fn assistant(content: &str) -> Self {
        Self::new("assistant", content)
    }

    /// What the model is told beforehand.
    pub fn system(content: &str) -> Self {
        Self::new("system", content)
    }

    /// Who speaks.
    pub fn role(&self) -> Option<String> {
        self.text("role")
    }

    /// What is said, where that is one text.
    pub fn content(&self) -> Option<String> {
        self.text("content")
    }

    fn text(&self, key: &str) -> Option<String> {
        self.0.0.get(key)?.as_str().map(str::to_owned)
    }

    /// The message that this object is; none for another JSON value.
    pub fn from_json(object: Json) -> Option<Self> {
        matches!(object.0, Data::Map(_)).then_some(Self(object))
    }
}

impl<'de> Deserialize<'de> for Message {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let object = Json::deserialize(deserializer)?;
        let problem = format!("{object} is no message; a message is an object with a role and a content");
        Self::from_json(object).ok_or_else(|| serde::de::Error::custom(problem))
    }
}

/// How a conversation becomes a prompt.
#[derive(Debug, Clone, Default)]
pub struct ChatOptions {
    /// What comes after the last message.
    pub end: ChatEnd,
    /// Tools that the model may call, as JSON schemas in the form that the template expects.
    pub tools: Option<Vec<Json>>,
    /// Documents to answer from, each with a `title` and a `text`.
    pub documents: Option<Vec<Json>>,
    /// Further variables of the template, such as `enable_thinking`. They win over those that the
    /// tokenizer defines.
    ///
    /// Without an `enable_thinking` here, it is whether the tokenizer has tokens to think between,
    /// as in mlx-lm.
    pub variables: BTreeMap<String, Json>,
    /// Which template.
    pub template: ChatTemplate,
    /// The local time that a template sees; without one, that of the clock.
    pub now: Option<DateTime>,
}

/// What comes after the last message of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ChatEnd {
    /// The header of an answer, which the model is to write (`add_generation_prompt`).
    #[default]
    Answer,
    /// Nothing.
    Nothing,
    /// The last message is left open, and the model continues it (`continue_final_message`).
    Continue,
}

/// Which of a tokenizer's templates.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ChatTemplate {
    /// `tool_use` where there are tools and such a template, otherwise `default`.
    #[default]
    Default,
    /// The one of this name.
    Named(String),
    /// This one, in the place of the tokenizer's.
    Text(String),
}

/// A conversation as a model reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChatPrompt {
    /// The text, special tokens written out.
    pub text: String,
    /// Its tokens. The template has put the special tokens where they belong: none is added.
    pub tokens: Vec<u32>,
}

impl Tokenizer {
    /// Writes a conversation in the form that the model was trained with, and turns it into tokens.
    ///
    /// What the messages say goes into that text as it is, so that a special token in it is one for
    /// the model too, as in mlx-lm. See [`Tokenizer::encode_with`] for text that must not do so.
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
    /// - [`TokenizerError::ChatTemplate`]: the template is wrong, or uses what is not supported;
    /// - [`TokenizerError::Conversation`]: no messages, or none that could be continued;
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

    /// The text of [`Tokenizer::chat`] alone.
    ///
    /// # Errors
    ///
    /// Those of [`Tokenizer::chat`] but the last.
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
        let mut variables: BTreeMap<String, Data> =
            self.special.iter().map(|(name, token)| (name.clone(), Data::Text(token.clone()))).collect();
        variables.insert("enable_thinking".to_owned(), Data::Bool(self.thinks()));
        // What the model's files say is not the user's.
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

    /// The names of the chat templates; empty for a tokenizer of a model that does not chat.
    pub fn chat_templates(&self) -> impl Iterator<Item = &str> {
        self.templates.keys().map(String::as_str)
    }

    fn template<'a>(&'a self, options: &'a ChatOptions) -> Result<(&'a str, &'a str), TokenizerError> {
        let names = match &options.template {
            ChatTemplate::Text(text) => return Ok(("the template of the call", text)),
            ChatTemplate::Named(name) => vec![&**name],
            ChatTemplate::Default if options.tools.is_some() => vec!["tool_use", "default"],
            ChatTemplate::Default => vec!["default"],
        };
        if self.templates.is_empty() {
            return Err(TokenizerError::NoChatTemplate);
        }
        let found = names.iter().find_map(|&name| self.templates.get_key_value(name));
        found.map(|(name, text)| (&**name, &**text)).ok_or_else(|| TokenizerError::UnknownChatTemplate {
            name: names.last().copied().unwrap_or_default().to_owned(),
            known: self.templates.keys().cloned().collect(),
        })
    }
}

/// The fields of a message in their order.
type Fields = Vec<(String, Data)>;

/// Names of what a model thought. The first is the one that most templates read.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// The fields that a template sees, as transformers prepares them: without those that are null, which
/// templates would print as `None`, and with reasoning under the names that templates read.
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

/// Stands where the last message ends, to find the place in the text. The space at its end shows
/// whether a template has trimmed the message.
const TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// Puts the tag behind the last message, and answers with that message.
fn leave_open(messages: &mut [Fields], template: &str) -> Result<String, TokenizerError> {
    let last = messages.last_mut().and_then(|last| last.iter_mut().find(|(name, _)| name == "content"));
    let Some((_, content)) = last else {
        return Err(conversation("the last message has no content to continue".to_owned()));
    };
    if !template.contains("content") {
        return Err(conversation(
            "the chat template reads no content, so that none can be continued".to_owned(),
        ));
    }
    if let Data::Text(content) = content {
        let text = content.clone();
        *content += TAG;
        return Ok(text);
    }
    // Parts: the last one with a text.
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

/// The text up to where the last message ends.
fn cut_open(mut text: String, last: &str) -> Result<String, TokenizerError> {
    let place = text.rfind(TAG.trim_end()).filter(|_| text.contains(last.trim()));
    let Some(place) = place else {
        let problem = "the chat template does not write the last message out, so that it cannot be continued";
        return Err(conversation(problem.to_owned()));
    };
    let trimmed = !text[place..].starts_with(TAG);
    text.truncate(place);
    if trimmed {
        text.truncate(text.trim_end().len());
    }
    Ok(text)
}
