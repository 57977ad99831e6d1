//! Finds strings that end a text, while the text arrives in pieces.

use std::ops::Range;

use crate::{TextStream, TokenizerError};

/// Finds stop strings in a text that arrives in pieces, also across the ends of pieces.
///
/// A piece is returned at once, except for an end that may be the beginning of a stop string. The text ends
/// before the first stop string that is complete; if several are complete at the same character, before the
/// longest. The result does not depend on how the text is cut into pieces.
///
/// ```
/// use mlx_tokenizer::StopStrings;
///
/// let mut stop = StopStrings::new(["\nUser:"])?;
/// assert_eq!(stop.push("Hello.\nUs"), "Hello.");
/// assert_eq!(stop.push("ually"), "\nUsually");
/// assert_eq!(stop.push("\nUser: and"), "");
/// assert_eq!(stop.found(), Some("\nUser:"));
/// # Ok::<(), mlx_tokenizer::TokenizerError>(())
/// ```
///
/// # Special tokens
///
/// A special token such as `<|im_end|>` has no text, but a stop string may contain it, alone or with text
/// around it: `"\n<|im_end|>"`. [`StopStrings::push_token`] shows the content of special tokens to the stop
/// strings that contain it. The other stop strings, and the returned text, ignore special tokens.
#[derive(Debug, Clone, Default)]
pub struct StopStrings {
    strings: Vec<Pattern>,
    /// The end of the text that is held back: the longest beginning of a stop string that the text ends with.
    held: Held,
    found: Option<usize>,
}

/// Text that contains special tokens.
#[derive(Debug, Clone, Default)]
struct Held {
    text: String,
    /// The places of special tokens, in order. They are never returned.
    special: Vec<Range<usize>>,
}

impl Held {
    /// The place where a pattern begins of which this many bytes have matched up to `end`.
    fn start_of(&self, pattern: &Pattern, end: usize) -> usize {
        let (mut at, mut left) = (end, pattern.matched);
        for special in self.special.iter().rev().filter(|special| special.end <= end) {
            if left <= at - special.end {
                return at - left;
            }
            left -= at - special.end;
            at = special.start;
            if pattern.contains(&self.text[special.clone()]) {
                left = left.saturating_sub(special.len());
            }
            if left == 0 {
                return at;
            }
        }
        at - left
    }

    /// Removes the text before a place and returns it without special tokens.
    fn take(&mut self, end: usize) -> String {
        let rest = self.text.split_off(end);
        let mut out = std::mem::replace(&mut self.text, rest);
        for special in self.special.iter().rev().filter(|special| special.end <= end) {
            out.replace_range(special.clone(), "");
        }
        self.special.retain_mut(|special| {
            let stays = special.end > end;
            if stays {
                *special = special.start - end..special.end - end;
            }
            stays
        });
        out
    }
}

/// A string, and how much of it matches the end of the text (Knuth, Morris and Pratt).
#[derive(Debug, Clone)]
struct Pattern {
    string: String,
    /// For each beginning of the string, the length of the longest shorter beginning that it ends with.
    shorter: Vec<usize>,
    matched: usize,
}

impl StopStrings {
    /// Looks for these strings. Without any, all text is returned.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::EmptyStopString`] for an empty string.
    pub fn new<S: Into<String>>(strings: impl IntoIterator<Item = S>) -> Result<Self, TokenizerError> {
        let strings = strings.into_iter().map(|string| Pattern::new(string.into()));
        Ok(Self { strings: strings.collect::<Result<_, _>>()?, held: Held::default(), found: None })
    }

    /// Takes the next piece and returns the text that cannot be part of a stop string.
    ///
    /// After a stop string, there is no more text.
    pub fn push(&mut self, piece: &str) -> String {
        if self.found.is_some() {
            return String::new();
        }
        let held = self.held.text.len();
        self.held.text.push_str(piece);
        for (index, byte) in piece.bytes().enumerate() {
            let end = held + index + 1;
            let complete = |pattern: &mut Pattern| pattern.push(byte);
            if let Some(text) = self.end_before(end, complete) {
                return text;
            }
        }
        self.certain()
    }

