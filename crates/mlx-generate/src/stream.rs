//! The decode loop.

use mlx_causal_lm::{CausalLm, Logits};
use mlx_rs::error::{ConversionError, Exception};
use mlx_rs::ops::indexing::take_along_axis;
use mlx_rs::transforms::async_eval;
use mlx_rs::{Array, Dtype};

use crate::{GenerateError, GenerateOptions, Sampler, Session};

/// Allocations of the device are given back after this many tokens, as in mlx-lm.
const TOKENS_BETWEEN_CLEANUPS: usize = 256;

/// A token that was generated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// The natural logarithm of the probability that the model gave it.
    pub logprob: f32,
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
    sampler: Sampler,
    options: GenerateOptions,
    decoded: usize,
    ahead: Option<Step>,
    finish: Option<FinishReason>,
}

/// A token that the device may still be working on.
#[derive(Debug)]
pub(crate) struct Step {
    id: Array,
    logprob: Array,
}

impl Step {
    /// Starts the device on the choice of a token by these logits, `[1, V]`.
    pub(crate) fn choose(logits: &Array, sampler: &mut Sampler) -> Result<Self, GenerateError> {
        let logprobs = logits.subtract(logits.logsumexp_axis(-1, true)?)?;
        let id = sampler.sample(&logprobs)?; // [1]
        let logprob = take_along_axis(&logprobs, id.reshape(&[1, 1])?, -1)?.as_dtype(Dtype::Float32)?;
        async_eval([&id, &logprob])?;
        Ok(Self { id, logprob })
    }

    /// Waits for the token.
    pub(crate) fn read(&self) -> Result<Token, GenerateError> {
        let read = |e: ConversionError| Exception::custom(e.to_string());
        let id = self.id.try_item_exact::<u32>().map_err(read)?;
        let logprob = self.logprob.try_item_exact::<f32>().map_err(read)?;
        Ok(Token { id, logprob })
    }
}

impl<'a> TokenStream<'a> {
    pub(crate) fn start(
        model: &'a mut dyn CausalLm,
        session: &'a mut Session,
        last_of_prompt: u32,
        sampler: Sampler,
        options: GenerateOptions,
    ) -> Result<Self, GenerateError> {
        let mut stream = Self { model, session, sampler, options, decoded: 0, ahead: None, finish: None };
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
        let logits = self.session.read_in_pieces(self.model, &token, Logits::Last, piece)?; // [1, 1, V]
        Step::choose(&logits.squeeze_axes(&[1])?, &mut self.sampler)
    }

    fn advance(&mut self) -> Result<Option<Token>, GenerateError> {
        let Some(current) = self.ahead.take() else { return Ok(None) };
        self.decoded += 1;
        let last = if self.decoded >= self.options.max_tokens {
            Some(FinishReason::MaxTokens)
        } else if self.session.offset() >= self.model.info().context_length {
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

/// Waits until it is computed, also where nobody will ask for it. A program that ends while the device's
/// threads still work on it takes away what they use, and crashes.
impl Drop for Step {
    fn drop(&mut self) {
        // An error here is one of a token that nobody reads.
        let _ = self.id.eval().and_then(|()| self.logprob.eval());
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
