//! The layers that architectures are composed of.
//!
//! API for model authors. [`Linear`] and [`Embedding`] hold full-precision or quantized weights
//! behind one `forward`, so that a model never asks which it has. [`Parameters`] is where a layer
//! gets its weights while a model is built: from a checkpoint, or from a random generator; the
//! layers do not know. [`swiglu`], [`swiglu_fused`] and the functions of [`heads`] are the pieces between the layers.

mod embedding;
pub mod heads;
mod linear;
mod parameters;

use mlx_rs::Array;
use mlx_rs::error::{Exception, Result};

pub use embedding::Embedding;
pub use heads::AttentionInput;
pub use linear::Linear;
pub use parameters::{ParameterSource, Parameters, Quantization};

/// The gate of a SwiGLU feed-forward network: `silu(gate) * up`, with `silu(x) = x * sigmoid(x)`.
///
/// The gate decides, feature by feature, how much of `up` passes. `silu` is a smooth ramp: near
/// the identity for large inputs, near zero for very negative ones.
///
/// # Shapes
///
/// `gate` and `up` of the same shape, which is that of the result.
///
/// # Dtypes
///
/// Any float; each operation rounds to the common dtype of the two.
///
/// # Errors
///
/// Where the shapes do not match.
///
/// # Reference
///
/// Shazeer, *GLU Variants Improve Transformer*, equation 6 (<https://arxiv.org/abs/2002.05202>).
pub fn swiglu(gate: &Array, up: &Array) -> Result<Array> {
    gate.multiply(mlx_rs::ops::sigmoid(gate)?)?.multiply(up)
}

/// [`swiglu`] of a fused projection, which has the features of the gate before those of `up`: `[..., 2 F]` to
/// `[..., F]`.
///
/// # Errors
///
/// Where the last axis cannot be halved.
pub fn swiglu_fused(gate_up: &Array) -> Result<Array> {
    let [gate, up]: [Array; 2] = gate_up
        .split_equal(2, -1)?
        .try_into()
        .map_err(|_| Exception::custom("MLX did not cut an axis into halves"))?;
    swiglu(&gate, &up)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swiglu_is_silu_times_up() {
        let gate = [-30.0_f32, -1.5, 0.0, 0.7, 20.0];
        let up = [2.0_f32, -3.0, 5.0, 0.5, -1.0];
        let y = swiglu(&Array::from_slice(&gate, &[5]), &Array::from_slice(&up, &[5])).unwrap();
        for ((&gate, &up), &y) in gate.iter().zip(&up).zip(y.as_slice::<f32>()) {
            let (gate, up) = (f64::from(gate), f64::from(up));
            let expected = gate / (1.0 + (-gate).exp()) * up;
            assert!((expected - f64::from(y)).abs() < 1e-5, "{expected} {y}");
        }
    }

    #[test]
    fn a_fused_gate_comes_first() {
        let fused = Array::from_slice(&[1.0_f32, 2.0, 3.0, 4.0], &[1, 4]);
        let (gate, up) =
            (Array::from_slice(&[1.0_f32, 2.0], &[1, 2]), Array::from_slice(&[3.0_f32, 4.0], &[1, 2]));
        let (found, expected) = (swiglu_fused(&fused).unwrap(), swiglu(&gate, &up).unwrap());
        assert_eq!(found.as_slice::<f32>(), expected.as_slice::<f32>());
        assert!(swiglu_fused(&Array::ones::<f32>(&[1, 3]).unwrap()).is_err());
    }
}
