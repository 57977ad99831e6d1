//! What changes logits before a token is chosen from them.

use mlx_rs::Array;
use mlx_rs::error::Exception;
use mlx_rs::ops::indexing::{put_along_axis, scatter_add_single, take_axis};
use mlx_rs::ops::{broadcast_to, select};

use super::{Dry, History, finite, from_zero, ids, scalar, wrong};
use crate::GenerateError;

/// Built-in changes of the logits, applied in the order of the fields. The default changes nothing.
///
/// The penalties look at the tokens so far, those of the prompt included. Several of them may apply to one token.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Penalties {
    /// Tokens and what is added to their logits. Minus infinity makes a token impossible. The values of a token that is
    /// listed twice are both added.
    pub logit_bias: Vec<(u32, f64)>,
    /// The logits of tokens that were seen are divided by this where they are above 0, and multiplied where they are below:
    /// above 1 the tokens become less probable, below 1 more. From 0 on; 0 changes nothing.
    ///
    /// # Reference
    ///
    /// CTRL, section 4.1: <https://arxiv.org/abs/1909.05858>.
    pub repetition: Penalty,
    /// Subtracted from the logits of tokens that were seen. A negative number makes them more probable.
    pub presence: Penalty,
    /// Subtracted from the logit of a token once for each time that it was seen.
    pub frequency: Penalty,
    /// Penalizes tokens that would repeat a longer text.
    pub dry: Option<Dry>,
}

/// A penalty for tokens that were seen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Penalty {
    /// Its strength; 0 changes nothing.
    pub penalty: f64,
    /// How many of the last tokens count. 0 means all of them, as in mlx-lm.
    pub context_size: usize,
}

impl Penalty {
    /// A penalty over the last 20 tokens, mlx-lm's default.
    pub fn new(penalty: f64) -> Self {
        Self { penalty, context_size: 20 }
    }
}

impl Default for Penalty {
    fn default() -> Self {
        Self::new(0.0)
    }
}

impl Penalties {
    /// Whether they change nothing.
    pub fn is_empty(&self) -> bool {
        let off = |penalty: Penalty| penalty.penalty == 0.0;
        self.logit_bias.is_empty()
            && off(self.repetition)
            && off(self.presence)
            && off(self.frequency)
            && self.dry.as_ref().is_none_or(Dry::is_off)
    }

    fn check(&self, vocab_size: i32) -> Result<(), GenerateError> {
        for &(id, bias) in &self.logit_bias {
            if i64::from(id) >= i64::from(vocab_size) {
                return Err(wrong("the token id of a logit bias", id, format!("below {vocab_size}")));
            }
            // As float32: logits are never wider.
            if bias.is_nan() || bias as f32 == f32::INFINITY {
                return Err(wrong("a logit bias", bias, "a finite number, or minus infinity"));
            }
        }
        from_zero("repetition penalty", self.repetition.penalty)?;
        finite("presence penalty", self.presence.penalty)?;
        finite("frequency penalty", self.frequency.penalty)?;
        self.dry.as_ref().map_or(Ok(()), Dry::check)
    }
}

/// [`Penalties`] for a model of some vocabulary size.
#[derive(Debug, Clone)]
pub struct Penalizer {
    penalties: Penalties,
    /// Ids `[n]` and what is added to their logits, float32 `[n]`.
    bias: Option<(Array, Array)>,
}

impl Penalizer {
    /// Penalties for a vocabulary of this size.
    ///
    /// # Errors
    ///
    /// [`GenerateError::Option`] that names the option that is out of its range.
    pub fn new(penalties: Penalties, vocab_size: i32) -> Result<Self, GenerateError> {
        penalties.check(vocab_size)?;
        let (tokens, values): (Vec<u32>, Vec<f32>) =
            penalties.logit_bias.iter().map(|&(id, value)| (id, value as f32)).unzip();
        let bias =
            (!tokens.is_empty()).then(|| (ids(&tokens), Array::from_slice(&values, &[values.len() as i32])));
        Ok(Self { penalties, bias })
    }

    /// Whether [`apply`](Self::apply) waits for the newest token of the history. Only DRY does.
    pub fn waits(&self) -> bool {
        self.penalties.dry.as_ref().is_some_and(|dry| !dry.is_off())
    }

    /// Changes the logits `[1, V]` of the token after the history; the dtype stays.
    ///
    /// The ids in the history must be below V.
    ///
    /// # Errors
    ///
    /// What MLX reports.
    pub fn apply(&self, history: &mut History, logits: &Array) -> Result<Array, Exception> {
        let Penalties { repetition, presence, frequency, dry, .. } = &self.penalties;
        let mut logits = logits.clone();
        if let Some((tokens, values)) = &self.bias {
            logits = add(&logits, tokens, values)?;
        }
        if let Some(tokens) = seen(history, *repetition)? {
            logits = penalize_repetition(&logits, &tokens, repetition.penalty)?;
        }
        if let Some(tokens) = seen(history, *presence)? {
            let penalty = scalar(presence.penalty, logits.dtype())?;
            let changed = take_axis(&logits, &tokens, 1)?.subtract(penalty)?;
            logits = put(&logits, &tokens, &changed)?;
        }
        if let Some(tokens) = seen(history, *frequency)? {
            logits = add(&logits, &tokens, &scalar(-frequency.penalty, logits.dtype())?)?;
        }
        if let Some(dry) = dry {
            let (tokens, values) = dry.penalties(history.ids()?);
            if !tokens.is_empty() {
                let values = Array::from_slice(&values, &[values.len() as i32]).negative()?;
                logits = add(&logits, &ids(&tokens), &values)?;
            }
        }
        Ok(logits)
    }
}

/// The tokens that this penalty applies to, `[n]`; none where it changes nothing.
fn seen(history: &History, penalty: Penalty) -> Result<Option<Array>, Exception> {
    if penalty.penalty == 0.0 { Ok(None) } else { history.recent(penalty.context_size) }
}

fn penalize_repetition(logits: &Array, tokens: &Array, penalty: f64) -> Result<Array, Exception> {
    let penalty = scalar(penalty, logits.dtype())?;
    let selected = take_axis(logits, tokens, 1)?; // [1, n]
    let negative = selected.lt(scalar(0.0, logits.dtype())?)?;
    let changed = select(negative, selected.multiply(&penalty)?, selected.divide(&penalty)?)?;
    put(logits, tokens, &changed)
}

/// The logits with those of `tokens` `[n]` replaced by `values` `[1, n]`. A token that is there twice has the same value
/// twice.
fn put(logits: &Array, tokens: &Array, values: &Array) -> Result<Array, Exception> {
    put_along_axis(logits, tokens.reshape(&[1, -1])?, values, 1)
}

/// The logits with `values` added to those of `tokens` `[n]`: one value for all, or one for each. A token that is there
/// twice gets both.
fn add(logits: &Array, tokens: &Array, values: &Array) -> Result<Array, Exception> {
    let count = tokens.dim(0);
    let values = broadcast_to(values.as_dtype(logits.dtype())?, &[count])?.reshape(&[count, 1, 1])?;
    scatter_add_single(logits, tokens, values, 1)
}

/// The logits `[1, V]` with those of `tokens` `[n]` at minus infinity.
pub(crate) fn forbid(logits: &Array, tokens: &Array) -> Result<Array, Exception> {
    put_along_axis(logits, tokens.reshape(&[1, -1])?, scalar(f64::NEG_INFINITY, logits.dtype())?, 1)
}
