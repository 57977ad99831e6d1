//! Speculative decoding: guess several tokens, check them in one call.
//!
//! A call of a large model on five tokens takes little longer than one on a single token, since both read all weights. So
//! something cheap guesses what follows ([`Draft`]), the model reads the guesses in one call, and those that it would have chosen
//! itself are kept. The answer is the one of plain decoding: the same tokens where the likeliest one is taken, the
//! same distribution where tokens are drawn.

use std::collections::VecDeque;
use std::ops::ControlFlow;

use mlx_causal_lm::{CausalLm, Logits, ModelInfo};
use mlx_rs::error::Exception;
use mlx_rs::ops::indexing::{TryIndexOp, argmax_axis, take_along_axis};
use mlx_rs::ops::{concatenate, maximum, select};
use mlx_rs::random::{RandomState, categorical, uniform};
use mlx_rs::transforms::async_eval;
use mlx_rs::{Array, Dtype};

use crate::chooser::Chooser;
use crate::{
    FinishReason, GenerateError, GenerateOptions, Sampler, Sampling, Session, Token, Tokens, as_i32, prefill,
};

/// Something that guesses how a text goes on.
pub trait Draft: Send {
    /// At most `most` tokens that may follow `text`, the whole sequence so far; none is an answer too.
    ///
    /// # Errors
    ///
    /// What the guessing needs.
    fn guess(&mut self, text: &[u32], most: usize) -> Result<Guess, GenerateError>;

    /// Hears of the model that it guesses for, before the first guess.
    fn begin(&mut self, _model: &ModelInfo) {}
}

/// What a [`Draft`] guesses.
#[derive(Debug, Clone, Default)]
pub struct Guess {
    /// The tokens. Those from the first on that the model does not have are left out.
    pub tokens: Vec<u32>,
    /// The distribution that each was drawn from, `[n, V]` in float32, with as many columns as the draft has tokens;
    /// none where each was certain.
    pub probabilities: Option<Array>,
}

/// Guesses that the text goes on as it did after an earlier place with the same last tokens. It costs nothing,
/// and is often right where an answer repeats its prompt: summaries, edits of code, extraction.
///
/// # Reference
///
/// Saxena, *Prompt Lookup Decoding* (<https://github.com/apoorvumang/prompt-lookup-decoding>).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromptLookup {
    /// As many last tokens are looked for first,
    pub longest: usize,
    /// and then fewer, down to this many.
    pub shortest: usize,
}

impl Default for PromptLookup {
    /// Three tokens, then two.
    fn default() -> Self {
        Self { longest: 3, shortest: 2 }
    }
}

impl Draft for PromptLookup {
    fn guess(&mut self, text: &[u32], most: usize) -> Result<Guess, GenerateError> {
        let longest = self.longest.min(text.len().saturating_sub(1));
        for length in (self.shortest.max(1)..=longest).rev() {
            let last = &text[text.len() - length..];
            // The latest such place: what was written last is most like what comes.
            let place = text[..text.len() - 1].windows(length).rposition(|window| window == last);
            if let Some(place) = place {
                let tokens = text[place + length..].iter().copied().take(most).collect();
                return Ok(Guess { tokens, probabilities: None });
            }
        }
        Ok(Guess::default())
    }
}

/// A small model that guesses for a large one with the same tokens.
///
/// What counts is that an id means the same token in both. Their tables may have different lengths, which often differ in
/// rows behind the last token: ids that the large model does not have are never proposed, nor are those of
/// [`never_proposing`](Self::never_proposing). Behind a token that its own table does not have it proposes nothing.
///
/// # Reference
///
/// Leviathan et al., *Fast Inference from Transformers via Speculative Decoding*
/// (<https://arxiv.org/abs/2211.17192>); Chen et al. (<https://arxiv.org/abs/2302.01318>).
#[derive(Debug)]
pub struct DraftModel<'a> {
    model: &'a mut dyn CausalLm,
    session: Session,
    sampler: Sampler,
    random: RandomState,
    never: Vec<u32>,
    /// Which tokens may be proposed, bool `[1, V]`; none where all may.
    possible: Option<Array>,
}

