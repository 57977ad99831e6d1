//! From a checkpoint to a model.

use std::path::PathBuf;

use mlx_checkpoint::{Checkpoint, CheckpointError, TensorNames};
use mlx_rope::{LongRopeMode, RopeKeys};
use serde::de::DeserializeOwned;

use crate::CausalLm;

/// An architecture: which checkpoints it reads, and how.
#[derive(Debug, Clone, Copy)]
pub struct Architecture {
    /// The values of a config's `model_type` that name this architecture.
    pub model_types: &'static [&'static str],
    /// What people call its models, such as `Gemma 3`.
    pub name: &'static str,
    /// The released models whose facts a test checks, as their repositories on the Hub are named, without the owner:
    /// `gemma-3-270m`. For the architectures of this project it is `tests/released.rs` of the crate, which requires that this
    /// list has the names of its table. Empty where nothing was checked.
    pub released: &'static [&'static str],
    /// Builds the model. Its weights are read when they are first used.
    pub load: Load,
    /// The order and the names in which its tensors are written.
    pub names: TensorNames,
}

/// How an architecture builds a model.
pub type Load = fn(&Checkpoint, &LoadOptions) -> Result<Box<dyn CausalLm>, LoadError>;

/// What a user can ask of a model of any architecture. An option that a model has no use for changes nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// Leaves the weights on disk until the thread that loaded the model first uses them; only that thread can.
    /// Without it, `mlx_models::load_with` reads the weights into memory before it returns, and the model works on
    /// every thread. An architecture that is called directly ignores this option and never reads the weights.
    pub lazy: bool,
    /// When LongRoPE uses which of its lists of factors.
    pub long_rope: LongRopeMode,
    /// A folder of adapters for the model, of mlx-lm or PEFT ([`Adapters`](mlx_checkpoint::Adapters)).
    /// `mlx_models::load_with` puts them around the checkpoint. An architecture that is called directly ignores this
    /// option; give it a checkpoint from [`Checkpoint::with_adapters`] instead.
    pub adapters: Option<PathBuf>,
}

/// Reads the config of a checkpoint for an architecture: its own keys as `Raw`, and the keys of rotations, which have one
/// parser for all architectures. Warns of keys of rotations that have no use.
///
/// # Errors
///
/// [`LoadError::Checkpoint`] where a key is missing or has the wrong type.
pub fn read_config<Raw: DeserializeOwned>(checkpoint: &Checkpoint) -> Result<(Raw, RopeKeys), LoadError> {
    // Two types over the same object, and not one flattened into the other: serde's errors would lose the key at fault.
    let (raw, rope): (Raw, RopeKeys) = (checkpoint.config()?, checkpoint.config()?);
    checkpoint.warn_ignored(rope.ignored());
    Ok((raw, rope))
}

/// Why a checkpoint did not become a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The folder, its config or its tensors.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The config was read, but describes no model of its architecture.
    #[error("config.json of {model_type}")]
    Config {
        /// The architecture.
        model_type: String,
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The metadata of a GGUF file was read, but describes no model of its architecture.
    #[error("{}: the config of {model_type} that its metadata gives", file.display())]
    GgufConfig {
        /// The file.
        file: PathBuf,
        /// The architecture.
        model_type: String,
        /// What is wrong with the config. It names the keys of a checkpoint's config.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// MLX could not read the weights.
    #[error("reading the weights: {problem}")]
    Weights {
        /// What MLX says.
        problem: String,
    },
    /// No architecture is known for this `model_type`.
    #[error("unknown model_type {found:?}; known are {}", known.join(", "))]
    UnknownModelType {
        /// The config's value.
        found: String,
        /// All values that this project knows, compiled in or not.
        known: Vec<&'static str>,
    },
    /// The architecture is known but not compiled into this build.
    #[error("model_type {model_type:?} is not compiled in; build mlx-models with the feature `{feature}`")]
    NotCompiledIn {
        /// The config's value.
        model_type: String,
        /// The feature of `mlx-models` that compiles it in.
        feature: &'static str,
    },
}

impl LoadError {
    /// The [`Config`](Self::Config) error of an architecture.
    pub fn config(model_type: &str, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Config { model_type: model_type.to_owned(), source: Box::new(source) }
    }

    /// The same error; of a config that comes from a GGUF file, with the file.
    #[must_use]
    pub fn of_checkpoint(self, checkpoint: &Checkpoint) -> Self {
        match self {
            Self::Config { model_type, source } if checkpoint.is_gguf() => {
                Self::GgufConfig { file: checkpoint.path().to_path_buf(), model_type, source }
            }
            other => other,
        }
    }
}
