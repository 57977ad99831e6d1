//! What a file says of its model, in the words of a checkpoint folder: the config that Hugging Face's transformers and mlx-lm
//! have for the architecture, and the key, shape and change of each tensor.
//!
//! [`ARCHITECTURES`] is the table of architectures. Each row reads in both directions: from the names of files to those of
//! checkpoints ([`Architecture::key_of`]), and back ([`Architecture::name_of`]).
//!
//! # Reference
//!
//! llama.cpp (<https://github.com/ggml-org/llama.cpp>): the converter from Hugging Face checkpoints, `conversion/*.py`, and the
//! loading of each architecture, `src/models/*.cpp`. Where a file does not state a number, the number is llama.cpp's.

mod architectures;
mod config;
mod describe;
mod facts;
mod keys;
mod llama3;
mod names;
mod rope;
mod tensors;

use serde_json::Value;

pub use architectures::{ARCHITECTURES, Architecture};
pub use describe::Description;
pub use names::{Named, Part, half_order, pair_order};
pub use tensors::{Change, ModelTensor};

use crate::{Gguf, GgufError};
use keys::Keys;

/// What a file says of its model.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// The row of the table.
    pub architecture: &'static Architecture,
    /// The config of a checkpoint of this model.
    pub config: Value,
    /// The tensors of a checkpoint of this model, sorted by key.
    pub tensors: Vec<ModelTensor>,
}

impl Gguf {
    /// The model of this file as a checkpoint folder would have it. Of the tensors, those with factors of rotations are read.
    ///
    /// # Errors
    ///
    /// Where the architecture is unknown, a key or a tensor is missing, contradicts another or has no known meaning.
    pub fn model(&self) -> Result<Model, GgufError> {
        let wrong = |problem| self.wrong(problem);
        let architecture = Architecture::of(self.metadata()).map_err(wrong)?;
        let keys = Keys::new(self, architecture.name);
        let facts = facts::Facts::read(&keys)?;
        let config = (architecture.config)(&keys, &facts)?;
        keys.finish().map_err(wrong)?;
        let tensors = tensors::of(&keys, architecture, &facts).map_err(wrong)?;
        Ok(Model { architecture, config: Value::Object(config), tensors })
    }
}
