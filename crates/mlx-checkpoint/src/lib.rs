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

mod error;
mod quantization;
mod safetensors_file;
mod tensors;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

pub use error::{CheckpointError, TensorProblem};
pub use safetensors::Dtype as TensorDtype;
pub use tensors::CheckpointTensors;

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
}

impl TensorInfo {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes on disk.
    pub fn nbytes(&self) -> usize {
        self.elements() * self.dtype.bitsize() / 8
    }
}

/// A checkpoint folder whose config and tensor headers were read.
#[derive(Debug)]
pub struct Checkpoint {
    folder: PathBuf,
    config: serde_json::Value,
    model_type: String,
    quantization: QuantizationPlan,
    files: Vec<PathBuf>,
    tensors: BTreeMap<String, TensorInfo>,
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
            return Err(CheckpointError::NoFolder { folder });
        }
        let config = read_json(&folder.join("config.json"), |file| CheckpointError::NoConfig { file })?;
        let model_type = config
            .get("model_type")
            .and_then(serde_json::Value::as_str)
            .ok_or_else(|| CheckpointError::NoModelType { file: folder.join("config.json") })?
            .to_owned();
        let quantization = QuantizationPlan::from_config(&config)?;

        let files = tensor_files(&folder)?;
        let mut tensors = BTreeMap::new();
        for (file, path) in files.iter().enumerate() {
            for (key, dtype, shape) in read_header(path)? {
                if tensors.insert(key.clone(), TensorInfo { dtype, shape, file }).is_some() {
                    return Err(CheckpointError::TensorTwice { key, file: path.clone() });
                }
            }
        }
        Ok(Self { folder, config, model_type, quantization, files, tensors })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// `model_type` of the config.
    pub fn model_type(&self) -> &str {
        &self.model_type
    }

    /// The config as a type of the architecture's.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Config`] where a key is missing or has the wrong type.
    pub fn config<T: DeserializeOwned>(&self) -> Result<T, CheckpointError> {
        T::deserialize(&self.config)
            .map_err(|source| CheckpointError::Config { file: self.folder.join("config.json"), source })
    }

    /// The tensor files.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// The tensors by key.
    pub fn headers(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// How many numbers the model learned: quantized weights count as what they stand for.
    pub fn parameter_count(&self) -> usize {
        let count = |(key, info): (&String, &TensorInfo)| {
            if let Some(layer) = key.strip_suffix(".weight")
                && let Some(quantization) = self.quantization_of(layer)
            {
                return info.elements() * 32 / quantization.bits as usize;
            }
            let companion = key.strip_suffix(".scales").or_else(|| key.strip_suffix(".biases"));
            let is_companion = companion.is_some_and(|layer| self.quantization_of(layer).is_some());
            if is_companion { 0 } else { info.elements() }
        };
        self.tensors.iter().map(count).sum()
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
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(absent(path.to_path_buf())),
        Err(source) => return Err(CheckpointError::Io { file: path.to_path_buf(), source }),
    };
    serde_json::from_str(&text).map_err(|source| CheckpointError::Json { file: path.to_path_buf(), source })
}

/// `model.safetensors`, or the shards that the index names, or every `model*.safetensors`.
fn tensor_files(folder: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let single = folder.join("model.safetensors");
    if single.is_file() {
        return Ok(vec![single]);
    }
    let index_file = folder.join("model.safetensors.index.json");
    if !index_file.is_file() {
        return shards_without_index(folder);
    }
    let index = read_json(&index_file, |_| CheckpointError::NoTensors { folder: folder.to_path_buf() })?;
    let map = index.get("weight_map").and_then(serde_json::Value::as_object);
    let map = map.ok_or_else(|| CheckpointError::Index { file: index_file.clone() })?;

    let mut shards = BTreeMap::new();
    for (key, shard) in map {
        // A shard is a file beside the index; anything else would lead out of the folder.
        let name = shard.as_str().filter(|name| !name.is_empty() && !name.contains(['/', '\\']));
        let name = name.ok_or_else(|| CheckpointError::Index { file: index_file.clone() })?;
        shards.entry(name.to_owned()).or_insert_with(|| key.clone());
    }
    let mut files = Vec::with_capacity(shards.len());
    for (shard, key) in shards {
        let file = folder.join(&shard);
        if !file.is_file() {
            return Err(CheckpointError::NoShard { index: index_file, shard, key });
        }
        files.push(file);
    }
    Ok(files)
}

fn shards_without_index(folder: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let io = |source| CheckpointError::Io { file: folder.to_path_buf(), source };
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("model") && name.ends_with(".safetensors") {
            files.push(folder.join(&*name));
        }
    }
    if files.is_empty() {
        return Err(CheckpointError::NoTensors { folder: folder.to_path_buf() });
    }
    files.sort();
    Ok(files)
}
