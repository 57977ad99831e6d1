//! The residual sum that does not overflow in float16.

use mlx_rs::error::{Exception, Result};
use mlx_rs::macros::ModuleParameters;
use mlx_rs::module::Module;
use mlx_rs::ops::clip;
use mlx_rs::{Array, Dtype};

/// The largest finite float16: `(2 - 2^-10) * 2^15`. Eleven bits of precision, largest exponent 15.
const LARGEST_FLOAT16: f32 = 65504.0;

/// Adds the output of a block to the residual stream, within the range of float16.
///
/// For a float16 `x` the result is `clip(x + y, -65504, 65504)`, with the sum in float32 and the
/// clipped sum cast to float16. For any other dtype of `x` it is `x + y`.
///
/// # Why
///
/// Gemma is trained in bfloat16, which has the range of float32 (up to 3.4e38), and the residual streams of its models
/// exceed 65504, the largest float16. There a float16 sum becomes infinite; the next norm divides infinity by infinity,
/// and every later token is NaN. Clipping keeps such a feature at the largest float16. bfloat16 and float32 need no
/// clipping.
///
/// # The arithmetic
///
/// float32 has 24 bits of precision, which is 2 * 11 + 2 for float16's 11. Rounding the sum to float32 and then to
/// float16 therefore gives the same as rounding the exact sum once. So the result is the sum of float16 arithmetic
/// wherever that is finite, and 65504 with the sign of the sum elsewhere, also for an infinite `x` or `y`. NaN, and
/// infinity minus infinity, give NaN. The gradient is zero where the sum was clipped.
///
/// # Shapes
///
/// `x` and `y` broadcast against each other; both are `[B, L, D]` in a model.
///
/// # Dtypes
///
/// Any. float16 for a float16 `x`, whatever `y` is; otherwise the common dtype of `x` and `y`.
///
/// # Errors
///
/// Where the shapes do not broadcast.
///
/// # Reference
///
/// `clip_residual` in mlx-lm 0.32.2's `gemma3_text.py` (<https://github.com/ml-explore/mlx-lm>), which
/// this equals bit for bit. On the two roundings: Figueroa, *When is double rounding innocuous?*
/// (<https://doi.org/10.1145/221332.221334>).
pub fn clip_residual(x: &Array, y: &Array) -> Result<Array> {
    if x.dtype() != Dtype::Float16 {
        return x.add(y);
    }
    let sum = x.as_dtype(Dtype::Float32)?.add(y.as_dtype(Dtype::Float32)?)?;
    clip(sum, (-LARGEST_FLOAT16, LARGEST_FLOAT16))?.as_dtype(Dtype::Float16)
}

/// [`clip_residual`] as a layer without parameters. Its input is the residual stream and the addend.
///
/// ```
/// use mlx_norms::ClipResidual;
/// use mlx_rs::{Array, Dtype, module::Module};
///
/// # fn main() -> Result<(), mlx_rs::error::Exception> {
/// let large = Array::from_slice(&[60000.0_f32, -60000.0, 1.0], &[3]).as_dtype(Dtype::Float16)?;
/// let sum = ClipResidual.forward((&large, &large))?.as_dtype(Dtype::Float32)?;
/// assert_eq!(sum.as_slice::<f32>(), [65504.0, -65504.0, 2.0]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ModuleParameters)]
pub struct ClipResidual;

impl Module<(&Array, &Array)> for ClipResidual {
    type Output = Array;
    type Error = Exception;

    /// `(x, y)` to their sum; see [`clip_residual`].
    fn forward(&mut self, (x, y): (&Array, &Array)) -> Result<Array> {
        clip_residual(x, y)
    }

    fn training_mode(&mut self, _mode: bool) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlx_rs::module::ModuleParameters;
    use mlx_testing::{assert_same_on_cpu, tensor};
    use proptest::prelude::*;

    fn of(dtype: Dtype, values: &[f32]) -> Array {
        Array::from_slice(values, &[values.len() as i32]).as_dtype(dtype).unwrap()
    }

    fn values(array: &Array) -> Vec<f32> {
        array.as_dtype(Dtype::Float32).unwrap().as_slice::<f32>().to_vec()
    }