impl<'a> DraftModel<'a> {
    /// A draft by this model, with an empty session. Its cache needs a
    /// [`rewind`](mlx_kvcache::CacheOptions::rewind) of as many tokens as it shall guess, or the text
    /// is read again after a wrong guess wherever a layer has a window. Tokens are chosen as `options` say for the
    /// large model, with other random numbers.
    ///
    /// # Errors
    ///
    /// Those of [`Sampler::new`].
    pub fn new(
        model: &'a mut dyn CausalLm,
        session: Session,
        options: &GenerateOptions,
    ) -> Result<Self, GenerateError> {
        let seed = options.sampling.seed;
        let sampling = Sampling { seed: seed.wrapping_add(1), ..options.sampling.clone() };
        let random = RandomState::with_seed(seed.wrapping_add(2))?;
        Ok(Self {
            model,
            session,
            sampler: Sampler::new(sampling)?,
            random,
            never: Vec::new(),
            possible: None,
        })
    }

    /// The same draft without these tokens: those that mean nothing to the large model's tokenizer.
    #[must_use]
    pub fn never_proposing(self, ids: Vec<u32>) -> Self {
        Self { never: ids, ..self }
    }

    /// Its session, for the draft of the next answer.
    pub fn into_session(self) -> Session {
        self.session
    }
}

impl Draft for DraftModel<'_> {
    fn guess(&mut self, text: &[u32], most: usize) -> Result<Guess, GenerateError> {
        let context = usize::try_from(self.model.info().context_length).unwrap_or(usize::MAX);
        let most = most.min((context + 1).saturating_sub(text.len()));
        let vocab_size = self.model.info().vocab_size;
        let is_known = |id: &u32| i64::from(*id) < i64::from(vocab_size);
        if most == 0 || !text.iter().all(is_known) {
            return Ok(Guess::default());
        }
        let (_, rest) = self.session.turn_to(self.model, text)?;
        let mut input = row(rest);
        let (mut tokens, mut probabilities) = (Vec::with_capacity(most), Vec::new());
        for _ in 0..most {
            let mut logits = self.session.read(self.model, &input, Logits::Last)?.squeeze_axes(&[1])?;
            if let Some(possible) = &self.possible {
                let never = Array::from_f32(f32::NEG_INFINITY).as_dtype(logits.dtype())?;
                logits = select(possible, &logits, never)?;
            }
            let logprobs = logits.subtract(logits.logsumexp_axis(-1, true)?)?;
            let token = if self.sampler.is_greedy() {
                self.sampler.sample(&logprobs)?
            } else {
                let row = self.sampler.probabilities(&logprobs)?;
                let token = draw(&row, &mut self.random)?;
                probabilities.push(row);
                token
            }; // [1]
            tokens.push(token.try_item_exact::<u32>().map_err(|e| Exception::custom(e.to_string()))?);
            input = token.reshape(&[1, 1])?;
        }
        let probabilities = match &probabilities[..] {
            [] => None,
            rows => Some(concatenate(rows, 0)?),
        };
        async_eval([self.random.as_array()].into_iter().chain(self.sampler.state()))?;
        Ok(Guess { tokens, probabilities })
    }

    fn begin(&mut self, model: &ModelInfo) {
        let ours = self.model.info().vocab_size.max(0);
        let never: std::collections::HashSet<u32> = self.never.iter().copied().collect();
        let possible: Vec<bool> = (0..ours as u32)
            .map(|id| i64::from(id) < i64::from(model.vocab_size) && !never.contains(&id))
            .collect();
        self.possible =
            possible.contains(&false).then(|| Array::from_slice(&possible, &[1, possible.len() as i32]));
    }
}

/// Who guesses, and how far.
pub struct Speculation<'a> {
    /// Who guesses.
    pub draft: &'a mut dyn Draft,
    /// At most so many tokens at a time.
    pub most: usize,
}

