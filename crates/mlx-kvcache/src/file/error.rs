//! Why saving or loading a cache failed.

use std::io;
use std::path::PathBuf;

use mlx_rs::error::Exception;

use super::entries::{CLASSES, VERSION};
use crate::CacheError;

/// Text of a file as messages show it: cut if it is very long.
fn shortened(text: &str) -> std::borrow::Cow<'_, str> {
    mlx_files::shortened(text, 240)
}

/// Why a cache could not be saved, or a file could not be loaded as a cache.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheFileError {
    /// An operation on a file failed.
    #[error("{doing} {}", file.display())]
    Io {
        /// The operation: `opening`, `reading` or `writing`.
        doing: &'static str,
        /// The file.
        file: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The file is not a complete safetensors file, or it was changed.
    #[error("{} is not a complete cache file: {}", file.display(), shortened(problem))]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A safetensors file that is not a cache, or a cache without layers.
    #[error("{} holds no cache: {}", file.display(), shortened(problem))]
    NoCache {
        /// The file.
        file: PathBuf,
        /// What is missing.
        problem: String,
    },
    /// A class of mlx-lm that this crate cannot read.
    #[error("{}: layer {layer} is a {}, which is not supported; supported are {}", file.display(), shortened(class), CLASSES.join(", "))]
    UnknownKind {
        /// The file.
        file: PathBuf,
        /// The layer, from 0.
        layer: usize,
        /// The name of the class.
        class: String,
    },
    /// The file was written by a newer version.
    #[error("{} has version {found} of the format; this program reads versions up to {VERSION}. A newer program wrote it", file.display())]
    Version {
        /// The file.
        file: PathBuf,
        /// The version of the file.
        found: u32,
    },
    /// The numbers of a layer contradict each other or its tensors.
    #[error("{}: layer {layer}: {}", file.display(), shortened(problem))]
    Layer {
        /// The file.
        file: PathBuf,
        /// The layer, from 0.
        layer: usize,
        /// The contradiction.
        problem: String,
    },
    /// The cache of a model of another type.
    #[error("{} was made by a model of type {:?}, and this model has type {expected:?}", file.display(), shortened(found))]
    Model {
        /// The file.
        file: PathBuf,
        /// The type of the model that is loaded.
        expected: String,
        /// The type of the model that made the file.
        found: String,
    },
    /// The cache of a model with other weights, adapters or another config.
    #[error(
        "{} was made with other {what} than this model has, so this model cannot use its keys and values; make the cache again",
        file.display()
    )]
    MadeBy {
        /// The file.
        file: PathBuf,
        /// What differs: `weights`, `adapters` or the settings that rotation, windows and scales come from.
        what: &'static str,
    },
    /// The file does not say which model made it, and this model needs to know.
    #[error("{} does not say which model made it, and {problem}", file.display())]
    UnknownOrigin {
        /// The file.
        file: PathBuf,
        /// Why this model needs to know.
        problem: String,
    },
    /// The path for a new cache file belongs to a file that is not a cache.
    #[error("{} is not a cache file, and only cache files are replaced; choose another name or remove the file", file.display())]
    NotReplaced {
        /// The file.
        file: PathBuf,
    },
    /// The cache of a model with another number of layers.
    #[error("{} holds {found} layers, and the model has {expected}", file.display())]
    Layers {
        /// The file.
        file: PathBuf,
        /// Layers of the model.
        expected: usize,
        /// Layers in the file.
        found: usize,
    },
    /// A layer with another layout, shape or dtype than the model's layer.
    #[error("{}: layer {layer} has {what} {}, and the model needs {expected}", file.display(), shortened(found))]
    Mismatch {
        /// The file.
        file: PathBuf,
        /// The layer, from 0.
        layer: usize,
        /// What differs.
        what: &'static str,
        /// What the model has.
        expected: String,
        /// What the file has.
        found: String,
    },
    /// The number of token ids is not the number of tokens in the cache.
    #[error("{tokens} token ids for a cache of {offset} tokens; give all of them or none")]
    Tokens {
        /// The number of token ids.
        tokens: usize,
        /// The number of tokens in the cache.
        offset: i32,
    },
    /// An operation on a cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// An operation of MLX failed.
    #[error("{}", mlx_files::without_source_place(.0.what()))]
    Mlx(Exception),
}

impl From<Exception> for CacheFileError {
    fn from(error: Exception) -> Self {
        Self::Mlx(error)
    }
}
