//! One step of the choice of tokens for one sequence: from logits to a token with its log-probability.

use mlx_rs::error::{ConversionError, Exception};
use mlx_rs::ops::indexing::take_along_axis;
use mlx_rs::transforms::async_eval;
use mlx_rs::{Array, Dtype};

use crate::sampling::{Alternatives, forbid};
use crate::{GenerateError, GenerateOptions, History, Penalizer, Sampler, Session, Token};

/// Penalties, sampler and what they know of a sequence.
#[derive(Debug)]
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

    /// The chooser for a sequence that has the tokens of the session and these.
    pub(crate) fn after(mut self, session: &Session, tokens: &[u32]) -> Result<Self, GenerateError> {
        if self.penalizer.is_some() {
            let mut all = read_ids(session)?;
            all.extend_from_slice(tokens);
            self.history = History::new(&all);
        }
        Ok(self)
    }

    /// Chooses the token after `token`, an id of shape `[1]`, from its logits `[1, V]`, and starts the device on
    /// it.
    pub(crate) fn step(&mut self, token: &Array, mut logits: Array) -> Result<Step, Exception> {
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
        let logprobs = logits.subtract(logits.logsumexp_axis(-1, true)?)?;
        let id = self.sampler.sample(&logprobs)?; // [1]
        let logprob = take_along_axis(&logprobs, id.reshape(&[1, 1])?, -1)?.as_dtype(Dtype::Float32)?;
        let step = Step { id, logprob, alternatives: Alternatives::new(&logprobs, self.top_logprobs)? };
        async_eval(step.arrays())?;
        Ok(step)
    }
}

impl Step {
    /// Waits for the device.
    pub(crate) fn read(&self) -> Result<Token, Exception> {
        let read = |e: ConversionError| Exception::custom(e.to_string());
        Ok(Token {
            id: self.id.try_item_exact::<u32>().map_err(read)?,
            logprob: self.logprob.try_item_exact::<f32>().map_err(read)?,
            alternatives: self.alternatives.as_ref().map_or(Ok(Vec::new()), Alternatives::read)?,
        })
    }

    fn arrays(&self) -> impl Iterator<Item = &Array> {
        [&self.id, &self.logprob].into_iter().chain(self.alternatives.iter().flat_map(Alternatives::arrays))
    }
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

/// The ids of the tokens that a session of one row has.
fn read_ids(session: &Session) -> Result<Vec<u32>, GenerateError> {
    let Some(tokens) = session.tokens()? else { return Ok(Vec::new()) };
    let row = tokens.reshape(&[-1])?;
    row.eval()?;
    Ok(row.try_as_slice::<u32>().map_err(|e| Exception::custom(e.to_string()))?.to_vec())
}
