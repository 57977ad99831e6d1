//! One sequence that is being generated, apart from its cache.

use std::ops::ControlFlow;

use mlx_causal_lm::CausalLm;
use mlx_rs::Array;
use mlx_rs::ops::concatenate;

use crate::chooser::{Chooser, Step};
use crate::session::tail_of_prompt;
use crate::{FinishReason, GenerateError, GenerateOptions, Session, check_ids};

/// What a stream, a row of a batch and a speculative stream have in common: the tokens so far, how the next one is chosen,
/// and why there is no next one.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) options: GenerateOptions,
    pub(crate) chooser: Chooser,
    /// The tokens so far whose ids are known: the session's, the prompt's and those that were taken.
    ids: Vec<u32>,
    /// How many tokens were taken.
    decoded: usize,
    /// How many tokens the model's context has room for behind the prompt.
    room: usize,
    finish: Option<FinishReason>,
    /// The tokens at the end of the prompt that are not read yet. The logits behind them choose the first token.
    tail: Vec<u32>,
}

impl Sequence {
    /// A sequence that continues a session with this prompt. Checks the prompt and the options, and reads nothing.
    pub(crate) fn new(
        model: &dyn CausalLm,
        session: &Session,
        prompt: &[u32],
        mut options: GenerateOptions,
    ) -> Result<Self, GenerateError> {
        let chooser = Chooser::new(&mut options, model.info().vocab_size)?;
        // Once, and not for each token: MLX is asked for its device.
        options.prefill_chunk = Some(options.chunk());
        let ids = [session.ids()?, prompt.to_vec()].concat();
        let room = check_prompt(model, session, prompt, &options)?;
        let chooser = chooser.after(&ids)?;
        let mut sequence = Self { options, chooser, ids, decoded: 0, room, finish: None, tail: Vec::new() };
        sequence.finish = sequence.end(0, None);
        Ok(sequence)
    }

    /// A [`new`](Self::new) sequence, whose prompt is read into the session but for its [tail](Self::take_tail). Also
    /// returns how many tokens there were to read in all, the tail included.
    pub(crate) fn begin(
        model: &mut dyn CausalLm,
        session: &mut Session,
        prompt: &[u32],
        options: GenerateOptions,
        progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<(Self, usize), GenerateError> {
        let mut sequence = Self::new(model, session, prompt, options)?;
        let chunk = sequence.options.chunk();
        // Without a first token there is no step that reads more than the last token.
        let tail = if sequence.finish.is_some() { 1 } else { tail_of_prompt(prompt.len(), chunk) };
        let (rest, tail) = prompt.split_at(prompt.len() - tail);
        let cancel = &sequence.options.cancel;
        let total = session.prefill(model, rest, tail.len(), chunk, &mut |read, total| match cancel
            .is_cancelled()
        {
            true => ControlFlow::Break(()),
            false => progress(read, total),
        })?;
        sequence.tail = tail.to_vec();
        Ok((sequence, total))
    }

    /// The tokens at the end of the prompt that are not read yet; none from the second call on.
    pub(crate) fn take_tail(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.tail)
    }

    /// The tokens so far whose ids are known.
    pub(crate) fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// How many tokens were taken.
    pub(crate) fn decoded(&self) -> usize {
        self.decoded
    }

    /// Why there is no next token; none while the sequence goes on.
    pub(crate) fn finish(&self) -> Option<FinishReason> {
        self.finish
    }

    /// How many more tokens may be taken at most.
    pub(crate) fn left(&self) -> usize {
        (self.options.max_tokens - self.decoded).min((self.room + 1).saturating_sub(self.decoded))
    }

    /// Asked before a step: whether the sequence was cancelled, which then is why it ends.
    pub(crate) fn is_cancelled(&mut self) -> bool {
        if self.options.cancel.is_cancelled() {
            self.finish = Some(FinishReason::Cancelled);
        }
        self.finish == Some(FinishReason::Cancelled)
    }

