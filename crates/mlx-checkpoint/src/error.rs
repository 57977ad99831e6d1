//! What can be wrong with a checkpoint or with adapters.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::Error;

use crate::convert::error::ConvertError;
use crate::text::shortened;

/// Why a checkpoint or adapters cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// There is no such folder.
    #[error("{} is not a folder; a checkpoint is a folder with config.json and safetensors files, or a GGUF file", folder.display())]
    NoFolder {
        /// What was named.
        folder: PathBuf,
    },
    /// The folder has no config.
    #[error("there is no {}; a checkpoint folder needs one", file.display())]
    NoConfig {
        /// The file that is missing.
        file: PathBuf,
    },
    /// A file cannot be read.
    #[error("reading {}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// A file is not JSON.
    #[error("{} is not valid JSON", file.display())]
    Json {
        /// The file.
        file: PathBuf,
        /// Where it is not JSON.
        source: serde_json::Error,
    },
    /// The config does not say which architecture this is.
    #[error("{} has no model_type, a string that names the architecture", file.display())]
    NoModelType {
        /// The config.
        file: PathBuf,
    },
    /// A key of the config is missing or has the wrong type.
    #[error("{}{}", file.display(), under(&shortened(key)))]
    Config {
        /// The config.
        file: PathBuf,
        /// Which key; a dot where the whole config is meant, from which a key is missing.
        key: String,
        /// What was expected.
        source: serde_json::Error,
    },
    /// The quantization in the config is not supported or contradicts itself.
    #[error("config.json: quantization of {}: {problem}", shortened(layer))]
    Quantization {
        /// The layer's key, or `every layer`.
        layer: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The folder has no tensors.
    #[error("{} has no model.safetensors and no other model*.safetensors", folder.display())]
    NoTensors {
        /// The folder.
        folder: PathBuf,
    },
    /// What was named is a model in a format that is not supported, or not a model.
    #[error("{}: {form}; {advice}", place.display())]
    OtherForm {
        /// The file or folder.
        place: PathBuf,
        /// What it is.
        form: String,
        /// What to do.
        advice: String,
    },
    /// A GGUF file cannot be loaded.
    #[error(transparent)]
    Gguf {
        /// Which file, and what is wrong with it.
        source: Box<mlx_gguf::GgufError>,
    },
    /// The index of the shards has no map from tensors to files.
    #[error("{} has no weight_map from tensor keys to safetensors files beside it", file.display())]
    Index {
        /// The index.
        file: PathBuf,
    },
    /// The index of the shards names a file that is not there.
    #[error("{} puts {} into {}, and there is no such file beside it", index.display(), shortened(key), shortened(shard))]
    NoShard {
        /// The index.
        index: PathBuf,
        /// The file that is missing.
        shard: String,
        /// A tensor that would be in it.
        key: String,
    },
    /// Two files hold a tensor of the same key.
    #[error("tensor {} is in {} and in {}", shortened(key), first.display(), second.display())]
    TensorTwice {
        /// The key.
        key: String,
        /// One file.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// The index puts a tensor into a file that does not hold it.
    #[error("the index puts {} into {}, which does not hold it", shortened(key), shard.display())]
    NotInShard {
        /// The tensor's key.
        key: String,
        /// The file.
        shard: PathBuf,
    },
    /// A file is not a safetensors file, or not all of one.
    #[error("{} is not a whole safetensors file: {problem}", file.display())]
    Safetensors {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// MLX cannot open a file whose header is in order.
    #[error("MLX cannot load {}: {problem}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What MLX says.
        problem: String,
    },
    /// The tensors are not those of the model that the config describes.
    #[error("the tensors in {} are not those of the model that its config describes:{}", folder.display(), list(problems))]
    Tensors {
        /// The folder.
        folder: PathBuf,
        /// All of them, by key.
        problems: Vec<TensorProblem>,
    },
    /// The tensors of a GGUF file are not those of the model that its metadata describes.
    #[error(
        "the tensors in {} are not those of the model that its metadata describes:{}",
        file.display(), list_named(problems, names)
    )]
    GgufTensors {
        /// The file.
        file: PathBuf,
        /// All of them, by the key of a checkpoint.
        problems: Vec<TensorProblem>,
        /// The names of these tensors in the file, by key.
        names: BTreeMap<String, String>,
    },
    /// There is no such adapter folder.
    #[error("there is no folder {}; adapters are a folder with adapter_config.json, and ids of the Hub are not taken for them: \
             download their files and name the folder", folder.display())]
    NoAdapterFolder {
        /// What was named.
        folder: PathBuf,
    },
    /// A folder holds no adapters.
    #[error("{} holds no adapters: there is no {}", folder.display(), missing.display())]
    NoAdapters {
        /// The folder.
        folder: PathBuf,
        /// The file that is missing.
        missing: PathBuf,
    },
    /// The config of the adapters is wrong, or describes adapters that are not supported.
    #[error("{}: {problem}", file.display())]
    AdapterConfig {
        /// The config.
        file: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Adapters do not fit the model, or their own config.
    #[error("the adapters{} do not fit the model:{}", of(folder), list(problems))]
    Adapters {
        /// The folder; empty for fresh adapters.
        folder: PathBuf,
        /// Everything that is wrong, by key.
        problems: Vec<TensorProblem>,
    },
    /// There is already something at the place of a folder that would be written.
    #[error("{} exists already; name a folder that does not, or an empty one", folder.display())]
    Exists {
        /// The folder.
        folder: PathBuf,
    },
    /// There is already something at the place of a file that would be written.
    #[error("{} exists already; name a file that does not", file.display())]
    FileExists {
        /// The file.
        file: PathBuf,
    },
    /// A file cannot be written.
    #[error("writing {}: {problem}", file.display())]
    Write {
        /// The file.
        file: PathBuf,
        /// What the operating system or MLX says.
        problem: String,
    },
    /// A checkpoint cannot be converted as asked.
    #[error(transparent)]
    Convert(#[from] ConvertError),
    /// The caller stopped the writing of a folder or a file. Nothing of it is left.
    #[error("stopped before everything was written; nothing of it is left")]
    Stopped,
}

/// One tensor that is not as the model needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TensorProblem {
    /// The model needs it and the checkpoint has none.
    Missing {
        /// Its key.
        key: String,
        /// The shape that the model needs.
        shape: Vec<i32>,
    },
    /// The checkpoint has it and the model has no place for it.
    Unexpected {
        /// Its key.
        key: String,
    },
    /// It has another shape than the model needs.
    Shape {
        /// Its key.
        key: String,
        /// The shape that the model needs.
        expected: Vec<i32>,
        /// Its shape.
        found: Vec<i32>,
    },
    /// It has a dtype that this parameter cannot have.
    Dtype {
        /// Its key.
        key: String,
        /// The dtypes that it may have.
        expected: &'static str,
        /// Its dtype.
        found: String,
    },
    /// It cannot be used for another reason.
    Refused {
        /// The key of the tensor or the layer.
        key: String,
        /// Why not.
        problem: String,
    },
}

