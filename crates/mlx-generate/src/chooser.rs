//! The choice of the next token of one sequence: from logits to a token with its log-probability.

use mlx_rs::error::{ConversionError, Exception};
use mlx_rs::ops::concatenate;
use mlx_rs::ops::indexing::{TryIndexOp, take_along_axis};
use mlx_rs::transforms::async_eval;
use mlx_rs::{Array, Dtype};

use crate::sampling::{Alternatives, forbid};
use crate::{
    GenerateError, GenerateOptions, History, LogitsProcessor, Penalizer, ProcessorError, Sampler, Token,
    TokenSet,
};

/// Everything that decides about the next token of a sequence: penalties, the caller's processors, the least length and
/// the sampler, with what they know of the sequence.
#[derive(Debug)]
pub(crate) struct Chooser {
    penalizer: Option<Penalizer>,
    /// Empty where there are no penalties.
    history: History,
    processors: Vec<Box<dyn LogitsProcessor>>,
    /// What the processors allow for the newest token that was asked for.
    allowed: Vec<TokenSet>,
    sampler: Sampler,
    /// Those that are impossible in the first `min_tokens` steps, uint32 `[1, n]`.
    stop_tokens: Option<Array>,
    min_tokens: usize,
    top_logprobs: usize,
    steps: usize,
}

/// A token that the device may still be computing.
#[derive(Debug)]
pub(crate) struct Step {
    /// Its id, uint32 `[1]`.
    pub(crate) id: Array,
    logprob: Array,
    alternatives: Option<Alternatives>,
    /// The model's logits, which tell what is wrong where no token could be chosen.
    logits: Array,
}

impl Chooser {
    /// Takes the processors out of the options.
    pub(crate) fn new(options: &mut GenerateOptions, vocab_size: i32) -> Result<Self, GenerateError> {
        // Also where they change nothing, so that wrong values are an error.
        let penalizer = Penalizer::new(options.penalties.clone(), vocab_size)?;
        let known = |id: &u32| i64::from(*id) < i64::from(vocab_size);
        let stop_tokens: Vec<u32> = options.stop_tokens.iter().copied().filter(known).collect();
        Ok(Self {
            penalizer: (!options.penalties.is_empty()).then_some(penalizer),
            history: History::default(),
            processors: std::mem::take(&mut options.processors),
            allowed: Vec::new(),
            sampler: Sampler::new(options.sampling.clone())?,
            stop_tokens: (options.min_tokens > 0 && !stop_tokens.is_empty())
                .then(|| Array::from_slice(&stop_tokens, &[1, stop_tokens.len() as i32])),
            min_tokens: options.min_tokens,
            top_logprobs: options.top_logprobs,
            steps: 0,
        })
    }

    /// The chooser for a sequence that has these tokens, of which the model has yet to read the last.
    pub(crate) fn after(mut self, tokens: &[u32]) -> Result<Self, GenerateError> {
        if self.penalizer.is_some() {
            self.history = History::new(tokens.split_last().map_or(&[], |(_, rest)| rest));
        }
        self.processors.iter_mut().try_for_each(|processor| processor.begin(tokens)).map_err(failed)?;
        Ok(self)
    }

    /// Whether a token's id must be known, and [accepted](Self::accept), before the token after it can be chosen.
    pub(crate) fn needs_ids(&self) -> bool {
        !self.processors.is_empty() || self.penalizer.as_ref().is_some_and(Penalizer::waits)
    }

    /// Whether the next tokens are chosen by their logits alone, whatever the tokens before them.
    pub(crate) fn looks_at_logits_alone(&self) -> bool {
        let least_length_is_reached = self.steps >= self.min_tokens || self.stop_tokens.is_none();
        self.penalizer.is_none() && self.processors.is_empty() && least_length_is_reached
    }

    /// Chooses the token after `token`, an id of shape `[1]`, from its logits `[1, V]`, and starts the device on
    /// it.
    pub(crate) fn step(&mut self, token: &Array, logits: Array) -> Result<Step, GenerateError> {
        let logprobs = self.logprobs(token, logits.clone())?;
        let id = self.sampler.sample(&logprobs)?; // [1]
        let logprob = take_along_axis(&logprobs, id.reshape(&[1, 1])?, -1)?.as_dtype(Dtype::Float32)?;
        let alternatives = Alternatives::new(&logprobs, self.top_logprobs)?;
        let step = Step { id, logprob, alternatives, logits };
        // With the state of the random numbers, so that another thread can take the next step.
        async_eval(step.arrays().chain(self.sampler.state()))?;
        Ok(step)
    }

    /// The log-probabilities of what follows `token`, an id of shape `[1]`, from its logits `[1, V]`, after everything
    /// that changes them.
    fn logprobs(&mut self, token: &Array, mut logits: Array) -> Result<Array, GenerateError> {
        if let Some(penalizer) = &self.penalizer {
            self.history.push(token)?;
            logits = penalizer.apply(&mut self.history, &logits)?;
        }
        match self.processed(logits) {
            Ok(processed) => logits = processed,
            Err(e) => {
                if self.penalizer.is_some() {
                    self.history.rollback(1)?;
                }
                return Err(e);
            }
        }
        if self.steps < self.min_tokens
            && let Some(stop_tokens) = &self.stop_tokens
        {
            logits = forbid(&logits, stop_tokens)?;
        }
        self.steps += 1;
        Self::plain_logprobs(&logits)
    }

