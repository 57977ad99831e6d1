//! Granite: the dense language models of IBM from version 3.0 on.
//!
//! API: [`Granite::load`] builds the model of a checkpoint; `mlx-models` does it by `model_type`.
//!
//! # The block
//!
//! ```text
//!         x  [B, L, D]
//!         │
//!         ├───────────┐
//!         │    input_layernorm                  RMSNorm
//!         │       ╱   │   ╲
//!         │   q_proj k_proj v_proj              to H d, H_kv d, H_kv d features
//!         │    rope  rope   │                   halves
//!         │      Q    K    V ── cache           H query heads, H_kv key-value heads
//!         │       ╲   │   ╱
//!         │      attention                      full; scores times attention_multiplier
//!         │       o_proj
//!         │  × residual_multiplier
//!         ⊕───────────┘
//!         ├───────────┐
//!         │  post_attention_layernorm           RMSNorm
//!         │       ╱       ╲
//!         │   gate_proj  up_proj
//!         │      silu      │
//!         │       ╲───⊙───╱                     SwiGLU
//!         │       down_proj
//!         │  × residual_multiplier
//!         ⊕───────────┘
//!         │
//! ```
//!
//! # From token to logits
//!
//! 1. Its row of `embed_tokens`, times `embedding_multiplier`, starts the residual stream.
//! 2. Each block normalizes a copy of the stream, applies attention and adds the output, times `residual_multiplier`, to the
//!    stream; then it does the same with the feed-forward network. The stream itself is not normalized.
//! 3. `norm` normalizes the stream after the last block, and the head computes the logits: the embedding table, used as a
//!    linear layer, in the released models. The logits are divided by `logits_scaling`.
//!
//! # Choices, and why
//!
//! The block is that of Llama with four factors. They belong to the maximal update parametrization (µP), with which the best
//! settings of the training do not depend on the size of the model, so that they can be found with small models
//! ([Yang et al. 2022](https://arxiv.org/abs/2203.03466); [Shen et al.](https://arxiv.org/abs/2408.13359) for Granite).
//!
//! - **`embedding_multiplier`** is 12 in the released models.
//! - **`attention_multiplier`**, what scores are multiplied by, is `1 / d` and not `1 / sqrt(d)`. Training aligns queries with
//!   keys, and the product of two aligned vectors grows with d, not with its root (Yang et al. 2022, definition 4.1).
//! - **`residual_multiplier`**, 0.22 in most sizes, keeps the stream from growing with the number of layers
//!   ([Yang et al. 2023](https://arxiv.org/abs/2310.02244)).
//! - **`logits_scaling`** is D / 256, such as 8 for 2048 features: logits are products over D features, which grow with D.
//! - **Large bases of the rotation** from Granite 3.1 on, without scaling, for 131 072 tokens: the context was extended in
//!   steps, each with a larger base.
//! - **Grouped queries** ([Ainslie et al.](https://arxiv.org/abs/2305.13245)) and **SwiGLU**
//!   ([Shazeer](https://arxiv.org/abs/2002.05202)), as in Llama.
//!
//! When a Granite model is quantized, `o_proj`, `down_proj` and `lm_head` keep 8 bits, as in mlx-lm. Their weights are smaller than
//! those of other models, so that few bits cannot express them.
//!
//! # Checkpoint
//!
//! | key | shape |
//! |---|---|
//! | `model.embed_tokens.weight` | `[V, D]` |
//! | `model.layers.N.input_layernorm.weight` | `[D]` |
//! | `model.layers.N.self_attn.q_proj.weight` | `[H d, D]` |
//! | `model.layers.N.self_attn.k_proj.weight` | `[H_kv d, D]` |
//! | `model.layers.N.self_attn.v_proj.weight` | `[H_kv d, D]` |
//! | `model.layers.N.self_attn.o_proj.weight` | `[D, H d]` |
//! | `model.layers.N.post_attention_layernorm.weight` | `[D]` |
//! | `model.layers.N.mlp.gate_proj.weight` | `[hidden, D]` |
//! | `model.layers.N.mlp.up_proj.weight` | `[hidden, D]` |
//! | `model.layers.N.mlp.down_proj.weight` | `[D, hidden]` |
//! | `model.norm.weight` | `[D]` |
//! | `lm_head.weight`, where the head is not tied | `[V, D]` |
//!
//! The fields of the model have the same names. With `attention_bias` the four projections of attention also have a `bias`,
//! and with `mlp_bias` the three of the feed-forward network. Quantized layers have `scales` and `biases` beside their
//! `weight`.

mod config;

pub use config::OwnKeys;

use mlx_causal_lm::Architecture;
use mlx_checkpoint::TensorNames;
use mlx_decoder::Decoder;

/// A Granite language model.
pub type Granite = Decoder<OwnKeys>;

/// The entry for a table of architectures.
pub const ARCHITECTURE: Architecture = Architecture {
    model_types: &["granite"],
    name: "Granite 3.0 to 3.3 and 4.1, without mixtures of experts",
    released: RELEASED,
    load: |checkpoint, _options| Ok(Box::new(Granite::load(checkpoint)?)),
    names: TensorNames::in_order(ORDER).with_eight_bits(EIGHT_BITS),
};

/// The released models whose facts `tests/released.rs` checks.
#[rustfmt::skip]
const RELEASED: &[&str] = &[
    "granite-3.1-2b-base", "granite-3.3-2b-instruct", "granite-3.3-8b-instruct", "granite-4.1-3b",
    "granite-4.1-8b",
];

/// The layers that write to the residual stream, and the head: their weights are small, because factors follow them.
const EIGHT_BITS: &[&str] = &["self_attn.o_proj", "mlp.down_proj", "lm_head"];

/// The parts of its keys, in the order of mlx-lm's modules.
#[rustfmt::skip]
const ORDER: &[&str] = &[
    "embed_tokens", "layers", "self_attn", "q_proj", "k_proj", "v_proj", "o_proj", "mlp",
    "gate_proj", "down_proj", "up_proj", "input_layernorm", "post_attention_layernorm", "norm",
    "lm_head",
];

/// Compiles the README's example.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
