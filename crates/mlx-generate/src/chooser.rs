//! One step of the choice of tokens for one sequence: from logits to a token with its log-probability.

use mlx_rs::error::{ConversionError, Exception};
use mlx_rs::ops::concatenate;
use mlx_rs::ops::indexing::{TryIndexOp, take_along_axis};
use mlx_rs::transforms::async_eval;
use mlx_rs::{Array, Dtype};

use crate::sampling::{Alternatives, forbid};
use crate::{GenerateError, GenerateOptions, History, Penalizer, Sampler, Token};

/// Penalties, sampler and what they know of a sequence.
#[derive(Debug, Clone)]
pub(crate) struct Chooser {
    penalizer: Option<Penalizer>,
    sampler: Sampler,
    /// Empty where nothing needs it.
    history: History,
    /// Those that are impossible in the first `min_tokens` steps, uint32 `[n]`.
    stop_tokens: Option<Array>,
    min_tokens: usize,
    top_logprobs: usize,
    steps: usize,
}

/// A token that the device may still be working on.
#[derive(Debug)]
pub(crate) struct Step {
    /// Its id, uint32 `[1]`.
    pub(crate) id: Array,
    logprob: Array,
    alternatives: Option<Alternatives>,
    /// What the model answered, to say what was wrong with it.
    logits: Array,
}

impl Chooser {
    pub(crate) fn new(options: &GenerateOptions, vocab_size: i32) -> Result<Self, GenerateError> {
        // Also where they change nothing, so that what is wrong with them is an error.
        let penalizer = Penalizer::new(options.penalties.clone(), vocab_size)?;
        let known = |id: &u32| i64::from(*id) < i64::from(vocab_size);
        let stop_tokens: Vec<u32> = options.stop_tokens.iter().copied().filter(known).collect();
        Ok(Self {
            penalizer: (!options.penalties.is_empty()).then_some(penalizer),
            sampler: Sampler::new(options.sampling.clone())?,
            history: History::default(),
            stop_tokens: (options.min_tokens > 0 && !stop_tokens.is_empty())
                .then(|| Array::from_slice(&stop_tokens, &[1, stop_tokens.len() as i32])),
            min_tokens: options.min_tokens,
            top_logprobs: options.top_logprobs,
            steps: 0,
        })
    }

    /// The chooser for a sequence that has these tokens, which are asked for where something needs them.
    pub(crate) fn after(
        mut self,
        tokens: impl FnOnce() -> Result<Vec<u32>, GenerateError>,
    ) -> Result<Self, GenerateError> {
        if self.penalizer.is_some() {
            self.history = History::new(&tokens()?);
        }
        Ok(self)
    }

    /// Chooses the token after `token`, an id of shape `[1]`, from its logits `[1, V]`, and starts the device on
    /// it.
    pub(crate) fn step(&mut self, token: &Array, logits: Array) -> Result<Step, Exception> {
        let logprobs = self.logprobs(token, logits.clone())?;
        let id = self.sampler.sample(&logprobs)?; // [1]
        let logprob = take_along_axis(&logprobs, id.reshape(&[1, 1])?, -1)?.as_dtype(Dtype::Float32)?;
        let alternatives = Alternatives::new(&logprobs, self.top_logprobs)?;
        let step = Step { id, logprob, alternatives, logits };
        // With the state of the random numbers, so that the next step may be another thread's.
        async_eval(step.arrays().chain(self.sampler.state()))?;
        Ok(step)
    }

    /// The log-probabilities of what follows `token`, an id of shape `[1]`: of its logits `[1, V]`, with
    /// everything that changes them.
    fn logprobs(&mut self, token: &Array, mut logits: Array) -> Result<Array, Exception> {
        if let Some(penalizer) = &self.penalizer {
            self.history.push(token)?;
            if penalizer.waits() {
                // For `token`, while the device computes what comes after it.
                async_eval([&logits])?;
            }
            logits = penalizer.apply(&mut self.history, &logits)?;
        }
        if self.steps < self.min_tokens
            && let Some(stop_tokens) = &self.stop_tokens
        {
            logits = forbid(&logits, stop_tokens)?;
        }
        self.steps += 1;
        logits.subtract(logits.logsumexp_axis(-1, true)?)
    }

