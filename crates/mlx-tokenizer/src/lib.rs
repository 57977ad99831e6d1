//! Text to token ids and back, and conversations to prompts.
//!
//! API. [`Tokenizer::from_folder`] reads the `tokenizer.json` of a checkpoint folder, and from the
//! configs beside it the special tokens, the chat templates and which tokens end a text.
//!
//! | | |
//! |---|---|
//! | [`Tokenizer::encode`], [`Tokenizer::decode`] | a text and its ids |
//! | [`Tokenizer::chat`] | a conversation, through the model's chat template |
//! | [`TextStream`] | ids to text as they come, in whole characters |
//! | [`StopStrings`] | strings that end a text, in a text that comes in pieces |
//!
//! ```no_run
//! use mlx_tokenizer::{ChatOptions, Message, StopStrings, Tokenizer};
//!
//! let tokenizer = Tokenizer::from_folder("path/to/checkpoint")?;
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
//! The post-processor of `tokenizer.json` alone says what is put around a text. `add_bos_token` and
//! `add_eos_token` of `tokenizer_config.json` count for nothing, as in transformers 5 with a
//! `tokenizer.json`, nor do its truncation and padding. A text that begins with the
//! beginning-of-text token gets no second one, and a chat template writes all special tokens itself.

mod chat;
mod check;
mod config;
mod decoder;
mod jinja;
mod json;
mod shared_tokens;
mod stop_strings;
mod template;
mod text_stream;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tokenizers::{AddedToken, Model as _, OffsetType, PreTokenizer as _};

pub use chat::{ChatEnd, ChatOptions, ChatPrompt, ChatTemplate, Message};
pub use jiff::civil::DateTime;
pub use json::{Json, JsonError};
pub use shared_tokens::{SharedTokens, TokenMismatch};
pub use stop_strings::StopStrings;
pub use text_stream::TextStream;

/// Why there is no tokenizer, or no text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The folder has no tokenizer.
    #[error(
        "there is no {}; a checkpoint folder needs one to turn text into tokens{}",
        file.display(),
        converted(found)
    )]
    NoTokenizer {
        /// The file that is missing.
        file: PathBuf,
        /// A file of another tokenizer library that is there, and can be converted.
        found: Option<String>,
    },
    /// A file that describes the tokenizer cannot be understood.
    #[error("{}: {}", file.display(), shortened(problem))]
    Invalid {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The tokenizer refused a text.
    #[error("the text cannot be turned into tokens: {}", shortened(problem))]
    Encode {
        /// What the tokenizer says.
        problem: String,
    },
    /// The tokenizer refused token ids.
    #[error("the tokens cannot be turned into text: {}", shortened(problem))]
    Decode {
        /// What the tokenizer says.
        problem: String,
    },
    /// The tokenizer has no such token.
    #[error("the tokenizer has no token {:?}; a token is named by its text or by its id", shortened(token))]
    UnknownToken {
        /// What was asked for.
        token: String,
    },
    /// A stop string is empty.
    #[error("a stop string is empty, and would end every text before it begins; leave it out")]
    EmptyStopString,
    /// The tokenizer has no chat template.
    #[error(
        "the tokenizer has no chat template, so that this is probably no chat model; \
         give it plain text, or a template of your own"
    )]
    NoChatTemplate,
    /// The tokenizer has chat templates, and none of this name.
    #[error("the tokenizer has no chat template {:?}; it has {}", shortened(name), shortened(&known.join(", ")))]
    UnknownChatTemplate {
        /// The name that was asked for.
        name: String,
        /// Those that there are.
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
        /// The line that refused.
        line: Option<usize>,
        /// What the template says.
        message: String,
    },
    /// The chat template is wrong, or uses what is not supported.
    #[error(
        "the chat template cannot be used: {} (line {} of {})",
        shortened(problem),
        line_of(*line),
        shortened(template)
    )]
    ChatTemplate {
        /// The name of the template.
        template: String,
        /// The line at fault.
        line: Option<usize>,
        /// What is wrong.
        problem: String,
    },
    /// There is no prompt for such a conversation.
    #[error("{}", shortened(problem))]
    Conversation {
        /// What is wrong with it.
        problem: String,
    },
}

