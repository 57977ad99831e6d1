//! Checkpoints that other programs quantized, as MLX has them.
//!
//! | method | form here |
//! |---|---|
//! | AWQ (`gemm`), GPTQ, compressed-tensors (`pack-quantized`) | affine, with the same numbers and scales, and `-zero * scale` as biases |
//! | the same where groups have other inputs than their neighbours (`desc_act`) or sizes that MLX does not have | the dtype of the scales |
//! | FP8 with a scale for each block, each row or all numbers | the dtype of the model |
//!
//! Which layers are quantized is seen from the tensors, so lists of the config such as `modules_to_not_convert` are not needed.

mod floats;
mod layers;
mod method;
mod packed;
mod rows;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mlx_quantization::Quantization;
use mlx_rs::Array;
use mlx_safetensors::{Dtype, arrays};
use serde_json::Value;

use crate::error::{CheckpointError, TensorProblem};
use crate::safetensors_file::{TensorInfo, is_float, read_bytes};
use crate::source::TensorSource;
use crate::text::of_mlx;
use floats::{matrix, to_f32};
use layers::{FloatLayer, Headers, Made, PackedLayer, Part, float_layer, other_floats, packed_layer};
use method::ADVICE;
pub(crate) use method::Method;

/// The tensors that are made of those of another program.
#[derive(Debug)]
pub(crate) struct Imported {
    files: Vec<PathBuf>,
    made: BTreeMap<String, (TensorInfo, Recipe)>,
    /// The keys of the tensors that a model does not see.
    pub(crate) used: BTreeSet<String>,
    /// How the layers are quantized that stay so.
    pub(crate) layers: BTreeMap<String, Quantization>,
    /// The biases of layers, which programs write for layers that have none.
    biases: Headers,
}

/// How a tensor is made.
#[derive(Debug)]
enum Recipe {
    Packed(Arc<PackedLayer>, Part),
    Floats(FloatLayer),
    /// A tensor of floats in another dtype.
    Cast(TensorInfo),
}

impl Recipe {
    /// Whether it makes the weight of a quantized layer in full precision.
    fn dequantizes(&self) -> bool {
        matches!(self, Self::Packed(_, Part::Weight) | Self::Floats(_))
    }

    /// Whether the groups of the layer have distant columns.
    fn is_reordered(&self) -> bool {
        matches!(self, Self::Packed(layer, _) if layer.is_reordered())
    }
}

impl Imported {
    /// Finds and checks the layers that were quantized by `method`.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Tensors`] with every layer whose tensors do not belong together.
    pub(crate) fn new(
        folder: &Path,
        config: &Value,
        method: &Method,
        files: &[PathBuf],
        headers: &Headers,
    ) -> Result<Self, CheckpointError> {
        let (files, empty) = (files.to_vec(), BTreeMap::new());
        let mut imported = Self {
            files,
            made: BTreeMap::new(),
            used: BTreeSet::new(),
            layers: empty,
            biases: BTreeMap::new(),
        };
        let problems = imported.find(method, config, headers);
        if problems.is_empty() {
            imported.warn(folder, method);
            return Ok(imported);
        }
        Err(CheckpointError::Tensors { folder: folder.to_path_buf(), problems })
    }

    fn find(&mut self, method: &Method, config: &Value, headers: &Headers) -> Vec<TensorProblem> {
        let mut problems = Vec::new();
        let mut refused = |layer: &str, problem| {
            problems.push(TensorProblem::Refused { key: layer.to_owned(), problem });
        };
        for (key, info) in headers {
            match method {
                Method::Packed(packing) => {
                    let Some(layer) = packed_layer(key, packing) else { continue };
                    match PackedLayer::find(layer, headers, packing, &|info| self.bytes(info)) {
                        Ok((found, used)) => self.add_packed(layer, found, used),
                        Err(problem) => refused(layer, problem),
                    }
                }
                Method::Floats { name, block } => {
                    if let Some(layer) = other_floats(key, info) {
                        let dtype = info.dtype;
                        let problem =
                            format!("weight is {dtype:?}, and {name} is supported in F8_E4M3 only; {ADVICE}");
                        refused(layer, problem);
                    }
                    let Some(layer) = float_layer(key, info) else { continue };
                    match FloatLayer::find(layer, headers, *block, dtype_of(config)) {
                        Ok((found, used)) => {
                            self.used.extend(used);
                            self.made
                                .insert(format!("{layer}.weight"), (found.made(), Recipe::Floats(found)));
                        }
                        Err(problem) => refused(layer, problem),
                    }
                }
            }
        }
        if matches!(method, Method::Packed(_)) {
            self.cast_others(headers);
        }
        problems
    }

    /// Whether layers were quantized, and none stays so.
    pub(crate) fn is_dequantized(&self) -> bool {
        self.layers.is_empty() && self.made.values().any(|(_, recipe)| recipe.dequantizes())
    }

