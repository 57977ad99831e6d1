//! Checkpoint folders.
//!
//! API for authors of architectures. A checkpoint is a folder as Hugging Face's transformers and
//! mlx-lm write it: `config.json`, and tensors in one or several safetensors files.
//! [`Checkpoint::open`] reads the config and the headers of the tensor files, not the tensors.
//! A model is then built from [`Checkpoint::tensors`], and [`CheckpointTensors::finish`] says
//! everything at once that was missing, left over or wrongly shaped.
//!
//! ```no_run
//! use mlx_checkpoint::Checkpoint;
//! use mlx_layers::{Linear, Parameters};
//!
//! # fn main() -> Result<(), mlx_checkpoint::CheckpointError> {
//! let checkpoint = Checkpoint::open("path/to/checkpoint")?;
//! let mut tensors = checkpoint.tensors()?;
//! let lm_head = Linear::new(Parameters::root(&mut tensors).at("lm_head"), 64, 256);
//! tensors.finish(|key| key.contains("rotary_emb"))?; // an error if any other tensor is left over
//! # Ok(())
//! # }
//! ```
//!
//! [`Adapters`] are a folder, too, beside a checkpoint. [`Checkpoint::with_adapters`] puts them around it: whatever
//! model is then built has them, and nothing about it changes. [`Checkpoint::fused`] has them added to the weights,
//! and [`Checkpoint::save_as`] writes such a model as a checkpoint of its own. [`Checkpoint::convert`] writes a model in
//! another form: quantized, in full precision, or of another dtype.

mod adapters;
mod convert;
mod error;
mod forms;
mod peft;
mod quantization;
mod safetensors_file;
mod tensors;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use mlx_layers::Form;
use serde::de::DeserializeOwned;

pub use adapters::{AdapterConfig, AdapterKind, Adapters};
pub use convert::{
    ConvertError, ConvertOptions, Converted, FloatDtype, LayerChoice, QuantizeOptions, Recipe, Weights,
};
pub use error::{CheckpointError, TensorProblem};
pub use safetensors::Dtype as TensorDtype;
pub use safetensors_file::without_place;
pub use tensors::CheckpointTensors;
pub use write::Progress;

use quantization::QuantizationPlan;
use safetensors_file::read_header;

/// What the header of a safetensors file says of a tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorInfo {
    /// How its elements are stored.
    pub dtype: TensorDtype,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Which of [`Checkpoint::files`] holds it.
    file: usize,
    /// Where in that file its first byte is.
    start: u64,
}

impl TensorInfo {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// A checkpoint folder whose config and tensor headers were read.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    folder: PathBuf,
    config: serde_json::Value,
    model_type: String,
    quantization: QuantizationPlan,
    files: Vec<PathBuf>,
    tensors: BTreeMap<String, TensorInfo>,
    adapters: Option<Adapters>,
    form: Form,
}

impl Checkpoint {
    /// Reads the config and the headers of the tensor files of a folder.
    ///
    /// # Errors
    ///
    /// A [`CheckpointError`] that names the folder, file or key at fault.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        let folder = folder.as_ref().to_path_buf();
        if !folder.is_dir() {
            return Err(forms::of_file(&folder).unwrap_or(CheckpointError::NoFolder { folder }));
        }
        let absent = |file| forms::without_config(&folder).unwrap_or(CheckpointError::NoConfig { file });
        let config = read_json(&folder.join("config.json"), absent)?;
        let model_type = config
            .get("model_type")
            .and_then(serde_json::Value::as_str)
            .ok_or_else(|| CheckpointError::NoModelType { file: folder.join("config.json") })?
            .to_owned();
        let quantization = QuantizationPlan::from_config(&config)?;

