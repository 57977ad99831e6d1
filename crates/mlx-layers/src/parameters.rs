//! The source of the weights of layers.

use mlx_quantization::Quantization;
use mlx_rs::Array;
use mlx_rs::error::Exception;

use crate::{AdaptedLayer, AdapterParameters, Form};

/// A source of weights: a checkpoint, or a random generator.
///
/// A model takes its weights from a source layer by layer. A source never stops the construction: for a weight that is
/// missing or wrong it returns a placeholder, and it reports all problems together at the end.
pub trait ParameterSource {
    /// The parameter with this full key, such as `model.norm.weight`, in this shape.
    fn parameter(&mut self, key: &str, shape: &[i32]) -> Array;

    /// How the weight of the layer with this full key, such as `model.layers.0.mlp.up_proj`, is
    /// quantized; `None` for full precision. `columns` is the length of its rows.
    fn quantization(&mut self, layer: &str, columns: i32) -> Option<Quantization>;

    /// The adapter of the layer with this full key, if it has one.
    fn adapter(&mut self, _layer: &str, _kind: AdaptedLayer) -> Option<AdapterParameters> {
        None
    }

    /// The settings of the adapters that are not in their arrays: the scales, and which layers have an adapter. Adapters
    /// with the same arrays and another effect have other settings. `None` without adapters.
    fn adapter_settings(&self) -> Option<String> {
        None
    }

    /// The form in which adapted and quantized layers are built.
    fn form(&self) -> Form {
        Form::Adapted
    }

    /// Notes why the layer with this full key could not be brought into the [form](Self::form) that was asked for. This is
    /// called only for sources that have adapters or another form than [`Form::Adapted`].
    fn refuse(&mut self, _layer: &str, _problem: Exception) {}
}

/// A view of a [`ParameterSource`] below one key.
///
/// ```
/// use mlx_layers::{Linear, ParameterSource, Parameters};
/// # use mlx_layers::Quantization;
/// # use mlx_rs::Array;
/// # struct Zeros;
/// # impl ParameterSource for Zeros {
/// #     fn parameter(&mut self, key: &str, shape: &[i32]) -> Array {
/// #         assert_eq!(key, "layers.3.up_proj.weight");
/// #         Array::zeros::<f32>(shape).unwrap()
/// #     }
/// #     fn quantization(&mut self, _: &str, _: i32) -> Option<Quantization> { None }
/// # }
/// # let mut source = Zeros;
/// let mut parameters = Parameters::root(&mut source);
/// let mut layer = parameters.index("layers", 3);
/// let up_proj = Linear::new(layer.at("up_proj"), 64, 256); // takes layers.3.up_proj.weight
/// ```
pub struct Parameters<'a> {
    source: &'a mut dyn ParameterSource,
    /// Empty, or ends with a dot.
    prefix: String,
}

impl<'a> Parameters<'a> {
    /// The view of all parameters.
    pub fn root(source: &'a mut dyn ParameterSource) -> Self {
        Self { source, prefix: String::new() }
    }

    /// The view below `name`.
    pub fn at(&mut self, name: &str) -> Parameters<'_> {
        let prefix = format!("{}{name}.", self.prefix);
        Parameters { source: self.source, prefix }
    }

    /// The view below element `index` of the list `name`.
    pub fn index(&mut self, name: &str, index: usize) -> Parameters<'_> {
        self.at(&format!("{name}.{index}"))
    }

    /// See [`ParameterSource::adapter_settings`].
    pub fn adapter_settings(&self) -> Option<String> {
        self.source.adapter_settings()
    }

    /// The parameter `name` in this shape.
    pub fn take(&mut self, name: &str, shape: &[i32]) -> Array {
        let key = format!("{}{name}", self.prefix);
        self.source.parameter(&key, shape)
    }

    /// How the layer of this view is quantized; `columns` is the length of its weight's rows.
    pub(crate) fn quantization(&mut self, columns: i32) -> Option<Quantization> {
        self.source.quantization(layer(&self.prefix), columns)
    }

    /// The adapter of the layer of this view.
    pub(crate) fn adapter(&mut self, kind: AdaptedLayer) -> Option<AdapterParameters> {
        self.source.adapter(layer(&self.prefix), kind)
    }

    /// The form in which the layer is built.
    pub(crate) fn form(&self) -> Form {
        self.source.form()
    }

    /// Notes why the layer of this view could not be brought into that form.
    pub(crate) fn refuse(&mut self, problem: Exception) {
        self.source.refuse(layer(&self.prefix), problem);
    }
}

/// The key of the layer that owns this prefix.
fn layer(prefix: &str) -> &str {
    prefix.strip_suffix('.').unwrap_or(prefix)
}
