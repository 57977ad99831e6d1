//! What decoder-only language models share: embedding, final norm and head, the config, the names of tensors, and the
//! blocks that several of them have.
//!
//! Implementation: for authors of architectures. An architecture writes its block and what its config has of its own, as a
//! [`DecoderBlock`], and gets a model:
//!
//! ```text
//! tokens [B, L] ── embedding ── block 0 ── … ── block N-1 ── norm ── head ── logits [B, L, V]
//! ```
//!
//! Architectures with the block of Llama ([`PreNormBlock`]), of OLMo 2 ([`PostNormBlock`]) or of Gemma ([`SandwichBlock`])
//! only say how their config is read ([`ReadConfig`]).
//!
//! [`DecoderConfig`] holds the numbers of such models. Those that few models have, such as a factor of the embedding, have a
//! value that changes nothing, and an architecture sets them. A model with a vision part is read like any other, without
//! that part ([`KeyLayout`]).
//!
//! A model of another form implements `CausalLm` of `mlx-causal-lm` itself, as Phi-3 does, whose rotation depends on the
//! length of the sequence.

mod blocks;
mod config;
mod layout;
mod model;
mod norm;
mod sandwich;

pub use blocks::{PostNormBlock, PreNormBlock, ReadConfig};
pub use config::{ConfigKeys, DecoderConfig, DecoderKeys, needed};
pub use layout::KeyLayout;
pub use mlx_config::Layer;
pub use model::{Decoder, DecoderBlock, softcap};
pub use norm::DecoderNorm;
pub use sandwich::{Sandwich, SandwichBlock};

/// Compiles the README's example.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
