//! Gemma's RMSNorm, whose parameter is the scale minus 1.

use mlx_rs::Array;
use mlx_rs::error::{Exception, Result};
use mlx_rs::module::{Module, ModuleParamMut, ModuleParamRef, ModuleParameters};

use crate::{RmsNorm, rms_norm};

/// Gemma's root mean square normalization as a function: `x / sqrt(mean(x²) + eps) * (1 + weight)`.
///
/// The parameter is the scale minus 1. A weight of 0 thus leaves a feature at its normalized value, and weight decay pulls
/// the scale to 1 instead of to 0.
///
/// # Shapes
///
/// `x` `[..., D]`, `weight` `[D]`; the result has the shape of `x`.
///
/// # Dtypes
///
/// Any float. The sum `1 + weight` is rounded to the dtype of `weight`, as in mlx-lm. In bfloat16, whose steps above 1
/// are 2^-7, that loses much of a small weight. transformers adds in float32; pass a float32 weight for that. The mean
/// square is computed in float32; the result has the common dtype of `x` and `weight`.
///
/// # Errors
///
/// Where the last axis of `x` is not as long as `weight`, or `x` has no axis.
///
/// # Reference
///
/// `RMSNorm` in mlx-lm 0.32.2's `gemma3_text.py` (<https://github.com/ml-explore/mlx-lm>), which this
/// equals bit for bit. The norm itself: Zhang and Sennrich, equation 4
/// (<https://arxiv.org/abs/1910.07467>).
pub fn offset_rms_norm(x: &Array, weight: &Array, eps: f32) -> Result<Array> {
    rms_norm(x, &one_plus(weight)?, eps)
}

/// `1 + weight` in the dtype of `weight`. A plain `1.0_f32` would make the sum float32, and with it the activations.
fn one_plus(weight: &Array) -> Result<Array> {
    Array::from_f32(1.0).as_dtype(weight.dtype())?.add(weight)
}

/// [`offset_rms_norm`] as a layer, which adds the 1 once and not in every call.
///
/// The parameter `weight` is the checkpoint's value; optimizers change it and files store it. The first
/// [`forward`](Module::forward) after the weight was set computes the sum `1 + weight` and keeps it for later calls.
///
/// # Why the kept sum always matches the weight
///
/// The weight is private and can only be replaced through [`ModuleParameters::parameters_mut`], which discards the sum.
/// Optimizers, `update`, `load_safetensors`, `value_and_grad` and compiled functions with this layer as their state all
/// go through it. The references that it returns borrow the layer, so no call of `forward` can happen before the last
/// write through them.
///
/// Function transformations work for the same reason: they insert their traced weight through `parameters_mut`, the
/// traced call adds the 1 to it, and gradients flow through that sum to `weight`.
///
/// ```
/// use mlx_norms::OffsetRmsNorm;
/// use mlx_rs::module::{Module, ModuleParameters};
/// use mlx_rs::Array;
///
/// # fn main() -> Result<(), mlx_rs::error::Exception> {
/// let mut norm = OffsetRmsNorm::new(Array::from_slice(&[0.0_f32, -0.5], &[2]), 0.0);
/// let x = Array::from_slice(&[2.0_f32, 2.0], &[1, 2]);
/// assert_eq!(norm.forward(&x)?.as_slice::<f32>(), [1.0, 0.5]);
///
/// for weight in norm.parameters_mut().flatten().into_values() {
///     *weight = Array::from_slice(&[1.0_f32, 2.0], &[2]);
/// }
/// assert_eq!(norm.forward(&x)?.as_slice::<f32>(), [2.0, 3.0]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct OffsetRmsNorm {
    /// Holds the parameter under its name. Its own `forward` is not used.
    parameter: RmsNorm,
    /// `1 + weight`, or `None` where the weight may have changed since the last call.
    scale: Option<Array>,
}

impl OffsetRmsNorm {
    /// A layer with the checkpoint's weight `[D]`, which is the scale minus 1.
    pub fn new(weight: Array, eps: f32) -> Self {
        Self { parameter: RmsNorm::new(weight, eps), scale: None }
    }

