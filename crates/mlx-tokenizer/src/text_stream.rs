//! Ids to text, as they come.

use crate::{Tokenizer, TokenizerError};

/// What a decoder puts where bytes are no character, or not yet.
const REPLACEMENT: char = '\u{FFFD}';

/// A character has four bytes at most, and so waits for four tokens at most. More tokens than this
/// that end in no character are no text, and are handed out as what they decode to.
const PATIENCE: usize = 32;

/// Turns a stream of ids into text, piece by piece: the pieces together are the text of all ids.
///
/// A piece never ends inside a character: one whose bytes are spread over several tokens comes
/// with the last of them. Each push decodes the few tokens since the last piece but one, however
/// long the text has become: those of the last piece, because some decoders treat the first token
/// of a text differently or look at bytes in runs, and the new ones.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    /// The tokens of the last piece, then those that wait.
    window: Vec<u32>,
    /// How many of them the last piece has.
    told: usize,
}

impl<'a> TextStream<'a> {
    pub(crate) fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, window: Vec::new(), told: 0 }
    }

    /// Takes the next id and answers with the text that is complete by now; often empty.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Decode`] where the tokenizer refuses the id.
    pub fn push(&mut self, token: u32) -> Result<String, TokenizerError> {
        self.window.push(token);
        let piece = self.waiting_text()?;
        let patient = self.window.len() - self.told < PATIENCE;
        if patient && (piece.is_empty() || piece.ends_with(REPLACEMENT)) {
            return Ok(String::new());
        }
        self.window.drain(..self.told);
        self.told = self.window.len();
        Ok(piece)
    }

    /// The rest: bytes at the end that never became a character, as replacement characters.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Decode`] where the tokenizer refuses the ids.
    pub fn finish(self) -> Result<String, TokenizerError> {
        self.waiting_text()
    }

    /// What the tokens that wait add to the text of the last piece.
    fn waiting_text(&self) -> Result<String, TokenizerError> {
        let told = self.tokenizer.decode(&self.window[..self.told])?;
        let text = self.tokenizer.decode(&self.window)?;
        Ok(match text.strip_prefix(&told) {
            Some(rest) => rest.to_owned(),
            // A run of bytes whose end is no character: the decoder has taken back the characters
            // before it, too. They were told; what waits is one replacement for each byte.
            None => text.chars().skip(told.chars().count()).collect(),
        })
    }
}
