//! Tokens with their text: the token loop and the tokenizer together.
//!
//! [`with_text`] gives a stream its text, and [`TextBatch`] the sequences of a batch. Both end before a stop string.
//! [`StopStringProcessor`] is for code of your own that chooses tokens: it ends a sequence of tokens where a stop string is
//! complete.

mod batch;

use std::collections::VecDeque;

pub use batch::{BatchPiece, TextBatch, TextOptions};
use mlx_generate::{FinishReason, GenerateError, LogitsProcessor, ProcessorError, RowId, Token, Tokens};
use mlx_tokenizer::{StopStrings, TextStream, Tokenizer, TokenizerError};

/// Why a text cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// The token loop reported an error.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// The tokenizer reported an error.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The tokenizer refused a token of a sequence of a [`TextBatch`].
    #[error("row {row} of the batch")]
    Row {
        /// The sequence, which has left the batch.
        row: RowId,
        /// The tokenizer's error.
        source: TokenizerError,
    },
}

/// Why a text ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TextFinish {
    /// The stream of tokens ended.
    Tokens(FinishReason),
    /// The text came to this stop string, and ends before it.
    StopString(String),
}

/// A piece of text, and the token that completed it.
#[derive(Debug, Clone, PartialEq)]
pub struct TextPiece {
    /// Whole characters: those that the token completed. Often empty.
    pub text: String,
    /// `None` for text that was held back until the end.
    pub token: Option<Token>,
}

/// The text of one sequence of tokens, which ends before the first stop string.
#[derive(Debug)]
struct Text {
    tokenizer: Tokenizer,
    /// `None` after the end.
    open: Option<(TextStream, StopStrings)>,
}

impl Text {
    fn new(tokenizer: &Tokenizer, stop: StopStrings) -> Self {
        Self { tokenizer: tokenizer.clone(), open: Some((tokenizer.stream(), stop)) }
    }

    /// Adds the next token, where there is one, and says with `ended` why there is none after it. Returns the text that
    /// is now final, and why the text ends with it.
    fn push(
        &mut self,
        token: Option<u32>,
        ended: Option<FinishReason>,
    ) -> Result<(String, Option<TextFinish>), TokenizerError> {
        let Some((text, stop)) = &mut self.open else { return Ok((String::new(), None)) };
        let is_stop_token = ended == Some(FinishReason::StopToken);
        let mut piece = match token {
            Some(token) if !is_stop_token => stop.push_token(text, token)?,
            // Its text is left out, but a stop string may contain it.
            Some(token) => stop.push_special(&self.tokenizer.special_content(token).unwrap_or_default()),
            None => String::new(),
        };
        let mut found = stop.found().map(str::to_owned);
        if found.is_none() && (ended.is_some() || token.is_none()) {
            let Some((text, mut stop)) = self.open.take() else { return Ok((piece, None)) };
            piece += &stop.push(&text.finish()?);
            found = stop.found().map(str::to_owned);
            piece += &stop.finish();
        }
        if found.is_some() {
            self.open = None;
        }
        Ok((piece, found.map(TextFinish::StopString).or(ended.map(TextFinish::Tokens))))
    }
}

/// A stream of tokens with their text; see [`with_text`].
#[derive(Debug)]
pub struct TextTokens<S> {
    tokens: S,
    text: Text,
    finish: Option<TextFinish>,
}

/// Gives a stream of tokens its text. The text of a stop token is left out, and special tokens such as `<|im_end|>` have no
/// text.
///
/// ```no_run
/// use mlx_models::generate::{GenerateOptions, Session, generate};
/// use mlx_models::tokenizer::{ChatOptions, Message, Tokenizer};
/// use mlx_models::{CacheOptions, text};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut model = mlx_models::load("path/to/checkpoint")?;
/// let tokenizer = Tokenizer::from_folder("path/to/checkpoint")?;
/// let prompt = tokenizer.chat(&[Message::user("Tell me a story.")], &ChatOptions::default())?;
/// let mut session = Session::new(model.new_cache(&CacheOptions::default())?);
/// let options = GenerateOptions::new(tokenizer.stop_tokens());
/// let tokens = generate(&mut *model, &mut session, &prompt.tokens, options)?;
/// for piece in text::with_text(tokens, &tokenizer).stop_at(["The end"])? {
///     print!("{}", piece?.text);
/// }
/// # Ok(())
/// # }
/// ```
pub fn with_text<S: Tokens>(tokens: S, tokenizer: &Tokenizer) -> TextTokens<S> {
    TextTokens { tokens, text: Text::new(tokenizer, StopStrings::default()), finish: None }
}

