//! A checkpoint: its config, the headers of its tensors, and its adapters.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mlx_layers::{Form, Quantization};
use mlx_rs::Array;
use serde::de::DeserializeOwned;

use crate::adapters::Adapters;
use crate::error::{CheckpointError, TensorProblem, of_config};
use crate::files::{read_json, warn_ignored};
use crate::forms;
use crate::gguf::{self, GgufLayers};
use crate::import::{Imported, Method};
use crate::quantization::{QuantizationPlan, section};
use crate::safetensors_file::{TensorInfo, read_tensor};
use crate::source::TensorSource;
use crate::tensor_files::TensorFiles;

/// A checkpoint folder or a GGUF file, whose config and tensor headers were read.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    path: PathBuf,
    /// The file that the config comes from.
    config_file: PathBuf,
    pub(crate) config: serde_json::Value,
    model_type: String,
    pub(crate) quantization: QuantizationPlan,
    files: Vec<PathBuf>,
    tensors: BTreeMap<String, TensorInfo>,
    /// Makes the tensors that are not in a safetensors file.
    source: Option<Arc<dyn TensorSource>>,
    /// Whether layers that the file has quantized are in full precision.
    dequantized: bool,
    /// Files that a folder gets beside the config and the tensors: their paths in it, and their contents.
    pub(crate) companions: Vec<(PathBuf, String)>,
    pub(crate) adapters: Option<Adapters>,
    pub(crate) form: Form,
}