    /// The log-probabilities `[n, V]` of what follows each of these tokens, one after the other, if each turns out
    /// to be right. Nothing is remembered; see [`remember`](Self::remember).
    pub(crate) fn logprobs_if(&self, tokens: &[u32], logits: Array) -> Result<Array, Exception> {
        if self.penalizer.is_none() && (self.steps >= self.min_tokens || self.stop_tokens.is_none()) {
            return logits.subtract(logits.logsumexp_axis(-1, true)?);
        }
        let mut if_right = self.clone();
        let rows = (0..).zip(tokens).map(|(index, &token)| {
            let logits = logits.try_index(index..index + 1)?;
            if_right.logprobs(&Array::from_slice(&[token], &[1]), logits)
        });
        concatenate(&rows.collect::<Result<Vec<_>, _>>()?, 0)
    }

    /// These tokens turned out to be right, and something was chosen after each.
    pub(crate) fn remember(&mut self, tokens: &[u32]) -> Result<(), Exception> {
        self.steps += tokens.len();
        if self.penalizer.is_some() {
            tokens.iter().try_for_each(|&token| self.history.push(&Array::from_slice(&[token], &[1])))?;
        }
        Ok(())
    }

    /// The state of the random numbers, which MLX may not have computed yet.
    pub(crate) fn state(&self) -> Option<&Array> {
        self.sampler.state()
    }

    /// Whether the likeliest token is taken.
    pub(crate) fn is_greedy(&self) -> bool {
        self.sampler.is_greedy()
    }

    /// What tokens are drawn by, float32 `[n, V]`: each row as in a step of its own.
    pub(crate) fn probabilities(&mut self, logprobs: &Array) -> Result<Array, Exception> {
        let rows =
            (0..logprobs.dim(0)).map(|row| self.sampler.probabilities(&logprobs.try_index(row..row + 1)?));
        concatenate(&rows.collect::<Result<Vec<_>, _>>()?, 0)
    }

    /// Tokens that were chosen by the first rows of these log-probabilities `[n, V]`, which are those of these logits.
    pub(crate) fn tokens(
        &self,
        ids: &[u32],
        logprobs: &Array,
        logits: &Array,
    ) -> Result<Vec<Token>, GenerateError> {
        let count = ids.len() as i32;
        let logprobs = logprobs.try_index(..count)?;
        let chosen = take_along_axis(&logprobs, Array::from_slice(ids, &[count, 1]), -1)?;
        let chosen = chosen.as_dtype(Dtype::Float32)?;
        let chosen = chosen.try_as_slice::<f32>().map_err(|e| Exception::custom(e.to_string()))?;
        let tokens = (0..).zip(ids.iter().zip(chosen)).map(|(row, (&id, &logprob))| {
            if !logprob.is_finite() {
                check_possible(logprob, &logits.try_index(row..row + 1)?)?;
            }
            let alternatives = Alternatives::new(&logprobs.try_index(row..row + 1)?, self.top_logprobs)?;
            let alternatives = alternatives.as_ref().map_or(Ok(Vec::new()), Alternatives::read)?;
            Ok(Token { id, logprob, alternatives, guessed: false })
        });
        tokens.collect()
    }
}

impl Step {
    /// Waits for the device.
    pub(crate) fn read(&self) -> Result<Token, GenerateError> {
        let read = |e: ConversionError| Exception::custom(e.to_string());
        let logprob = self.logprob.try_item_exact::<f32>().map_err(read)?;
        check_possible(logprob, &self.logits)?;
        Ok(Token {
            id: self.id.try_item_exact::<u32>().map_err(read)?,
            logprob,
            alternatives: self.alternatives.as_ref().map_or(Ok(Vec::new()), Alternatives::read)?,
            guessed: false,
        })
    }

    fn arrays(&self) -> impl Iterator<Item = &Array> {
        [&self.id, &self.logprob].into_iter().chain(self.alternatives.iter().flat_map(Alternatives::arrays))
    }
}

/// Whether the token that was chosen has a probability: not where the logits `[1, V]` were no numbers, and not where
/// every token was made impossible.
fn check_possible(logprob: f32, logits: &Array) -> Result<(), GenerateError> {
    if logprob.is_finite() {
        return Ok(());
    }
    // NaN and infinity alone are not below infinity.
    let is_number = logits.lt(Array::from_f32(f32::INFINITY))?.all(None)?;
    let is_number = is_number.try_item_exact::<bool>().map_err(|e| Exception::custom(e.to_string()))?;
    Err(if is_number { GenerateError::NoTokenPossible } else { GenerateError::NotANumber })
}

/// Waits until it is computed, also where nobody will ask for it. A program that ends while the device's
/// threads still work on it takes away what they use, and crashes.
impl Drop for Step {
    fn drop(&mut self) {
        for array in self.arrays() {
            // An error here is one of a token that nobody reads.
            let _ = array.eval();
        }
    }
}
