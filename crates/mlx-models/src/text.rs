//! Tokens with their text: the token loop and the tokenizer together.
//!
//! [`with_text`] gives a stream its text, which ends before a stop string. [`StopStringProcessor`] ends a sequence of tokens
//! where a stop string is complete, in a row of a batch too.

use std::collections::VecDeque;
use std::sync::Arc;

use mlx_generate::{FinishReason, GenerateError, LogitsProcessor, ProcessorError, Token, Tokens};
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

/// A stream of tokens with their text; see [`with_text`].
#[derive(Debug)]
pub struct TextTokens<'t, S> {
    tokens: S,
    tokenizer: &'t Tokenizer,
    /// `None` after the end.
    text: Option<(TextStream<'t>, StopStrings)>,
    finish: Option<TextFinish>,
}

/// Gives a stream of tokens its text, which ends before the first stop string. A stop string may begin and end inside of
/// tokens. The text of a stop token is left out.
///
/// Special tokens such as `<|im_end|>` have no text, but a stop string may contain them, alone or with text around them: see
/// [`StopStrings`].
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
/// let options = GenerateOptions { stop_tokens: tokenizer.stop_tokens().to_vec(), ..GenerateOptions::default() };
/// let tokens = generate(&mut *model, &mut session, &prompt.tokens, options)?;
/// for piece in text::with_text(tokens, &tokenizer, ["The end"])? {
///     print!("{}", piece?.text);
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// [`TokenizerError::EmptyStopString`] for an empty stop string.
pub fn with_text<'t, S: Tokens, T: Into<String>>(
    tokens: S,
    tokenizer: &'t Tokenizer,
    stop_strings: impl IntoIterator<Item = T>,
) -> Result<TextTokens<'t, S>, TextError> {
    let text = Some((tokenizer.stream(), StopStrings::new(stop_strings)?));
    Ok(TextTokens { tokens, tokenizer, text, finish: None })
}

impl<S: Tokens> TextTokens<'_, S> {
    /// Why the text ended; `None` while it goes on.
    pub fn finish_reason(&self) -> Option<&TextFinish> {
        self.finish.as_ref()
    }

    fn advance(&mut self) -> Result<Option<TextPiece>, TextError> {
        let Some((text, stop)) = &mut self.text else { return Ok(None) };
        let token = self.tokens.next().transpose()?;
        let ended = self.tokens.finish_reason();
        let is_stop_token = ended == Some(FinishReason::StopToken);
        let mut piece = match &token {
            Some(token) if !is_stop_token => stop.push_token(text, token.id)?,
            // Its text is left out, but a stop string may contain it.
            Some(token) => stop.push_special(&self.tokenizer.special_content(token.id).unwrap_or_default()),
            None => String::new(),
        };
        if let Some(string) = stop.found() {
            self.finish = Some(TextFinish::StopString(string.to_owned()));
            self.text = None;
        } else if ended.is_some() || token.is_none() {
            if let Some((text, mut stop)) = self.text.take() {
                piece += &stop.push(&text.finish()?);
                self.finish = match stop.found() {
                    Some(string) => Some(TextFinish::StopString(string.to_owned())),
                    None => ended.map(TextFinish::Tokens),
                };
                piece += &stop.finish();
            }
            if token.is_none() && piece.is_empty() {
                return Ok(None);
            }
        }
        Ok(Some(TextPiece { text: piece, token }))
    }
}

impl<S: Tokens> Iterator for TextTokens<'_, S> {
    type Item = Result<TextPiece, TextError>;

    fn next(&mut self) -> Option<Self::Item> {
        let piece = self.advance().transpose();
        if matches!(piece, Some(Err(_))) {
            self.text = None;
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
/// string. To leave it out of the text that is shown, use [`StopStrings`] or [`with_text`].
///
/// ```no_run
/// use std::sync::Arc;
///
/// use mlx_models::CacheOptions;
/// use mlx_models::generate::{Batch, GenerateOptions};
/// use mlx_models::text::StopStringProcessor;
/// use mlx_models::tokenizer::Tokenizer;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut model = mlx_models::load("path/to/checkpoint")?;
/// let tokenizer = Arc::new(Tokenizer::from_folder("path/to/checkpoint")?);
/// let stop = StopStringProcessor::new(&tokenizer, ["The end"])?;
/// let options = GenerateOptions { processors: vec![Box::new(stop)], ..GenerateOptions::default() };
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
    text: TextStream<'static>,
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
        tokenizer: &Arc<Tokenizer>,
        stop_strings: impl IntoIterator<Item = T>,
    ) -> Result<Self, TokenizerError> {
        let text = TextStream::shared(Arc::clone(tokenizer));
        let start = State { text, stop: StopStrings::new(stop_strings)? };
        Ok(Self { ids: Vec::new(), states: VecDeque::from([start.clone()]), start })
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