    /// Takes the content of a special token, which only stop strings that contain it see. Returns the same as
    /// [`StopStrings::push`].
    pub fn push_special(&mut self, content: &str) -> String {
        if self.found.is_some() || content.is_empty() {
            return String::new();
        }
        let start = self.held.text.len();
        self.held.text.push_str(content);
        let end = self.held.text.len();
        self.held.special.push(start..end);
        let complete = |pattern: &mut Pattern| {
            pattern.contains(content) && content.bytes().fold(false, |_, byte| pattern.push(byte))
        };
        self.end_before(end, complete).unwrap_or_else(|| self.certain())
    }

    /// Takes the next token of a stream: its text, or its content if it is a special token. Returns the same as
    /// [`StopStrings::push`].
    ///
    /// # Errors
    ///
    /// The same as for [`TextStream::push`].
    pub fn push_token(&mut self, stream: &mut TextStream, token: u32) -> Result<String, TokenizerError> {
        match stream.special_content(token) {
            Some(content) => Ok(self.push_special(&content)),
            None => Ok(self.push(&stream.push(token)?)),
        }
    }

    /// The text before the longest stop string that is complete at this place, if there is one.
    fn end_before(&mut self, end: usize, mut complete: impl FnMut(&mut Pattern) -> bool) -> Option<String> {
        let mut longest: Option<usize> = None;
        for (at, pattern) in self.strings.iter_mut().enumerate() {
            if complete(pattern) && longest.is_none_or(|length| pattern.string.len() > length) {
                (longest, self.found) = (Some(pattern.string.len()), Some(at));
            }
        }
        let pattern = longest.and(self.found).and_then(|at| self.strings.get(at))?;
        let start = self.held.start_of(pattern, end);
        let text = self.held.take(start);
        self.held = Held::default();
        Some(text)
    }

    /// The text that cannot be the beginning of a stop string.
    fn certain(&mut self) -> String {
        let end = self.held.text.len();
        let begun = self.strings.iter().filter(|pattern| pattern.matched > 0);
        let start = begun.map(|pattern| self.held.start_of(pattern, end)).min().unwrap_or(end);
        self.held.take(start)
    }

    /// The stop string that ended the text, if one did.
    pub fn found(&self) -> Option<&str> {
        self.found.and_then(|at| self.strings.get(at)).map(|pattern| &*pattern.string)
    }

    /// Ends the text and returns the rest: the text that was held back because it could have become a stop
    /// string.
    pub fn finish(mut self) -> String {
        self.held.take(self.held.text.len())
    }
}

impl Pattern {
    fn new(string: String) -> Result<Self, TokenizerError> {
        if string.is_empty() {
            return Err(TokenizerError::EmptyStopString);
        }
        let mut pattern = Self { string, shorter: vec![0], matched: 0 };
        for index in 1..pattern.string.len() {
            pattern.advance(pattern.string.as_bytes()[index]);
            pattern.shorter.push(pattern.matched);
        }
        pattern.matched = 0;
        Ok(pattern)
    }

    fn contains(&self, content: &str) -> bool {
        self.string.contains(content)
    }

    /// Takes the next byte of the text. Returns whether the text now ends with the string.
    fn push(&mut self, byte: u8) -> bool {
        self.advance(byte);
        self.matched == self.string.len()
    }

    /// The longest beginning of the string that the text ends with after one more byte.
    fn advance(&mut self, byte: u8) {
        let bytes = self.string.as_bytes();
        while self.matched > 0 && bytes.get(self.matched) != Some(&byte) {
            self.matched = self.shorter[self.matched - 1];
        }
        if bytes.get(self.matched) == Some(&byte) {
            self.matched += 1;
        }
    }
}
