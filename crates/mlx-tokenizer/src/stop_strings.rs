//! Strings that end a text, in a text that comes in pieces.

use crate::TokenizerError;

/// Looks for stop strings in a text that comes in pieces, wherever the pieces end.
///
/// A piece goes out at once but for what may be the beginning of a stop string. Where one is
/// complete the text ends before it; of several that are complete with the same character, before
/// the longest. How the text is cut into pieces changes nothing.
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
#[derive(Debug, Clone)]
pub struct StopStrings {
    strings: Vec<Pattern>,
    /// The end of the text so far that has not gone out: as long as the longest beginning of a stop
    /// string that it is.
    held: String,
    found: Option<usize>,
}

/// A string and how much of it the end of the text so far is (Knuth, Morris and Pratt).
#[derive(Debug, Clone)]
struct Pattern {
    string: String,
    /// For each beginning but the empty one, the length of the longest shorter one that it ends with.
    shorter: Vec<usize>,
    matched: usize,
}

impl StopStrings {
    /// Looks for these strings; without any, all text goes through.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::EmptyStopString`] for a string that every text begins with.
    pub fn new<S: Into<String>>(strings: impl IntoIterator<Item = S>) -> Result<Self, TokenizerError> {
        let strings = strings.into_iter().map(|string| Pattern::new(string.into()));
        Ok(Self { strings: strings.collect::<Result<_, _>>()?, held: String::new(), found: None })
    }

    /// Takes the next piece and answers with the text that is certain to come before a stop string.
    ///
    /// Once a stop string was found there is no more text.
    pub fn push(&mut self, piece: &str) -> String {
        if self.found.is_some() {
            return String::new();
        }
        let held = self.held.len();
        self.held.push_str(piece);
        for (index, byte) in piece.bytes().enumerate() {
            let mut longest: Option<usize> = None;
            for (at, pattern) in self.strings.iter_mut().enumerate() {
                if pattern.push(byte) && longest.is_none_or(|of| pattern.string.len() > of) {
                    (longest, self.found) = (Some(pattern.string.len()), Some(at));
                }
            }
            if let Some(length) = longest {
                self.held.truncate(held + index + 1 - length);
                return std::mem::take(&mut self.held);
            }
        }
        let waiting = self.strings.iter().map(|pattern| pattern.matched).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - waiting);
        std::mem::replace(&mut self.held, rest)
    }

    /// The stop string that the text ended with, if it did.
    pub fn found(&self) -> Option<&str> {
        self.found.and_then(|at| self.strings.get(at)).map(|pattern| &*pattern.string)
    }

    /// The rest, when no more text comes: what could have become a stop string and did not.
    pub fn finish(self) -> String {
        self.held
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

    /// Takes the next byte of the text; whether the text now ends with the string.
    fn push(&mut self, byte: u8) -> bool {
        self.advance(byte);
        self.matched == self.string.len()
    }

    /// The longest beginning that the text ends with after one more byte.
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
