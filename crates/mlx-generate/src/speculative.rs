//! Speculative decoding: draft several tokens, check them in one call.
//!
//! A call of a large model on five tokens takes little longer than a call on one token, since both read all weights. So
//! something cheap drafts the next tokens ([`Draft`]), the model reads them in one call, and those that it would
//! have chosen itself are kept. The answer is that of plain decoding: the same tokens for greedy decoding, and the same
//! distribution where tokens are drawn.

use std::collections::VecDeque;
use std::ops::ControlFlow;

use mlx_causal_lm::{CausalLm, Logits, ModelInfo};
use mlx_kvcache::CacheOptions;
use mlx_rs::error::Exception;
use mlx_rs::ops::indexing::{TryIndexOp, argmax_axis, take_along_axis};
use mlx_rs::ops::{concatenate, maximum, select};
use mlx_rs::random::{RandomState, categorical, uniform};
use mlx_rs::transforms::async_eval;
use mlx_rs::{Array, Dtype};

use crate::sequence::Sequence;
use crate::{
    FinishReason, GenerateError, GenerateOptions, Sampler, Sampling, Session, StepOptions, Token, Tokens,
    as_i32,
};

/// Something that drafts how a text goes on.
pub trait Draft: Send {
    /// Drafts at most `most` tokens that follow `text`, the whole sequence so far. There may be none.
    ///
    /// # Errors
    ///
    /// Whatever keeps it from drafting. The stream ends with the error.
    fn propose(&mut self, text: &[u32], most: usize) -> Result<Proposal, GenerateError>;

    /// Gets the facts about the model that it drafts for, before the first call of `propose`.
    fn begin(&mut self, _model: &ModelInfo) {}
}

/// What a [`Draft`] proposes.
#[derive(Debug, Clone, Default)]
pub struct Proposal {
    /// The tokens. If the model does not have one of them, that token and those after it are left out.
    pub tokens: Vec<u32>,
    /// The distribution that each token was drawn from, `[n, V]` in float32, where V is the size of the draft's
    /// vocabulary; `None` where no token was drawn.
    pub probabilities: Option<Array>,
}

/// Drafts what followed the last time that the same tokens occurred. It costs nothing, and is often
/// right where an answer repeats its prompt: summaries, edits of code, extraction.
///
/// # Reference
///
/// Saxena, *Prompt Lookup Decoding* (<https://github.com/apoorvumang/prompt-lookup-decoding>).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromptLookup {
    /// How many of the last tokens are looked for first. If they did not occur before, fewer are looked for.
    pub longest: usize,
    /// The smallest number of last tokens that are looked for.
    pub shortest: usize,
}

impl Default for PromptLookup {
    /// Three tokens, then two.
    fn default() -> Self {
        Self { longest: 3, shortest: 2 }
    }
}

impl Draft for PromptLookup {
    fn propose(&mut self, text: &[u32], most: usize) -> Result<Proposal, GenerateError> {
        let longest = self.longest.min(text.len().saturating_sub(1));
        for length in (self.shortest.max(1)..=longest).rev() {
            let last = &text[text.len() - length..];
            // The latest such place: the newest text resembles the next one most.
            let place = text[..text.len() - 1].windows(length).rposition(|window| window == last);
            if let Some(place) = place {
                let tokens = text[place + length..].iter().copied().take(most).collect();
                return Ok(Proposal { tokens, probabilities: None });
            }
        }
        Ok(Proposal::default())
    }
}

/// A small model that drafts for a large one with the same tokens.
///
/// An id must mean the same token in both. Their vocabularies may have different sizes, since embedding tables often have
/// unused rows at the end: it never proposes ids that the large model does not have, nor those of
/// [`never_proposing`](Self::never_proposing). If the text has a token that the draft does not have, it proposes nothing.
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
    /// Which tokens it may propose, bool `[1, V]`; `None` for all.
    possible: Option<Array>,
}

