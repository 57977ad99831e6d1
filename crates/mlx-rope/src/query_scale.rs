//! The factor of queries at positions beyond the original context length.

use std::cell::RefCell;

use mlx_rs::error::Exception;
use mlx_rs::ops::log;
use mlx_rs::{Array, Dtype};

use crate::error::RopeError;
use crate::offset::RopeOffset;

/// The most factors that a thread keeps. Few are in use at a time, but a tiny original length makes one for each position.
const MOST_KEPT: usize = 8;

thread_local! {
    /// The factors of this thread, each with what it was made for. The newest is last.
    static KEPT: RefCell<Vec<(QueryScale, f32, Array)>> = const { RefCell::new(Vec::new()) };
}

/// A factor of queries that grows with their position, so that attention over a long context stays sharp.
///
/// A query at position `p` is multiplied by `1 + beta * ln(1 + floor(p / original))`: by 1 within the original context
/// length, and by a little more after each further `original` positions. Keys are not multiplied. Positions before the
/// first token, which are those of padding, have the factor 1.
///
/// # Reference
///
/// Nakanishi, *Scalable-Softmax Is Superior for Attention* (<https://arxiv.org/abs/2501.19399>), for the idea;
/// `get_llama_4_attn_scale` in transformers' `modeling_ministral3.py` for the formula. Configs have `beta` as
/// `llama_4_scaling_beta`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QueryScale {
    beta: f32,
    original: i32,
}

impl QueryScale {
    /// The factor with this `beta` for models whose original context length is `original` tokens.
    ///
    /// # Errors
    ///
    /// [`RopeError::Number`] if `beta` is negative or not finite as a float32, or `original` is not positive.
    pub fn new(beta: f64, original: i32) -> Result<Self, RopeError> {
        if !(beta >= 0.0 && (beta as f32).is_finite()) {
            let (key, expected) = ("llama_4_scaling_beta", "a finite number from 0 on");
            return Err(RopeError::Number { key, found: beta, expected });
        }
        if original <= 0 {
            let (key, expected) = ("original_max_position_embeddings", "a positive whole number");
            return Err(RopeError::Number { key, found: f64::from(original), expected });
        }
        Ok(Self { beta: beta as f32, original })
    }

    /// Multiplies queries, which have been rotated if the model rotates them. `offset` is the position of the first token of
    /// the call: one number for all rows of the batch, or a slice with one number for each row.
    ///
    /// # Shapes
    ///
    /// `queries` `[B, H, L, D]`; the result has the same shape.
    ///
    /// # Dtypes
    ///
    /// Any float; the result has the dtype of `queries`. Factors are computed in float32 and rounded to this dtype.
    ///
    /// # Errors
    ///
    /// Where `queries` does not have four axes, or the number of offsets is not the number of rows.
    pub fn scale<'a>(&self, queries: &Array, offset: impl Into<RopeOffset<'a>>) -> Result<Array, Exception> {
        let [batch, _, length, _] = *queries.shape() else {
            return Err(Exception::custom(format!("[B, H, L, D] is scaled, not {:?}", queries.shape())));
        };
        let (offsets, rows) = match offset.into() {
            RopeOffset::One(offset) => (&[offset][..], 1),
            RopeOffset::PerRow(offsets) if offsets.len() != batch as usize => {
                return Err(RopeError::Offsets { found: offsets.len(), batch }.into());
            }
            RopeOffset::PerRow(offsets) => (offsets, batch),
        };
        let positions = |&offset: &i32| (0..length).map(move |token| offset.saturating_add(token));
        let counts = offsets.iter().flat_map(positions).map(|position| self.count(position));
        let counts: Vec<f32> = counts.collect();
        let factors = match *counts {
            [first, ..] if counts.iter().any(|&count| count != first) => {
                self.factors(&counts, &[rows, 1, length, 1])?.as_dtype(queries.dtype())?
            }
            [] | [1.0, ..] => return Ok(queries.clone()),
            _ if self.beta == 0.0 => return Ok(queries.clone()),
            [count, ..] => self.factor(count, queries.dtype())?,
        };
        queries.multiply(factors)
    }

    /// The factor of all positions with this count. Each thread makes it once and keeps it for the other layers and for
    /// later tokens.
    fn factor(&self, count: f32, dtype: Dtype) -> Result<Array, Exception> {
        KEPT.with_borrow_mut(|kept| {
            let is = |(scale, of, array): &&(Self, f32, Array)| {
                (scale, *of, array.dtype()) == (self, count, dtype)
            };
            if let Some((_, _, array)) = kept.iter().find(is) {
                return Ok(array.clone());
            }
            let array = self.factors(&[count], &[1; 4])?.as_dtype(dtype)?;
            array.eval()?;
            if kept.len() == MOST_KEPT {
                kept.remove(0);
            }
            kept.push((*self, count, array.clone()));
            Ok(array)
        })
    }

    /// `1 + beta ln(count)`, float32.
    fn factors(&self, counts: &[f32], shape: &[i32]) -> Result<Array, Exception> {
        let growth = log(Array::from_slice(counts, shape))?.multiply(Array::from_f32(self.beta))?;
        growth.add(Array::from_f32(1.0))
    }

    /// How many original context lengths have begun up to this position; 1 for padding.
    fn count(&self, position: i32) -> f32 {
        (1 + position.max(0) / self.original) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_keeps_few_factors() {
        let scale = QueryScale::new(1.0, 1).unwrap();
        let query = Array::from_slice(&[1.0_f32], &[1, 1, 1, 1]);
        for position in 0..50 {
            let scaled = scale.scale(&query, position).unwrap().item_exact::<f32>();
            let expected = 1.0 + (position as f32 + 1.0).ln();
            approx::assert_relative_eq!(scaled, expected, epsilon = 0.0, max_relative = 1e-6);
        }
        assert_eq!(KEPT.with_borrow(Vec::len), MOST_KEPT);
    }
}