    fn add_packed(&mut self, layer: &str, found: PackedLayer, used: Vec<String>) {
        self.used.extend(used);
        self.layers.extend(found.quantization().map(|quantization| (layer.to_owned(), quantization)));
        let found = Arc::new(found);
        for (part, info) in found.made() {
            let recipe = Recipe::Packed(Arc::clone(&found), part);
            self.made.insert(format!("{layer}.{}", part.name()), (info, recipe));
        }
    }

    /// Brings all other floats into the dtype of the scales, as mlx-lm does: numbers of several dtypes would make a model
    /// compute in float32.
    fn cast_others(&mut self, headers: &Headers) {
        let scales = self.made.values().find_map(|(_, recipe)| match recipe {
            Recipe::Packed(layer, _) => Some(layer.dtype()),
            _ => None,
        });
        let Some(dtype) = scales else { return };
        for (key, info) in headers {
            let layer = key.strip_suffix(".bias");
            if layer.is_some_and(|layer| self.made.contains_key(&format!("{layer}.weight"))) {
                self.biases.insert(key.clone(), info.clone());
            }
            if is_float(info.dtype) && info.dtype != dtype && !self.used.contains(key) {
                let made = TensorInfo::made(dtype, info.shape.clone());
                self.made.insert(key.clone(), (made, Recipe::Cast(info.clone())));
            }
        }
    }

    /// Says which tensors take more memory than they take in the files, and which are rounded.
    fn warn(&self, folder: &Path, method: &Method) {
        let folder = folder.display();
        let layers = || self.made.values().filter(|(_, recipe)| recipe.dequantizes());
        if let Some((info, _)) = layers().next() {
            let is_reordered = layers().any(|(_, recipe)| recipe.is_reordered());
            let (name, why) = match method {
                Method::Floats { name, .. } => (*name, "MLX has no such format"),
                Method::Packed(packing) if is_reordered => {
                    (packing.name(), "MLX has no groups of distant columns (desc_act)")
                }
                Method::Packed(packing) => (packing.name(), "MLX has no groups of this size"),
            };
            let (count, dtype) = (layers().count(), info.dtype);
            tracing::warn!(
                "{folder}: {count} layers of {name} become {dtype:?}, since {why}; `mlx-models convert --quantize` makes \
                 them small again"
            );
        }
        let casts = || self.made.values().filter(|(_, recipe)| matches!(recipe, Recipe::Cast(_)));
        if let Some((info, _)) = casts().next() {
            tracing::warn!(
                "{folder}: {} tensors become {:?}, the dtype of the scales",
                casts().count(),
                info.dtype
            );
        }
    }

    fn bytes(&self, info: &TensorInfo) -> Result<Vec<u8>, String> {
        match info.in_file() {
            Some((file, start)) => read_bytes(&self.files[file], start, info),
            None => Err("no file holds it".to_owned()), // does not occur: the headers are those of files
        }
    }
}

/// The dtype of the model, as its config says.
fn dtype_of(config: &Value) -> Dtype {
    let sections = [Some(config), config.get("text_config")];
    let given =
        sections.into_iter().flatten().find_map(|c| c.get("dtype").or(c.get("torch_dtype"))?.as_str());
    match given {
        Some("float16") => Dtype::F16,
        Some("float32") => Dtype::F32,
        _ => Dtype::BF16,
    }
}

impl TensorSource for Imported {
    fn tensors(&self) -> Headers {
        self.made.iter().map(|(key, (info, _))| (key.clone(), info.clone())).collect()
    }

    fn read(&self, key: &str) -> Result<Array, String> {
        let Some((info, recipe)) = self.made.get(key) else { return Err("it is not made here".to_owned()) };
        let read = |info: &TensorInfo| self.bytes(info);
        let made = match recipe {
            Recipe::Packed(layer, part) => layer.make(*part, &read)?,
            Recipe::Floats(layer) => Made::Bytes(layer.make(&read)?),
            Recipe::Cast(stored) => {
                let numbers = to_f32(&read(stored)?, stored.dtype)?;
                let copy = |_, row: &mut [f32]| row.copy_from_slice(&numbers);
                Made::Bytes(matrix([1, numbers.len()], info.dtype, copy))
            }
        };
        let array = match made {
            Made::Words(words) => Ok(Array::from_slice(&words, &info.mlx_shape())),
            Made::Bytes(bytes) => arrays::from_bytes(&bytes, info.dtype, &info.shape),
        };
        let evaluated = array.and_then(|array| array.eval().map(|()| array));
        evaluated.map_err(|e| of_mlx(&e))
    }

    fn is_needless(&self, key: &str) -> bool {
        let numbers = self.biases.get(key).map(|info| to_f32(&self.bytes(info)?, info.dtype));
        numbers
            .is_some_and(|numbers| numbers.is_ok_and(|numbers| numbers.iter().all(|&number| number == 0.0)))
    }
}
