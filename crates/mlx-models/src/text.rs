//! Tokens with their text: the token loop and the tokenizer together.

use mlx_generate::{FinishReason, GenerateError, Token, Tokens};
use mlx_tokenizer::{StopStrings, TextStream, Tokenizer, TokenizerError};

/// Why a text does not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// The token loop.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// The tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

/// Why a text ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TextFinish {
    /// The stream of tokens did.
    Tokens(FinishReason),
    /// One of the stop strings came; the text ends before it.
    StopString(String),
}

/// A piece of text, and the token that it came with.
#[derive(Debug, Clone, PartialEq)]
pub struct TextPiece {
    /// Whole characters, perhaps none: those that the token has completed.
    pub text: String,
    /// None for what was held back until the end.
    pub token: Option<Token>,
}

/// A stream of tokens with their text; see [`with_text`].
#[derive(Debug)]
pub struct TextTokens<'t, S> {
    tokens: S,
    tokenizer: &'t Tokenizer,
    /// None once the end was written.
    text: Option<(TextStream<'t>, StopStrings)>,
    finish: Option<TextFinish>,
}

/// Gives a stream of tokens its text, which ends before the first of the stop strings, wherever tokens begin and
/// end. The text of a stop token is left out.
///
/// Special tokens such as `<|im_end|>` have no text. A stop string may spell them all the same, alone or with text around
/// them: see [`StopStrings`].
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
/// [`TokenizerError::EmptyStopString`] for a stop string that every text begins with.
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
            // Its text is left out; a stop string may spell it.
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