impl<'a> DraftModel<'a> {
    /// A draft by this model. Tokens are drawn with the sampling options of the large model and other random numbers.
    ///
    /// # Errors
    ///
    /// Those of [`Sampler::new`] and of [`CausalLm::new_cache`].
    pub fn new(model: &'a mut dyn CausalLm, options: &GenerateOptions) -> Result<Self, GenerateError> {
        let session = Session::new(model.new_cache(&CacheOptions::default())?);
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

    /// The same draft with a session of this model: one with a limit on its cache, for example, or one from
    /// [`into_session`](Self::into_session), which has read an earlier part of the text.
    #[must_use]
    pub fn with_session(self, session: Session) -> Self {
        Self { session, ..self }
    }

    /// The same draft, which never proposes these tokens: those that the large model's tokenizer does not have.
    #[must_use]
    pub fn never_proposing(self, ids: Vec<u32>) -> Self {
        Self { never: ids, ..self }
    }

    /// Its session, to be used for the next answer.
    pub fn into_session(self) -> Session {
        self.session
    }
}

impl Draft for DraftModel<'_> {
    fn propose(&mut self, text: &[u32], most: usize) -> Result<Proposal, GenerateError> {
        let context = usize::try_from(self.model.info().context_length).unwrap_or(usize::MAX);
        let most = most.min((context + 1).saturating_sub(text.len()));
        let vocab_size = self.model.info().vocab_size;
        let is_known = |id: &u32| i64::from(*id) < i64::from(vocab_size);
        if most == 0 || !text.iter().all(is_known) {
            return Ok(Proposal::default());
        }
        self.session.make_room_for_drafts(most)?;
        let (_, rest) = self.session.turn_to(self.model, text)?;
        let mut logits = self.session.read(self.model, &row(rest), Logits::Last)?;
        let (mut tokens, mut probabilities) = (Vec::with_capacity(most), Vec::new());
        loop {
            logits = logits.squeeze_axes(&[1])?; // [1, V]
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
            if tokens.len() == most {
                break;
            }
            let input = token.reshape(&[1, 1])?;
            logits = self.session.step(self.model, &input, StepOptions::default())?;
        }
        let probabilities = match &probabilities[..] {
            [] => None,
            rows => Some(concatenate(rows, 0)?),
        };
        async_eval([self.random.as_array()].into_iter().chain(self.sampler.state()))?;
        Ok(Proposal { tokens, probabilities })
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

/// How [`generate_speculative`] drafts.
pub struct Speculation<'a> {
    /// What drafts the tokens.
    pub draft: &'a mut dyn Draft,
    /// How many tokens are drafted at a time, at most.
    pub most: usize,
}

/// [`generate`](crate::generate) with speculative decoding: reads `prompt` into `session` and returns the stream of tokens
/// that continue it. Tokens that were drafted are [marked](Token::drafted).
///
/// The tokens are those of plain decoding, for every model, past windows and over LongRoPE's border. (They may differ where
/// the device's kernels add in another order for several positions than for one.) Where the cache has windows or a limit, it
/// gets room for drafted tokens that are taken back, beside the [`rewind`](mlx_kvcache::CacheOptions::rewind) of its options.
///
/// ```no_run
/// # use mlx_causal_lm::CausalLm;
/// # use mlx_generate::GenerateError;
/// use mlx_generate::{DraftModel, GenerateOptions, Session, Speculation, generate_speculative};
///
/// # fn f(model: &mut dyn CausalLm, small: &mut dyn CausalLm, session: &mut Session) -> Result<(), GenerateError> {
/// # let (prompt, stop_tokens) = ([3, 1, 4], [2]);
/// let options = GenerateOptions::new(&stop_tokens);
/// let mut draft = DraftModel::new(small, &options)?;
/// let speculation = Speculation { draft: &mut draft, most: 4 };
/// for token in generate_speculative(model, session, &prompt, options, speculation)? {
///     println!("{}", token?.id);
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// Those of [`generate`](crate::generate), and [`GenerateError::UnknownTokens`] where the session's cache came with tokens
/// whose ids are not known.
pub fn generate_speculative<'a>(
    model: &'a mut dyn CausalLm,
    session: &'a mut Session,
    prompt: &[u32],
    options: GenerateOptions,
    speculation: Speculation<'a>,
) -> Result<SpeculativeStream<'a>, GenerateError> {
    let go_on = |_, _| ControlFlow::Continue(());
    generate_speculative_with_progress(model, session, prompt, options, speculation, go_on)
}

