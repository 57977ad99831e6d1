//! Adapters as the library PEFT saves them: which layers have them, and how they are scaled.
//!
//! The file of tensors decides which layers have adapters and of which rank, and the config must agree with it: a layer
//! that the config names has its tensors in the file, and every adapter in the file belongs to a layer that the config
//! names. `config.rs` reads the config, `patterns.rs` compares its names and patterns with layers, and `layers.rs` finds the
//! tensors of each layer.

mod config;
mod layers;
mod patterns;

pub(super) use config::{MERGE, PeftConfig, TENSORS};
pub(super) use layers::{Peft, TIED, canonical};
