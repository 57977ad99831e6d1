//! The gates of feed-forward networks.

use mlx_rs::Array;
use mlx_rs::error::{Exception, Result};
use mlx_rs::ops::{sigmoid, tanh};

use crate::number::number;

/// The gate of a SwiGLU feed-forward network: `silu(gate) * up`, with `silu(x) = x * sigmoid(x)`.
///
/// The gate scales each feature of `up`. `silu` is a smooth ramp: close to the identity for large inputs, close to zero
/// for very negative ones.
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
    let gated = match mlx_quantization::swiglu(gate, up)? {
        Some(gated) => gated,
        None => gate.multiply(sigmoid(gate)?)?.multiply(up)?,
    };
    mlx_tap::step("gated", &gated);
    Ok(gated)
}

/// [`swiglu`] for the output of a fused projection, `[..., 2 F]` to `[..., F]`. The features of the gate come before those
/// of `up`.
///
/// # Errors
///
/// Where the last axis cannot be cut into two halves.
pub fn swiglu_fused(gate_up: &Array) -> Result<Array> {
    let [gate, up]: [Array; 2] = gate_up
        .split_equal(2, -1)?
        .try_into()
        .map_err(|_| Exception::custom("MLX did not cut an axis into halves"))?;
    swiglu(&gate, &up)
}

/// The gate of a GeGLU feed-forward network: `gelu(gate) * up`, with the approximation
/// `gelu(x) = x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x³)))`.
///
/// `gelu(x)` is `x` times the probability that a standard normal number is below `x`. The error of the approximation is
/// at most 5e-4. Configs of models that were trained with the approximation call it `gelu_pytorch_tanh`.
///
/// # Shapes
///
/// `gate` and `up` of the same shape, which is that of the result.
///
/// # Dtypes
///
/// Any float. Each operation rounds to the dtype of `gate`, as in mlx-lm's `nn.gelu_approx`; the last one rounds to the
/// common dtype of the two.
///
/// # Errors
///
/// Where the shapes do not match.
///
/// # Reference
///
/// Shazeer, *GLU Variants Improve Transformer*, equation 6 (<https://arxiv.org/abs/2002.05202>);
/// Hendrycks and Gimpel, *Gaussian Error Linear Units*, section 2 (<https://arxiv.org/abs/1606.08415>).
pub fn geglu(gate: &Array, up: &Array) -> Result<Array> {
    let gated = match mlx_quantization::geglu(gate, up)? {
        Some(gated) => gated,
        None => gelu_tanh(gate)?.multiply(up)?,
    };
    mlx_tap::step("gated", &gated);
    Ok(gated)
}

fn gelu_tanh(x: &Array) -> Result<Array> {
    // In the dtype of x: a float32 scalar would widen half precision.
    let number = |value: f32| number(value, x.dtype());
    let slope = (2.0 / std::f64::consts::PI).sqrt() as f32;
    let cube = x.power(number(3.0)?)?;
    let bent = x.add(cube.multiply(number(0.044_715)?)?)?; // the paper's constant, fitted
    let share = tanh(bent.multiply(number(slope)?)?)?.add(number(1.0)?)?;
    x.multiply(number(0.5)?)?.multiply(share)
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::{abs_diff_eq, assert_abs_diff_eq};
    use mlx_rs::Dtype;
    use mlx_testing::{assert_same_on_cpu, tensor};

    #[test]
    fn swiglu_is_silu_times_up() {
        let gate = [-30.0_f32, -1.5, 0.0, 0.7, 20.0];
        let up = [2.0_f32, -3.0, 5.0, 0.5, -1.0];
        let y = swiglu(&Array::from_slice(&gate, &[5]), &Array::from_slice(&up, &[5])).unwrap();
        for ((&gate, &up), &y) in gate.iter().zip(&up).zip(y.as_slice::<f32>()) {
            let (gate, up) = (f64::from(gate), f64::from(up));
            let expected = gate / (1.0 + (-gate).exp()) * up;
            assert_abs_diff_eq!(f64::from(y), expected, epsilon = 1e-5);
        }
    }

    #[test]
    fn geglu_is_gelu_times_up() {
        // x times the normal distribution's value at x, from tables.
        for (x, gelu) in [(-30.0_f32, 0.0), (-1.0, -0.158_655), (0.0, 0.0), (0.5, 0.345_731), (3.0, 2.995_95)]
        {
            let y = geglu(&Array::from_f32(x), &Array::from_f32(2.0)).unwrap().item_exact::<f32>();
            assert!(abs_diff_eq!(y, 2.0 * gelu, epsilon = 1e-3), "{x}: {y}");
        }
    }

    #[test]
    fn gates_keep_the_dtype() {
        for dtype in [Dtype::Float32, Dtype::Float16, Dtype::Bfloat16] {
            let x = Array::from_slice(&[0.3_f32, -2.0], &[2]).as_dtype(dtype).unwrap();
            assert_eq!(geglu(&x, &x).unwrap().dtype(), dtype);
            assert_eq!(swiglu(&x, &x).unwrap().dtype(), dtype);
        }
    }

    #[test]
    fn shapes_that_do_not_match_are_errors() {
        let [two, three] = [2, 3].map(|size| Array::ones::<f32>(&[size]).unwrap());
        assert!(geglu(&two, &three).is_err());
        assert!(swiglu(&two, &three).is_err());
    }

    #[test]
    fn a_fused_gate_comes_first() {
        let fused = Array::from_slice(&[1.0_f32, 2.0, 3.0, 4.0], &[1, 4]);
        let (gate, up) =
            (Array::from_slice(&[1.0_f32, 2.0], &[1, 2]), Array::from_slice(&[3.0_f32, 4.0], &[1, 2]));
        let (found, expected) = (swiglu_fused(&fused).unwrap(), swiglu(&gate, &up).unwrap());
        assert_same_on_cpu(tensor(&found), tensor(&expected));
        assert!(swiglu_fused(&Array::ones::<f32>(&[1, 3]).unwrap()).is_err());
    }
}
