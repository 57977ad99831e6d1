//! Rotary position embeddings.
//!
//! API: usable without the rest of this workspace. A rotary embedding turns each pair of features
//! of a query or key by an angle that grows with the token's position, so that the product of a
//! query and a key depends on how far apart they are and not on where they stand.
//!
//! ```
//! use mlx_rope::{Rope, RopeLayout};
//! use mlx_rs::Array;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let rope = Rope::new(2, 10_000.0, RopeLayout::Interleaved)?;
//! let query = Array::from_slice(&[1.0_f32, 0.0], &[1, 1, 1, 2]);
//! let turned = rope.rotate(&query, 3)?; // by 3 radians: the first frequency is 1
//! assert!((turned.as_slice::<f32>()[0] - 3.0_f32.cos()).abs() < 1e-6);
//! assert!((turned.as_slice::<f32>()[1] - 3.0_f32.sin()).abs() < 1e-6);
//! # Ok(())
//! # }
//! ```

use mlx_rs::Array;
use mlx_rs::error::Exception;

/// Which two features form the pair that is rotated together.
///
/// The two layouts are the same rotation with the features in another order. A checkpoint is
/// trained with one of them, and its weights are meaningless under the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeLayout {
    /// Features `2i` and `2i + 1`, as the paper writes it. mlx-lm calls it traditional.
    Interleaved,
    /// Features `i` and `i + dims / 2`, as GPT-NeoX and most Hugging Face models do it.
    Halves,
}

/// Why a rotation cannot be built.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RopeError {
    /// The rotated features do not form pairs.
    #[error("rotary embedding over {dims} features: a positive even number is needed")]
    Dims {
        /// The number that was given.
        dims: i32,
    },
    /// The base of the frequencies is not a positive number.
    #[error("rotary embedding with base {base}: a positive finite number is needed")]
    Base {
        /// The number that was given.
        base: f32,
    },
}

/// A rotary position embedding.
///
/// Pair `i` of a token at position `p` is rotated by the angle `p * base^(-2i / dims)` radians:
/// the first pair turns by one radian a token, the last so slowly that it hardly repeats within a
/// context.
///
/// # Reference
///
/// Su et al., *RoFormer: Enhanced Transformer with Rotary Position Embedding*, section 3.2.2,
/// equations 14 and 15 (<https://arxiv.org/abs/2104.09864>).
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    dims: i32,
    base: f32,
    layout: RopeLayout,
}

impl Rope {
    /// A rotation of the first `dims` features of each head; features beyond them stay as they are.
    ///
    /// # Errors
    ///
    /// [`RopeError::Dims`] if `dims` is not a positive even number, [`RopeError::Base`] if `base`
    /// is not a positive finite number.
    pub fn new(dims: i32, base: f32, layout: RopeLayout) -> Result<Self, RopeError> {
        if dims <= 0 || dims % 2 != 0 {
            return Err(RopeError::Dims { dims });
        }
        if !(base.is_finite() && base > 0.0) {
            return Err(RopeError::Base { base });
        }
        Ok(Self { dims, base, layout })
    }

    /// Rotates queries or keys whose first token stands at position `offset`, counted from 0.
    ///
    /// # Shapes
    ///
    /// `x` `[B, H, L, D]` with `D >= dims`; the result has the same shape.
    ///
    /// # Dtypes
    ///
    /// Any float; the result has the dtype of `x`. Angles are computed in float32.
    ///
    /// # Errors
    ///
    /// Where MLX refuses the shape.
    pub fn rotate(&self, x: &Array, offset: i32) -> Result<Array, Exception> {
        let interleaved = self.layout == RopeLayout::Interleaved;
        mlx_rs::fast::rope(x, self.dims, interleaved, self.base, 1.0, offset, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: i32 = 5;
    const HEAD_DIM: i32 = 8;

    fn input() -> Array {
        let values: Vec<f32> =
            (0..2 * LENGTH * HEAD_DIM).map(|i| ((i * 29 % 83) as f32 - 41.0) / 13.0).collect();
        Array::from_slice(&values, &[1, 2, LENGTH, HEAD_DIM])
    }

    /// Equation 15 of RoFormer in float64, one pair at a time.
    fn oracle(x: &[f32], position: i32, dims: usize, base: f64, layout: RopeLayout) -> Vec<f64> {
        let mut y: Vec<f64> = x.iter().map(|&value| f64::from(value)).collect();
        for pair in 0..dims / 2 {
            let (first, second) = match layout {
                RopeLayout::Interleaved => (2 * pair, 2 * pair + 1),
                RopeLayout::Halves => (pair, pair + dims / 2),
            };
            let angle = f64::from(position) * base.powf(-2.0 * pair as f64 / dims as f64);
            let (a, b) = (f64::from(x[first]), f64::from(x[second]));
            y[first] = a * angle.cos() - b * angle.sin();
            y[second] = a * angle.sin() + b * angle.cos();
        }
        y
    }

    #[test]
    fn both_layouts_follow_the_paper() {
        let x = input();
        for layout in [RopeLayout::Interleaved, RopeLayout::Halves] {
            for (dims, offset) in [(8, 0), (8, 131), (4, 9)] {
                let y = Rope::new(dims, 500.0, layout).unwrap().rotate(&x, offset).unwrap();
                let rows = x.as_slice::<f32>().chunks(8).zip(y.as_slice::<f32>().chunks(8));
                for (row, (before, after)) in rows.enumerate() {
                    let position = offset + row as i32 % LENGTH;
                    let expected = oracle(before, position, dims as usize, 500.0, layout);
                    for (expected, &found) in expected.iter().zip(after) {
                        assert!((expected - f64::from(found)).abs() < 1e-4, "{layout:?} {position}");
                    }
                }
            }
        }
    }

    #[test]
    fn splitting_a_call_changes_nothing() {
        let (x, rope) = (input(), Rope::new(8, 10_000.0, RopeLayout::Interleaved).unwrap());
        let whole = rope.rotate(&x, 40).unwrap();
        let parts = x.split_equal(LENGTH, -2).unwrap();
        for (token, part) in parts.iter().enumerate() {
            let one = rope.rotate(part, 40 + token as i32).unwrap();
            let expected = &whole.split_equal(LENGTH, -2).unwrap()[token];
            assert!(one.all_close(expected, 1e-5, 1e-5, None).unwrap());
        }
    }

    #[test]
    fn features_must_form_pairs() {
        for dims in [0, -2, 7] {
            let error = Rope::new(dims, 1e4, RopeLayout::Halves).unwrap_err();
            assert_eq!(error, RopeError::Dims { dims });
            assert!(error.to_string().contains(&dims.to_string()));
        }
    }

    #[test]
    fn base_must_be_positive() {
        for base in [0.0, -1.0, f32::INFINITY] {
            assert_eq!(Rope::new(8, base, RopeLayout::Halves).unwrap_err(), RopeError::Base { base });
        }
        assert!(matches!(Rope::new(8, f32::NAN, RopeLayout::Halves), Err(RopeError::Base { .. })));
    }
}