/// [`generate_speculative`] with a callback that gets the number of tokens of the prompt that were read and their total, and
/// may stop the reading, as in [`generate_with_progress`](crate::generate_with_progress).
///
/// # Errors
///
/// Those of [`generate_speculative`], and [`GenerateError::Cancelled`] where the callback asked to stop.
pub fn generate_speculative_with_progress<'a>(
    model: &'a mut dyn CausalLm,
    session: &'a mut Session,
    prompt: &[u32],
    options: GenerateOptions,
    Speculation { draft, most }: Speculation<'a>,
    mut progress: impl FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<SpeculativeStream<'a>, GenerateError> {
    draft.begin(model.info());
    session.all_ids()?;
    session.make_room_for_drafts(most)?;
    let random = RandomState::with_seed(options.sampling.seed)?;
    let (sequence, total) = Sequence::begin(model, session, prompt, options, &mut progress)?;
    let mut stream = SpeculativeStream {
        handed_out: sequence.ids().len(),
        model,
        session,
        draft,
        sequence,
        random,
        most,
        ready: VecDeque::new(),
        error: None,
        has_failed: false,
    };
    let tail = stream.sequence.take_tail();
    // The first token comes with the rest of the prompt, and is not drafted.
    if tail.len() > 1
        && let Err(e) = stream.check(&Proposal::default(), &tail, Logits::Last)
    {
        (stream.has_failed, stream.error) = (true, Some(e));
    }
    if progress(total, total).is_break() {
        return Err(GenerateError::Cancelled);
    }
    Ok(stream)
}

/// The tokens that continue a prompt, checked several at a time.
///
/// When the stream ends or is dropped, the session has the prompt and the tokens that were handed out: all of them, or all
/// but the last.
pub struct SpeculativeStream<'a> {
    model: &'a mut dyn CausalLm,
    session: &'a mut Session,
    draft: &'a mut dyn Draft,
    /// The session has read all of its tokens but the last.
    sequence: Sequence,
    random: RandomState,
    most: usize,
    /// How many tokens of the sequence the caller has, the prompt included.
    handed_out: usize,
    /// The tokens after those.
    ready: VecDeque<Token>,
    /// Why there are no tokens after the ready ones.
    error: Option<GenerateError>,
    has_failed: bool,
}

impl SpeculativeStream<'_> {
    /// Drafts, checks, and makes at least one token ready.
    fn round(&mut self) -> Result<(), GenerateError> {
        let proposal = self.propose()?;
        let call = [self.newest(), &proposal.tokens].concat();
        self.check(&proposal, &call, Logits::All)
    }

    /// The last token of the sequence.
    fn newest(&self) -> &[u32] {
        let ids = self.sequence.ids();
        &ids[ids.len().saturating_sub(1)..]
    }

    /// Reads these tokens, which end with the drafted ones, and makes the drafted tokens that are right and the one behind
    /// them ready.
    fn check(&mut self, proposal: &Proposal, tokens: &[u32], wanted: Logits) -> Result<(), GenerateError> {
        let before = [self.newest(), &proposal.tokens].concat();
        let chunk = self.sequence.options.chunk();
        let logits = self.session.read_in_chunks(self.model, &row(tokens), wanted, chunk)?;
        let logits = logits.squeeze_axes(&[0])?; // [n + 1, V]
        let logprobs = self.sequence.logprobs_of_drafted(&proposal.tokens, &logits)?;
        let chosen = if self.sequence.chooser.is_greedy() {
            likeliest(&logprobs, &proposal.tokens)?
        } else {
            let probabilities = self.sequence.chooser.probabilities(&logprobs)?;
            drawn(&probabilities, proposal, &mut self.random)?
        };
        let tokens = self.sequence.chooser.tokens(&chosen, &logprobs, &logits)?;
        for (index, token) in tokens.into_iter().enumerate() {
            let token = token?;
            self.sequence.chooser.remember(&before[index..=index])?;
            let finish = self.sequence.take(token.id)?;
            let drafted = proposal.tokens.get(index) == Some(&token.id);
            self.ready.push_back(Token { drafted, ..token });
            if finish.is_some() {
                break;
            }
        }
        async_eval([self.random.as_array()].into_iter().chain(self.sequence.chooser.state()))?;
        self.forget(self.sequence.ids().len() - 1)
    }

    /// The draft's tokens, without those that the model does not have or that there is no room for.
    fn propose(&mut self) -> Result<Proposal, GenerateError> {
        let length = self.sequence.ids().len();
        // The model adds one token of its own.
        let mut most = self.most.min(self.sequence.left().saturating_sub(1));
        // A draft must not bring the tokens before it over a border (LongRoPE) that they would not have reached alone.
        while most > 0 && !self.model.rotates_alike(as_i32(length), as_i32(length + most)) {
            most -= 1;
        }
        let mut proposal = match most {
            0 => Proposal::default(),
            _ => self.draft.propose(self.sequence.ids(), most)?,
        };
        let vocab_size = self.model.info().vocab_size;
        let known = proposal.tokens.iter().take_while(|&&id| i64::from(id) < i64::from(vocab_size)).count();
        proposal.tokens.truncate(most.min(known));
        proposal.probabilities = proposal.probabilities.map(|q| with_columns(&q, vocab_size)).transpose()?;
        if let Some(q) = &proposal.probabilities {
            let sum = q.sum(None)?.try_item_exact::<f32>().map_err(|e| Exception::custom(e.to_string()))?;
            if !sum.is_finite() {
                return Err(GenerateError::DraftNotANumber);
            }
        }
        Ok(proposal)
    }

    /// Takes back what the session has beyond `length` tokens.
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
        self.sequence.finish().filter(|_| self.ready.is_empty())
    }
}