        let TensorFiles { files, promised } = TensorFiles::find(&folder)?;
        let mut tensors: BTreeMap<String, TensorInfo> = BTreeMap::new();
        for (file, path) in files.iter().enumerate() {
            for (key, info) in read_header(path, file)? {
                if let Some(first) = tensors.get(&key) {
                    let first = files[first.file].clone();
                    return Err(CheckpointError::TensorTwice { key, first, second: path.clone() });
                }
                tensors.insert(key, info);
            }
        }
        for (key, shard) in promised {
            let held = tensors.get(&key).map(|info| &files[info.file]);
            if held != Some(&shard) {
                return Err(CheckpointError::NotInShard { key, shard });
            }
        }
        let (adapters, form) = (None, Form::Adapted);
        Ok(Self { folder, config, model_type, quantization, files, tensors, adapters, form })
    }

    /// The same checkpoint with adapters around it: a model that is built from it has them beside its weights.
    #[must_use]
    pub fn with_adapters(self, adapters: Adapters) -> Self {
        Self { adapters: Some(adapters), ..self }
    }

    /// The same checkpoint with its adapters added to the weights when a model is built. Adapted layers that are
    /// quantized are quantized anew, as they were; or, with `dequantize`, every layer is in full precision.
    #[must_use]
    pub fn fused(self, dequantize: bool) -> Self {
        Self { form: if dequantize { Form::FusedDequantized } else { Form::Fused }, ..self }
    }

    /// Whether a model that is built from it has no quantized layers, whatever the config says.
    fn is_dequantized(&self) -> bool {
        self.form == Form::FusedDequantized
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// `model_type` of the config.
    pub fn model_type(&self) -> &str {
        &self.model_type
    }

    /// Says through `tracing` that keys of the config have no use, and are ignored. An architecture calls it for keys
    /// that transformers and mlx-lm ignore, too, and that no answer depends on.
    pub fn warn_ignored(&self, keys: impl IntoIterator<Item = impl AsRef<str>>) {
        let file = self.folder.join("config.json");
        keys.into_iter().for_each(|key| warn_ignored(&file, key.as_ref()));
    }

    /// The config as a type of the architecture's.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Config`] where a key is missing or has the wrong type.
    pub fn config<T: DeserializeOwned>(&self) -> Result<T, CheckpointError> {
        serde_path_to_error::deserialize(&self.config)
            .map_err(|e| error::of_config(&self.folder.join("config.json"), e))
    }

    /// The tensor files.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// The tensors by key.
    pub fn headers(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// How many numbers the tensors with these keys stand for, quantized ones as what they were.
    pub fn parameter_count<'k>(&self, keys: impl IntoIterator<Item = &'k str>) -> usize {
        let count = |key: &str| {
            let elements = self.tensors.get(key).map_or(0, TensorInfo::elements);
            if let Some(layer) = key.strip_suffix(".weight")
                && let Some(quantization) = self.quantization_of(layer)
            {
                return elements * 32 / quantization.bits() as usize;
            }
            let companion = key.strip_suffix(".scales").or_else(|| key.strip_suffix(".biases"));
            let is_companion = companion.is_some_and(|layer| self.quantization_of(layer).is_some());
            if is_companion { 0 } else { elements }
        };
        keys.into_iter().map(count).sum()
    }

    /// Bytes of the tensor files.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Io`] where a file has gone since.
    pub fn size_on_disk(&self) -> Result<u64, CheckpointError> {
        let size = |file: &PathBuf| {
            let metadata = fs::metadata(file);
            metadata.map(|m| m.len()).map_err(|source| CheckpointError::Io { file: file.clone(), source })
        };
        self.files.iter().map(size).sum()
    }

    /// How the layer with this key is quantized, if it is.
    pub fn quantization_of(&self, layer: &str) -> Option<mlx_layers::Quantization> {
        let has_scales = self.tensors.contains_key(&format!("{layer}.scales"));
        self.quantization.of(layer, has_scales)
    }

    /// The quantization that a layer has unless the config says otherwise.
    pub fn default_quantization(&self) -> Option<mlx_layers::Quantization> {
        self.quantization.common()
    }

    /// Whether a model's head, the layer with this key, has a weight of its own, or is the embedding table.
    ///
    /// `tied` is what the config says (`tie_word_embeddings`). A weight that the checkpoint holds is used even so:
    /// a converter wrote a copy of the table there, which gives the same answers, or the head was trained apart
    /// and the config left as it was. Which of the two it is, only the numbers could say, and they are read last.
    pub fn has_own_head(&self, layer: &str, tied: bool) -> bool {
        !tied || self.tensors.contains_key(&format!("{layer}.weight"))
    }

    /// The tensors, to build a model from. They are read from disk when they are first used.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Unreadable`] where MLX cannot open a file.
    pub fn tensors(&self) -> Result<CheckpointTensors<'_>, CheckpointError> {
        CheckpointTensors::open(self)
    }
}

