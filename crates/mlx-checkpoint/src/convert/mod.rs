//! Writing a model in another form: quantized, in full precision, or in another dtype.

pub(crate) mod error;
mod gguf;
mod layer;
pub(crate) mod options;
mod plan;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::ControlFlow;
use std::path::Path;

use mlx_layers::Quantization;
use mlx_quantization::Mode;
use mlx_rs::Array;
use mlx_rs::error::Exception;
use serde_json::{Map, Value};

pub use error::ConvertError;
pub use gguf::{GgufOptions, WrittenGguf};
pub use options::{ConvertOptions, FloatDtype, LayerChoice, QuantizeOptions, Recipe, Weights};

use crate::checkpoint::Checkpoint;
use crate::error::CheckpointError;
use crate::head::is_head;
use crate::names::{Renaming, TensorNames};
use crate::text::of_mlx;
use crate::write::{Contents, Progress, is_free, parameter_count};
use layer::Layer;
use plan::{plan, section};

/// What [`Checkpoint::convert`] has written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Converted {
    /// How layers are quantized, each with the number of such layers, the largest number first.
    pub quantized: Vec<(Quantization, usize)>,
    /// The layers in full precision, by their keys.
    pub full_precision: Vec<String>,
    /// Number of parameters of the model.
    pub parameters: usize,
    /// Bytes of all tensors.
    pub bytes: usize,
    /// The names of the tensor files.
    pub files: Vec<String>,
}

impl Converted {
    /// Bits for each parameter on average.
    pub fn bits_per_weight(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.parameters.max(1) as f64
    }
}

impl fmt::Display for Converted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (quantization, layers) in &self.quantized {
            writeln!(f, "{layers} layers {quantization}")?;
        }
        if !self.full_precision.is_empty() {
            writeln!(f, "{} layers in full precision", self.full_precision.len())?;
        }
        write!(
            f,
            "{:.3} bits per weight, {:.2} MB in {} files",
            self.bits_per_weight(),
            self.bytes as f64 / 1e6,
            self.files.len()
        )
    }
}

impl Checkpoint {
    /// Writes a checkpoint folder with the parameters of a model in another form.
    ///
    /// `parameters` are those of the model that was built from this checkpoint, and `names` comes from its architecture. A
    /// layer is quantized if its `weight` is a matrix: norms and biases are vectors. What is written is what mlx-lm's
    /// `convert` writes, bit for bit. The parameters are computed layer by layer while they are written, so drop the model
    /// before the call: it would keep all of them in memory.
    ///
    /// `progress` is told of each layer, and answers whether to go on.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Convert`] if the options do not fit the model, [`CheckpointError::Exists`] unless `out` is absent
    /// or empty, [`CheckpointError::Write`] with the file that cannot be written, and [`CheckpointError::Stopped`].
    pub fn convert(
        &self,
        out: impl AsRef<Path>,
        parameters: Vec<(String, Array)>,
        names: &TensorNames,
        options: &ConvertOptions,
        mut progress: impl FnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<Converted, CheckpointError> {
        let out = out.as_ref();
        is_free(out)?;
        let mut config = self.saved_config()?;
        let renaming = (names.renaming)(self);
        if let Some(rename) = renaming {
            for key in QUANTIZATION {
                if let Some(section) = config.get_mut(key).and_then(Value::as_object_mut) {
                    rename_layers(section, rename);
                }
            }
        }
        let mut layers = self.layers(parameters, renaming);
        let mlx = |e: Exception| CheckpointError::Write { file: out.to_path_buf(), problem: of_mlx(&e) };
        if let Some(dtype) = options.dtype.or_else(|| dtype_of(&config)) {
            layers.values_mut().try_for_each(|layer| layer.cast(dtype)).map_err(mlx)?;
        }
        match &options.weights {
            Weights::Kept => self.check_no_blocks(layers.keys())?,
            Weights::Quantized(how) => {
                let plan = plan(&layers, how, names.eight_bits)?;
                set_quantization(&mut config, Some(section(how, names.eight_bits, &plan)));
                for (key, quantization) in plan {
                    if let Some(layer) = layers.get_mut(&key) {
                        layer.quantize(quantization).map_err(mlx)?;
                    }
                }
            }
            Weights::Dequantized => {
                if layers.values().all(|layer| layer.quantization.is_none()) && !self.is_dequantized() {
                    return Err(ConvertError::NotQuantized.into());
                }
                set_quantization(&mut config, None);
                layers.values_mut().try_for_each(|layer| dequantize(layer, options.dtype)).map_err(mlx)?;
            }
        }
        untie(&mut config, &layers);
        let (converted, tensors) = summary(layers);
        let parameters = converted.parameters;
        let contents = Contents { config, tensors, parameters, largest_shard: options.largest_shard };
        let files = self.write(out, contents, names, &mut progress)?;
        Ok(Converted { files, ..converted })
    }

    /// Checks that none of these layers is in blocks of a GGUF file.
    pub(crate) fn check_no_blocks<'k>(
        &self,
        layers: impl IntoIterator<Item = &'k String>,
    ) -> Result<(), ConvertError> {
        let in_blocks = |layer: &String| {
            let quantization = self.quantization_of(layer)?;
            matches!(quantization.mode(), Mode::Blocks(_))
                .then(|| ConvertError::Blocks { layer: layer.clone(), quantization })
        };
        layers.into_iter().find_map(in_blocks).map_or(Ok(()), Err)
    }

