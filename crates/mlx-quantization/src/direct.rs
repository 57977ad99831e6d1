//! Operations that take mlx-rs several calls, as one node of MLX's graph where a CPU kernel computes them.
//!
//! The kernels also find these operations in a graph of single operations, and the results are the same. But to make the
//! nodes takes longer than to compute them where matrices are small, and there is one set for each layer and token.

use mlx_rs::Array;
use mlx_rs::error::Exception;

use crate::native;

/// `silu(gate) * up` as one node. `None` where no kernel computes it for these arrays; then the caller uses single
/// operations.
///
/// # Errors
///
/// What MLX reports.
pub fn swiglu(gate: &Array, up: &Array) -> Result<Option<Array>, Exception> {
    native::gated(gate, up, false)
}

/// `gelu(gate) * up` with GELU's tanh approximation, as [`swiglu`].
///
/// # Errors
///
/// What MLX reports.
pub fn geglu(gate: &Array, up: &Array) -> Result<Option<Array>, Exception> {
    native::gated(gate, up, true)
}

/// `x` times the transpose of the matrix `w`, as [`swiglu`]. `None` too where `w` is not computed yet.
///
/// # Errors
///
/// What MLX reports.
pub fn linear(x: &Array, w: &Array) -> Result<Option<Array>, Exception> {
    native::linear(x, w)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlx_rs::Dtype;
    use mlx_rs::ops::{matmul, sigmoid};
    use mlx_rs::random;

    fn normal(shape: &[i32], seed: u64, dtype: Dtype) -> Array {
        let key = random::key(seed).unwrap();
        let x = random::normal::<f32>(shape, None, None, Some(&key)).unwrap().as_dtype(dtype).unwrap();
        x.eval().unwrap();
        x
    }

    fn bits(x: &Array) -> Vec<f32> {
        x.as_dtype(Dtype::Float32).unwrap().as_slice::<f32>().to_vec()
    }

    #[test]
    fn one_node_has_the_bits_of_single_operations() {
        for dtype in [Dtype::Float32, Dtype::Float16, Dtype::Bfloat16] {
            for rows in [1, 5, 40] {
                let (x, w) = (normal(&[rows, 96], 1, dtype), normal(&[160, 96], 2, dtype));
                if let Some(y) = linear(&x, &w).unwrap() {
                    assert_eq!(bits(&y), bits(&matmul(&x, w.t()).unwrap()), "{dtype:?}, {rows} rows");
                }
                let up = normal(&[rows, 96], 3, dtype);
                if let Some(y) = swiglu(&x, &up).unwrap() {
                    let single = x.multiply(sigmoid(&x).unwrap()).unwrap().multiply(&up).unwrap();
                    assert_eq!(bits(&y), bits(&single), "{dtype:?}, {rows} rows");
                }
            }
        }
    }

    #[test]
    fn arrays_that_do_not_fit_are_left_to_mlx() {
        let (x, other) = (normal(&[2, 96], 1, Dtype::Float32), normal(&[2, 95], 2, Dtype::Float32));
        assert!(swiglu(&x, &other).unwrap().is_none() && geglu(&x, &other).unwrap().is_none());
        assert!(linear(&x, &other).unwrap().is_none());
        let ints = Array::from_slice(&[1, 2], &[1, 2]);
        assert!(geglu(&ints, &ints).unwrap().is_none() && linear(&ints, &ints).unwrap().is_none());
    }
}
