//! Text to token ids and back, and conversations to prompts.
//!
//! This crate is API. [`Tokenizer::open`] reads the `tokenizer.json` of a checkpoint folder, and the special tokens, the chat
//! templates and the stop tokens from the configs in the folder. Of a GGUF file, it reads all of this from the metadata.
//!
//! | | |
//! |---|---|
//! | [`Tokenizer::encode`], [`Tokenizer::decode`] | a text and its ids |
//! | [`Tokenizer::chat`] | a conversation, through the model's chat template |
//! | [`Tokenizer::from_vocabulary`], [`Tokenizer::from_json`] | a tokenizer of your own, without a checkpoint folder |
//! | [`TextStream`] | converts ids to text one by one, in whole characters |
//! | [`StopStrings`] | finds strings that end a text, while the text arrives in pieces |
//!
//! ```no_run
//! use mlx_tokenizer::{ChatOptions, Message, StopStrings, Tokenizer};
//!
//! let tokenizer = Tokenizer::open("path/to/checkpoint")?;
//! let prompt = tokenizer.chat(&[Message::user("Tell me a story.")], &ChatOptions::default())?;
//!
//! # let generate = |_: &[u32]| std::iter::empty::<u32>();
//! let mut text = tokenizer.stream();
//! let mut stop = StopStrings::new(["The end"])?;
//! for id in generate(&prompt.tokens) {
//!     if tokenizer.stop_tokens().contains(&id) {
//!         break;
//!     }
//!     print!("{}", stop.push_token(&mut text, id)?);
//!     if stop.found().is_some() {
//!         break;
//!     }
//! }
//! print!("{}", stop.push(&text.finish()?));
//! println!("{}", stop.finish());
//! # Ok::<(), mlx_tokenizer::TokenizerError>(())
//! ```
//!
//! # Which special tokens a text gets
//!
//! Only the post-processor of `tokenizer.json` decides which special tokens are put around a text.
//! `add_bos_token` and `add_eos_token` of `tokenizer_config.json`, and the truncation and padding of
//! `tokenizer.json`, are ignored, as in transformers 5. In a GGUF file, these two keys decide. A text that already begins with the beginning-of-text
//! token gets no second one. A chat template writes all special tokens itself.

mod bpe;
mod bpe_file;
mod chat;
mod check;
mod config;
mod decoder;
mod files;
mod gguf;
mod gguf_metadata;
mod jinja;
mod json;
mod parts;
mod pipeline;
mod shared_tokens;
mod stop_strings;
mod template;
mod text_stream;
mod token_texts;
mod utf8;
mod vocabulary;
mod word_split;

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parts::Parts;
use vocabulary::Tokens;