/// [`generate`](crate::generate) with guesses: reads `prompt` into `session` and answers with the stream of tokens that continue it.
/// `progress` hears how many tokens of the prompt were read, of how many, and may stop it. Tokens that were guessed are
/// [marked](Token::guessed).
///
/// The tokens are those of plain decoding (where the device's kernels add in the same order for several positions
/// as for one), for every model, past windows and over LongRoPE's border. The session's cache needs a
/// [`rewind`](mlx_kvcache::CacheOptions::rewind) of `most` tokens; with less, a wrong guess makes the
/// session read the text again wherever a layer has a window, which is right and slow.
///
/// # Errors
///
/// Those of [`generate`](crate::generate); [`GenerateError::UnknownTokens`] where the session's cache came with tokens that it does not know.
pub fn generate_speculative<'a>(
    model: &'a mut dyn CausalLm,
    session: &'a mut Session,
    prompt: &[u32],
    options: GenerateOptions,
    Speculation { draft, most }: Speculation<'a>,
    mut progress: impl FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<SpeculativeStream<'a>, GenerateError> {
    draft.begin(model.info());
    let text = [session.all_ids()?, prompt.to_vec()].concat();
    let chooser = Chooser::new(&options, model.info().vocab_size)?;
    let chooser = chooser.after(|| Ok(text[..text.len().saturating_sub(1)].to_vec()))?;
    let random = RandomState::with_seed(options.sampling.seed)?;
    let (_, total) = prefill(model, session, prompt, &options, &mut progress)?;
    if progress(total, total).is_break() {
        return Err(GenerateError::Cancelled);
    }
    let finish = (options.max_tokens == 0).then_some(FinishReason::MaxTokens);
    let emitted = text.len();
    Ok(SpeculativeStream {
        model,
        session,
        draft,
        chooser,
        random,
        most,
        options,
        text,
        emitted,
        decoded: 0,
        ready: VecDeque::new(),
        finish,
        has_failed: false,
    })
}

/// The tokens that continue a prompt, checked several at a time.
///
/// When it ends or is dropped, the session has the prompt and the tokens that were handed out: all, or all but the
/// last.
pub struct SpeculativeStream<'a> {
    model: &'a mut dyn CausalLm,
    session: &'a mut Session,
    draft: &'a mut dyn Draft,
    chooser: Chooser,
    random: RandomState,
    options: GenerateOptions,
    most: usize,
    /// The whole sequence. The session has all of it but the last token.
    text: Vec<u32>,
    /// How much of it was handed out, the prompt included.
    emitted: usize,
    decoded: usize,
    ready: VecDeque<Token>,
    /// Why there is nothing after what is ready.
    finish: Option<FinishReason>,
    has_failed: bool,
}

