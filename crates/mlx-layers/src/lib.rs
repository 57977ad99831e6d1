//! The layers that architectures are composed of.
//!
//! API for authors of models.
//!
//! | for | there is |
//! |---|---|
//! | layers with full-precision or quantized weights behind one `forward` | [`Linear`], [`Embedding`] |
//! | the feed-forward network of most architectures, and its gates | [`GatedMlp`], [`swiglu`], [`swiglu_fused`], [`geglu`] |
//! | grouped-query attention, with or without norms of queries and keys | [`Attention`] |
//! | attention of any other kind | the functions of [`heads`] |
//! | the residual connection of models that have a factor for it | [`add_residual`] |
//! | running all blocks of a model | [`through_blocks`] |
//! | the weights, while a model is built | [`Parameters`], a view of a [`ParameterSource`] |
//!
//! The layers do not know whether their weights come from a checkpoint or from a random generator. A source may also
//! have an adapter for a layer, of LoRA or DoRA ([`AdapterParameters`]). The layer then holds the adapter beside its
//! weight, or adds it to the weight while it is built ([`Form`]); the code of a model is the same.

mod adapter;
mod attention;
mod embedding;
mod gated_mlp;
mod gates;
pub mod heads;
mod linear;
mod number;
mod parameters;
mod residual;
mod stack;

pub use adapter::{AdaptedLayer, AdapterParameters, Form, Magnitudes};
pub use attention::{Attention, AttentionBias, AttentionSettings, NoNorm, Norm, NormOver};
pub use embedding::Embedding;
pub use gated_mlp::{Gate, GatedMlp};
pub use gates::{geglu, swiglu, swiglu_fused};
pub use heads::AttentionInput;
pub use linear::Linear;
pub use mlx_quantization::Quantization;
pub use number::number;
pub use parameters::{ParameterSource, Parameters};
pub use residual::add_residual;
pub use stack::through_blocks;

/// Compiles the README's example.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
