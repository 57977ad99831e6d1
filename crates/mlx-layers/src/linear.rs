//! The linear layer.

use std::rc::Rc;

use mlx_quantization::{QuantizedArray, QuantizedView, dequantize, quantize, quantized_matmul};
use mlx_rs::Array;
use mlx_rs::error::{Exception, Result};
use mlx_rs::module::{Module, ModuleParamMut, ModuleParamRef, ModuleParameters, Param, Parameter};
use mlx_rs::ops::{addmm, matmul};
use mlx_rs::transforms::eval;

use crate::adapter::{Adapter, first_magnitudes};
use crate::{AdaptedLayer, Form, Magnitudes, Parameters, Quantization};

/// `y = x Wᵀ`, or `y = x Wᵀ + b`, with the weight in full precision or quantized.
///
/// The parameters have the names of a checkpoint: `weight`, `scales` and `biases` where it is
/// quantized, and `bias` where the layer has one.
///
/// Where the source has an [adapter](crate::AdapterParameters) for the layer, the layer also has the adapter's parameters
/// `lora_a`, `lora_b` and, for DoRA, `m`, and `forward` applies the adapter. The adapter is a child of the layer:
/// `freeze_parameters(false)` freezes the layer's own parameters and leaves the adapter trainable,
/// `freeze_parameters(true)` freezes both.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[O, I]`; quantized `[O, I * bits / 32]`, packed into uint32.
    pub weight: Param<Array>,
    /// `[O, I / group_size]`, one for each group of a row; only where quantized. For blocks of a GGUF file the bytes of
    /// their scales.
    pub scales: Param<Option<Array>>,
    /// `[O, I / group_size]`, the value of the integer 0 in each group; only in the affine mode.
    pub biases: Param<Option<Array>>,
    /// `[O]`, added to the outputs; only in a layer that has a bias.
    pub bias: Param<Option<Array>>,
    quantization: Option<Quantization>,
    adapter: Option<Adapter>,
}

impl Linear {
    /// A layer without bias from `inputs` to `outputs` features, with parameters from the source.
    pub fn new(parameters: Parameters<'_>, inputs: i32, outputs: i32) -> Self {
        Self::with_bias(parameters, inputs, outputs, false)
    }

    /// [`new`](Self::new) for a layer that may have a bias.
    pub fn with_bias(parameters: Parameters<'_>, inputs: i32, outputs: i32, has_bias: bool) -> Self {
        Self::build(parameters, [outputs, inputs], has_bias, |_| AdaptedLayer::Linear { inputs, outputs })
    }

    /// A layer with a weight of this shape. `kind` tells, given the quantization, as which kind of layer its adapter sees
    /// it.
    pub(crate) fn build(
        mut parameters: Parameters<'_>,
        shape: [i32; 2],
        has_bias: bool,
        kind: impl FnOnce(Option<Quantization>) -> AdaptedLayer,
    ) -> Self {
        let [outputs, inputs] = shape;
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
        let mut layer = Self {
            weight: Param::new(weight),
            scales: Param::new(scales),
            biases: Param::new(biases),
            bias: Param::new(has_bias.then(|| parameters.take("bias", &[outputs]))),
            quantization,
            adapter: None,
        };
        if let Err(problem) = layer.adapt(&mut parameters, kind(quantization)) {
            parameters.refuse(problem);
        }
        layer
    }

    /// Takes the layer's adapter, if it has one, and brings the layer into the form that the source asks for.
    ///
    /// Everything that is computed from a weight is evaluated here, so that the intermediate results of one layer are
    /// freed before the next layer is built. Otherwise the first use of a model would need twice its memory.
    fn adapt(&mut self, parameters: &mut Parameters<'_>, kind: AdaptedLayer) -> Result<()> {
        if let Some(found) = parameters.adapter(kind) {
            let m = match found.magnitudes {
                Magnitudes::None => None,
                Magnitudes::Given(m) => Some(m),
                Magnitudes::OfTheWeight => {
                    let m = first_magnitudes(&self.whole_weight()?, kind)?;
                    m.eval()?;
                    Some(m)
                }
            };
            self.adapter = Some(Adapter::new(found.lora_a, found.lora_b, m, found.scale));
        }
        match (parameters.form(), self.adapter.take()) {
            (Form::Adapted, adapter) => self.adapter = adapter,
            (Form::Fused, None) => {}
            (Form::FusedDequantized, None) => self.set_weight(self.whole_weight()?, None)?,
            (form, Some(adapter)) => {
                let whole = self.whole_weight()?;
                let fused = match kind {
                    AdaptedLayer::Linear { .. } => adapter.fused_linear(&whole)?,
                    AdaptedLayer::Embedding { .. } => adapter.fused_table(&whole)?,
                };
                self.set_weight(fused, self.quantization.filter(|_| form == Form::Fused))?;
            }
        }
        Ok(())
    }

    /// The weight in full precision.
    pub(crate) fn whole_weight(&self) -> Result<Array> {
        match self.quantized() {
            Some(weight) => dequantize(weight),
            None => Ok((*self.weight).clone()),
        }
    }

    fn set_weight(&mut self, whole: Array, quantization: Option<Quantization>) -> Result<()> {
        let (weight, scales, biases) = match quantization {
            None => (whole, None, None),
            Some(quantization) => {
                let QuantizedArray { packed, scales, biases, .. } = quantize(&whole, quantization)?;
                (packed, Some(scales), biases)
            }
        };
        self.quantization = quantization;
        *self.weight = weight;
        *self.scales = scales;
        *self.biases = biases;
        let parts = [Some(&*self.weight), self.scales.as_ref().as_ref(), self.biases.as_ref().as_ref()];
        eval(parts.into_iter().flatten())
    }