impl Iterator for SpeculativeStream<'_> {
    type Item = Result<Token, GenerateError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.finish_reason().is_none() && self.sequence.is_cancelled() {
            self.ready.clear();
            self.error = None;
        }
        if self.ready.is_empty()
            && self.sequence.finish().is_none()
            && !self.has_failed
            && let Err(e) = self.round()
        {
            (self.has_failed, self.error) = (true, Some(e));
        }
        let Some(token) = self.ready.pop_front() else { return self.error.take().map(Err) };
        self.handed_out += 1;
        Some(Ok(token))
    }
}

/// Takes tokens back that were not handed out, as if the session had never read them.
impl Drop for SpeculativeStream<'_> {
    fn drop(&mut self) {
        // Where the session cannot take them back it reads the sequence again, and its next call reports the error too.
        let _ = self.forget(self.handed_out);
    }
}

/// The most probable tokens, up to and with the first one that was not drafted, from log-probabilities `[m, V]`. There is
/// a row for each drafted token and one for the token behind them, or fewer where no token is taken behind one of them.
fn likeliest(logprobs: &Array, drafted: &[u32]) -> Result<Vec<u32>, GenerateError> {
    let best = argmax_axis(logprobs, -1, false)?;
    let best = best.try_as_slice::<u32>().map_err(|e| Exception::custom(e.to_string()))?;
    let right = best.iter().zip(drafted).take_while(|(best, drafted)| best == drafted).count();
    Ok(best[..=right.min(best.len() - 1)].to_vec())
}

