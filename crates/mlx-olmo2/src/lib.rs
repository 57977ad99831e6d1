//! OLMo 2: open language models of 1 to 32 billion parameters, with norms after the modules.
//!
//! API: [`Olmo2::load`] builds the model of a checkpoint; `mlx-models` does it by `model_type`.
//!
//! # The block
//!
//! ```text
//!         x  [B, L, D]
//!         │
//!         ├───────────┐                         no norm before attention
//!         │       ╱   │   ╲
//!         │   q_proj k_proj v_proj              to H d, H_kv d, H_kv d features
//!         │   q_norm k_norm │                   RMSNorm over all heads together
//!         │    rope  rope   │                   halves
//!         │      Q    K    V ── cache           H query heads, H_kv key-value heads
//!         │       ╲   │   ╱
//!         │      attention                      full, in all layers
//!         │       o_proj
//!         │  post_attention_layernorm           RMSNorm
//!         ⊕───────────┘
//!         ├───────────┐
//!         │       ╱       ╲
//!         │   gate_proj  up_proj
//!         │      silu      │
//!         │       ╲───⊙───╱                     SwiGLU
//!         │       down_proj
//!         │  post_feedforward_layernorm         RMSNorm
//!         ⊕───────────┘
//!         │
//! ```
//!
//! # From token to logits
//!
//! 1. Its row of `embed_tokens` starts the residual stream. Nothing scales it.
//! 2. In each block attention reads the stream without a norm. Its output is normalized and added to the stream. The
//!    feed-forward network does the same.
//! 3. `norm` normalizes the stream after the last block, and the head computes the logits: `lm_head`, or, with
//!    `tie_word_embeddings`, the embedding table, used as a linear layer.
//!
//! # Choices, and why
//!
//! - **Norms after the modules**, and none before them. With norms before the modules, as in the first OLMo, the loss had
//!   spikes and gradients grew during the training; with norms after them they did not
//!   ([OLMo 2](https://arxiv.org/abs/2501.00656), section 3.3.2). The stream itself is not normalized, as it is in the
//!   post-norm of the first transformers.
//! - **RMSNorm with a weight**, in place of the first OLMo's layer norm without parameters (same paper, section 2.1).
//! - **Norms of queries and keys, over the whole projection.** They keep scores from growing, with which the training
//!   would diverge (same paper, section 2.1). A norm over the features of all heads computes one mean square per token, so
//!   the norm comes before the heads are cut apart, and has H d weights.
//! - **No biases**, as in the first OLMo. `attention_bias` is read, because both references have it.
//! - **A base of 500 000**, for a finer resolution of positions (same paper, section 2.1).
//! - **Grouped queries** in the 32B model only, which share key-value heads
//!   ([Ainslie et al.](https://arxiv.org/abs/2305.13245)). The smaller models have a key-value head for each query head.
//!
//! # Checkpoint
//!
//! | key | shape |
//! |---|---|
//! | `model.embed_tokens.weight` | `[V, D]` |
//! | `model.layers.N.self_attn.q_proj.weight` | `[H d, D]` |
//! | `model.layers.N.self_attn.k_proj.weight` | `[H_kv d, D]` |
//! | `model.layers.N.self_attn.v_proj.weight` | `[H_kv d, D]` |
//! | `model.layers.N.self_attn.o_proj.weight` | `[D, H d]` |
//! | `model.layers.N.self_attn.q_norm.weight` | `[H d]` |
//! | `model.layers.N.self_attn.k_norm.weight` | `[H_kv d]` |
//! | `model.layers.N.post_attention_layernorm.weight` | `[D]` |
//! | `model.layers.N.mlp.gate_proj.weight` | `[hidden, D]` |
//! | `model.layers.N.mlp.up_proj.weight` | `[hidden, D]` |
//! | `model.layers.N.mlp.down_proj.weight` | `[D, hidden]` |
//! | `model.layers.N.post_feedforward_layernorm.weight` | `[D]` |
//! | `model.norm.weight` | `[D]` |
//! | `lm_head.weight`, not where it is tied | `[V, D]` |
//!
//! With `attention_bias` the four projections of attention also have a `bias`. Quantized layers have `scales` and `biases`
//! beside their `weight`.

mod config;

pub use config::{MODEL_TYPE, OwnKeys};

use mlx_causal_lm::Architecture;
use mlx_checkpoint::TensorNames;
use mlx_decoder::Decoder;

/// An OLMo 2 language model.
pub type Olmo2 = Decoder<OwnKeys>;

/// The entry for a table of architectures.
pub const ARCHITECTURE: Architecture = Architecture {
    model_types: &[MODEL_TYPE],
    name: "OLMo 2",
    released: &["OLMo-2-0425-1B", "OLMo-2-1124-7B", "OLMo-2-1124-13B", "OLMo-2-0325-32B"],
    load: |checkpoint, _options| Ok(Box::new(Olmo2::load(checkpoint)?)),
    names: TensorNames::in_order(ORDER),
};

/// The parts of its keys, in the order of mlx-lm's modules.
#[rustfmt::skip]
const ORDER: &[&str] = &[
    "embed_tokens", "layers", "self_attn", "q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm", "mlp",
    "gate_proj", "down_proj", "up_proj", "post_attention_layernorm", "post_feedforward_layernorm", "norm",
    "lm_head",
];

/// Compiles the README's example.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