impl SpeculativeStream<'_> {
    /// Guesses, checks, and makes at least one token ready.
    fn round(&mut self) -> Result<(), GenerateError> {
        let context = self.options.longest(self.model);
        let length = self.text.len();
        if length > context {
            self.finish = Some(FinishReason::ContextFull);
            return Ok(());
        }
        let left = self.options.max_tokens - self.decoded;
        let mut most = self.most.min(left - 1).min(context - length);
        // A guess must not bring the tokens before it over a border that they would not have come to.
        while most > 0 && !self.model.rotates_alike(as_i32(length), as_i32(length + most)) {
            most -= 1;
        }
        let mut guess = match most {
            0 => Guess::default(),
            _ => self.draft.guess(&self.text, most)?,
        };
        let vocab_size = self.model.info().vocab_size;
        let known = guess.tokens.iter().take_while(|&&id| i64::from(id) < i64::from(vocab_size)).count();
        guess.tokens.truncate(most.min(known));
        guess.probabilities = guess.probabilities.map(|q| with_columns(&q, vocab_size)).transpose()?;
        if let Some(q) = &guess.probabilities
            && !q
                .sum(None)?
                .try_item_exact::<f32>()
                .map_err(|e| Exception::custom(e.to_string()))?
                .is_finite()
        {
            return Err(GenerateError::DraftNotANumber);
        }

        let mut call: Vec<u32> = self.text.last().copied().into_iter().collect();
        call.extend(&guess.tokens);
        let piece = self.options.prefill_chunk;
        let logits = self.session.read_in_pieces(self.model, &row(&call), Logits::All, piece)?;
        let logits = logits.squeeze_axes(&[0])?; // [n + 1, V]
        let logprobs = self.chooser.logprobs_if(&call, logits.clone())?;
        let mut chosen = if self.chooser.is_greedy() {
            likeliest(&logprobs, &guess.tokens)?
        } else {
            let probabilities = self.chooser.probabilities(&logprobs)?;
            drawn(&probabilities, &guess, &mut self.random)?
        };
        let stop = chosen.iter().position(|id| self.options.stop_tokens.contains(id));
        if let Some(stop) = stop {
            chosen.truncate(stop + 1);
            self.finish = Some(FinishReason::StopToken);
        }
        self.decoded += chosen.len();
        if self.finish.is_none() && self.decoded >= self.options.max_tokens {
            self.finish = Some(FinishReason::MaxTokens);
        }
        if self.finish.is_none() && length + chosen.len() > context {
            self.finish = Some(FinishReason::ContextFull);
        }

        self.chooser.remember(&call[..chosen.len()])?;
        for (index, mut token) in self.chooser.tokens(&chosen, &logprobs, &logits)?.into_iter().enumerate() {
            token.guessed = guess.tokens.get(index) == Some(&token.id);
            self.ready.push_back(token);
        }
        self.text.extend(chosen);
        async_eval([self.random.as_array()].into_iter().chain(self.chooser.state()))?;
        self.forget(self.text.len() - 1)
    }

    /// Takes back what the session has beyond so many tokens.
    fn forget(&mut self, length: usize) -> Result<(), GenerateError> {
        let beyond = self.session.offset() - as_i32(length);
        if beyond > 0 {
            self.session.trim(beyond)?;
        }
        Ok(())
    }
}

impl Tokens for SpeculativeStream<'_> {
    fn finish_reason(&self) -> Option<FinishReason> {
        self.finish.filter(|_| self.ready.is_empty())
    }
}

impl Iterator for SpeculativeStream<'_> {
    type Item = Result<Token, GenerateError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.options.cancel.is_cancelled() && self.finish_reason().is_none() {
            self.ready.clear();
            self.finish = Some(FinishReason::Cancelled);
        }
        if self.ready.is_empty()
            && self.finish.is_none()
            && !self.has_failed
            && let Err(e) = self.round()
        {
            self.has_failed = true;
            return Some(Err(e));
        }
        let token = self.ready.pop_front()?;
        self.emitted += 1;
        Some(Ok(token))
    }
}

/// What nobody asked for is as if it had never been read.
impl Drop for SpeculativeStream<'_> {
    fn drop(&mut self) {
        // Where the session cannot take it back it reads again, and an error is one of its next call as well.
        let _ = self.forget(self.emitted);
    }
}

/// The likeliest token at each position as long as the guesses before it are right, `[n + 1, V]`.
fn likeliest(logprobs: &Array, guesses: &[u32]) -> Result<Vec<u32>, GenerateError> {
    let best = argmax_axis(logprobs, -1, false)?;
    let best = best.try_as_slice::<u32>().map_err(|e| Exception::custom(e.to_string()))?;
    let right = best.iter().zip(guesses).take_while(|(best, guess)| best == guess).count();
    Ok(best[..=right.min(best.len() - 1)].to_vec())
}