    /// The parameters by the layers that they belong to, under the names that mlx-lm has for the layers.
    fn layers(
        &self,
        parameters: Vec<(String, Array)>,
        renaming: Option<Renaming>,
    ) -> BTreeMap<String, Layer> {
        let mut layers: BTreeMap<String, Layer> = BTreeMap::new();
        for (key, array) in parameters {
            let (layer, part) = key.rsplit_once('.').unwrap_or(("", &key));
            let name = renaming.map_or_else(|| layer.to_owned(), |rename| rename(layer));
            let entry = layers.entry(name).or_default();
            if part == "scales" {
                entry.quantization = self.quantization_of(layer);
            }
            entry.parts.insert(part.to_owned(), array);
        }
        layers
    }
}

/// The keys of the config under which mlx-lm writes the quantization.
const QUANTIZATION: [&str; 2] = ["quantization", "quantization_config"];

/// Renames the layers that the quantization section of a config names.
fn rename_layers(section: &mut Map<String, Value>, rename: Renaming) {
    let renamed = std::mem::take(section).into_iter().map(|(key, value)| {
        let is_layer = value.is_object() || value.is_boolean();
        (if is_layer { rename(&key) } else { key }, value)
    });
    *section = renamed.collect();
}

/// The dtype that the config names.
fn dtype_of(config: &Value) -> Option<FloatDtype> {
    let given = config.get("torch_dtype").filter(|dtype| !dtype.is_null());
    let given = given.or_else(|| config.get("text_config")?.get("dtype"))?.as_str()?;
    FloatDtype::ALL.into_iter().find(|dtype| dtype.name() == given)
}

/// Brings a layer into full precision.
fn dequantize(layer: &mut Layer, dtype: Option<FloatDtype>) -> Result<(), Exception> {
    layer.dequantize()?;
    // The modes of small floats give bfloat16, whatever the dtype of the other numbers is.
    dtype.map_or(Ok(()), |dtype| layer.cast(dtype))
}

/// What will be written, apart from the names of the files, and the tensors by key.
fn summary(layers: BTreeMap<String, Layer>) -> (Converted, Vec<(String, Array)>) {
    let mut quantized: Vec<(Quantization, usize)> = Vec::new();
    let mut full_precision = Vec::new();
    for (key, layer) in &layers {
        match layer.quantization {
            Some(way) => match quantized.iter_mut().find(|(known, _)| *known == way) {
                Some((_, layers)) => *layers += 1,
                None => quantized.push((way, 1)),
            },
            None if layer.columns().is_some() => full_precision.push(key.clone()),
            None => {}
        }
    }
    quantized.sort_by_key(|&(_, layers)| std::cmp::Reverse(layers));

    let quantizations: BTreeMap<String, Quantization> =
        layers.iter().filter_map(|(key, layer)| Some((key.clone(), layer.quantization?))).collect();
    let tensors: Vec<(String, Array)> = layers
        .into_iter()
        .flat_map(|(key, layer)| {
            layer.parts.into_iter().map(move |(part, array)| (format!("{key}.{part}"), array))
        })
        .collect();
    let parameters = parameter_count(&tensors, |layer| quantizations.get(layer).copied());
    let bytes = tensors.iter().map(|(_, array)| array.nbytes()).sum();
    (Converted { quantized, full_precision, parameters, bytes, files: Vec::new() }, tensors)
}

fn set_quantization(config: &mut Value, section: Option<Value>) {
    let Some(config) = config.as_object_mut() else { return };
    for key in QUANTIZATION {
        match &section {
            Some(section) => config.insert(key.to_owned(), section.clone()),
            None => config.remove(key),
        };
    }
}

/// Changes a config that ties the head to the embedding if the checkpoint has a weight for the head: mlx-lm would leave
/// that weight out or refuse it.
fn untie(config: &mut Value, layers: &BTreeMap<String, Layer>) {
    let has_own_head = layers.keys().any(|key| is_head(key));
    if let Some(tied) = config.get_mut("tie_word_embeddings")
        && has_own_head
        && tied == &Value::Bool(true)
    {
        *tied = Value::Bool(false);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use serde_json::json;

    use super::*;

    #[test]
    fn the_layers_of_a_section_are_renamed_and_its_numbers_are_not() {
        let mut section = json!({ "bits": 4, "lm_head": false, "model.embed_tokens": { "bits": 8 } });
        rename_layers(section.as_object_mut().unwrap(), |layer| format!("inner.{layer}"));
        let expected =
            json!({ "bits": 4, "inner.lm_head": false, "inner.model.embed_tokens": { "bits": 8 } });
        assert_eq!(section, expected);
    }

    #[test]
    fn a_head_of_its_own_is_not_tied() {
        let layers = |keys: &[&str]| keys.iter().map(|key| ((*key).to_owned(), Layer::default())).collect();
        let with_head = layers(&["lm_head", "model.embed_tokens"]);
        let mut config = json!({ "tie_word_embeddings": true });
        untie(&mut config, &layers(&["model.embed_tokens"]));
        assert_eq!(config, json!({ "tie_word_embeddings": true }));
        untie(&mut config, &with_head);
        assert_eq!(config, json!({ "tie_word_embeddings": false }));
        let mut config = json!({});
        untie(&mut config, &with_head);
        assert_eq!(config, json!({}));
    }
}
