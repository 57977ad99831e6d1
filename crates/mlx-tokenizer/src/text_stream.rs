//! Ids to text, as they come.

use crate::check;
use crate::decoder::Decoder;
use crate::{Tokenizer, TokenizerError};

/// Turns a stream of ids into text, piece by piece: the pieces together are [`Tokenizer::decode`] of
/// all ids, however they come.
///
/// A piece never ends inside a character: one whose bytes are spread over several tokens comes with
/// the last of them. A token costs the same however long the text has become, and is decoded once.
///
/// Some decoders hold text back, as far as what comes next may change it: a token where a repeated
/// one counts once, and all of the text where a decoder must see all of it. None of the models here
/// has such a decoder.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    decoder: Decoder,
}

impl<'a> TextStream<'a> {
    pub(crate) fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, decoder: Decoder::new(tokenizer.inner.get_decoder()) }
    }

    /// Takes the next id and answers with the text that is complete by now; often empty.
    ///
    /// Special tokens and ids without a token have no text.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Decode`] where the tokenizer refuses the id.
    pub fn push(&mut self, token: u32) -> Result<String, TokenizerError> {
        match self.tokenizer.text_token(token) {
            Some(token) => refused(check::guarded(|| self.decoder.push(token))),
            None => Ok(String::new()),
        }
    }

    /// The tokenizer whose ids it takes.
    pub(crate) fn tokenizer(&self) -> &'a Tokenizer {
        self.tokenizer
    }

    /// The rest: bytes at the end that never became a character, as replacement characters.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Decode`] where the tokenizer refuses the ids.
    pub fn finish(self) -> Result<String, TokenizerError> {
        refused(check::guarded(|| self.decoder.finish()))
    }
}

fn refused(text: Result<tokenizers::Result<String>, String>) -> Result<String, TokenizerError> {
    text.and_then(|text| text.map_err(|e| e.to_string()))
        .map_err(|problem| TokenizerError::Decode { problem })
}
