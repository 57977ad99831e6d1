//! Assertions that want the same bits on the CPU, and allow rounding on a GPU.

use approx::assert_relative_eq;

use crate::compare::model_rounding;
use crate::device::{on_cpu, on_recording_device};
use crate::tensor::Tensor;

/// Asserts that a result is that of a fixture: with the same bits on the [recording device](on_recording_device), and
/// elsewhere within [`model_rounding`] of the dtype.
#[track_caller]
pub fn assert_as_recorded(found: Tensor, expected: Tensor) {
    assert_same_where(on_recording_device(), found, expected);
}

/// Asserts that two ways to compute the same numbers, such as a row alone and in a batch, give the same bits on the CPU.
///
/// On a GPU they may differ by [`model_rounding`] of the dtype: MLX chooses a GPU's kernel by the shapes, and each kernel
/// adds the numbers of a sum in an order of its own. Dtypes and shapes must be equal there too.
#[track_caller]
pub fn assert_same_on_cpu(found: Tensor, expected: Tensor) {
    assert_same_where(on_cpu(), found, expected);
}

#[track_caller]
fn assert_same_where(is_exact: bool, found: Tensor, expected: Tensor) {
    if is_exact {
        assert_eq!(found, expected);
    } else {
        let rounding = model_rounding(expected.dtype());
        assert_relative_eq!(found, expected, epsilon = rounding, max_relative = rounding);
    }
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use super::*;
    use crate::tensor;
    use mlx_rs::Array;

    fn of(value: f32) -> Tensor {
        tensor(&Array::from_f32(value))
    }

    #[test]
    fn rounding_counts_on_a_cpu_and_is_allowed_on_a_gpu() {
        let next = f32::from_bits(1.0_f32.to_bits() + 1);
        for is_exact in [true, false] {
            assert_same_where(is_exact, of(1.0), of(1.0));
            let one_bit = catch_unwind(|| assert_same_where(is_exact, of(next), of(1.0)));
            assert_eq!(one_bit.is_err(), is_exact);
            assert!(catch_unwind(|| assert_same_where(is_exact, of(1.001), of(1.0))).is_err());
            let half = Array::from_f32(1.0).as_dtype(mlx_rs::Dtype::Float16).unwrap();
            assert!(catch_unwind(move || assert_same_where(is_exact, tensor(&half), of(1.0))).is_err());
        }
    }
}