    /// The logits after the processors, which also say which tokens are allowed.
    fn processed(&mut self, mut logits: Array) -> Result<Array, GenerateError> {
        self.allowed.clear();
        for processor in &mut self.processors {
            let (shape, dtype) = (logits.shape().to_vec(), logits.dtype());
            logits = processor.process(&logits).map_err(failed)?;
            if (logits.shape(), logits.dtype()) != (&shape, dtype) {
                let found = format!("{:?} of {:?}", logits.dtype(), logits.shape());
                return Err(failed(format!("it returned {found} for logits {dtype:?} of {shape:?}").into()));
            }
            if let Some(allowed) = processor.allowed().map_err(failed)? {
                logits = allowed.keep(&logits)?;
                self.allowed.push(allowed);
            }
        }
        Ok(logits)
    }

    /// The log-probabilities of logits `[n, V]` that nothing changes.
    pub(crate) fn plain_logprobs(logits: &Array) -> Result<Array, GenerateError> {
        Ok(logits.subtract(logits.logsumexp_axis(-1, true)?)?)
    }

    /// The log-probabilities `[1, V]` of what follows `token`, from the row of the logits `[n, V]` that is the token's.
    /// The token counts as one after which a token was chosen; [`rollback`](Self::rollback) takes that back.
    pub(crate) fn logprobs_of_row(
        &mut self,
        token: u32,
        logits: &Array,
        row: i32,
    ) -> Result<Array, GenerateError> {
        self.logprobs(&Array::from_slice(&[token], &[1]), logits.try_index(row..row + 1)?)
    }

    /// Whether the processors allow this token as the next one.
    pub(crate) fn allows(&self, token: u32) -> bool {
        self.allowed.iter().all(|allowed| allowed.contains(token))
    }

    /// Tells the processors of a token that was taken. Where one of them fails, those before it take the token back.
    pub(crate) fn accept(&mut self, token: u32) -> Result<(), GenerateError> {
        for index in 0..self.processors.len() {
            if let Err(source) = self.processors[index].accept(token) {
                let before = &mut self.processors[..index];
                before.iter_mut().try_for_each(|processor| processor.rollback(1)).map_err(failed)?;
                return Err(failed(source));
            }
        }
        Ok(())
    }

    /// Takes back the newest tokens: as many as were `accepted`, and as many after which a token was `chosen`.
    pub(crate) fn rollback(&mut self, accepted: usize, chosen: usize) -> Result<(), GenerateError> {
        self.steps -= chosen;
        if self.penalizer.is_some() {
            self.history.rollback(chosen)?;
        }
        if accepted == 0 {
            return Ok(());
        }
        self.processors.iter_mut().try_for_each(|processor| processor.rollback(accepted)).map_err(failed)
    }

    /// The place of the first processor that says that the sequence is complete.
    pub(crate) fn complete_processor(&self) -> Option<usize> {
        self.processors.iter().position(|processor| processor.is_complete())
    }

    /// Remembers that a token was chosen after each of these.
    pub(crate) fn remember(&mut self, tokens: &[u32]) -> Result<(), GenerateError> {
        self.steps += tokens.len();
        if self.penalizer.is_some() {
            tokens.iter().try_for_each(|&token| self.history.push(&Array::from_slice(&[token], &[1])))?;
        }
        Ok(())
    }

    /// The state of the random numbers, which may not be computed yet.
    pub(crate) fn state(&self) -> Option<&Array> {
        self.sampler.state()
    }

    /// Whether the most probable token is taken.
    pub(crate) fn is_greedy(&self) -> bool {
        self.sampler.is_greedy()
    }

    /// The probabilities that tokens are drawn by, float32 `[n, V]`: each row as in a step of its own.
    pub(crate) fn probabilities(&mut self, logprobs: &Array) -> Result<Array, Exception> {
        let rows =
            (0..logprobs.dim(0)).map(|row| self.sampler.probabilities(&logprobs.try_index(row..row + 1)?));
        concatenate(&rows.collect::<Result<Vec<_>, _>>()?, 0)
    }

    /// The tokens with these ids, one for each of the first rows of the log-probabilities `[n, V]` that they were chosen by.
    /// `logits` `[n, V]` are the model's. A token that is not possible is an error of its own.
    pub(crate) fn tokens(
        &self,
        ids: &[u32],
        logprobs: &Array,
        logits: &Array,
    ) -> Result<Vec<Result<Token, GenerateError>>, GenerateError> {
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
            Ok(Token { id, logprob, alternatives, drafted: false })
        });
        Ok(tokens.collect())
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
            drafted: false,
        })
    }

    fn arrays(&self) -> impl Iterator<Item = &Array> {
        [&self.id, &self.logprob].into_iter().chain(self.alternatives.iter().flat_map(Alternatives::arrays))
    }
}

/// Checks that the token that was chosen has a probability. It has none where the logits `[1, V]` are not numbers, or
/// where every token was made impossible.
fn check_possible(logprob: f32, logits: &Array) -> Result<(), GenerateError> {
    if logprob.is_finite() {
        return Ok(());
    }
    // NaN and infinity alone are not below infinity.
    let is_number = logits.lt(Array::from_f32(f32::INFINITY))?.all(None)?;
    let is_number = is_number.try_item_exact::<bool>().map_err(|e| Exception::custom(e.to_string()))?;
    Err(if is_number { GenerateError::NoTokenPossible } else { GenerateError::NotANumber })
}

/// Waits until the token is computed, also where nobody asks for it: a program that ends while the device's threads
/// compute it would take away what they use, and crash.
impl Drop for Step {
    fn drop(&mut self) {
        for array in self.arrays() {
            // Nobody reads this token, so nobody needs its error.
            let _ = array.eval();
        }
    }
}

fn failed(source: ProcessorError) -> GenerateError {
    GenerateError::Processor { source }
}
