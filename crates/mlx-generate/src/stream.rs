//! The decode loop.

use mlx_causal_lm::{CausalLm, Logits};
use mlx_rs::Array;

use crate::chooser::{Chooser, Step};
use crate::{GenerateError, GenerateOptions, Session};

/// Allocations of the device are given back after this many tokens, as in mlx-lm.
const TOKENS_BETWEEN_CLEANUPS: usize = 256;

/// A token that was generated.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// The natural logarithm of the probability that the model gave it, after penalties and before the filters
    /// and the temperature.
    pub logprob: f32,
    /// The most probable tokens in its place with the logarithms of their probabilities, the largest first: as
    /// many as [`GenerateOptions::top_logprobs`] asks for.
    pub alternatives: Vec<(u32, f32)>,
    /// Whether a [`Draft`](crate::Draft) had guessed it.
    pub guessed: bool,
}

/// A stream of tokens, however they are decoded.
pub trait Tokens: Iterator<Item = Result<Token, GenerateError>> {
    /// Why the stream ended: known as soon as its last token is out, `None` while it goes on.
    fn finish_reason(&self) -> Option<FinishReason>;
}

/// Why a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FinishReason {
    /// The model chose one of the stop tokens, which was the last token of the stream.
    StopToken,
    /// As many tokens as were asked for.
    MaxTokens,
    /// The model's context is full.
    ContextFull,
    /// Somebody used the [`Cancel`](crate::Cancel) handle.
    Cancelled,
}

/// The tokens that continue a prompt, decoded as they are asked for.
///
/// The stream is one step ahead of its reader: asking for a token first starts the next step.
/// When it ends or is dropped, the session has the prompt and the tokens that were read to decode
/// further ones: all, or all but the last. [`Session::offset`] says which.
#[derive(Debug)]
pub struct TokenStream<'a> {
    model: &'a mut dyn CausalLm,
    session: &'a mut Session,
    chooser: Chooser,
    options: GenerateOptions,
    decoded: usize,
    ahead: Option<Step>,
    finish: Option<FinishReason>,
}

impl<'a> TokenStream<'a> {
    pub(crate) fn start(
        model: &'a mut dyn CausalLm,
        session: &'a mut Session,
        last_of_prompt: u32,
        chooser: Chooser,
        options: GenerateOptions,
    ) -> Result<Self, GenerateError> {
        let mut stream = Self { model, session, chooser, options, decoded: 0, ahead: None, finish: None };
        if stream.options.max_tokens == 0 {
            stream.finish = Some(FinishReason::MaxTokens);
            return Ok(stream);
        }
        let first = stream.step(&Array::from_slice(&[last_of_prompt], &[1]))?;
        // So that the end of the prompt's progress is the end of its work.
        first.id.eval()?;
        stream.ahead = Some(first);
        Ok(stream)
    }

    /// Why the stream ended; `None` while it goes on.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.finish
    }

    /// Starts the device on the token after `token`, uint32 `[1]`.
    fn step(&mut self, token: &Array) -> Result<Step, GenerateError> {
        let (token, piece) = (token.reshape(&[1, 1])?, self.options.prefill_chunk);
        self.session.prepare(self.model, 1)?;
        while self.session.catch_up(self.model, piece)? > 0 {}
        // Not `read`, which looks at the id and so would wait for it. The model has every id that it chooses.
        let logits = self.session.append(self.model, &token, Logits::Last)?; // [1, 1, V]
        let logits = logits.squeeze_axes(&[1])?; // [1, V]
        Ok(self.chooser.step(&token.reshape(&[1])?, logits)?)
    }

    fn advance(&mut self) -> Result<Option<Token>, GenerateError> {
        if self.options.cancel.is_cancelled() && self.finish.is_none() {
            self.finish = Some(FinishReason::Cancelled);
            self.ahead = None;
        }
        let Some(current) = self.ahead.take() else { return Ok(None) };
        self.decoded += 1;
        let last = if self.decoded >= self.options.max_tokens {
            Some(FinishReason::MaxTokens)
        } else if self.session.offset() as usize >= self.options.longest(self.model) {
            Some(FinishReason::ContextFull)
        } else {
            self.ahead = Some(self.step(&current.id)?);
            None
        };
        if self.decoded.is_multiple_of(TOKENS_BETWEEN_CLEANUPS) {
            mlx_rs::memory::clear_cache()?;
        }
        let token = current.read()?;
        self.finish = last;
        if self.options.stop_tokens.contains(&token.id) {
            self.finish = Some(FinishReason::StopToken);
            self.ahead = None;
        }
        Ok(Some(token))
    }
}

impl<T: Tokens + ?Sized> Tokens for Box<T> {
    fn finish_reason(&self) -> Option<FinishReason> {
        (**self).finish_reason()
    }
}

impl Tokens for TokenStream<'_> {
    fn finish_reason(&self) -> Option<FinishReason> {
        self.finish
    }
}

impl Iterator for TokenStream<'_> {
    type Item = Result<Token, GenerateError>;

    fn next(&mut self) -> Option<Self::Item> {
        let token = self.advance().transpose();
        if matches!(token, Some(Err(_))) {
            self.ahead = None;
        }
        token
    }
}
