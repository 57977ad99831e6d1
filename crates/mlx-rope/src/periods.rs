//! How many tokens each pair of features takes for one radian: the table that MLX rotates by.
//!
//! A pair with period `p` is turned by `position / p` radians. Without scaling the periods are
//! `base^(2i / dims)`, from 1 for the first pair to nearly `base` for the last. Everything here is
//! float32, in the order of operations of mlx-lm, since another order would round differently.

use std::f64::consts::PI;

use mlx_rs::error::Exception;
use mlx_rs::ops::{clip, concatenate, select};
use mlx_rs::{Array, array};

use crate::scaling::{Llama3Scaling, YarnScaling};

/// `base^(2i / of)` for the pairs of `dims` features: RoFormer, equation 15.
pub(crate) fn plain(dims: i32, of: i32, base: f64) -> Result<Array, Exception> {
    let exponents = Array::arange::<_, f32>(0, dims, 2)?.divide(number(f64::from(of)))?;
    number(base).power(exponents)
}

/// Each pair with a factor of its own: LongRoPE, section 3.
pub(crate) fn per_pair(dims: i32, base: f64, factors: &[f64]) -> Result<Array, Exception> {
    let factors: Vec<f32> = factors.iter().map(|&factor| factor as f32).collect();
    Array::from_slice(&factors, &[factors.len() as i32]).multiply(plain(dims, dims, base)?)
}

/// Slow pairs divided by `factor`, fast ones kept, those between blended in proportion to their turns:
/// the code that was released with Llama 3.1.
pub(crate) fn llama3(dims: i32, base: f64, scaling: &Llama3Scaling) -> Result<Array, Exception> {
    let Llama3Scaling { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } =
        *scaling;
    let original = f64::from(original_max_position_embeddings);
    // A wavelength is a whole turn, 2π radians, in tokens. One that is longer than the original
    // length over `low_freq_factor` was never seen as a whole.
    let longest_kept = number(original / high_freq_factor);
    let shortest_stretched = number(original / low_freq_factor);

    let periods = plain(dims, dims, base)?;
    let wavelengths = periods.multiply(number(2.0 * PI))?;
    let stretched = periods.multiply(number(factor))?;
    let periods = select(wavelengths.gt(&shortest_stretched)?, stretched, periods)?;

    // From 0 at the slow end to 1 at the fast end.
    let smooth = number(original)
        .divide(&wavelengths)?
        .subtract(number(low_freq_factor))?
        .divide(number(high_freq_factor - low_freq_factor))?;
    let blend = number(1.0).subtract(&smooth)?.divide(number(factor))?.add(&smooth)?;
    let between = wavelengths.gt(longest_kept)?.logical_and(wavelengths.lt(shortest_stretched)?)?;
    select(between, periods.divide(blend)?, periods)
}

/// The same idea with a ramp over the index of the pair: the code of YaRN's authors. (Their paper,
/// section 3.2, has the ramp over the number of turns; models are trained with the code's.)
pub(crate) fn yarn(dims: i32, base: f64, original: i32, scaling: &YarnScaling) -> Result<Array, Exception> {
    let YarnScaling { factor, beta_fast, beta_slow, truncate, .. } = *scaling;
    // The pair, as a fraction, that turns this often within the original length: the period of
    // pair i is base^(2i / dims), and 2π periods are a turn; solved for i.
    let pair_of = |rotations: f64| {
        f64::from(dims) * (f64::from(original) / (rotations * 2.0 * PI)).ln() / (2.0 * base.ln())
    };
    let (mut low, mut high) = (pair_of(beta_fast), pair_of(beta_slow));
    if truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    let (low, mut high) = (low.max(0.0), high.min(f64::from(dims - 1)));
    if low == high {
        high += 0.001; // a step is a steep ramp
    }
    let ramp = Array::arange::<_, f32>(0, dims / 2, 1)?.subtract(number(low))?.divide(number(high - low))?;
    let kept = number(1.0).subtract(clip(ramp, (0.0, 1.0))?)?;

    let fast = plain(dims, dims, base)?;
    let slow = number(factor).multiply(&fast)?;
    // Frequencies are blended, and periods are their reciprocals, hence the harmonic form.
    let weights = slow.multiply(&kept)?.add(fast.multiply(number(1.0).subtract(&kept)?)?)?;
    slow.multiply(&fast)?.divide(weights)
}

/// The first pairs as if all were rotated, the others never.
pub(crate) fn proportional(dims: i32, rotated: i32, base: f64, factor: f64) -> Result<Array, Exception> {
    let turning = number(factor).multiply(plain(rotated, dims, base)?)?;
    let still = Array::full::<f32>(&[(dims - rotated) / 2], array!(f32::INFINITY))?;
    concatenate(&[turning, still], 0)
}

fn number(value: f64) -> Array {
    Array::from_f32(value as f32)
}
