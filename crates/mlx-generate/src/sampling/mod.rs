//! How the next token is chosen: what its logits are changed by, what is left of their probabilities, and the
//! draw.
//!
//! The order is mlx-lm's. [`Penalizer`] changes logits: bias, then the penalties for repetition, presence and
//! frequency; then DRY, which mlx-lm does not have. From their log-probabilities [`Sampler`] takes away what
//! top-p, min-p, XTC and top-k do not keep, each seeing what the one before it left, and draws from the rest at
//! the temperature.

mod alternatives;
mod dry;
mod filters;
mod history;
mod penalties;
mod sampler;

use mlx_rs::error::Exception;
use mlx_rs::{Array, Dtype};

use crate::GenerateError;

pub(crate) use alternatives::Alternatives;
pub use dry::Dry;
pub use history::History;
pub(crate) use penalties::forbid;
pub use penalties::{Penalizer, Penalties, Penalty};
pub use sampler::Sampler;

/// How the next token is drawn from its probabilities.
///
/// The default is greedy: the most probable one. Numbers are float64, as in Python, so that they are rounded
/// where mlx-lm rounds them and not before.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// From 0 on. 0 takes the most probable token, whatever else is asked for. Otherwise
    /// `softmax(logprobs / temperature)` are the probabilities of what the filters keep: below 1 the probable
    /// tokens gain, above 1 the improbable ones.
    pub temperature: f64,
    /// Keeps the fewest tokens that have this probability together, the most probable ones, and those that are
    /// as probable as the last of them. From 0 to 1, where both ends keep all.
    pub top_p: f64,
    /// Keeps tokens that are at least so probable, as a part of the most probable one's. From 0 to 1, where 0
    /// keeps all.
    pub min_p: f64,
    /// So many tokens stay whatever `min_p` says. From 1 on.
    pub min_tokens_to_keep: usize,
    /// Keeps so many tokens, the most probable ones; 0, or as many as the vocabulary has, keeps all.
    pub top_k: usize,
    /// Leaves out the most probable choices.
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

/// Exclude top choices (XTC): where several tokens are probable, all but the least probable of them are left
/// out, so that a text becomes less predictable and stays coherent.
///
/// # Reference
///
/// The pull request of its author: <https://github.com/oobabooga/textgen/pull/6335>.
#[derive(Debug, Clone, PartialEq)]
pub struct Xtc {
    /// How often that happens: from 0, never, to 1, for every token.
    pub probability: f64,
    /// A token above this is probable. From 0 to 0.5.
    pub threshold: f64,
    /// Tokens that are never left out, such as line breaks and the end of a turn. Ids that the vocabulary does
    /// not have change nothing.
    pub special_tokens: Vec<u32>,
}

impl Default for Xtc {
    fn default() -> Self {
        Self { probability: 0.0, threshold: 0.1, special_tokens: Vec::new() }
    }
}

impl Sampling {
    /// All options are within their ranges.
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

/// A number as Python's MLX takes it into an operation with an array of this dtype: by way of float32, and
/// without widening half precision.
fn scalar(value: f64, dtype: Dtype) -> Result<Array, Exception> {
    Array::from_f32(value as f32).as_dtype(dtype)
}

/// [`scalar`] as it is in one of mlx-lm's compiled functions. `mx.compile` writes constants of float32 into the
/// source of its kernels with seven significant digits, of the nine that tell all of them apart; those of half
/// precision survive that.
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