    /// The checkpoint's weight, `[D]`. To change it, see [`ModuleParameters`].
    pub fn weight(&self) -> &Array {
        &self.parameter.weight
    }

    /// Added to the mean square before the root, so that a zero vector does not divide by zero.
    pub fn eps(&self) -> f32 {
        self.parameter.eps
    }
}

impl Module<&Array> for OffsetRmsNorm {
    type Output = Array;
    type Error = Exception;

    /// `[..., D]` to `[..., D]`; see [`offset_rms_norm`].
    fn forward(&mut self, x: &Array) -> Result<Array> {
        let scale = match self.scale.take() {
            Some(scale) => scale,
            None => one_plus(&self.parameter.weight)?,
        };
        let y = rms_norm(x, self.scale.insert(scale), self.parameter.eps)?;
        crate::offer(&self.parameter.weight, &y);
        Ok(y)
    }

    fn training_mode(&mut self, _mode: bool) {}
}

/// The layer has one parameter, `weight`.
impl ModuleParameters for OffsetRmsNorm {
    fn parameters_mut(&mut self) -> ModuleParamMut<'_> {
        self.scale = None;
        self.parameter.parameters_mut()
    }

    fn num_parameters(&self) -> usize {
        self.parameter.num_parameters()
    }

    fn parameters(&self) -> ModuleParamRef<'_> {
        self.parameter.parameters()
    }

    fn trainable_parameters(&self) -> ModuleParamRef<'_> {
        self.parameter.trainable_parameters()
    }

    fn freeze_parameters(&mut self, recursive: bool) {
        self.parameter.freeze_parameters(recursive);
    }

    fn unfreeze_parameters(&mut self, recursive: bool) {
        self.parameter.unfreeze_parameters(recursive);
    }

    fn all_frozen(&self) -> Option<bool> {
        self.parameter.all_frozen()
    }

    fn any_frozen(&self) -> Option<bool> {
        self.parameter.any_frozen()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::{assert_relative_eq, assert_relative_ne};
    use mlx_rs::Dtype;
    use mlx_rs::macros::ModuleParameters;
    use mlx_rs::module::ModuleParametersExt;
    use mlx_rs::nn::value_and_grad;
    use mlx_rs::optimizers::{Optimizer, Sgd};
    use mlx_rs::transforms::compile::compile_with_state;
    use mlx_testing::tensor;
    use proptest::prelude::*;

    const DIM: i32 = 6;

    fn weight() -> Array {
        Array::from_slice(&[0.5_f32, -0.25, 0.0, 1.5, -1.0, 0.125], &[DIM])
    }

    fn x() -> Array {
        let values: Vec<f32> = (0..3 * DIM).map(|i| (i * 7 % 11) as f32 * 0.4 - 2.0).collect();
        Array::from_slice(&values, &[3, DIM])
    }

    #[track_caller]
    fn assert_same(found: &Array, expected: &Array) {
        assert_eq!(tensor(found), tensor(expected));
    }

    /// The output of a new layer with this layer's weight.
    fn fresh(norm: &OffsetRmsNorm) -> Array {
        OffsetRmsNorm::new(norm.weight().clone(), norm.eps()).forward(&x()).unwrap()
    }

    /// The sum of the outputs, so that each of them has a gradient of 1.
    fn loss(norm: &mut OffsetRmsNorm, x: &Array) -> Result<Array> {
        norm.forward(x)?.sum(None)
    }

    #[test]
    fn the_scale_is_one_plus_the_weight() {
        let mut norm = OffsetRmsNorm::new(weight(), 1e-5);
        let sum = Array::from_slice(&[1.5_f32, 0.75, 1.0, 2.5, 0.0, 1.125], &[DIM]);
        let expected = rms_norm(&x(), &sum, 1e-5).unwrap();
        assert_same(&norm.forward(&x()).unwrap(), &expected);
        assert_same(&norm.forward(&x()).unwrap(), &expected); // with the kept sum
        assert_same(&offset_rms_norm(&x(), &weight(), 1e-5).unwrap(), &expected);
    }

    #[test]
    fn the_sum_keeps_the_dtype_of_the_weight() {
        for dtype in [Dtype::Float32, Dtype::Bfloat16, Dtype::Float16] {
            let small = Array::from_slice(&[0.001_f32, 0.3, -0.7], &[3]).as_dtype(dtype).unwrap();
            let sum = one_plus(&small).unwrap();
            assert_eq!(sum.dtype(), dtype);
            // One rounding of the exact sum.
            let exact = small.as_dtype(Dtype::Float32).unwrap().add(Array::from_f32(1.0)).unwrap();
            assert_same(&sum, &exact.as_dtype(dtype).unwrap());
            let ones = Array::ones::<f32>(&[2, 3]).unwrap().as_dtype(dtype).unwrap();
            assert_eq!(offset_rms_norm(&ones, &small, 1e-5).unwrap().dtype(), dtype);
        }
    }

    #[test]
    fn the_sum_is_made_once() {
        let mut norm = OffsetRmsNorm::new(weight(), 1e-5);
        norm.forward(&x()).unwrap();
        // A wrong sum shows whether the kept one is used.
        norm.scale = Some(weight());
        assert_same(&norm.forward(&x()).unwrap(), &rms_norm(&x(), &weight(), 1e-5).unwrap());
    }

    #[test]
    fn gradients_reach_the_weight() {
        let mut norm = OffsetRmsNorm::new(weight(), 1e-5);
        norm.forward(&x()).unwrap(); // the layer keeps a sum before the tracing begins
        let (_, gradients) = value_and_grad(loss)(&mut norm, &x()).unwrap();

        // d(sum of y)/d(weight_j) is the sum of x_j / r over the rows.
        let ones = Array::ones::<f32>(&[DIM]).unwrap();
        let expected = rms_norm(&x(), &ones, 1e-5).unwrap().sum_axis(0, None).unwrap();
        assert_eq!(gradients.len(), 1);
        let found = tensor(&gradients["weight"]);
        assert_relative_eq!(found, tensor(&expected), epsilon = 1e-6, max_relative = 1e-5);

        // The weight and the outputs are unchanged.
        assert_same(norm.weight(), &weight());
        assert_same(&norm.forward(&x()).unwrap(), &fresh(&norm));
    }

    #[test]
    fn forward_follows_the_optimizer() {
        let mut norm = OffsetRmsNorm::new(weight(), 1e-5);
        let mut optimizer = Sgd::new(0.1);
        let mut step = value_and_grad(loss);
        let mut expected = weight();
        for _ in 0..3 {
            let (_, gradients) = step(&mut norm, &x()).unwrap();
            let before = norm.forward(&x()).unwrap(); // keeps the sum of the old weight
            optimizer.update(&mut norm, &gradients).unwrap();
            norm.eval().unwrap();
            expected =
                expected.subtract(gradients["weight"].multiply(Array::from_f32(0.1)).unwrap()).unwrap();
            assert_relative_eq!(
                tensor(norm.weight()),
                tensor(&expected),
                epsilon = 1e-6,
                max_relative = 1e-6
            );
            let after = norm.forward(&x()).unwrap();
            assert_same(&after, &fresh(&norm));
            assert_relative_ne!(tensor(&after), tensor(&before), epsilon = 2e-6, max_relative = 2e-6);
        }
    }

    #[test]
    fn a_frozen_weight_has_no_gradient_and_the_input_still_has_one() {
        let mut norm = OffsetRmsNorm::new(weight(), 1e-5);
        norm.freeze_parameters(true);
        assert_eq!((norm.all_frozen(), norm.any_frozen()), (Some(true), Some(true)));
        assert!(norm.trainable_parameters().flatten().is_empty());
        let mut of_input = norm.clone();
        let mut gradient = mlx_rs::transforms::grad(move |x: &Array| of_input.forward(x)?.sum(None));
        let found = gradient(&x()).unwrap();
        assert!(found.as_slice::<f32>().iter().all(|value| value.is_finite()));
        norm.unfreeze_parameters(true);
        assert_eq!((norm.all_frozen(), norm.any_frozen()), (Some(false), Some(false)));
    }

    #[test]
    fn a_file_holds_the_weight_and_not_the_sum() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("norm.safetensors");
        let mut norm = OffsetRmsNorm::new(weight(), 1e-5);
        norm.forward(&x()).unwrap();
        norm.save_safetensors(&file).unwrap();
        let saved = Array::load_safetensors(&file).unwrap();
        assert_eq!(saved.len(), 1);
        assert_same(&saved["weight"], &weight());

        let mut other = OffsetRmsNorm::new(Array::zeros::<f32>(&[DIM]).unwrap(), 1e-5);
        other.forward(&x()).unwrap();
        other.load_safetensors(&file).unwrap();
        assert_same(&other.forward(&x()).unwrap(), &norm.forward(&x()).unwrap());
    }

    #[test]
    fn a_compiled_function_takes_the_weight_as_its_state() {
        let mut norm = OffsetRmsNorm::new(weight(), 1e-5);
        norm.forward(&x()).unwrap();
        let forward = |norm: &mut OffsetRmsNorm, x: &Array| norm.forward(x);
        let mut compiled = compile_with_state(forward, None);
        for values in [weight(), weight().negative().unwrap(), Array::ones::<f32>(&[DIM]).unwrap()] {
            for parameter in norm.parameters_mut().flatten().into_values() {
                *parameter = values.clone();
            }
            let found = compiled(&mut norm, &x()).unwrap();
            let (found, expected) = (tensor(&found), tensor(&fresh(&norm)));
            assert_relative_eq!(found, expected, epsilon = 1e-6, max_relative = 1e-6);
            // Nothing of the compilation stays behind.
            assert_same(norm.weight(), &values);
            assert_same(&norm.forward(&x()).unwrap(), &fresh(&norm));
        }
    }

    #[test]
    fn inside_another_module_it_is_one_parameter() {
        #[derive(Debug, Clone, ModuleParameters)]
        struct Block {
            #[param]
            norms: Vec<OffsetRmsNorm>,
        }
        let norm = OffsetRmsNorm::new(weight(), 1e-5);
        let mut block = Block { norms: vec![norm.clone(), norm] };
        block.norms[1].forward(&x()).unwrap();
        assert_eq!(block.num_parameters(), 2);
        let zeros = Array::zeros::<f32>(&[DIM]).unwrap();
        block.update_flattened([("norms.1.weight".into(), zeros)].into());
        assert_same(block.norms[0].weight(), &weight());
        assert_same(&block.norms[1].forward(&x()).unwrap(), &fresh(&block.norms[1]));
    }

    #[test]
    fn a_weight_of_another_length_is_an_error_each_time() {
        let mut norm = OffsetRmsNorm::new(Array::ones::<f32>(&[DIM + 1]).unwrap(), 1e-5);
        assert!(norm.forward(&x()).is_err());
        assert!(norm.forward(&x()).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        /// Any sequence of changes leaves a layer whose output belongs to its present weight.
        #[test]
        fn the_kept_sum_is_never_stale(steps in prop::collection::vec((0_u8..4, -2.0_f32..2.0), 1..8)) {
            let mut norm = OffsetRmsNorm::new(weight(), 1e-5);
            for (step, value) in steps {
                let new = Array::full::<f32>(&[DIM], Array::from_f32(value)).unwrap();
                match step {
                    0 => norm.update_flattened([("weight".into(), new)].into()),
                    1 => norm = norm.clone(),
                    2 => drop(value_and_grad(loss)(&mut norm, &x()).unwrap()),
                    _ => for weight in norm.parameters_mut().flatten().into_values() {
                        *weight = new.clone();
                    },
                }
                assert_same(&norm.forward(&x()).unwrap(), &fresh(&norm));
            }
        }
    }
}