    #[test]
    fn float16_stays_in_its_range() {
        const INF: f32 = f32::INFINITY;
        // 65519.99 would round to 65504 and 65520 to infinity.
        let cases = [
            (65504.0, 65504.0, 65504.0),
            (-65504.0, -32.0, -65504.0),
            (65504.0, 15.9921875, 65504.0),
            (65504.0, 16.0, 65504.0),
            (65504.0, -65504.0, 0.0),
            (INF, 1.0, 65504.0),
            (1.0, -INF, -65504.0),
            (INF, INF, 65504.0),
            (1.5, 2.25, 3.75),
        ];
        for (x, y, expected) in cases {
            let sum = clip_residual(&of(Dtype::Float16, &[x]), &of(Dtype::Float16, &[y])).unwrap();
            assert_eq!(sum.dtype(), Dtype::Float16);
            assert_eq!(values(&sum), [expected], "{x} + {y}");
        }
        for (x, y) in [(INF, -INF), (f32::NAN, 1.0), (1.0, f32::NAN)] {
            let sum = clip_residual(&of(Dtype::Float16, &[x]), &of(Dtype::Float16, &[y])).unwrap();
            assert!(values(&sum)[0].is_nan(), "{x} + {y}");
        }
    }

    #[test]
    fn other_dtypes_are_added_plainly() {
        for dtype in [Dtype::Float32, Dtype::Bfloat16] {
            let x = of(dtype, &[65536.0, f32::INFINITY, -1.0]);
            let sum = clip_residual(&x, &x).unwrap();
            assert_eq!(sum.dtype(), dtype);
            assert_eq!(values(&sum), [131072.0, f32::INFINITY, -2.0]);
        }
    }

    #[test]
    fn the_dtype_of_the_residual_stream_decides() {
        let (half, single) = (of(Dtype::Float16, &[60000.0]), of(Dtype::Float32, &[1e6]));
        let sum = clip_residual(&half, &single).unwrap();
        assert_eq!((sum.dtype(), values(&sum)), (Dtype::Float16, vec![65504.0]));
        let sum = clip_residual(&single, &half).unwrap();
        assert_eq!((sum.dtype(), values(&sum)), (Dtype::Float32, vec![1_060_000.0]));
    }

    #[test]
    fn the_module_is_the_function_and_has_no_parameters() {
        let x = of(Dtype::Float16, &[60000.0, 2.0]);
        assert_eq!(values(&ClipResidual.forward((&x, &x)).unwrap()), values(&clip_residual(&x, &x).unwrap()));
        assert_eq!(ClipResidual.num_parameters(), 0);
    }

    #[test]
    fn shapes_that_do_not_broadcast_are_an_error() {
        for dtype in [Dtype::Float16, Dtype::Float32] {
            assert!(clip_residual(&of(dtype, &[1.0; 3]), &of(dtype, &[1.0; 2])).is_err());
        }
    }

    proptest! {
        /// For the bits of any two float16, NaN and infinities apart.
        #[test]
        fn it_is_the_sum_of_float16_that_saturates(
            bits in prop::collection::vec((any::<u16>(), any::<u16>()), 1..64)
        ) {
            let finite = |bits: u16| if bits & 0x7c00 == 0x7c00 { bits & 0x83ff } else { bits };
            let half = |bits: Vec<u16>| {
                let bits: Vec<u16> = bits.into_iter().map(finite).collect();
                Array::from_slice(&bits, &[bits.len() as i32]).view_dtype(Dtype::Float16).unwrap()
            };
            let (x, y): (Vec<u16>, Vec<u16>) = bits.into_iter().unzip();
            let (x, y) = (half(x), half(y));
            let largest = of(Dtype::Float16, &[LARGEST_FLOAT16]);
            let plain = x.add(&y).unwrap();
            let expected = clip(plain, (&largest.negative().unwrap(), &largest)).unwrap();
            // A GPU may round the smallest numbers of float16 to zero in one of the two.
            assert_same_on_cpu(tensor(&clip_residual(&x, &y).unwrap()), tensor(&expected));
        }
    }
}
