//! The table of periods that MLX rotates by: the number of tokens in which each pair of features turns by one radian.
//!
//! A pair with period `p` is rotated by `position / p` radians. Without scaling, the periods are `base^(2i / dims)`, from 1
//! for the first pair to nearly `base` for the last. All computations are in float32 and in mlx-lm's order of operations,
//! because another order would round differently.

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

/// The periods with a separate factor for each pair: LongRoPE, section 3.
pub(crate) fn per_pair(dims: i32, base: f64, factors: &[f64]) -> Result<Array, Exception> {
    let factors: Vec<f32> = factors.iter().map(|&factor| factor as f32).collect();
    Array::from_slice(&factors, &[factors.len() as i32]).multiply(plain(dims, dims, base)?)
}

/// The periods of slow pairs times `factor`, those of fast pairs unchanged, and those in between blended in proportion to
/// the number of turns, as in the code that was released with Llama 3.1.
pub(crate) fn llama3(dims: i32, base: f64, scaling: &Llama3Scaling) -> Result<Array, Exception> {
    let Llama3Scaling { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } =
        *scaling;
    let original = f64::from(original_max_position_embeddings);
    // The wavelength of a pair is the number of tokens for a whole turn, 2π radians.
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

/// The same idea with a ramp over the index of the pair, as in the code of YaRN's authors. Their paper (section 3.2) has a
/// ramp over the number of turns, but models are trained with the code.
pub(crate) fn yarn(dims: i32, base: f64, original: i32, scaling: &YarnScaling) -> Result<Array, Exception> {
    let YarnScaling { factor, beta_fast, beta_slow, truncate, .. } = *scaling;
    // The index, as a fraction, of the pair that makes this many turns within the original length. The period of pair i is
    // base^(2i / dims), and a turn takes 2π periods; this is solved for i.
    let pair_of = |rotations: f64| {
        f64::from(dims) * (f64::from(original) / (rotations * 2.0 * PI)).ln() / (2.0 * base.ln())
    };
    let (mut low, mut high) = (pair_of(beta_fast), pair_of(beta_slow));
    if truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    let (low, mut high) = (low.max(0.0), high.min(f64::from(dims - 1)));
    if low == high {
        high += 0.001; // a steep ramp in place of a step, whose width would be divided by
    }
    let ramp = Array::arange::<_, f32>(0, dims / 2, 1)?.subtract(number(low))?.divide(number(high - low))?;
    let kept = number(1.0).subtract(clip(ramp, (0.0, 1.0))?)?;

    let fast = plain(dims, dims, base)?;
    let slow = number(factor).multiply(&fast)?;
    // The blend is one of frequencies, the reciprocals of periods.
    let weights = slow.multiply(&kept)?.add(fast.multiply(number(1.0).subtract(&kept)?)?)?;
    slow.multiply(&fast)?.divide(weights)
}

/// The first pairs have the periods of a rotation of all pairs. The others have infinite periods: they are not rotated.
pub(crate) fn proportional(dims: i32, rotated: i32, base: f64, factor: f64) -> Result<Array, Exception> {
    let turning = number(factor).multiply(plain(rotated, dims, base)?)?;
    let still = Array::full::<f32>(&[(dims - rotated) / 2], array!(f32::INFINITY))?;
    concatenate(&[turning, still], 0)
}

fn number(value: f64) -> Array {
    Array::from_f32(value as f32)
}
