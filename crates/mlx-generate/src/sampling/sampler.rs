//! Filters, temperature and random numbers, in mlx-lm's order.

use mlx_rs::error::Exception;
use mlx_rs::ops::indexing::argmax_axis;
use mlx_rs::ops::{arange, softmax_axis};
use mlx_rs::random::{RandomState, categorical};
use mlx_rs::{Array, Dtype};

use super::{Sampling, constant, filters, scalar};
use crate::GenerateError;

/// Draws tokens as a [`Sampling`] says, with the state of the random numbers.
///
/// All functions take log-probabilities `[B, V]` (the logits minus their `logsumexp`) in any floating dtype.
///
/// ```
/// use mlx_generate::{Sampler, Sampling};
/// use mlx_rs::Array;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let logprobs = Array::from_slice(&[0.5_f32, 0.3, 0.2], &[1, 3]).log()?;
/// let sampling = Sampling { temperature: 1.0, top_k: 2, seed: 7, ..Sampling::default() };
/// let mut sampler = Sampler::new(sampling)?;
/// let token = sampler.sample(&logprobs)?.item_exact::<u32>();
/// assert!(token < 2);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    /// None where nothing is random.
    random: Option<RandomState>,
}

impl Sampler {
    /// A sampler whose random numbers begin at the seed.
    ///
    /// # Errors
    ///
    /// [`GenerateError::Option`] that names an option outside of its range.
    pub fn new(sampling: Sampling) -> Result<Self, GenerateError> {
        sampling.check()?;
        let random = match sampling.temperature {
            0.0 => None,
            _ => Some(RandomState::with_seed(sampling.seed)?),
        };
        Ok(Self { sampling, random })
    }

    /// Whether it takes the most probable token, so that nothing is random.
    pub fn is_greedy(&self) -> bool {
        self.random.is_none()
    }

    /// Chooses one token for each row of log-probabilities, `[B, V]` to uint32 `[B]`, with the probabilities that
    /// [`probabilities`](Self::probabilities) returns.
    ///
    /// # Errors
    ///
    /// What MLX reports.
    pub fn sample(&mut self, logprobs: &Array) -> Result<Array, Exception> {
        let Some(scaled) = self.scaled(logprobs)? else { return argmax_axis(logprobs, -1, false) };
        categorical(scaled, -1, None, self.next_key()?.as_ref())
    }

    /// The probabilities that tokens are drawn with, after all filters and the temperature: `[B, V]` to float32
    /// `[B, V]`. Where the temperature is 0, one token of each row has probability 1.
    ///
    /// With XTC each call uses up a random number, as [`sample`](Self::sample) does.
    ///
    /// # Errors
    ///
    /// What MLX reports.
    pub fn probabilities(&mut self, logprobs: &Array) -> Result<Array, Exception> {
        let Some(scaled) = self.scaled(logprobs)? else {
            let best = argmax_axis(logprobs, -1, true)?; // [B, 1]
            return arange::<_, u32>(None, logprobs.dim(-1), None)?.eq(&best)?.as_dtype(Dtype::Float32);
        };
        softmax_axis(scaled.as_dtype(Dtype::Float32)?, -1, true)
    }

    /// The log-probabilities after the filters and before the temperature: minus infinity for the tokens that are left
    /// out, `[B, V]` to the same dtype and shape. Nothing changes where the temperature is 0.
    ///
    /// With XTC each call uses up a random number.
    ///
    /// # Errors
    ///
    /// What MLX reports.
    pub fn filter(&mut self, logprobs: &Array) -> Result<Array, Exception> {
        let mut left = logprobs.clone();
        if self.random.is_none() {
            return Ok(left);
        }
        if 0.0 < self.sampling.top_p && self.sampling.top_p < 1.0 {
            left = filters::top_p(&left, self.sampling.top_p)?;
        }
        if self.sampling.min_p > 0.0 {
            left = filters::min_p(&left, self.sampling.min_p, self.sampling.min_tokens_to_keep)?;
        }
        if self.sampling.xtc.probability > 0.0
            && let Some(key) = self.next_key()?
        {
            left = filters::xtc(&left, &self.sampling.xtc, &key)?;
        }
        if self.sampling.top_k > 0 {
            left = filters::top_k(&left, self.sampling.top_k)?;
        }
        Ok(left)
    }

    /// The logits that a token is drawn from; none where nothing is random.
    fn scaled(&mut self, logprobs: &Array) -> Result<Option<Array>, Exception> {
        if self.random.is_none() {
            return Ok(None);
        }
        Ok(Some(divide(&self.filter(logprobs)?, self.sampling.temperature)?))
    }

    /// The state of the random numbers, which may not be computed yet.
    pub(crate) fn state(&self) -> Option<&Array> {
        self.random.as_ref().map(RandomState::as_array)
    }

    fn next_key(&mut self) -> Result<Option<Array>, Exception> {
        self.random.as_mut().map(RandomState::next_key).transpose()
    }
}

/// Log-probabilities divided by the temperature.
fn divide(logprobs: &Array, temperature: f64) -> Result<Array, Exception> {
    let inverse = 1.0 / temperature;
    let largest = match logprobs.dtype() {
        Dtype::Float16 => 65_504.0, // the largest float16
        _ => f64::from(f32::MAX),
    };
    if inverse < largest / LARGEST_LOGPROB {
        return logprobs.multiply(constant(inverse, logprobs.dtype())?);
    }
    // The temperature is so low that all of them would overflow. Relative to the largest, which is then 0, only the others
    // do.
    let logprobs = logprobs.as_dtype(Dtype::Float32)?;
    let behind = logprobs.subtract(logprobs.max_axis(-1, true)?)?;
    behind.multiply(scalar(inverse.min(f32::MAX.into()), Dtype::Float32)?)
}

/// The most probable token of a vocabulary of 2^23 has a log-probability of at least -16.
const LARGEST_LOGPROB: f64 = 16.0;

#[cfg(test)]
mod tests {
    use super::*;

    /// What `mx.compile` makes of `mx.array([-1.0]) * (1.0 / 0.7)`; without it, it is -1.4285715.
    #[test]
    fn the_temperature_has_the_digits_of_mlx_lms_compiled_function() {
        let found = divide(&Array::from_slice(&[-1.0_f32], &[1, 1]), 0.7).unwrap();
        assert_eq!(found.as_slice::<f32>(), [-1.428571]);
    }
}