/// Tokens that are distributed as `probabilities`, `[n + 1, V]`, of which as many as may be are the guesses.
///
/// A guess `x` that was drawn from `q` is kept with probability `min(1, p(x) / q(x))`; the first that is not is
/// replaced by one drawn from `max(p - q, 0)`, and then there are no more. Behind the last guess one is drawn from
/// `p`. (Leviathan et al., section 2.3.)
fn drawn(probabilities: &Array, guess: &Guess, random: &mut RandomState) -> Result<Vec<u32>, GenerateError> {
    let count = guess.tokens.len();
    let kept = if count == 0 {
        0
    } else {
        let ids = Array::from_slice(&guess.tokens, &[count as i32, 1]);
        let p = take_along_axis(probabilities.try_index(..count as i32)?, &ids, -1)?;
        let q = match &guess.probabilities {
            Some(q) => take_along_axis(q.try_index(..count as i32)?, &ids, -1)?,
            None => Array::ones::<f32>(&[count as i32, 1])?,
        };
        let key = random.next_key()?;
        let u = uniform::<_, f32>(0.0, 1.0, &[count as i32, 1], &key)?;
        // u < p / q, without the division.
        let is_kept = u.multiply(q)?.lt(p)?;
        let is_kept = is_kept.try_as_slice::<bool>().map_err(|e| Exception::custom(e.to_string()))?;
        is_kept.iter().take_while(|&&kept| kept).count()
    };
    let mut tokens = guess.tokens[..kept].to_vec();
    let at = kept as i32;
    let p = probabilities.try_index(at..at + 1)?; // [1, V]
    let from = match guess.tokens.get(kept) {
        None => p,
        Some(&rejected) => {
            let q = match &guess.probabilities {
                Some(q) => q.try_index(at..at + 1)?,
                None => one_hot(rejected, p.dim(-1))?,
            };
            residual(&p, &q)?
        }
    };
    let token = draw(&from, random)?;
    tokens.push(token.try_item_exact::<u32>().map_err(|e| Exception::custom(e.to_string()))?);
    Ok(tokens)
}

/// Probabilities `[n, V]` with as many columns as another model has tokens: more are cut off, and what is missing is
/// never drawn.
fn with_columns(probabilities: &Array, columns: i32) -> Result<Array, Exception> {
    let (rows, found) = (probabilities.dim(0), probabilities.dim(1));
    if found >= columns {
        return probabilities.try_index((.., ..columns));
    }
    let none = mlx_rs::ops::zeros_dtype(&[rows, columns - found], probabilities.dtype())?;
    concatenate(&[probabilities.clone(), none], 1)
}

/// A token by these probabilities, `[1, V]`, which may have any sum: uint32 `[1]`.
fn draw(probabilities: &Array, random: &mut RandomState) -> Result<Array, Exception> {
    let key = random.next_key()?;
    categorical(probabilities.log()?, -1, None, &key)
}

/// What is left of `p` where a token drawn from `q` was not kept, without a common factor.
fn residual(p: &Array, q: &Array) -> Result<Array, Exception> {
    let rest = maximum(p.subtract(q)?, Array::from_f32(0.0))?;
    // Rounding may leave nothing where the two are the same; then any token of p is right.
    let nothing = rest.sum_axis(-1, true)?.le(Array::from_f32(0.0))?;
    select(&nothing, p, &rest)
}

/// Certainty: 1 at this token, 0 elsewhere, `[1, V]`.
fn one_hot(token: u32, vocab_size: i32) -> Result<Array, Exception> {
    let ids = mlx_rs::ops::arange::<_, u32>(None, vocab_size, None)?;
    ids.eq(Array::from_slice(&[token], &[1, 1]))?.as_dtype(Dtype::Float32)
}