impl Checkpoint {
    /// Opens a checkpoint folder, or a GGUF file, of which any part can be given where there are several. The config and the
    /// headers of the tensors are read, and the tensors are not. The layers of a GGUF file stay as they are where kernels compute with
    /// them: [`GgufLayers::Kept`].
    ///
    /// # Errors
    ///
    /// A [`CheckpointError`] that names the folder, file or key at fault.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        Self::open_with(path, GgufLayers::Kept)
    }

    /// [`open`](Self::open), where `layers` says what becomes of the layers of a GGUF file. It changes nothing for a folder.
    ///
    /// # Errors
    ///
    /// Those of [`open`](Self::open).
    pub fn open_with(path: impl AsRef<Path>, layers: GgufLayers) -> Result<Self, CheckpointError> {
        let path = path.as_ref();
        if !forms::is_gguf(path) {
            return Self::open_folder(path);
        }
        let gguf::Opened { config, files, source } = gguf::open(path, layers)?;
        let checkpoint = Self { files, ..Self::new(path, path, config, QuantizationPlan::default())? };
        let (layers, dequantized) = (source.quantizations(), source.is_dequantized());
        Ok(Self { dequantized, ..checkpoint.with_source(Arc::new(source), [], &layers) })
    }

    fn open_folder(folder: &Path) -> Result<Self, CheckpointError> {
        if !folder.is_dir() {
            let folder = folder.to_path_buf();
            return Err(forms::of_file(&folder).unwrap_or(CheckpointError::NoFolder { folder }));
        }
        let absent = |file| forms::without_config(folder).unwrap_or(CheckpointError::NoConfig { file });
        let file = folder.join("config.json");
        let config = read_json(&file, absent)?;
        let method = Method::from_config(&config)?;
        let quantization = match &method {
            Some(_) => QuantizationPlan::default(),
            None => QuantizationPlan::from_config(&config)?,
        };
        let mut checkpoint = Self::new(folder, &file, config, quantization)?;
        let files = TensorFiles::find(folder)?;
        checkpoint.tensors = files.read_headers()?;
        checkpoint.files = files.files;
        match method {
            None => Ok(checkpoint),
            Some(method) => checkpoint.imported(&method),
        }
    }

    /// A checkpoint with this config, and without tensors.
    fn new(
        path: &Path,
        config_file: &Path,
        config: serde_json::Value,
        quantization: QuantizationPlan,
    ) -> Result<Self, CheckpointError> {
        let (path, config_file) = (path.to_path_buf(), config_file.to_path_buf());
        let model_type = config.get("model_type").and_then(serde_json::Value::as_str);
        let Some(model_type) = model_type.map(str::to_owned) else {
            return Err(CheckpointError::NoModelType { file: config_file });
        };
        Ok(Self {
            path,
            config_file,
            config,
            model_type,
            quantization,
            files: Vec::new(),
            tensors: BTreeMap::new(),
            source: None,
            dequantized: false,
            companions: Vec::new(),
            adapters: None,
            form: Form::Adapted,
        })
    }

    /// The same checkpoint, of which another program quantized the layers, as MLX has them.
    fn imported(mut self, method: &Method) -> Result<Self, CheckpointError> {
        let Self { path, config, files, tensors, .. } = &self;
        let imported = Imported::new(path, config, method, files, tensors)?;
        let (used, layers) = (imported.used.clone(), imported.layers.clone());
        self.dequantized = imported.is_dequantized();
        if let Some(text) = self.config.get_mut("text_config").and_then(serde_json::Value::as_object_mut) {
            text.remove("quantization_config");
        }
        Ok(self.with_source(Arc::new(imported), used.iter().map(String::as_str), &layers))
    }

    /// The error for tensors that are not those of the model.
    pub(crate) fn wrong_tensors(&self, mut problems: Vec<TensorProblem>) -> CheckpointError {
        let path = self.path.clone();
        if !self.is_gguf() {
            return CheckpointError::Tensors { folder: path, problems };
        }
        let name = |problem: &TensorProblem| {
            Some((problem.key().to_owned(), self.source.as_ref()?.name_in_gguf(problem.key())?))
        };
        let names: BTreeMap<String, String> = problems.iter().filter_map(name).collect();
        // The scales of a layer are the same tensor of the file.
        problems.retain(|problem| {
            let layer = [".scales", ".biases"].iter().find_map(|suffix| problem.key().strip_suffix(suffix));
            !layer.is_some_and(|layer| names.contains_key(&format!("{layer}.weight")))
        });
        CheckpointError::GgufTensors { file: path, problems, names }
    }

    /// Whether it is a GGUF file, whose metadata became the config.
    pub fn is_gguf(&self) -> bool {
        self.config_file == self.path
    }

    /// Whether a tensor that no model takes changes nothing.
    pub(crate) fn is_needless(&self, key: &str) -> bool {
        self.source.as_ref().is_some_and(|source| source.is_needless(key))
    }

    /// The same checkpoint with tensors that a source makes. A model does not see the tensors with the keys `used`, of which
    /// the source makes others. `layers` says how layers are quantized: all of them, as the source makes them. The config says
    /// the same afterwards, unless there are layers in [blocks](mlx_quantization::BlockFormat), which no config can describe.
    ///
    #[must_use]
    pub fn with_source<'k>(
        mut self,
        source: Arc<dyn TensorSource>,
        used: impl IntoIterator<Item = &'k str>,
        layers: &BTreeMap<String, Quantization>,
    ) -> Self {
        for key in used {
            self.tensors.remove(key);
        }
        self.tensors.extend(source.tensors());
        if let Some(config) = self.config.as_object_mut() {
            config.remove("quantization_config");
            config.remove("quantization");
            config.extend(section(layers).map(|section| ("quantization".to_owned(), section)));
        }
        let quantization = QuantizationPlan::of_layers(layers);
        Self { source: Some(source), quantization, ..self }
    }

    /// Reads or makes a tensor now. `info` is what [`headers`](Self::headers) has for the key.
    ///
    /// # Errors
    ///
    /// Why it cannot be read, in words.
    pub(crate) fn read(&self, key: &str, info: &TensorInfo) -> Result<Array, String> {
        match (info.in_file(), &self.source) {
            (Some((file, start)), _) => read_tensor(&self.files[file], start, info),
            (None, Some(source)) => source.read(key),
            (None, None) => Err("no file holds it".to_owned()), // does not occur: such tensors come from a source
        }
    }

    /// The same checkpoint with adapters: a model that is built from it has them beside its weights.
    #[must_use]
    pub fn with_adapters(self, adapters: Adapters) -> Self {
        Self { adapters: Some(adapters), ..self }
    }

    /// The same checkpoint, with its adapters added to the weights when a model is built. A quantized layer with an
    /// adapter is quantized again in the same way; with `dequantize`, every layer is in full precision instead.
    #[must_use]
    pub fn fused(self, dequantize: bool) -> Self {
        Self { form: if dequantize { Form::FusedDequantized } else { Form::Fused }, ..self }
    }

    /// The same checkpoint, which is written with these files beside its config and its tensors: their paths in the folder, and
    /// their contents. For a GGUF file they are those of its tokenizer. From a folder, the files that are there are copied too.
    #[must_use]
    pub fn with_companions(self, companions: Vec<(PathBuf, String)>) -> Self {
        Self { companions, ..self }
    }

    /// Whether a model that is built from it has no quantized layers, although the checkpoint has.
    pub(crate) fn is_dequantized(&self) -> bool {
        self.dequantized || self.form == Form::FusedDequantized
    }

    /// The checkpoint: a folder or a GGUF file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is worth knowing of the tensors that were read so far, such as a loss of precision: a sentence each.
    pub fn notes(&self) -> Vec<String> {
        self.source.as_ref().map_or_else(Vec::new, |source| source.notes())
    }

    /// `model_type` of the config.
    pub fn model_type(&self) -> &str {
        &self.model_type
    }

    /// Warns through `tracing` that keys of the config have no effect and are ignored. An architecture calls it for keys
    /// that transformers and mlx-lm ignore too, and that change nothing that the model computes.
    pub fn warn_ignored(&self, keys: impl IntoIterator<Item = impl AsRef<str>>) {
        keys.into_iter().for_each(|key| warn_ignored(&self.config_file, key.as_ref()));
    }

    /// The config, as a type that the architecture chooses.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Config`] if a key is missing or has the wrong type.
    pub fn config<T: DeserializeOwned>(&self) -> Result<T, CheckpointError> {
        serde_path_to_error::deserialize(&self.config).map_err(|e| of_config(&self.config_file, e))
    }

    /// The tensor files.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// What the headers of the tensor files say of each tensor, by key.
    pub fn headers(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// Number of parameters in the tensors with these keys. A quantized layer counts as before it was quantized.
    pub fn parameter_count<'k>(&self, keys: impl IntoIterator<Item = &'k str>) -> usize {
        let count = |key: &str| {
            let elements = self.tensors.get(key).map_or(0, TensorInfo::elements);
            if let Some(layer) = key.strip_suffix(".weight")
                && let Some(quantization) = self.quantization_of(layer)
            {
                return elements * 32 / quantization.bits() as usize;
            }
            // Scales and biases of a quantized layer are not parameters of the model.
            let companion = key.strip_suffix(".scales").or_else(|| key.strip_suffix(".biases"));
            let is_companion = companion.is_some_and(|layer| self.quantization_of(layer).is_some());
            if is_companion { 0 } else { elements }
        };
        keys.into_iter().map(count).sum()
    }

    /// Bytes of all tensor files.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Io`] if a file is no longer there.
    pub fn size_on_disk(&self) -> Result<u64, CheckpointError> {
        let size = |file: &PathBuf| {
            let metadata = fs::metadata(file);
            metadata.map(|m| m.len()).map_err(|source| CheckpointError::Io { file: file.clone(), source })
        };
        self.files.iter().map(size).sum()
    }

    /// How the layer with this key is quantized; `None` if it is not.
    pub fn quantization_of(&self, layer: &str) -> Option<Quantization> {
        let has_scales = self.tensors.contains_key(&format!("{layer}.scales"));
        self.quantization.of(layer, has_scales)
    }

    /// The quantization of every layer for which the config has no other; `None` if the config has none.
    pub fn default_quantization(&self) -> Option<Quantization> {
        self.quantization.common()
    }

    /// Whether the head of a model, the layer with this key, has its own weight instead of using the embedding table.
    ///
    /// `tied` is what the config says (`tie_word_embeddings`). A weight that the checkpoint holds is used even if the
    /// config ties the head: either a converter wrote a copy of the table, which gives the same answers, or the head was
    /// trained on its own and the config was not changed. The headers do not tell which.
    pub fn has_own_head(&self, layer: &str, tied: bool) -> bool {
        !tied || self.tensors.contains_key(&format!("{layer}.weight"))
    }
}
