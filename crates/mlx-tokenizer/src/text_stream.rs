//! Ids to text, as they come.

use crate::{Tokenizer, TokenizerError};

/// What a decoder puts where bytes are no character, or not yet.
const REPLACEMENT: char = '\u{FFFD}';

/// A character has four bytes at most, so that at most three may still wait for the next token.
/// Some decoders put one replacement for all of them, some one for each.
const UNFINISHED: usize = 3;

/// Tokens that are decoded again with the next one: enough for the bytes of an unfinished
/// character, and for decoders that treat the first token of a text differently.
const CONTEXT: usize = 8;

/// Turns a stream of ids into text, piece by piece: the pieces together are the text of all ids.
///
/// A piece never ends inside a character: one whose bytes are spread over several tokens comes
/// with the last of them. Each push decodes a few tokens, however long the text has become.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    window: Vec<u32>,
    /// Bytes of the window's text that were handed out.
    emitted: usize,
}

impl<'a> TextStream<'a> {
    pub(crate) fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, window: Vec::new(), emitted: 0 }
    }

    /// Takes the next id and answers with the text that is complete by now; often empty.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Decode`] where the tokenizer refuses the id.
    pub fn push(&mut self, token: u32) -> Result<String, TokenizerError> {
        self.window.push(token);
        let text = self.tokenizer.decode(&self.window)?;
        let complete = complete(&text);
        let piece = text.get(self.emitted..complete).unwrap_or_default().to_owned();
        self.emitted = self.emitted.max(complete);

        if self.window.len() >= 2 * CONTEXT {
            self.window.drain(..CONTEXT);
            // The end of the text is the same without the beginning; where it starts is not.
            let waiting = text.len() - self.emitted.min(text.len());
            self.emitted = self.tokenizer.decode(&self.window)?.len().saturating_sub(waiting);
        }
        Ok(piece)
    }

    /// The rest: bytes at the end that never became a character, as replacement characters.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Decode`] where the tokenizer refuses the ids.
    pub fn finish(self) -> Result<String, TokenizerError> {
        let text = self.tokenizer.decode(&self.window)?;
        Ok(text.get(self.emitted..).unwrap_or_default().to_owned())
    }
}

/// Where the text ends that no further token can change.
fn complete(text: &str) -> usize {
    let waiting = text.chars().rev().take(UNFINISHED).take_while(|&c| c == REPLACEMENT).count();
    text.len() - waiting * REPLACEMENT.len_utf8()
}