fn read_json(
    path: &Path,
    absent: impl FnOnce(PathBuf) -> CheckpointError,
) -> Result<serde_json::Value, CheckpointError> {
    let text = read_text(path, absent)?;
    serde_json::from_str(&text).map_err(|source| CheckpointError::Json { file: path.to_path_buf(), source })
}

/// The text of a JSON file that describes a model, within limits.
fn read_text(
    path: &Path,
    absent: impl FnOnce(PathBuf) -> CheckpointError,
) -> Result<String, CheckpointError> {
    mlx_files::read_to_string(path, mlx_files::LARGEST_CONFIG).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => absent(path.to_path_buf()),
        _ => CheckpointError::Io { file: path.to_path_buf(), source },
    })
}

/// Whether a regular file is there; anything else at its place is an error.
fn is_present(path: &Path) -> Result<bool, CheckpointError> {
    mlx_files::is_present(path).map_err(|source| CheckpointError::Io { file: path.to_path_buf(), source })
}

/// Says that a key of a file has no use, and goes on. That is for keys that the references ignore, too, and that no
/// answer depends on; docs/differences.md has the rule.
fn warn_ignored(file: &Path, key: &str) {
    tracing::warn!("{}: {} has no use, and is ignored", file.display(), error::shortened(key));
}

/// Which files hold the tensors.
struct TensorFiles {
    files: Vec<PathBuf>,
    /// Where an index says that a tensor lies.
    promised: Vec<(String, PathBuf)>,
}

impl TensorFiles {
    /// `model.safetensors`, or the shards that the index names, or every `model*.safetensors`.
    fn find(folder: &Path) -> Result<Self, CheckpointError> {
        let single = folder.join("model.safetensors");
        let index = folder.join("model.safetensors.index.json");
        if is_present(&single)? {
            Ok(Self { files: vec![single], promised: Vec::new() })
        } else if is_present(&index)? {
            Self::of_index(folder, index)
        } else {
            Self::without_index(folder)
        }
    }

    fn of_index(folder: &Path, index: PathBuf) -> Result<Self, CheckpointError> {
        let json = read_json(&index, |_| CheckpointError::NoTensors { folder: folder.to_path_buf() })?;
        let not_an_index = || CheckpointError::Index { file: index.clone() };
        let map = json.get("weight_map").and_then(serde_json::Value::as_object).ok_or_else(not_an_index)?;
        let mut promised = Vec::with_capacity(map.len());
        let mut files = BTreeSet::new();
        for (key, shard) in map {
            // A shard is a file beside the index; anything else would lead out of the folder.
            let is_name = |name: &&str| name.ends_with(".safetensors") && !name.contains(['/', '\\']);
            let shard = shard.as_str().filter(is_name).ok_or_else(not_an_index)?;
            let file = folder.join(shard);
            if !files.contains(&file) {
                if !is_present(&file)? {
                    return Err(CheckpointError::NoShard {
                        shard: shard.to_owned(),
                        key: key.clone(),
                        index,
                    });
                }
                files.insert(file.clone());
            }
            promised.push((key.clone(), file));
        }
        if files.is_empty() {
            return Err(not_an_index());
        }
        Ok(Self { files: files.into_iter().collect(), promised })
    }

    fn without_index(folder: &Path) -> Result<Self, CheckpointError> {
        let io = |source| CheckpointError::Io { file: folder.to_path_buf(), source };
        let mut files = Vec::new();
        for entry in fs::read_dir(folder).map_err(io)? {
            let file = entry.map_err(io)?.path();
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with("model") && name.ends_with(".safetensors") && is_present(&file)? {
                files.push(file);
            }
        }
        if files.is_empty() {
            let absent = CheckpointError::NoTensors { folder: folder.to_path_buf() };
            return Err(forms::without_tensors(folder).unwrap_or(absent));
        }
        files.sort();
        Ok(Self { files, promised: Vec::new() })
    }
}