pub use chat::{ChatEnd, ChatOptions, ChatPrompt, ChatTemplate, Message};
pub use jiff::civil::DateTime;
pub use json::{Json, JsonError};
pub use parts::TokenizerParts;
pub use shared_tokens::{SharedTokens, TokenMismatch};
pub use stop_strings::StopStrings;
pub use text_stream::TextStream;
pub use vocabulary::Vocabulary;
pub use word_split::{Cut, WORD_SPLITS, WordSplit};

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The folder has no tokenizer.
    #[error(
        "there is no {}; a checkpoint folder needs it to encode text{}",
        file.display(),
        converted(found)
    )]
    NoTokenizer {
        /// The file that is missing.
        file: PathBuf,
        /// A file of another tokenizer library in the folder, which can be converted.
        found: Option<String>,
    },
    /// A file that describes the tokenizer is invalid.
    #[error("{}: {}", file.display(), shortened(problem))]
    Invalid {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A GGUF file cannot be read.
    #[error(transparent)]
    Gguf(Box<mlx_gguf::GgufError>),
    /// No tokenizer can be made of the parts.
    #[error("no tokenizer can be made of these parts: {}", shortened(problem))]
    Parts {
        /// What is wrong with them.
        problem: String,
    },
    /// The tokenizer refused a text.
    #[error("cannot encode the text: {}", shortened(problem))]
    Encode {
        /// The tokenizer's message.
        problem: String,
    },
    /// The tokenizer refused token ids.
    #[error("cannot decode the tokens: {}", shortened(problem))]
    Decode {
        /// The tokenizer's message.
        problem: String,
    },
    /// The tokenizer has no such token.
    #[error("the tokenizer has no token {:?}; name a token by its text or its id", shortened(token))]
    UnknownToken {
        /// The token that was asked for.
        token: String,
    },
    /// A stop string is empty.
    #[error("a stop string is empty, which would end every text at once; leave it out")]
    EmptyStopString,
    /// The tokenizer has no chat template.
    #[error(
        "the tokenizer has no chat template, so this is probably not a chat model; \
         use a plain-text prompt, or give a template"
    )]
    NoChatTemplate,
    /// The tokenizer has chat templates, but none of this name.
    #[error("the tokenizer has no chat template {:?}; it has {}", shortened(name), shortened(&known.join(", ")))]
    UnknownChatTemplate {
        /// The name that was asked for.
        name: String,
        /// The names of its templates.
        known: Vec<String>,
    },
    /// The chat template refused the conversation.
    #[error(
        "the chat template refuses the conversation: {} (line {} of {})",
        shortened(message),
        line_of(*line),
        shortened(template)
    )]
    ChatRefused {
        /// The name of the template.
        template: String,
        /// The line of the template that refused it.
        line: Option<usize>,
        /// The template's message.
        message: String,
    },
    /// The chat template is invalid, or uses a feature that is not supported.
    #[error(
        "the chat template cannot be used: {} (line {} of {})",
        shortened(problem),
        line_of(*line),
        shortened(template)
    )]
    ChatTemplate {
        /// The name of the template.
        template: String,
        /// The line of the template with the problem.
        line: Option<usize>,
        /// What is wrong.
        problem: String,
    },
    /// No prompt can be made of the conversation.
    #[error("{}", shortened(problem))]
    Conversation {
        /// What is wrong with it.
        problem: String,
    },
}

/// How to convert the file of another library.
fn converted(found: &Option<String>) -> String {
    let Some(found) = found else { return String::new() };
    format!(
        "; transformers can make it from {found}: \
         AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) in Python writes tokenizer.json"
    )
}

/// A text for an error message: the whole text, or only the beginning and the end if it is very long.
fn shortened(text: &str) -> Cow<'_, str> {
    mlx_files::shortened(text, 1000)
}

fn line_of(line: Option<usize>) -> String {
    line.map_or_else(|| "?".to_owned(), |line| line.to_string())
}

/// The tokenizer of a checkpoint, or one [of your own](Self::from_vocabulary). A clone shares everything but the stop tokens
/// with the original, and costs little.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    parts: Arc<Parts>,
    /// In ascending order.
    stop_tokens: Vec<u32>,
}

/// How a text is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EncodeOptions {
    /// Whether special tokens are added around the text.
    pub around: Around,
    /// How special tokens are treated that the text itself contains.
    pub written: Written,
}

/// Whether special tokens are added around a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Around {
    /// Add the special tokens of the tokenizer, unless the text already begins with the beginning-of-text
    /// token.
    #[default]
    SpecialTokens,
    /// Add nothing.
    Nothing,
}

/// How special tokens are treated that a text contains, such as `<|end|>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Written {
    /// They become special tokens, as in mlx-lm and transformers. A text from an untrusted source can end a
    /// turn this way.
    #[default]
    SpecialTokens,
    /// They are encoded as ordinary text.
    Text,
}

impl Tokenizer {
    /// Reads `tokenizer.json` of a folder and, if they exist, `tokenizer_config.json`,
    /// `special_tokens_map.json`, `generation_config.json`, `config.json`, `chat_template.jinja`,
    /// `additional_chat_templates` and `chat_template.json`.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::NoTokenizer`] if there is no `tokenizer.json`, [`TokenizerError::Invalid`] if a file
    /// exists but is invalid. A chat template is not parsed before it is used.
    pub fn from_folder(folder: impl AsRef<Path>) -> Result<Self, TokenizerError> {
        let folder = folder.as_ref();
        let file = folder.join("tokenizer.json");
        let problem =
            |problem: String| TokenizerError::Invalid { file: folder.join("tokenizer.json"), problem };
        if !mlx_files::is_present(&file).map_err(|e| problem(e.to_string()))? {
            return Err(TokenizerError::NoTokenizer { file, found: config::other_tokenizer(folder) });
        }
        let json =
            mlx_files::read(&file, mlx_files::LARGEST_TOKENIZER).map_err(|e| problem(e.to_string()))?;
        let mut inner = parts::read_json(&json).map_err(problem)?;
        drop(json);
        let config = config::Config::read(folder)?;
        let special = config.special_tokens()?;
        let named = special.values().map(String::as_str).chain(config.extra_special_tokens());
        parts::make_special(&mut inner, named).map_err(problem)?;
        let templates = config.chat_templates()?;
        let stop_tokens = config.stop_tokens(&inner, &special, &templates)?.into_iter().collect();
        let parts = Parts { tokens: Tokens::Json(Box::new(inner)), special, templates };
        Ok(Self { parts: Arc::new(parts), stop_tokens })
    }