    /// Whether the sequence ends with the next token, whatever its id.
    pub(crate) fn ends_with_next(&self) -> bool {
        self.end(self.decoded + 1, None).is_some()
    }

    /// Whether a token must be [taken](Self::take) before the one after it can be [chosen](Self::choose): something needs
    /// the ids of the tokens so far. Otherwise the device can go on before anybody has seen the id.
    pub(crate) fn needs_ids(&self) -> bool {
        self.chooser.needs_ids()
    }

    /// Chooses the token after `token`, an id of shape `[1]` that may not be computed yet, from its logits `[1, V]`, and
    /// starts the device on it.
    pub(crate) fn choose(&mut self, token: &Array, logits: Array) -> Result<Step, GenerateError> {
        self.chooser.step(token, logits)
    }

    /// Takes the next token, and says why the sequence ends with it.
    pub(crate) fn take(&mut self, id: u32) -> Result<Option<FinishReason>, GenerateError> {
        self.ids.push(id);
        self.decoded += 1;
        self.chooser.accept(id)?;
        self.finish = self.end(self.decoded, Some(id));
        Ok(self.finish)
    }

    /// The log-probabilities of what follows the last token and each token of `drafted`, if all of them are right, from
    /// their logits `[n + 1, V]`. Afterwards the sequence is as before.
    ///
    /// There is a row for the last token, and one for each drafted token up to the first that is not allowed, that ends
    /// the sequence, or at which a processor fails. No token is taken behind that one: either it is wrong, or it is the
    /// last token, or the processor fails again when it is taken or the next token is chosen.
    pub(crate) fn logprobs_of_drafted(
        &mut self,
        drafted: &[u32],
        logits: &Array,
    ) -> Result<Array, GenerateError> {
        let Some(&last) = self.ids.last() else { return Err(GenerateError::EmptyPrompt) };
        if self.chooser.looks_at_logits_alone() {
            return Chooser::plain_logprobs(logits);
        }
        let mut rows = vec![self.chooser.logprobs_of_row(last, logits, 0)?];
        let mut accepted = 0;
        for (row, &token) in (1..).zip(drafted) {
            if !self.chooser.allows(token) || self.chooser.accept(token).is_err() {
                break;
            }
            accepted += 1;
            if self.end(self.decoded + accepted, Some(token)).is_some() {
                break;
            }
            let Ok(logprobs) = self.chooser.logprobs_of_row(token, logits, row) else { break };
            rows.push(logprobs);
        }
        self.chooser.rollback(accepted, rows.len())?;
        Ok(concatenate(&rows, 0)?)
    }

    /// Why a sequence ends that has `decoded` tokens of its own, the newest of which is `newest`; none where it goes on.
    /// While the id of the newest is not known, only what holds for every id counts.
    ///
    /// This is the one place that decides it. A sequence can also be [cancelled](Self::is_cancelled) between two tokens.
    fn end(&self, decoded: usize, newest: Option<u32>) -> Option<FinishReason> {
        if let Some(id) = newest {
            if self.options.stop_tokens.contains(&id) {
                return Some(FinishReason::StopToken);
            }
            if let Some(processor) = self.chooser.complete_processor() {
                return Some(FinishReason::Complete { processor });
            }
        }
        if decoded >= self.options.max_tokens {
            Some(FinishReason::MaxTokens)
        } else if decoded > self.room {
            Some(FinishReason::ContextFull)
        } else {
            None
        }
    }
}

/// Checks that the model can read the prompt behind what the session has, and returns how many tokens its context then
/// has room for.
fn check_prompt(
    model: &dyn CausalLm,
    session: &Session,
    prompt: &[u32],
    options: &GenerateOptions,
) -> Result<usize, GenerateError> {
    if prompt.is_empty() {
        return Err(GenerateError::EmptyPrompt);
    }
    let (cached, context) = (session.offset() as usize, options.longest(model));
    let room = context.checked_sub(cached + prompt.len());
    let room = room.ok_or(GenerateError::PromptTooLong { prompt: prompt.len(), cached, context })?;
    check_ids(model, prompt)?;
    Ok(room)
}