/// Draws tokens that are distributed as `probabilities`, `[m, V]`, and keeps as many drafted tokens as that allows. The
/// rows are as in [`likeliest`].
///
/// A token `x` that was drawn from `q` is kept with probability `min(1, p(x) / q(x))`. The first one that is not kept is
/// replaced by a token drawn from `max(p - q, 0)`, which is then the last token. If all are kept, one more token is
/// drawn from `p` if there is a row for it. (Leviathan et al., section 2.3.)
fn drawn(
    probabilities: &Array,
    proposal: &Proposal,
    random: &mut RandomState,
) -> Result<Vec<u32>, GenerateError> {
    let count = proposal.tokens.len();
    let kept = if count == 0 {
        0
    } else {
        let checked = (count as i32).min(probabilities.dim(0));
        let ids = Array::from_slice(&proposal.tokens[..checked as usize], &[checked, 1]);
        let p = take_along_axis(probabilities.try_index(..checked)?, &ids, -1)?;
        let q = match &proposal.probabilities {
            Some(q) => take_along_axis(q.try_index(..checked)?, &ids, -1)?,
            None => Array::ones::<f32>(&[checked, 1])?,
        };
        let key = random.next_key()?;
        let u = uniform::<_, f32>(0.0, 1.0, &[count as i32, 1], &key)?.try_index(..checked)?;
        // u < p / q, without the division.
        let is_kept = u.multiply(q)?.lt(p)?;
        let is_kept = is_kept.try_as_slice::<bool>().map_err(|e| Exception::custom(e.to_string()))?;
        is_kept.iter().take_while(|&&kept| kept).count()
    };
    let mut tokens = proposal.tokens[..kept].to_vec();
    let at = kept as i32;
    if at == probabilities.dim(0) {
        return Ok(tokens);
    }
    let p = probabilities.try_index(at..at + 1)?; // [1, V]
    let from = match proposal.tokens.get(kept) {
        None => p,
        Some(&rejected) => {
            let q = match &proposal.probabilities {
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

/// Probabilities `[n, V]` with another number of columns: further columns are cut off, and missing ones are 0.
fn with_columns(probabilities: &Array, columns: i32) -> Result<Array, Exception> {
    let (rows, found) = (probabilities.dim(0), probabilities.dim(1));
    if found >= columns {
        return probabilities.try_index((.., ..columns));
    }
    let none = mlx_rs::ops::zeros_dtype(&[rows, columns - found], probabilities.dtype())?;
    concatenate(&[probabilities.clone(), none], 1)
}

/// Draws a token, uint32 `[1]`, from probabilities `[1, V]`, which may have any sum.
fn draw(probabilities: &Array, random: &mut RandomState) -> Result<Array, Exception> {
    let key = random.next_key()?;
    categorical(probabilities.log()?, -1, None, &key)
}

/// The distribution of the token that replaces one drawn from `q` that was not kept: `max(p - q, 0)`, not normalized.
fn residual(p: &Array, q: &Array) -> Result<Array, Exception> {
    let rest = maximum(p.subtract(q)?, Array::from_f32(0.0))?;
    // Where p and q are equal up to rounding nothing may be left, and p itself is right.
    let nothing = rest.sum_axis(-1, true)?.le(Array::from_f32(0.0))?;
    select(&nothing, p, &rest)
}

/// Probabilities `[1, V]` that are 1 for this token and 0 for all others.
fn one_hot(token: u32, vocab_size: i32) -> Result<Array, Exception> {
    let ids = mlx_rs::ops::arange::<_, u32>(None, vocab_size, None)?;
    ids.eq(Array::from_slice(&[token], &[1, 1]))?.as_dtype(Dtype::Float32)
}

fn row(tokens: &[u32]) -> Array {
    Array::from_slice(tokens, &[1, as_i32(tokens.len())])
}

#[cfg(test)]
mod tests {
    use approx::assert_abs_diff_eq;

    use super::*;

    const P: [f32; 5] = [0.4, 0.1, 0.0, 0.3, 0.2];
    const Q: [f32; 5] = [0.1, 0.5, 0.2, 0.2, 0.0];

    fn rows(rows: &[[f32; 5]]) -> Array {
        Array::from_slice(&rows.concat(), &[rows.len() as i32, 5])
    }

    fn numbers(array: &Array) -> Vec<f64> {
        array.as_slice::<f32>().iter().map(|&number| f64::from(number)).collect()
    }

    /// Kept tokens and their replacements together have the distribution `p`, whatever `q` is: by summation.
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
                assert_abs_diff_eq!(probability, f64::from(p[x]), epsilon = 1e-6);
            }
        }
    }

    /// The same through the code that draws, with fixed seeds: 3000 times two drafted tokens.
    #[test]
    fn drawn_tokens_follow_p_at_each_position() {
        let p = rows(&[P, Q, P]);
        let q = rows(&[Q, P]);
        let mut random = RandomState::with_seed(4).unwrap();
        let mut counts = [[0_usize; 5]; 3];
        for _ in 0..3000 {
            let first = draw(&rows(&[Q]), &mut random).unwrap().item_exact::<u32>();
            let second = draw(&rows(&[P]), &mut random).unwrap().item_exact::<u32>();
            let proposal = Proposal { tokens: vec![first, second], probabilities: Some(q.clone()) };
            let tokens = drawn(&p, &proposal, &mut random).unwrap();
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
                assert_abs_diff_eq!(count as f64, total * p, epsilon = allowed);
            }
        }
    }

    #[test]
    fn certain_tokens_are_kept_where_the_model_is_certain_too() {
        let sure = |token: usize| std::array::from_fn(|x| if x == token { 1.0_f32 } else { 0.0 });
        let p = rows(&[sure(3), sure(1), sure(4)]);
        let mut random = RandomState::with_seed(1).unwrap();
        let mut of = |tokens: &[u32]| {
            let proposal = Proposal { tokens: tokens.to_vec(), probabilities: None };
            drawn(&p.try_index(..tokens.len() as i32 + 1).unwrap(), &proposal, &mut random).unwrap()
        };
        assert_eq!(of(&[3, 1]), [3, 1, 4]);
        assert_eq!(of(&[3, 2]), [3, 1]);
        assert_eq!(of(&[0, 1]), [3]);
        assert_eq!(of(&[]), [3]);
    }

    #[test]
    fn greedy_tokens_are_kept_up_to_the_first_wrong_one() {
        let logprobs = rows(&[P, Q, P]);
        let of = |drafted: &[u32]| {
            likeliest(&logprobs.try_index(..drafted.len() as i32 + 1).unwrap(), drafted).unwrap()
        };
        assert_eq!(of(&[0, 1]), [0, 1, 0]);
        assert_eq!(of(&[0, 2]), [0, 1]);
        assert_eq!(of(&[4, 1]), [0]);
        assert_eq!(of(&[]), [0]);
    }
}