    /// Encodes a text, with the special tokens that the tokenizer adds around it.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Encode`] if the tokenizer has no token for a part of the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.encode_with(text, EncodeOptions::default())
    }

    /// Encodes a text with options.
    ///
    /// # Errors
    ///
    /// The same as for [`Tokenizer::encode`].
    pub fn encode_with(&self, text: &str, options: EncodeOptions) -> Result<Vec<u32>, TokenizerError> {
        let special = options.written == Written::SpecialTokens;
        let begins = |bos: &String| !bos.is_empty() && text.starts_with(&**bos);
        let begun = special && self.parts.special.get("bos_token").is_some_and(begins);
        let around = options.around == Around::SpecialTokens && !begun;
        let tokens = self.parts.tokens.encode(text, special, around);
        tokens.map_err(|problem| TokenizerError::Encode { problem })
    }

    /// Decodes ids, leaving out special tokens.
    ///
    /// Bytes that do not form a character become U+FFFD, one for each longest beginning of a character. mlx-lm
    /// prints the same; transformers also replaces the valid characters before such bytes, if the tokenizer has
    /// a token for each byte (`<0x0A>`).
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Decode`] if the tokenizer refuses the ids.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, TokenizerError> {
        let mut stream = self.stream();
        let mut text = String::new();
        for &token in tokens {
            text += &stream.push(token)?;
        }
        Ok(text + &stream.finish()?)
    }

    /// The stop tokens, in ascending order. They are the tokens that any file of the folder declares as the end
    /// of a text. If the chat template writes none of these, the end of its turns is added. A GGUF file has those that its keys
    /// name, and the control tokens that are named like the end of a text or a turn. A tokenizer of your own has those that its
    /// [`TokenizerParts`] name.
    pub fn stop_tokens(&self) -> &[u32] {
        &self.stop_tokens
    }

    /// Adds a stop token, given by its text or its id.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::UnknownToken`] if the tokenizer has no such token.
    pub fn add_stop_token(&mut self, token: &str) -> Result<(), TokenizerError> {
        let by_id = || token.parse().ok().filter(|&id| self.parts.tokens.token(id).is_some());
        let id = self.token_id(token).or_else(by_id);
        let id = id.ok_or_else(|| TokenizerError::UnknownToken { token: token.to_owned() })?;
        if let Err(place) = self.stop_tokens.binary_search(&id) {
            self.stop_tokens.insert(place, id);
        }
        Ok(())
    }

    /// The id of a token, by its text in the vocabulary.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.parts.tokens.id(token)
    }

    /// A special token by its name, such as `bos_token`.
    pub fn special_token(&self, name: &str) -> Option<&str> {
        self.parts.special.get(name).map(String::as_str)
    }

    /// The content of a special token, such as `<|im_end|>`; `None` for an ordinary token.
    ///
    /// [`Tokenizer::decode`] and [`TextStream`] leave special tokens out.
    pub fn special_content(&self, id: u32) -> Option<String> {
        self.parts.tokens.special_content(id)
    }

    /// Starts a stream that decodes ids one by one.
    pub fn stream(&self) -> TextStream {
        TextStream::new(&self.parts)
    }

    /// Whether the tokenizer has tokens that mark a model's thoughts, found as mlx-lm finds them.
    fn thinks(&self) -> bool {
        const TOKENS: [&[&str]; 5] = [
            &["<think>", "</think>"],
            &["<longcat_think>", "</longcat_think>"],
            &["<|think:start|>", "<|think:end|>"],
            &["<|channel>", "<channel|>"],
            &["<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>"],
        ];
        TOKENS.iter().any(|tokens| tokens.iter().all(|token| self.token_id(token).is_some()))
    }
}

/// Compiles the README's example.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
