//! Normalization layers for language models.
//!
//! API: usable without the rest of this workspace. [`RmsNorm`] keeps the activations of a deep
//! network at a constant scale, so that no layer's input depends on how large the sums of the
//! layers before it have become.
//!
//! ```
//! use mlx_norms::RmsNorm;
//! use mlx_rs::{Array, module::Module};
//!
//! # fn main() -> Result<(), mlx_rs::error::Exception> {
//! let mut norm = RmsNorm::new(Array::from_slice(&[1.0_f32, 0.5], &[2]), 1e-5);
//! let x = Array::from_slice(&[3.0_f32, 4.0], &[1, 2]); // mean square 12.5
//! let y = norm.forward(&x)?;
//! assert!((y.as_slice::<f32>()[0] - 3.0 / 12.5_f32.sqrt()).abs() < 1e-5);
//! assert!((y.as_slice::<f32>()[1] - 0.5 * 4.0 / 12.5_f32.sqrt()).abs() < 1e-5);
//! # Ok(())
//! # }
//! ```

use mlx_rs::Array;
use mlx_rs::error::Result;
use mlx_rs::macros::ModuleParameters;
use mlx_rs::module::{Module, Param};

/// Root mean square normalization as a function: `x / sqrt(mean(x²) + eps) * weight`.
///
/// The mean goes over the last axis. Unlike layer normalization it neither subtracts the mean nor
/// adds a bias: the paper finds that the rescaling is what helps.
///
/// # Shapes
///
/// `x` `[..., D]`, `weight` `[D]`; the result has the shape of `x`.
///
/// # Dtypes
///
/// Any float. The statistics are computed in float32 whatever the dtype of `x`; the result has
/// the common dtype of `x` and `weight`.
///
/// # Errors
///
/// Where the last axis of `x` is not as long as `weight`.
///
/// # Reference
///
/// Zhang and Sennrich, *Root Mean Square Layer Normalization*, equation 4
/// (<https://arxiv.org/abs/1910.07467>).
pub fn rms_norm(x: &Array, weight: &Array, eps: f32) -> Result<Array> {
    mlx_rs::fast::rms_norm(x, Some(weight), eps)
}

/// [`rms_norm`] as a layer with a learned weight.
#[derive(Debug, Clone, ModuleParameters)]
pub struct RmsNorm {
    /// The learned scale of each feature, `[D]`.
    #[param]
    pub weight: Param<Array>,
    /// Added to the mean square before the root, so that a zero vector does not divide by zero.
    pub eps: f32,
}

impl RmsNorm {
    /// A layer with the weight `[D]`.
    pub fn new(weight: Array, eps: f32) -> Self {
        Self { weight: Param::new(weight), eps }
    }
}

impl Module<&Array> for RmsNorm {
    type Output = Array;
    type Error = mlx_rs::error::Exception;

    /// `[..., D]` to `[..., D]`; see [`rms_norm`].
    fn forward(&mut self, x: &Array) -> Result<Array> {
        rms_norm(x, &self.weight, self.eps)
    }

    fn training_mode(&mut self, _mode: bool) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlx_rs::Dtype;

    /// The formula of the paper in float64, feature by feature.
    fn oracle(x: &[f32], weight: &[f32], eps: f32) -> Vec<f64> {
        let mean_square =
            x.iter().map(|&value| f64::from(value) * f64::from(value)).sum::<f64>() / x.len() as f64;
        let scale = 1.0 / (mean_square + f64::from(eps)).sqrt();
        x.iter().zip(weight).map(|(&value, &weight)| f64::from(value) * scale * f64::from(weight)).collect()
    }

    #[test]
    fn every_row_follows_the_paper() {
        let weight: Vec<f32> = (0..48).map(|i| 1.0 - 0.03 * i as f32).collect();
        let rows: Vec<f32> = (0..3 * 48).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.21).collect();
        let x = Array::from_slice(&rows, &[1, 3, 48]);
        let mut norm = RmsNorm::new(Array::from_slice(&weight, &[48]), 1e-3);
        let y = norm.forward(&x).unwrap();
        assert_eq!(y.shape(), [1, 3, 48]);
        for (row, found) in rows.chunks(48).zip(y.as_slice::<f32>().chunks(48)) {
            for (expected, &found) in oracle(row, &weight, 1e-3).into_iter().zip(found) {
                assert!((expected - f64::from(found)).abs() < 1e-5, "{expected} {found}");
            }
        }
    }

    #[test]
    fn epsilon_keeps_a_zero_vector_finite() {
        let y = rms_norm(&Array::zeros::<f32>(&[1, 4]).unwrap(), &Array::ones::<f32>(&[4]).unwrap(), 1e-5);
        assert_eq!(y.unwrap().as_slice::<f32>(), [0.0; 4]);
    }

    #[test]
    fn half_precision_stays_half() {
        let x = Array::ones::<f32>(&[1, 4]).unwrap().as_dtype(Dtype::Bfloat16).unwrap();
        assert_eq!(rms_norm(&x, &x.reshape(&[4]).unwrap(), 1e-5).unwrap().dtype(), Dtype::Bfloat16);
    }

    #[test]
    fn a_weight_of_another_length_is_an_error() {
        let x = Array::ones::<f32>(&[2, 4]).unwrap();
        assert!(rms_norm(&x, &Array::ones::<f32>(&[3]).unwrap(), 1e-5).is_err());
    }
}
