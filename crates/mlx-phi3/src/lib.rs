//! Phi-3.
mod config;
mod model;

pub use config::{Config, ConfigError, MODEL_TYPE};
pub use model::Phi3;

use mlx_causal_lm::Architecture;

/// The architecture, for a table of architectures.
pub const ARCHITECTURE: Architecture = Architecture {
    model_types: &[MODEL_TYPE],
    load: |checkpoint, options| Ok(Box::new(Phi3::load(checkpoint, options)?)),
};
