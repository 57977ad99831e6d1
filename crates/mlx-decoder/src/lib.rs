//! What decoder-only language models share: embedding, final norm and head, the config, the names of tensors, and the
//! blocks that several of them have.
//!
//! Implementation: for authors of architectures. An architecture says how its config is read and which block it has
//! ([`DecoderArchitecture`]), and gets a model:
//!
//! ```text
//! tokens [B, L] ── embedding ── block 0 ── … ── block N-1 ── norm ── head ── logits [B, L, V]
//! ```
//!
//! The blocks that several architectures have are here; an architecture can also write its own ([`DecoderBlock`]).
//!
//! | block | where its norms are | architectures |
//! |---|---|---|
//! | [`PreNormBlock`] | before attention and before the feed-forward network | Llama and Mistral, Qwen 2 and 3, SmolLM3, Granite, Ministral 3 |
//! | [`PostNormBlock`] | after both | OLMo 2 and 3 |
//! | [`SandwichBlock`] | before and after both | Gemma 2 and 3 |
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

pub use blocks::{PostNormBlock, PreNormBlock, SandwichBlock};
pub use config::{ConfigKeys, DecoderConfig, DecoderKeys, needed};
pub use layout::KeyLayout;
pub use mlx_config::Layer;
pub use model::{Decoder, DecoderArchitecture, DecoderBlock, softcap};
pub use norm::DecoderNorm;

/// Compiles the README's example.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