impl<S> TextTokens<S> {
    /// Ends the text before the first of these strings, which replace earlier ones. A stop string may begin and end inside
    /// of tokens, and may contain special tokens, alone or with text around them: see [`StopStrings`].
    ///
    /// # Errors
    ///
    /// [`TokenizerError::EmptyStopString`] for an empty stop string.
    pub fn stop_at<T: Into<String>>(
        self,
        stop_strings: impl IntoIterator<Item = T>,
    ) -> Result<Self, TokenizerError> {
        let text = Text::new(&self.text.tokenizer, StopStrings::new(stop_strings)?);
        Ok(Self { text, ..self })
    }

    /// Why the text ended; `None` while it goes on.
    pub fn finish_reason(&self) -> Option<&TextFinish> {
        self.finish.as_ref()
    }
}

impl<S: Tokens> TextTokens<S> {
    fn advance(&mut self) -> Result<Option<TextPiece>, TextError> {
        if self.text.open.is_none() {
            return Ok(None);
        }
        let token = self.tokens.next().transpose()?;
        let (text, finish) =
            self.text.push(token.as_ref().map(|token| token.id), self.tokens.finish_reason())?;
        self.finish = finish;
        let is_over = token.is_none() && text.is_empty();
        Ok((!is_over).then_some(TextPiece { text, token }))
    }
}

impl<S: Tokens> Iterator for TextTokens<S> {
    type Item = Result<TextPiece, TextError>;

    fn next(&mut self) -> Option<Self::Item> {
        let piece = self.advance().transpose();
        if matches!(piece, Some(Err(_))) {
            self.text.open = None;
        }
        piece
    }
}

/// How many tokens can be taken back without decoding the answer again. Speculative decoding rarely drafts more.
const KEPT_STATES: usize = 32;

/// Ends a sequence with the token that completes a stop string, with
/// [`FinishReason::Complete`]: for streams, rows of a batch and speculative decoding.
///
/// It looks at the answer and not at the prompt, and changes no logits. The last tokens of the answer contain the stop
/// string. [`TextTokens::stop_at`] and [`TextBatch`] leave it out of the text.
///
/// ```no_run
/// use mlx_models::CacheOptions;
/// use mlx_models::generate::{Batch, GenerateOptions};
/// use mlx_models::text::StopStringProcessor;
/// use mlx_models::tokenizer::Tokenizer;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut model = mlx_models::load("path/to/checkpoint")?;
/// let tokenizer = Tokenizer::from_folder("path/to/checkpoint")?;
/// let stop = StopStringProcessor::new(&tokenizer, ["The end"])?;
/// let processors = vec![Box::new(stop) as _];
/// let options = GenerateOptions { processors, ..GenerateOptions::new(tokenizer.stop_tokens()) };
/// let mut batch = Batch::new(CacheOptions::default());
/// for prompt in ["Once upon a time", "In the beginning"] {
///     batch.add(&mut *model, &tokenizer.encode(prompt)?, options.clone())?;
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct StopStringProcessor {
    /// Before the first token.
    start: State,
    /// The tokens of the answer.
    ids: Vec<u32>,
    /// The states after the newest tokens, the newest last. Never empty.
    states: VecDeque<State>,
}

/// The text and the search for stop strings after some token.
#[derive(Debug, Clone)]
struct State {
    text: TextStream,
    stop: StopStrings,
}

impl State {
    fn push(&mut self, token: u32) -> Result<(), TokenizerError> {
        self.stop.push_token(&mut self.text, token).map(drop)
    }
}

impl StopStringProcessor {
    /// Ends sequences at these strings.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::EmptyStopString`] for an empty stop string.
    pub fn new<T: Into<String>>(
        tokenizer: &Tokenizer,
        stop_strings: impl IntoIterator<Item = T>,
    ) -> Result<Self, TokenizerError> {
        Ok(Self::with(tokenizer, StopStrings::new(stop_strings)?))
    }

    fn with(tokenizer: &Tokenizer, stop: StopStrings) -> Self {
        let start = State { text: tokenizer.stream(), stop };
        Self { ids: Vec::new(), states: VecDeque::from([start.clone()]), start }
    }

    /// The stop string that was completed.
    pub fn found(&self) -> Option<&str> {
        self.states.back().and_then(|state| state.stop.found())
    }
}

impl LogitsProcessor for StopStringProcessor {
    fn accept(&mut self, token: u32) -> Result<(), ProcessorError> {
        let mut state = self.states.back().unwrap_or(&self.start).clone();
        state.push(token)?;
        self.ids.push(token);
        self.states.push_back(state);
        if self.states.len() > KEPT_STATES {
            self.states.pop_front();
        }
        Ok(())
    }

    fn rollback(&mut self, tokens: usize) -> Result<(), ProcessorError> {
        self.ids.truncate(self.ids.len().saturating_sub(tokens));
        let kept = self.states.len().saturating_sub(tokens);
        self.states.truncate(kept);
        if kept == 0 {
            let mut state = self.start.clone();
            self.ids.iter().try_for_each(|&token| state.push(token))?;
            self.states.push_back(state);
        }
        Ok(())
    }

    fn is_complete(&self) -> bool {
        self.found().is_some()
    }
}