/// What to do with the file of another library.
fn converted(found: &Option<String>) -> String {
    let Some(found) = found else { return String::new() };
    format!(
        "; transformers makes it of {found}: \
         AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) in Python writes tokenizer.json"
    )
}

/// A text of a file or of a caller as messages show it: all of it, or the beginning and the end of a very long one.
fn shortened(text: &str) -> Cow<'_, str> {
    mlx_files::shortened(text, 1000)
}

fn line_of(line: Option<usize>) -> String {
    line.map_or_else(|| "?".to_owned(), |line| line.to_string())
}

/// The tokenizer of a checkpoint.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Special tokens by name, such as `bos_token`.
    special: BTreeMap<String, String>,
    /// Chat templates by name.
    templates: BTreeMap<String, String>,
    /// In ascending order.
    stop_tokens: Vec<u32>,
}

/// How a text becomes tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EncodeOptions {
    /// What is put around the text.
    pub around: Around,
    /// What special tokens are that the text spells out.
    pub written: Written,
}

/// What is put around a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Around {
    /// The special tokens that the tokenizer puts there, unless the text begins with the
    /// beginning-of-text token already.
    #[default]
    SpecialTokens,
    /// Nothing.
    Nothing,
}

/// What special tokens are that a text spells out, such as `<|end|>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Written {
    /// Those tokens, as in mlx-lm and transformers. A text from elsewhere can end a turn this way.
    #[default]
    SpecialTokens,
    /// Text like any other.
    Text,
}

impl Tokenizer {
    /// Reads `tokenizer.json` of a folder and, where they are there, `tokenizer_config.json`,
    /// `special_tokens_map.json`, `generation_config.json`, `config.json`, `chat_template.jinja`,
    /// `additional_chat_templates` and `chat_template.json`.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::NoTokenizer`] without a `tokenizer.json`, [`TokenizerError::Invalid`]
    /// where a file is there and cannot be understood. A chat template is not looked at before it
    /// is used.
    pub fn from_folder(folder: impl AsRef<Path>) -> Result<Self, TokenizerError> {
        let folder = folder.as_ref();
        let file = folder.join("tokenizer.json");
        let problem =
            |problem: String| TokenizerError::Invalid { file: folder.join("tokenizer.json"), problem };
        let invalid = |e: tokenizers::Error| problem(e.to_string());
        if !mlx_files::is_present(&file).map_err(|e| problem(e.to_string()))? {
            return Err(TokenizerError::NoTokenizer { file, found: config::other_tokenizer(folder) });
        }
        let json =
            mlx_files::read(&file, mlx_files::LARGEST_TOKENIZER).map_err(|e| problem(e.to_string()))?;
        check::check(&json).map_err(problem)?;
        let read = check::guarded(|| tokenizers::Tokenizer::from_bytes(&json));
        let mut inner = read.map_err(problem)?.map_err(invalid)?;
        drop(json);
        check::check_whole(&inner).map_err(problem)?;
        // Left over from training.
        inner.with_padding(None).with_truncation(None).map_err(invalid)?;

        let config = config::Config::read(folder)?;
        let special = config.special_tokens()?;
        // What has such a name is a special token, whatever `tokenizer.json` calls it.
        let named = special.values().map(String::as_str).chain(config.extra_special_tokens());
        let plain: Vec<AddedToken> = named
            .filter(|token| {
                inner.token_to_id(token).is_some() && !inner.get_added_vocabulary().is_special_token(token)
            })
            .map(|token| AddedToken::from(token, true))
            .collect();
        check::guarded(|| inner.add_special_tokens(plain)).map_err(problem)?.map_err(invalid)?;

        let templates = config.chat_templates()?;
        let stop_tokens = config.stop_tokens(&inner, &special, &templates)?.into_iter().collect();
        Ok(Self { inner, special, templates, stop_tokens })
    }

