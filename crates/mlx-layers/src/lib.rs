//! The layers that architectures are composed of.
//!
//! API for model authors. [`Linear`] and [`Embedding`] hold full-precision or quantized weights
//! behind one `forward`, so that a model never asks which it has. [`Parameters`] is where a layer
//! gets its weights while a model is built: from a checkpoint, or from a random generator; the
//! layers do not know. [`GatedMlp`] is the feed-forward network that most architectures have,
//! [`HeadNormAttention`] the attention of those that normalize queries and keys head by head.
//! [`swiglu`], [`swiglu_fused`], [`geglu`] and the functions of [`heads`] are the pieces between the
//! layers, and [`through_blocks`] is the way through a whole model.
//!
//! A source may also have adapters for layers ([`AdapterParameters`]: LoRA's or DoRA's). The layer then holds
//! one beside its weight, or is built with it added to the weight ([`Form`]); a model does not know.

mod adapter;
mod attention;
mod embedding;
mod gated_mlp;
mod gates;
pub mod heads;
mod linear;
mod parameters;
mod stack;

pub use adapter::{AdaptedLayer, AdapterParameters, Form, Magnitudes};
pub use attention::{HeadNormAttention, HeadNormSettings, Norm};
pub use embedding::Embedding;
pub use gated_mlp::{Gate, GatedMlp};
pub use gates::{geglu, swiglu, swiglu_fused};
pub use heads::AttentionInput;
pub use linear::Linear;
pub use mlx_quantization::Quantization;
pub use parameters::{ParameterSource, Parameters};
pub use stack::through_blocks;
