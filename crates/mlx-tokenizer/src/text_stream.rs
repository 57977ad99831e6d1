//! Decodes ids one by one.

use std::ops::Deref;
use std::sync::Arc;

use crate::check;
use crate::decoder::Decoder;
use crate::{Tokenizer, TokenizerError};

/// Decodes a stream of ids into pieces of text. The pieces together are the text that [`Tokenizer::decode`]
/// returns for all ids.
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
pub struct TextStream<'a> {
    tokenizer: Source<'a>,
    decoder: Decoder,
}

/// A tokenizer that is borrowed or shared.
#[derive(Debug, Clone)]
enum Source<'a> {
    Borrowed(&'a Tokenizer),
    Shared(Arc<Tokenizer>),
}

impl Deref for Source<'_> {
    type Target = Tokenizer;

    fn deref(&self) -> &Tokenizer {
        match self {
            Self::Borrowed(tokenizer) => tokenizer,
            Self::Shared(tokenizer) => tokenizer,
        }
    }
}

impl TextStream<'static> {
    /// A stream that owns a share of its tokenizer, for types that cannot borrow one.
    pub fn shared(tokenizer: Arc<Tokenizer>) -> Self {
        Self { decoder: Decoder::new(tokenizer.inner.get_decoder()), tokenizer: Source::Shared(tokenizer) }
    }
}

impl<'a> TextStream<'a> {
    pub(crate) fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer: Source::Borrowed(tokenizer), decoder: Decoder::new(tokenizer.inner.get_decoder()) }
    }

    /// Takes the next id and returns the text that is now complete, which is often empty.
    ///
    /// Special tokens and ids without a token have no text.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Decode`] if the tokenizer refuses the id.
    pub fn push(&mut self, token: u32) -> Result<String, TokenizerError> {
        match self.tokenizer.text_token(token) {
            Some(token) => refused(check::guarded(|| self.decoder.push(token))),
            None => Ok(String::new()),
        }
    }

    /// The tokenizer of the ids.
    pub(crate) fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Ends the stream and returns the rest: replacement characters for bytes that do not form a character.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Decode`] if the tokenizer refuses the ids.
    pub fn finish(self) -> Result<String, TokenizerError> {
        refused(check::guarded(|| self.decoder.finish()))
    }
}

fn refused(text: Result<tokenizers::Result<String>, String>) -> Result<String, TokenizerError> {
    text.and_then(|text| text.map_err(|e| e.to_string()))
        .map_err(|problem| TokenizerError::Decode { problem })
}