    /// The ids of a text, with the special tokens that the tokenizer puts around it.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Encode`] where the tokenizer has no token for a part of the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.encode_with(text, EncodeOptions::default())
    }

    /// The ids of a text.
    ///
    /// # Errors
    ///
    /// As of [`Tokenizer::encode`].
    pub fn encode_with(&self, text: &str, options: EncodeOptions) -> Result<Vec<u32>, TokenizerError> {
        let begun = options.written == Written::SpecialTokens
            && self.special.get("bos_token").is_some_and(|bos| !bos.is_empty() && text.starts_with(&**bos));
        let around = options.around == Around::SpecialTokens && !begun;
        let refused = |problem: String| TokenizerError::Encode { problem };
        let ids = check::guarded(|| {
            check::grows_within_bounds(self.inner.get_normalizer(), text)?;
            let encoding = match options.written {
                Written::SpecialTokens => self.inner.encode_fast(text, around),
                Written::Text => self.encode_text(text, around),
            };
            encoding.map(|encoding| encoding.get_ids().to_vec()).map_err(|e| e.to_string())
        });
        ids.map_err(refused)?.map_err(refused)
    }

    /// What the `tokenizers` crate does with `encode_special_tokens`, which is a setting of the whole
    /// tokenizer there, so that each text would need a copy of it.
    fn encode_text(&self, text: &str, around: bool) -> tokenizers::Result<tokenizers::Encoding> {
        let mut added = self.inner.get_added_vocabulary().clone();
        added.set_encode_special_tokens(true);
        let mut parts = added.extract_and_normalize(self.inner.get_normalizer(), text);
        if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut parts)?;
        }
        parts.tokenize(|part| self.inner.get_model().tokenize(part.get()))?;
        self.inner.post_process(parts.into_encoding(None, 0, OffsetType::None)?, None, around)
    }

    /// The text of these ids, without special tokens.
    ///
    /// Bytes that are no characters are U+FFFD, one for each longest beginning of a character. That is
    /// what mlx-lm prints; transformers takes the characters before them back, too, where a tokenizer
    /// has a token for each byte (`<0x0A>`).
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Decode`] where the tokenizer refuses them.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, TokenizerError> {
        let mut stream = self.stream();
        let mut text = String::new();
        for &token in tokens {
            text += &stream.push(token)?;
        }
        Ok(text + &stream.finish()?)
    }

    /// The tokens after which a text is complete, in ascending order: those that any file of the
    /// folder names and, where those are not what the chat template writes, the end of its turns.
    pub fn stop_tokens(&self) -> &[u32] {
        &self.stop_tokens
    }

    /// Makes a token one after which a text is complete: its text or its id.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::UnknownToken`] where the tokenizer has neither.
    pub fn add_stop_token(&mut self, token: &str) -> Result<(), TokenizerError> {
        let by_id = || token.parse().ok().filter(|&id| self.inner.id_to_token(id).is_some());
        let id = self.token_id(token).or_else(by_id);
        let id = id.ok_or_else(|| TokenizerError::UnknownToken { token: token.to_owned() })?;
        if let Err(place) = self.stop_tokens.binary_search(&id) {
            self.stop_tokens.insert(place, id);
        }
        Ok(())
    }

    /// The id of a token, by its text as the vocabulary has it.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// A special token by its name, such as `bos_token`.
    pub fn special_token(&self, name: &str) -> Option<&str> {
        self.special.get(name).map(String::as_str)
    }

    /// What a special token is spelled like, such as `<|im_end|>`; `None` for a token that has text.
    ///
    /// A special token has no text in [`Tokenizer::decode`] and [`TextStream`].
    pub fn special_content(&self, id: u32) -> Option<String> {
        let added = self.inner.get_added_vocabulary();
        added.simple_id_to_token(id).filter(|token| added.is_special_token(token))
    }

    /// A stream that turns ids into text one by one.
    pub fn stream(&self) -> TextStream<'_> {
        TextStream::new(self)
    }

    /// The token of an id where it is text.
    fn text_token(&self, id: u32) -> Option<String> {
        let added = self.inner.get_added_vocabulary();
        let token = added.simple_id_to_token(id).or_else(|| self.inner.get_model().id_to_token(id))?;
        (!added.is_special_token(&token)).then_some(token)
    }

    /// Whether the tokenizer has tokens to think between, as mlx-lm looks for them.
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
