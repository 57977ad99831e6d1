//! Text to token ids and back.
//!
//! API. [`Tokenizer::from_folder`] reads the `tokenizer.json` of a checkpoint folder, and from the
//! configs beside it which tokens end a text. [`TextStream`] turns a stream of ids into text that
//! can be printed as it comes: whole characters only.

mod stop_tokens;
mod text_stream;

use std::path::{Path, PathBuf};

pub use text_stream::TextStream;

/// Why there is no tokenizer, or no text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The folder has no tokenizer.
    #[error("there is no {}; a checkpoint folder needs one to turn text into tokens", file.display())]
    NoTokenizer {
        /// The file that is missing.
        file: PathBuf,
    },
    /// A file that describes the tokenizer cannot be understood.
    #[error("{}: {problem}", file.display())]
    Invalid {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The tokenizer refused a text.
    #[error("the text cannot be turned into tokens: {problem}")]
    Encode {
        /// What the tokenizer says.
        problem: String,
    },
    /// The tokenizer refused token ids.
    #[error("the tokens cannot be turned into text: {problem}")]
    Decode {
        /// What the tokenizer says.
        problem: String,
    },
}

/// The tokenizer of a checkpoint.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    stop_tokens: Vec<u32>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` of a folder and, where they are there, `tokenizer_config.json`,
    /// `generation_config.json` and `config.json`.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::NoTokenizer`] without a `tokenizer.json`, [`TokenizerError::Invalid`]
    /// where a file is there and cannot be understood.
    pub fn from_folder(folder: impl AsRef<Path>) -> Result<Self, TokenizerError> {
        let folder = folder.as_ref();
        let file = folder.join("tokenizer.json");
        if !file.is_file() {
            return Err(TokenizerError::NoTokenizer { file });
        }
        let inner = tokenizers::Tokenizer::from_file(&file)
            .map_err(|e| TokenizerError::Invalid { file, problem: e.to_string() })?;
        let stop_tokens = stop_tokens::read(folder, &inner)?;
        Ok(Self { inner, stop_tokens })
    }

    /// The ids of a text, with the special tokens that the tokenizer puts around it.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Encode`] where the tokenizer has no token for a part of the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding =
            self.inner.encode(text, true).map_err(|e| TokenizerError::Encode { problem: e.to_string() })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of these ids, without special tokens.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Decode`] where the tokenizer refuses them.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, TokenizerError> {
        self.inner.decode(tokens, true).map_err(|e| TokenizerError::Decode { problem: e.to_string() })
    }

    /// The tokens after which a text is complete, in ascending order.
    pub fn stop_tokens(&self) -> &[u32] {
        &self.stop_tokens
    }

    /// A stream that turns ids into text one by one.
    pub fn stream(&self) -> TextStream<'_> {
        TextStream::new(self)
    }
}
