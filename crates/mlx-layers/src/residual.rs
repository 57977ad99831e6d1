//! The residual connection of a block.

use mlx_rs::Array;
use mlx_rs::error::Result;

use crate::number::number;

/// Adds the output of attention or of the feed-forward network to the residual stream: `x + factor * y`.
///
/// Most models have a factor of 1, which costs nothing. A smaller one keeps the stream from growing with the number of
/// layers.
///
/// # Shapes
///
/// `x` and `y` `[B, L, D]`; the result has the same shape.
///
/// # Dtypes
///
/// Any float. The factor and the product are rounded to the dtype of `y`, as in mlx-lm.
///
/// # Errors
///
/// Where the shapes do not match.
///
/// # Reference
///
/// Yang et al., *Tensor Programs VI: Feature Learning in Infinite-Depth Neural Networks*
/// (<https://arxiv.org/abs/2310.02244>); `residual_multiplier` of Granite's configs.
pub fn add_residual(x: &Array, y: &Array, factor: f32) -> Result<Array> {
    if factor == 1.0 {
        return x.add(y);
    }
    // In the dtype of y: a float32 scalar would widen half precision.
    x.add(y.multiply(number(factor, y.dtype())?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlx_rs::Dtype;
    use mlx_testing::tensor;

    fn array(values: [f32; 2], dtype: Dtype) -> Array {
        Array::from_slice(&values, &[2]).as_dtype(dtype).unwrap()
    }

    #[test]
    fn the_factor_multiplies_what_is_added() {
        let (x, y) = (array([1.0, -2.0], Dtype::Float32), array([8.0, 4.0], Dtype::Float32));
        let sum = |factor| tensor(&add_residual(&x, &y, factor).unwrap());
        assert_eq!(sum(0.25), tensor(&array([3.0, -1.0], Dtype::Float32)));
        assert_eq!(sum(1.0), tensor(&array([9.0, 2.0], Dtype::Float32)));
    }

    /// bfloat16 has 8 bits of precision: 0.22 becomes 225/1024, its product with 129/128 becomes 227/1024, and nothing of it
    /// is left in the sum with 256.
    #[test]
    fn each_step_rounds_to_the_dtype() {
        let dtype = Dtype::Bfloat16;
        let zero = array([0.0, 0.0], dtype);
        let product = add_residual(&zero, &array([1.007_812_5, 256.0], dtype), 0.22).unwrap();
        assert_eq!(product.dtype(), dtype);
        assert_eq!(tensor(&product), tensor(&array([0.221_679_69, 56.25], dtype)));
        let sum = add_residual(&array([256.0, 1.0], dtype), &array([1.0, 1.0], dtype), 0.22).unwrap();
        assert_eq!(tensor(&sum), tensor(&array([256.0, 1.218_75], dtype)));
    }

    #[test]
    fn shapes_that_do_not_match_are_an_error() {
        let y = Array::ones::<f32>(&[3]).unwrap();
        assert!(add_residual(&array([1.0, 2.0], Dtype::Float32), &y, 0.5).is_err());
    }
}
