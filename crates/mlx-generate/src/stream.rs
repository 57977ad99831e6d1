//! The decode loop.

use mlx_causal_lm::CausalLm;
use mlx_rs::Array;
use mlx_rs::transforms::async_eval;

use crate::chooser::Step;
use crate::sequence::Sequence;
use crate::{FinishReason, GenerateError, Session, StepOptions, Token, as_i32};

/// Memory that the device no longer needs is given back after this many tokens, as in mlx-lm.
const TOKENS_BETWEEN_CLEANUPS: usize = 256;

/// A stream of tokens, whether plain or speculative.
pub trait Tokens: Iterator<Item = Result<Token, GenerateError>> {
    /// Why the stream ended, as soon as its last token was handed out; `None` before.
    fn finish_reason(&self) -> Option<FinishReason>;
}

/// The tokens that continue a prompt, decoded as they are asked for.
///
/// The stream is one step ahead of its reader: asking for a token first starts the next step, so that the device computes
/// while the caller looks at the token. Where something needs the id of each token (a
/// [`LogitsProcessor`](crate::LogitsProcessor), DRY), the device still computes the model's next logits while the stream
/// waits for the id.
///
/// When the stream ends or is dropped, the session has the prompt and the tokens that were handed out: all of them, or all
/// but the last. [`Session::offset`] tells which.
#[derive(Debug)]
pub struct TokenStream<'a> {
    model: &'a mut dyn CausalLm,
    session: &'a mut Session,
    sequence: Sequence,
    /// The next token, which the device is computing, or why there is none.
    ahead: Option<Result<Step, GenerateError>>,
}

impl<'a> TokenStream<'a> {
    pub(crate) fn start(
        model: &'a mut dyn CausalLm,
        session: &'a mut Session,
        sequence: Sequence,
    ) -> Result<Self, GenerateError> {
        let mut stream = Self { model, session, sequence, ahead: None };
        let tail = stream.sequence.take_tail();
        if let (None, Some(&last)) = (stream.sequence.finish(), tail.last()) {
            let logits = stream.logits_after(&Array::from_slice(&tail, &[as_i32(tail.len())]))?;
            let first = stream.choose_after(&Array::from_slice(&[last], &[1]), &logits)?;
            // So that the prompt's progress ends when its work does.
            first.id.eval()?;
            stream.ahead = Some(Ok(first));
        }
        Ok(stream)
    }

    /// Why the stream ended; `None` while it goes on.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.sequence.finish()
    }

    /// The logits `[1, V]` of the token after `tokens`, uint32 `[L]`. The device does not compute them yet: whatever chooses
    /// the token goes along.
    fn logits_after(&mut self, tokens: &Array) -> Result<Array, GenerateError> {
        let options = StepOptions { chunk: self.sequence.options.prefill_chunk, ..StepOptions::default() };
        let logits = self.session.next_logits(self.model, &tokens.reshape(&[1, -1])?, options)?; // [1, 1, V]
        Ok(logits.squeeze_axes(&[1])?)
    }

    /// Chooses the token after `token` from its logits `[1, V]`.
    fn choose_after(&mut self, token: &Array, logits: &Array) -> Result<Step, GenerateError> {
        let step = self.sequence.choose(token, logits.clone());
        if step.is_err() {
            // What the cache holds is computed with them, and another thread may use it. Their error is of no interest.
            let _ = logits.eval();
        }
        step
    }

    fn advance(&mut self) -> Result<Option<Token>, GenerateError> {
        if self.sequence.finish().is_none() && self.sequence.is_cancelled() {
            self.ahead = None;
        }
        let Some(current) = self.ahead.take().transpose()? else { return Ok(None) };
        let logits = match self.sequence.ends_with_next() {
            true => None,
            false => Some(self.logits_after(&current.id)?),
        };
        let token = match logits {
            Some(logits) if self.sequence.needs_ids() => self.take_then_choose(&current, logits),
            logits => self.choose_then_take(&current, logits),
        }?;
        if self.sequence.decoded().is_multiple_of(TOKENS_BETWEEN_CLEANUPS) {
            mlx_rs::memory::clear_cache()?;
        }
        Ok(Some(token))
    }

    /// Starts the device on the token after `current`, and reads `current` meanwhile.
    fn choose_then_take(&mut self, current: &Step, logits: Option<Array>) -> Result<Token, GenerateError> {
        self.ahead = logits.map(|logits| self.choose_after(&current.id, &logits));
        let token = current.read()?;
        if self.sequence.take(token.id)?.is_some() {
            self.ahead = None;
        }
        Ok(token)
    }

    /// Starts the device on the logits after `current`, reads `current` meanwhile, and chooses when its id is known.
    fn take_then_choose(&mut self, current: &Step, logits: Array) -> Result<Token, GenerateError> {
        async_eval([&logits])?;
        let token = current.read().and_then(|token| {
            if self.sequence.take(token.id)?.is_none() {
                self.ahead = Some(self.choose_after(&current.id, &logits));
            }
            Ok(token)
        });
        if self.ahead.is_none() {
            // Nobody needs them any more, but a program must not end while the device computes: see `Step`. Their error
            // is of no interest either.
            let _ = logits.eval();
        }
        token
    }
}

impl<T: Tokens + ?Sized> Tokens for Box<T> {
    fn finish_reason(&self) -> Option<FinishReason> {
        (**self).finish_reason()
    }
}

impl Tokens for TokenStream<'_> {
    fn finish_reason(&self) -> Option<FinishReason> {
        self.sequence.finish()
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
