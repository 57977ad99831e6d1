//! Root mean square normalization.

use mlx_rs::Array;
use mlx_rs::error::{Exception, Result};
use mlx_rs::macros::ModuleParameters;
use mlx_rs::module::{Module, Param};

/// Root mean square normalization as a function: `x / sqrt(mean(x²) + eps) * weight`.
///
/// The mean is taken over the last axis. Unlike layer normalization, this neither subtracts the mean nor adds a bias: the
/// paper finds that the rescaling is what helps.
///
/// # Shapes
///
/// `x` `[..., D]`, `weight` `[D]`; the result has the shape of `x`.
///
/// # Dtypes
///
/// Any float. The mean square is computed in float32 for every dtype of `x`; the result has the common dtype of `x` and
/// `weight`.
///
/// # Errors
///
/// Where the last axis of `x` is not as long as `weight`, or `x` has no axis.
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
    type Error = Exception;

    /// `[..., D]` to `[..., D]`; see [`rms_norm`].
    fn forward(&mut self, x: &Array) -> Result<Array> {
        let y = rms_norm(x, &self.weight, self.eps)?;
        crate::offer(&self.weight, &y);
        Ok(y)
    }

    fn training_mode(&mut self, _mode: bool) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::{abs_diff_eq, assert_abs_diff_eq, relative_eq};
    use mlx_rs::Dtype;
    use mlx_rs::ops::indexing::TryIndexOp;
    use mlx_testing::{assert_same_on_cpu, tensor};
    use proptest::prelude::*;

    /// The formula of the paper in float64, feature by feature.
    fn oracle(x: &[f32], weight: &[f32], eps: f32) -> Vec<f64> {
        let mean_square =
            x.iter().map(|&value| f64::from(value) * f64::from(value)).sum::<f64>() / x.len() as f64;
        let scale = 1.0 / (mean_square + f64::from(eps)).sqrt();
        x.iter().zip(weight).map(|(&value, &weight)| f64::from(value) * scale * f64::from(weight)).collect()
    }

    fn vector(values: &[f32]) -> Array {
        Array::from_slice(values, &[values.len() as i32])
    }

    #[test]
    fn every_row_follows_the_paper() {
        let weight: Vec<f32> = (0..48).map(|i| 1.0 - 0.03 * i as f32).collect();
        let rows: Vec<f32> = (0..3 * 48).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.21).collect();
        let x = Array::from_slice(&rows, &[1, 3, 48]);
        let mut norm = RmsNorm::new(vector(&weight), 1e-3);
        let y = norm.forward(&x).unwrap();
        assert_eq!(y.shape(), [1, 3, 48]);
        for (row, found) in rows.chunks(48).zip(y.as_slice::<f32>().chunks(48)) {
            for (expected, &found) in oracle(row, &weight, 1e-3).into_iter().zip(found) {
                assert_abs_diff_eq!(f64::from(found), expected, epsilon = 1e-5);
            }
        }
    }

    /// Vectors of at least one feature, none so small that its square vanishes in float32.
    fn features() -> impl Strategy<Value = Vec<f32>> {
        prop::collection::vec(prop_oneof![-50.0_f32..-0.01, 0.01_f32..50.0], 1..80)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        #[test]
        fn without_epsilon_the_scale_of_the_input_does_not_matter(x in features(), factor in 0.01_f32..100.0) {
            let weight = Array::ones::<f32>(&[x.len() as i32]).unwrap();
            let y = rms_norm(&vector(&x), &weight, 0.0).unwrap();
            let scaled: Vec<f32> = x.iter().map(|value| value * factor).collect();
            let of_scaled = rms_norm(&vector(&scaled), &weight, 0.0).unwrap();
            let (y, of_scaled) = (tensor(&y), tensor(&of_scaled));
            prop_assert!(relative_eq!(y, of_scaled, epsilon = 1e-6, max_relative = 1e-5), "{y:?}");
        }

        #[test]
        fn without_weight_and_epsilon_the_mean_square_is_one(x in features()) {
            let y = rms_norm(&vector(&x), &Array::ones::<f32>(&[x.len() as i32]).unwrap(), 0.0).unwrap();
            let squares: f64 = y.as_slice::<f32>().iter().map(|&value| f64::from(value).powi(2)).sum();
            prop_assert!(abs_diff_eq!(squares / x.len() as f64, 1.0, epsilon = 1e-5));
        }

        #[test]
        fn rows_do_not_see_each_other(x in features(), other in -1e3_f32..1e3) {
            let length = x.len() as i32;
            let weight = Array::ones::<f32>(&[length]).unwrap();
            let alone = rms_norm(&vector(&x), &weight, 1e-6).unwrap();
            let rows = [x.as_slice(), &vec![other; x.len()]].concat();
            let both = rms_norm(&Array::from_slice(&rows, &[2, length]), &weight, 1e-6).unwrap();
            assert_same_on_cpu(tensor(&both.try_index(0).unwrap()), tensor(&alone));
        }
    }

    #[test]
    fn epsilon_keeps_a_zero_vector_finite() {
        let y = rms_norm(&Array::zeros::<f32>(&[1, 4]).unwrap(), &Array::ones::<f32>(&[4]).unwrap(), 1e-5);
        assert_eq!(y.unwrap().as_slice::<f32>(), [0.0; 4]);
    }

    #[test]
    fn squares_do_not_overflow_in_float16() {
        let x = vector(&[60000.0, -60000.0]).as_dtype(Dtype::Float16).unwrap();
        let y = rms_norm(&x, &Array::ones::<f32>(&[2]).unwrap(), 1e-5).unwrap();
        assert_eq!(y.as_slice::<f32>(), [1.0, -1.0]);
    }

    #[test]
    fn the_result_has_the_common_dtype() {
        let x = Array::ones::<f32>(&[1, 4]).unwrap();
        let weight = Array::ones::<f32>(&[4]).unwrap();
        for (of_x, of_weight, expected) in [
            (Dtype::Bfloat16, Dtype::Bfloat16, Dtype::Bfloat16),
            (Dtype::Float16, Dtype::Float16, Dtype::Float16),
            (Dtype::Bfloat16, Dtype::Float32, Dtype::Float32),
            (Dtype::Float32, Dtype::Float16, Dtype::Float32),
        ] {
            let (x, weight) = (x.as_dtype(of_x).unwrap(), weight.as_dtype(of_weight).unwrap());
            assert_eq!(rms_norm(&x, &weight, 1e-5).unwrap().dtype(), expected, "{of_x:?} {of_weight:?}");
        }
    }

    #[test]
    fn a_weight_of_another_length_is_an_error() {
        let x = Array::ones::<f32>(&[2, 4]).unwrap();
        assert!(rms_norm(&x, &Array::ones::<f32>(&[3]).unwrap(), 1e-5).is_err());
        assert!(rms_norm(&Array::from_f32(1.0), &Array::ones::<f32>(&[1]).unwrap(), 1e-5).is_err());
    }
}
