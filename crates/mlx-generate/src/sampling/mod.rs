//! How the next token is chosen: what changes its logits, which tokens the filters keep, and the draw.
//!
//! The order is mlx-lm's. [`Penalizer`] changes the logits: bias, then the penalties for repetition, presence and
//! frequency, then DRY, which mlx-lm does not have. The caller's [`LogitsProcessor`]s come next. [`Sampler`] then takes
//! the log-probabilities, applies the filters top-p, min-p, XTC and top-k, each to what the one before it kept, and draws
//! from the rest at the temperature.

mod alternatives;
mod dry;
mod filters;
mod history;
mod penalties;
mod processor;
mod sampler;
mod token_set;

use mlx_rs::error::Exception;
use mlx_rs::{Array, Dtype};

use crate::GenerateError;

pub(crate) use alternatives::Alternatives;
pub use dry::Dry;
pub use history::History;
pub(crate) use penalties::forbid;
pub use penalties::{Penalizer, Penalties, Penalty};
pub use processor::{CloneProcessor, LogitsProcessor, ProcessorError};
pub use sampler::Sampler;
pub use token_set::TokenSet;

/// How the next token is drawn from its probabilities.
///
/// The default is greedy: it takes the most probable token. Numbers are float64, as in Python, so that they are rounded
/// where mlx-lm rounds them and not before.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// From 0 on. 0 takes the most probable token, whatever the other options say. Otherwise the tokens that the filters
    /// keep have the probabilities `softmax(logprobs / temperature)`: below 1 the probable tokens gain, above 1 the
    /// improbable ones.
    pub temperature: f64,
    /// Keeps the smallest number of most probable tokens that have this probability together, and those that are exactly
    /// as probable as the last of them. From 0 to 1; 0 and 1 both keep all tokens.
    pub top_p: f64,
    /// Keeps tokens whose probability is at least this part of the most probable token's. From 0 to 1; 0 keeps all.
    pub min_p: f64,
    /// How many of the most probable tokens `min_p` always keeps. From 1 on.
    pub min_tokens_to_keep: usize,
    /// Keeps this number of most probable tokens; 0, or the size of the vocabulary, keeps all.
    pub top_k: usize,
    /// Excludes the most probable choices.
    pub xtc: Xtc,
    /// The same seed draws the same tokens: those that mlx-lm draws after `mx.random.seed(seed)`.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            min_p: 0.0,
            min_tokens_to_keep: 1,
            top_k: 0,
            xtc: Xtc::default(),
            seed: 0,
        }
    }
}

/// Exclude top choices (XTC): where several tokens are probable, all of them but the least probable one are left out. The
/// text becomes less predictable and stays coherent.
///
/// # Reference
///
/// The pull request of its author: <https://github.com/oobabooga/textgen/pull/6335>.
#[derive(Debug, Clone, PartialEq)]
pub struct Xtc {
    /// The probability that a token is chosen so, from 0 (never) to 1 (always).
    pub probability: f64,
    /// A token above this is probable. From 0 to 0.5.
    pub threshold: f64,
    /// Tokens that are never left out, such as line breaks and the end of a turn. Ids outside of the vocabulary have no
    /// effect.
    pub special_tokens: Vec<u32>,
}

impl Default for Xtc {
    fn default() -> Self {
        Self { probability: 0.0, threshold: 0.1, special_tokens: Vec::new() }
    }
}

impl Sampling {
    /// Checks that all options are within their ranges.
    fn check(&self) -> Result<(), GenerateError> {
        from_zero("temperature", self.temperature)?;
        within("top_p", self.top_p, 1.0, "a number from 0 to 1")?;
        within("min_p", self.min_p, 1.0, "a number from 0 to 1")?;
        within("xtc probability", self.xtc.probability, 1.0, "a number from 0 to 1")?;
        within("xtc threshold", self.xtc.threshold, 0.5, "a number from 0 to 0.5")?;
        match self.min_tokens_to_keep {
            0 => Err(wrong("min_tokens_to_keep", 0, "1 or more")),
            _ => Ok(()),
        }
    }
}

fn wrong(option: &'static str, found: impl ToString, expected: impl Into<String>) -> GenerateError {
    GenerateError::Option { option, found: found.to_string(), expected: expected.into() }
}

fn within(option: &'static str, value: f64, most: f64, expected: &str) -> Result<(), GenerateError> {
    if (0.0..=most).contains(&value) { Ok(()) } else { Err(wrong(option, value, expected)) }
}

fn from_zero(option: &'static str, value: f64) -> Result<(), GenerateError> {
    within(option, value, f64::MAX, "a number from 0 on")
}

fn finite(option: &'static str, value: f64) -> Result<(), GenerateError> {
    if value.is_finite() { Ok(()) } else { Err(wrong(option, value, "a finite number")) }
}

/// A number as Python's MLX uses it in an operation with an array of this dtype: it goes through float32, and half
/// precision stays half precision.
fn scalar(value: f64, dtype: Dtype) -> Result<Array, Exception> {
    Array::from_f32(value as f32).as_dtype(dtype)
}

/// [`scalar`] as it is in one of mlx-lm's compiled functions. `mx.compile` writes float32 constants into the source of its
/// kernels with seven significant digits, where nine are needed to tell all float32 numbers apart. Constants of half
/// precision do not change by that.
fn constant(value: f64, dtype: Dtype) -> Result<Array, Exception> {
    match dtype {
        Dtype::Float32 => {
            Ok(Array::from_f32(format!("{:.6e}", value as f32).parse().unwrap_or(value as f32)))
        }
        dtype => scalar(value, dtype),
    }
}

/// Token ids as an array, uint32 `[n]`.
fn ids(tokens: &[u32]) -> Array {
    Array::from_slice(tokens, &[tokens.len() as i32])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `mx.compile(lambda x, z: mx.abs(x * c) + z)` shows the constant that it multiplies by.
    #[test]
    fn constants_have_seven_digits() {
        let value = |value, dtype| {
            let constant = constant(value, dtype).unwrap();
            (constant.dtype(), constant.as_dtype(Dtype::Float32).unwrap().item_exact::<f32>())
        };
        assert_eq!(value(1.0 / 0.7, Dtype::Float32), (Dtype::Float32, 1.428571));
        assert_eq!(value(0.02_f64.ln(), Dtype::Float32), (Dtype::Float32, -3.912023));
        assert_eq!(value(1e-30, Dtype::Float32), (Dtype::Float32, 1e-30));
        assert_eq!(value(f64::INFINITY, Dtype::Float32), (Dtype::Float32, f32::INFINITY));
        assert_eq!(value(0.1, Dtype::Float16), (Dtype::Float16, 0.099_975_586_f32));
        assert_eq!(value(0.1, Dtype::Bfloat16), (Dtype::Bfloat16, 0.100_097_656));
    }
}
