//! Filters: each function gives some tokens a log-probability of minus infinity, `[B, V]` to `[B, V]` of the same dtype.
//! The others keep theirs, which are not normalized again.
//!
//! They use mlx-lm's operations in mlx-lm's order.

use mlx_rs::error::Exception;
use mlx_rs::ops::indexing::{TryIndexOp, put_along_axis, take_along_axis};
use mlx_rs::ops::{argpartition_axis, broadcast_to, select, softmax_axis, sort_axis};
use mlx_rs::random::uniform;
use mlx_rs::{Array, Dtype};

use super::{Xtc, constant, ids, scalar};

/// The smallest `top_p`. With a smaller one the product with the sum of all probabilities could become 0, which every
/// token reaches.
const LEAST_TOP_P: f64 = 1e-30;

/// Keeps the most probable tokens until they have `top_p` together, which is above 0, and tokens that are as probable as
/// the last of them.
pub(super) fn top_p(logprobs: &Array, top_p: f64) -> Result<Array, Exception> {
    let ascending = sort_axis(logprobs, -1)?;
    let probabilities = ascending.as_dtype(Dtype::Float32)?.exp()?;
    let above = probabilities.cumsum(-1, true, false)?; // that of all more probable tokens
    let total = above.try_index((.., ..1))?.add(probabilities.try_index((.., ..1))?)?; // [B, 1]
    let enough = total.multiply(constant(top_p.max(LEAST_TOP_P), Dtype::Float32)?)?;
    let dropped = above.ge(&enough)?.sum_axis(-1, true)?; // [B, 1]
    let threshold = take_along_axis(&ascending, &dropped, -1)?;
    without(logprobs, &logprobs.lt(&threshold)?)
}

/// Keeps the tokens that are at least `min_p` times as probable as the most probable one, and always the `keep` most
/// probable tokens. `min_p` is above 0.
pub(super) fn min_p(logprobs: &Array, min_p: f64, keep: usize) -> Result<Array, Exception> {
    let vocab_size = logprobs.dim(-1);
    let Some(keep) = i32::try_from(keep).ok().filter(|&keep| keep < vocab_size) else {
        return Ok(logprobs.clone());
    };
    let threshold = logprobs.max_axis(-1, true)?.add(constant(min_p.ln(), logprobs.dtype())?)?;
    let mut removed = logprobs.lt(&threshold)?;
    if keep > 1 {
        let best = argpartition_axis(logprobs, -keep, -1)?.try_index((.., vocab_size - keep..))?;
        removed = put_along_axis(&removed, best, Array::from_bool(false), -1)?;
    }
    without(logprobs, &removed)
}

/// With the probability of `xtc`, leaves out all tokens above the threshold but the least probable of them. One random
/// number decides for all rows.
pub(super) fn xtc(logprobs: &Array, xtc: &Xtc, key: &Array) -> Result<Array, Exception> {
    let (rows, vocab_size) = (logprobs.dim(0), logprobs.dim(-1));
    let probabilities = softmax_axis(logprobs, -1, None)?;
    let probable = probabilities.gt(constant(xtc.threshold, logprobs.dtype())?)?;
    let infinity = scalar(f64::INFINITY, logprobs.dtype())?;
    let least = select(probable, &probabilities, infinity)?.min_axis(-1, true)?;
    let mut removed = probabilities.gt(&least)?;
    let special: Vec<u32> =
        xtc.special_tokens.iter().copied().filter(|&id| i64::from(id) < i64::from(vocab_size)).collect();
    if !special.is_empty() {
        let places = broadcast_to(ids(&special), &[rows, special.len() as i32])?;
        removed = put_along_axis(&removed, places, Array::from_bool(false), -1)?;
    }
    let number = uniform::<_, f32>(0.0_f32, 1.0_f32, &[], key)?;
    let untouched = number.gt(constant(xtc.probability, Dtype::Float32)?)?;
    select(untouched, logprobs, without(logprobs, &removed)?)
}

/// Keeps the `k` most probable tokens, where `k` is at least 1. Which of equally probable tokens stay is not defined.
pub(super) fn top_k(logprobs: &Array, k: usize) -> Result<Array, Exception> {
    let vocab_size = logprobs.dim(-1);
    let Some(k) = i32::try_from(k).ok().filter(|&k| k < vocab_size) else {
        return Ok(logprobs.clone());
    };
    let others = argpartition_axis(logprobs.negative()?, k - 1, -1)?.try_index((.., k..))?;
    put_along_axis(logprobs, others, scalar(f64::NEG_INFINITY, logprobs.dtype())?, -1)
}

/// Minus infinity where `removed`.
fn without(logprobs: &Array, removed: &Array) -> Result<Array, Exception> {
    select(removed, scalar(f64::NEG_INFINITY, logprobs.dtype())?, logprobs)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With nine digits of `top_p` the second token would stay. mlx-lm's constant has seven digits, and leaves it out.
    #[test]
    #[cfg_attr(
        not(all(target_os = "linux", target_arch = "x86_64")),
        ignore = "the last bit decides, on another device"
    )]
    fn top_p_has_the_digits_of_mlx_lms_compiled_function() {
        let logprobs = Array::from_slice(&[-0.091_287_55_f32, -2.439_041_6], &[1, 2]);
        let found =
            mlx_testing::with_cpu("the last bit decides", || top_p(&logprobs, 0.912_755_577)).unwrap();
        assert_eq!(found.as_slice::<f32>(), [-0.091_287_55, f32::NEG_INFINITY]);
    }
}
