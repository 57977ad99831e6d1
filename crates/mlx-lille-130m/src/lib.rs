//! Lille-130M: a small GPT-style language model.
//!
//! API: [`Lille130m::load`] builds the model of a checkpoint; `mlx-models` does it by `model_type`.
//!
//! # The block
//!
//! ```text
//!         x  [B, L, D]
//!         │
//!         ├───────────┐
//!         │       attention.norm                RMSNorm
//!         │           │
//!         │      qkv_proj                       one product for queries, keys and values
//!         │       ╱   │   ╲
//!         │    rope rope   │                    interleaved pairs
//!         │      Q    K    V ── cache           H query heads, H_kv key-value heads
//!         │       ╲   │   ╱
//!         │      attention, causal
//!         │           │
//!         │       out_proj
//!         ⊕───────────┘
//!         ├───────────┐
//!         │      feed_forward.norm              RMSNorm
//!         │       ╱       ╲
//!         │   gate_proj  up_proj
//!         │      silu      │
//!         │       ╲───⊙───╱                     SwiGLU
//!         │       down_proj
//!         ⊕───────────┘
//!         │
//! ```
//!
//! `tok_embeddings` gives each token its row of features. After the blocks and a last RMSNorm, the same table, used as a
//! linear layer, computes the logits.
//!
//! # Choices, and why
//!
//! - **Norms first, inside the modules.** Each module normalizes its own input and adds its output to the residual stream.
//!   The stream itself is not normalized, so that gradients reach every block unchanged
//!   ([Xiong et al.](https://arxiv.org/abs/2002.04745)). The norms belong to the attention and feed-forward modules, not to
//!   the block, as the keys show.
//! - **One fused projection.** Queries, keys and values are slices of one product, so that the input is read once.
//! - **Grouped queries.** Several query heads share a key-value head, so that the cache is smaller
//!   by that factor ([Ainslie et al.](https://arxiv.org/abs/2305.13245)).
//! - **Interleaved rotary positions**, as in the paper that introduced them ([Su et al.](https://arxiv.org/abs/2104.09864)).
//! - **The width of the feed-forward network** is 8/3 of `n_embd`, rounded: see [`hidden_dim`].
//! - **Tied embeddings.** The head is the embedding table. In a model this small, a separate head would be a sixth of all
//!   weights ([Press and Wolf](https://arxiv.org/abs/1608.05859)).
//!
//! The model card of the released model is `Nikity/lille-130m-base` on the Hugging Face Hub.
//!
//! # Checkpoint
//!
//! | key | shape |
//! |---|---|
//! | `transformer.tok_embeddings.weight` | `[V, D]` |
//! | `transformer.layers.N.attention.norm.weight` | `[D]` |
//! | `transformer.layers.N.attention.qkv_proj.weight` | `[(H + 2 H_kv) d, D]` |
//! | `transformer.layers.N.attention.out_proj.weight` | `[D, H d]` |
//! | `transformer.layers.N.feed_forward.norm.weight` | `[D]` |
//! | `transformer.layers.N.feed_forward.gate_proj.weight` | `[hidden, D]` |
//! | `transformer.layers.N.feed_forward.up_proj.weight` | `[hidden, D]` |
//! | `transformer.layers.N.feed_forward.down_proj.weight` | `[D, hidden]` |
//! | `transformer.norm.weight` | `[D]` |
//!
//! The fields of the model have the same names. Keys that contain `rotary_emb` are ignored, and every other unknown key is
//! an error. Quantized layers have `scales` and `biases` beside their `weight`.

mod config;
mod model;

pub use config::{Config, MODEL_TYPE, hidden_dim};
pub use model::Lille130m;

use mlx_causal_lm::Architecture;
use mlx_checkpoint::TensorNames;

/// The entry for a table of architectures.
pub const ARCHITECTURE: Architecture = Architecture {
    model_types: &[MODEL_TYPE],
    name: "Lille 130M",
    released: &["lille-130m-base"],
    load: |checkpoint, _| Ok(Box::new(Lille130m::load(checkpoint)?)),
    names: TensorNames::in_order(ORDER),
};

/// The parts of its keys, in the order of mlx-lm's modules.
#[rustfmt::skip]
const ORDER: &[&str] = &[
    "tok_embeddings", "layers", "attention", "feed_forward", "qkv_proj", "out_proj", "feed_forward.norm", "gate_proj",
    "up_proj", "down_proj", "norm",
];

/// Compiles the README's example.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
