//! Decodes ids one by one.

use std::sync::Arc;

use crate::TokenizerError;
use crate::parts::Parts;
use crate::vocabulary::Pieces;

/// Decodes a stream of ids into pieces of text. The pieces together are the text that
/// [`Tokenizer::decode`](crate::Tokenizer::decode) returns for all ids. The stream shares its tokenizer and can outlive it.
///
/// A piece never ends inside a character: if the bytes of a character are spread over several tokens, it is
/// returned with the last of them. Each token is decoded once, and costs the same however long the text is.
///
/// Some decoders hold text back that later tokens may change. A decoder that drops repeated tokens holds back
/// one token, and a decoder that needs all tokens holds back everything. None of the supported models has such
/// a decoder.
///
/// A clone continues at the same place, independently of the original.
#[derive(Debug, Clone)]
pub struct TextStream {
    parts: Arc<Parts>,
    pieces: Pieces,
}

impl TextStream {
    pub(crate) fn new(parts: &Arc<Parts>) -> Self {
        Self { pieces: parts.tokens.no_pieces(), parts: Arc::clone(parts) }
    }

    /// Takes the next id and returns the text that is now complete, which is often empty.
    ///
    /// Special tokens and ids without a token have no text.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Decode`] if the tokenizer refuses the id.
    pub fn push(&mut self, token: u32) -> Result<String, TokenizerError> {
        self.parts.tokens.push(&mut self.pieces, token).map_err(refused)
    }

    /// The content of a special token; `None` for an ordinary token.
    pub(crate) fn special_content(&self, token: u32) -> Option<String> {
        self.parts.tokens.special_content(token)
    }

    /// Ends the stream and returns the rest: replacement characters for bytes that do not form a character.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Decode`] if the tokenizer refuses the ids.
    pub fn finish(self) -> Result<String, TokenizerError> {
        self.pieces.finish().map_err(refused)
    }
}

fn refused(problem: String) -> TokenizerError {
    TokenizerError::Decode { problem }
}