impl TensorProblem {
    /// The tensor's key.
    pub fn key(&self) -> &str {
        match self {
            Self::Missing { key, .. }
            | Self::Unexpected { key }
            | Self::Shape { key, .. }
            | Self::Dtype { key, .. }
            | Self::Refused { key, .. } => key,
        }
    }
}

impl fmt::Display for TensorProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = shortened(self.key());
        match self {
            Self::Missing { shape, .. } => write!(f, "{key}: missing, {shape:?} is needed"),
            Self::Unexpected { .. } => write!(f, "{key}: unexpected, the model has no such parameter"),
            Self::Shape { expected, found, .. } => {
                write!(f, "{key}: shape {}, {expected:?} is needed", shortened(&format!("{found:?}")))
            }
            Self::Dtype { expected, found, .. } => {
                write!(f, "{key}: has dtype {found}, and {expected} is needed")
            }
            Self::Refused { problem, .. } => write!(f, "{key}: {problem}"),
        }
    }
}

fn under(key: &str) -> String {
    if key == "." { String::new() } else { format!(": {key}") }
}

fn of(folder: &Path) -> String {
    if folder.as_os_str().is_empty() { String::new() } else { format!(" in {}", folder.display()) }
}

fn list(problems: &[TensorProblem]) -> String {
    list_named(problems, &BTreeMap::new())
}

/// The first of the problems, a line each, and how many more there are. A tensor that has a name in a GGUF file is listed with
/// this name before its key.
fn list_named(problems: &[TensorProblem], names: &BTreeMap<String, String>) -> String {
    const SHOWN: usize = 20;
    let line = |problem: &TensorProblem| {
        let name = names.get(problem.key()).map(|name| format!("{}, which is ", shortened(name)));
        format!("\n  {}{problem}", name.unwrap_or_default())
    };
    let mut text: String = problems.iter().take(SHOWN).map(line).collect();
    if let more @ 1.. = problems.len().saturating_sub(SHOWN) {
        text += &format!("\n  and {more} more");
    }
    text
}

/// The error of a config in which a key is missing or has the wrong type.
pub(crate) fn of_config(file: &Path, e: serde_path_to_error::Error<serde_json::Error>) -> CheckpointError {
    let key = e.path().to_string();
    let source = e.into_inner();
    // The message repeats the value or an unknown key, which may be very long; what was expected is short.
    let text = source.to_string();
    let (found, expected) = text.split_at(text.rfind(", expected ").unwrap_or(text.len()));
    let source = match shortened(found) {
        Cow::Borrowed(_) => source,
        Cow::Owned(found) => serde_json::Error::custom(found + expected),
    };
    CheckpointError::Config { file: file.to_path_buf(), key, source }
}