    /// The weight where it is quantized.
    fn quantized(&self) -> Option<QuantizedView<'_>> {
        let (quantization, scales) = (self.quantization?, self.scales.as_ref().as_ref()?);
        Some(QuantizedView {
            packed: &self.weight,
            scales,
            biases: self.biases.as_ref().as_ref(),
            quantization,
        })
    }

    pub(crate) fn adapter(&self) -> Option<&Adapter> {
        self.adapter.as_ref()
    }

    /// The output of the layer without its adapter.
    pub(crate) fn unadapted(&self, x: &Array) -> Result<Array> {
        let bias = self.bias.as_ref().as_ref();
        match self.quantized() {
            Some(weight) => {
                let y = quantized_matmul(x, weight, true)?;
                match bias {
                    Some(bias) => y.add(bias),
                    None => Ok(y),
                }
            }
            // One operation rounds once. A product that is rounded before the bias is added has other bits.
            None => match bias {
                Some(bias) => addmm(bias, x, self.weight.t(), None, None),
                None => match mlx_quantization::linear(x, &self.weight)? {
                    Some(y) => Ok(y),
                    None => matmul(x, self.weight.t()),
                },
            },
        }
    }

    /// The output of the layer with this adapter.
    fn adapted(&self, adapter: &Adapter, x: &Array) -> Result<Array> {
        let Some(m) = adapter.magnitudes() else { return adapter.add_to_linear(&self.unadapted(x)?, x) };
        let y = adapter.magnified_linear(x, &self.whole_weight()?, m)?;
        match self.bias.as_ref() {
            Some(bias) => y.add(bias),
            None => Ok(y),
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

    /// `[..., I]` to `[..., O]`. A last axis that is not `I` long is an error.
    ///
    /// The output has the common dtype of `x` and the weight. With a quantized weight it has the common dtype of `x` and
    /// the scales, or that of `x` in the modes of small floats.
    fn forward(&mut self, x: &Array) -> Result<Array> {
        let y = match &self.adapter {
            None => self.unadapted(x),
            Some(adapter) => self.adapted(adapter, x),
        }?;
        mlx_tap::layer(&self.weight, &y);
        Ok(y)
    }

    fn training_mode(&mut self, _mode: bool) {}
}

impl Linear {
    /// The layer's own parameters, without those of an adapter.
    fn own(&self) -> [(&'static str, &dyn Parameter); 4] {
        [("weight", &self.weight), ("scales", &self.scales), ("biases", &self.biases), ("bias", &self.bias)]
    }

    fn own_mut(&mut self) -> [&mut dyn Parameter; 4] {
        [&mut self.weight, &mut self.scales, &mut self.biases, &mut self.bias]
    }
}

/// The parameters of the adapter belong to the layer directly, as in mlx-lm's files: `lora_a`, not `adapter.lora_a`.
impl ModuleParameters for Linear {
    fn num_parameters(&self) -> usize {
        let own: usize = self.own().iter().map(|(_, parameter)| parameter.count()).sum();
        own + self.adapter.as_ref().map_or(0, ModuleParameters::num_parameters)
    }

    fn parameters(&self) -> ModuleParamRef<'_> {
        let adapter = self.adapter.as_ref().map(ModuleParameters::parameters);
        let mut all = adapter.unwrap_or_default();
        for (name, parameter) in self.own() {
            all.insert(name.into(), parameter.as_nested_value());
        }
        all
    }

    fn parameters_mut(&mut self) -> ModuleParamMut<'_> {
        let Self { weight, scales, biases, bias, adapter, .. } = self;
        let adapter = adapter.as_mut().map(ModuleParameters::parameters_mut);
        let mut all = adapter.unwrap_or_default();
        let own: [(Rc<str>, &mut dyn Parameter); 4] = [
            ("weight".into(), weight),
            ("scales".into(), scales),
            ("biases".into(), biases),
            ("bias".into(), bias),
        ];
        for (name, parameter) in own {
            all.insert(name, parameter.as_nested_value_mut());
        }
        all
    }

    fn trainable_parameters(&self) -> ModuleParamRef<'_> {
        let adapter = self.adapter.as_ref().map(ModuleParameters::trainable_parameters);
        let mut all = adapter.unwrap_or_default();
        for (name, parameter) in self.own() {
            if let Some(value) = parameter.as_trainable_nested_value() {
                all.insert(name.into(), value);
            }
        }
        all
    }

    fn freeze_parameters(&mut self, recursive: bool) {
        self.own_mut().into_iter().for_each(|parameter| parameter.freeze(recursive));
        if let Some(adapter) = self.adapter.as_mut().filter(|_| recursive) {
            adapter.freeze_parameters(recursive);
        }
    }

    fn unfreeze_parameters(&mut self, recursive: bool) {
        self.own_mut().into_iter().for_each(|parameter| parameter.unfreeze(recursive));
        if let Some(adapter) = self.adapter.as_mut().filter(|_| recursive) {
            adapter.unfreeze_parameters(recursive);
        }
    }

    fn all_frozen(&self) -> Option<bool> {
        let own = self.own().iter().all(|(_, parameter)| parameter.is_frozen() == Some(true));
        Some(own && self.adapter.as_ref().and_then(ModuleParameters::all_frozen).unwrap_or(true))
    }

    fn any_frozen(&self) -> Option<bool> {
        let own = self.own().iter().any(|(_, parameter)| parameter.is_frozen() == Some(true));
        Some(own || self.adapter.as_ref().and_then(ModuleParameters::any_frozen).unwrap_or(false))
    }
}
