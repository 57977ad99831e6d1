//! The linear layer.

use mlx_quantization::{QuantizedView, quantized_matmul};
use mlx_rs::Array;
use mlx_rs::error::{Exception, Result};
use mlx_rs::macros::ModuleParameters;
use mlx_rs::module::{Module, Param};
use mlx_rs::ops::{addmm, matmul};

use crate::{Parameters, Quantization};

/// `y = x Wᵀ`, or `y = x Wᵀ + b`, with the weight in full precision or quantized.
///
/// The parameters have the names of a checkpoint: `weight`, `scales` and `biases` where it is
/// quantized, and `bias` where the layer has one.
#[derive(Debug, Clone, ModuleParameters)]
pub struct Linear {
    /// `[O, I]`; quantized `[O, I * bits / 32]`, packed into uint32.
    #[param]
    pub weight: Param<Array>,
    /// `[O, I / group_size]`, one for each group of a row; only where quantized.
    #[param]
    pub scales: Param<Option<Array>>,
    /// `[O, I / group_size]`, what a group's zero stands for; only in the affine mode.
    #[param]
    pub biases: Param<Option<Array>>,
    /// `[O]`, what is added to every output; only in a layer that has one.
    #[param]
    pub bias: Param<Option<Array>>,
    quantization: Option<Quantization>,
}

impl Linear {
    /// A layer without bias from `inputs` to `outputs` features, its parameters taken from the source.
    pub fn new(parameters: Parameters<'_>, inputs: i32, outputs: i32) -> Self {
        Self::with_bias(parameters, inputs, outputs, false)
    }

    /// The same for a layer that may have a bias.
    pub fn with_bias(mut parameters: Parameters<'_>, inputs: i32, outputs: i32, has_bias: bool) -> Self {
        let shape = [outputs, inputs];
        let quantization = parameters.quantization(inputs);
        let (weight, scales, biases) = match quantization {
            None => (parameters.take("weight", &shape), None, None),
            Some(quantization) => {
                let groups = quantization.groups_shape(shape);
                let weight = parameters.take("weight", &quantization.packed_shape(shape));
                let scales = parameters.take("scales", &groups);
                let biases = quantization.has_biases().then(|| parameters.take("biases", &groups));
                (weight, Some(scales), biases)
            }
        };
        Self {
            weight: Param::new(weight),
            scales: Param::new(scales),
            biases: Param::new(biases),
            bias: Param::new(has_bias.then(|| parameters.take("bias", &[outputs]))),
            quantization,
        }
    }

    /// How the weight is quantized, if it is.
    pub fn quantization(&self) -> Option<Quantization> {
        self.quantization
    }
}

impl Module<&Array> for Linear {
    type Output = Array;
    type Error = Exception;

    /// `[..., I]` to `[..., O]`, in the common dtype of `x` and the weight (or, quantized, of `x` and the
    /// scales; of `x` alone in the modes of small floats). An error where the last axis is not `I` long.
    fn forward(&mut self, x: &Array) -> Result<Array> {
        let bias = self.bias.as_ref().as_ref();
        match (self.quantization, self.scales.as_ref()) {
            (Some(quantization), Some(scales)) => {
                let biases = self.biases.as_ref().as_ref();
                let weight = QuantizedView { packed: &self.weight, scales, biases, quantization };
                let y = quantized_matmul(x, weight, true)?;
                match bias {
                    Some(bias) => y.add(bias),
                    None => Ok(y),
                }
            }
            // One operation, which rounds once: a product that is rounded before the sum has other bits.
            _ => match bias {
                Some(bias) => addmm(bias, x, self.weight.t(), None, None),
                None => matmul(x, self.weight.t()),
            },
        }
    }

    fn training_mode(&mut self, _mode: bool) {}
}