fn row(tokens: &[u32]) -> Array {
    Array::from_slice(tokens, &[1, as_i32(tokens.len())])
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: [f32; 5] = [0.4, 0.1, 0.0, 0.3, 0.2];
    const Q: [f32; 5] = [0.1, 0.5, 0.2, 0.2, 0.0];

    fn rows(rows: &[[f32; 5]]) -> Array {
        Array::from_slice(&rows.concat(), &[rows.len() as i32, 5])
    }

    fn numbers(array: &Array) -> Vec<f64> {
        array.as_slice::<f32>().iter().map(|&number| f64::from(number)).collect()
    }

    /// Kept guesses and their replacements together have the distribution `p`, whatever `q` is: by summation.
    #[test]
    fn what_is_kept_and_what_replaces_it_are_distributed_as_p() {
        let certain = [0.0, 1.0, 0.0, 0.0, 0.0];
        for (p, q) in [(P, Q), (Q, P), (P, certain), (certain, P), (P, P)] {
            let rest = numbers(&residual(&rows(&[p]), &rows(&[q])).unwrap());
            let total: f64 = rest.iter().sum();
            let kept = |x: usize| f64::from(q[x]) * (f64::from(p[x]) / f64::from(q[x])).min(1.0);
            let kept = |x: usize| if q[x] > 0.0 { kept(x) } else { 0.0 };
            let replaced = 1.0 - (0..5).map(kept).sum::<f64>();
            for x in 0..5 {
                let probability = kept(x) + replaced * rest[x] / total;
                assert!((probability - f64::from(p[x])).abs() < 1e-6, "{p:?} {q:?} at {x}: {probability}");
            }
        }
    }

    /// The same through the code that draws, with fixed seeds: 3000 times two guesses.
    #[test]
    fn drawn_tokens_follow_p_at_each_position() {
        let p = rows(&[P, Q, P]);
        let q = rows(&[Q, P]);
        let mut random = RandomState::with_seed(4).unwrap();
        let mut counts = [[0_usize; 5]; 3];
        for _ in 0..3000 {
            let first = draw(&rows(&[Q]), &mut random).unwrap().item_exact::<u32>();
            let second = draw(&rows(&[P]), &mut random).unwrap().item_exact::<u32>();
            let guess = Guess { tokens: vec![first, second], probabilities: Some(q.clone()) };
            let tokens = drawn(&p, &guess, &mut random).unwrap();
            for (position, &token) in tokens.iter().enumerate() {
                counts[position][token as usize] += 1;
            }
        }
        for (count, p) in counts.iter().zip([P, Q, P]) {
            let total: usize = count.iter().sum();
            assert!(total > 400, "{counts:?}");
            for (&count, p) in count.iter().zip(p) {
                let (total, p) = (total as f64, f64::from(p));
                // Four standard deviations.
                let allowed = 4.0 * (total * p * (1.0 - p)).sqrt() + 1e-9;
                assert!((count as f64 - total * p).abs() <= allowed, "{counts:?}");
            }
        }
    }

    #[test]
    fn certain_guesses_are_kept_where_the_model_is_certain_too() {
        let sure = |token: usize| std::array::from_fn(|x| if x == token { 1.0_f32 } else { 0.0 });
        let p = rows(&[sure(3), sure(1), sure(4)]);
        let mut random = RandomState::with_seed(1).unwrap();
        let mut of = |tokens: &[u32]| {
            let guess = Guess { tokens: tokens.to_vec(), probabilities: None };
            drawn(&p.try_index(..tokens.len() as i32 + 1).unwrap(), &guess, &mut random).unwrap()
        };
        assert_eq!(of(&[3, 1]), [3, 1, 4]);
        assert_eq!(of(&[3, 2]), [3, 1]);
        assert_eq!(of(&[0, 1]), [3]);
        assert_eq!(of(&[]), [3]);
    }

    #[test]
    fn greedy_guesses_are_kept_up_to_the_first_wrong_one() {
        let logprobs = rows(&[P, Q, P]);
        let of = |guesses: &[u32]| {
            likeliest(&logprobs.try_index(..guesses.len() as i32 + 1).unwrap(), guesses).unwrap()
        };
        assert_eq!(of(&[0, 1]), [0, 1, 0]);
        assert_eq!(of(&[0, 2]), [0, 1]);
        assert_eq!(of(&[4, 1]), [0]);
        assert_eq!(of(&[]), [0]);
    }
}
