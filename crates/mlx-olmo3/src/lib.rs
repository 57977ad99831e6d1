//! OLMo 3: open language models most of whose layers have a sliding window.
//!
//! API: [`Olmo3::load`] builds the model of a checkpoint; `mlx-models` does it by `model_type`.
//!
//! # The block
//!
//! ```text
//!         x  [B, L, D]
//!         │
//!         ├───────────┐                         no norm before attention
//!         │       ╱   │   ╲
//!         │   q_proj k_proj v_proj
//!         │   q_norm k_norm │                   RMSNorm over all heads together
//!         │    rope  rope   │                   halves; YaRN in full layers, plain in the others
//!         │      Q    K    V ── cache           H query heads, H_kv key-value heads
//!         │       ╲   │   ╱
//!         │      attention                      full, or with a sliding window
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
//! 1. Its row of `embed_tokens` starts the residual stream.
//! 2. In each block attention reads the stream without a norm. Its output is normalized and added to the stream. The
//!    feed-forward network does the same.
//! 3. `norm` normalizes the stream after the last block, and the head computes the logits: `lm_head`, or, with
//!    `tie_word_embeddings`, the embedding table, used as a linear layer.
//!
//! # Choices, and why
//!
//! - **Norms after the modules**, and none before them. The norm sets the size of what a module adds to the stream, so that
//!   the stream grows evenly with depth. With norms before the modules, OLMo 2 had spikes in the loss and growing
//!   gradients; with norms after them it had neither ([OLMo 2](https://arxiv.org/abs/2501.00656), section 3.3.2). Unlike in
//!   the post-norm of the first transformers, the stream itself is not normalized.
//! - **Norms of queries and keys, over the whole projection.** Without a norm before attention, nothing else bounds the
//!   projections of a growing stream, and with large scores the softmax collapses to a single key (same paper, section
//!   3.3.2). A norm over the features of all heads computes one mean square per token and keeps the differences in size
//!   between heads, which a norm of each head (Gemma 3) removes. So the norm comes before the heads are cut apart and has
//!   H d weights, not d.
//! - **Full and sliding layers.** Three of four layers attend to the newest 4096 tokens only, and their cache is a ring of
//!   that size. Every fourth layer attends to all tokens. `layer_types` states the kind of each layer; where it is
//!   missing, layers 3, 7, 11 and so on are full. A model may have layers of one kind only.
//! - **YaRN in the full layers only.** The context was extended from 8192 to 65 536 tokens after training. The distances
//!   in a window did not grow, so layers with a window rotate as before. An `attention_factor` in the config is used
//!   unchanged; without one it is `0.1 ln(factor) + 1` ([Peng et al.](https://arxiv.org/abs/2309.00071), section 3.4).
//! - **Grouped queries**, in the 32B model, share key-value heads
//!   ([Ainslie et al.](https://arxiv.org/abs/2305.13245)).
//!
//! The report: Team Olmo, *Olmo 3*, <https://arxiv.org/abs/2512.13961>. Model cards:
//! `allenai/Olmo-3-1025-7B`, `allenai/Olmo-3-1125-32B` on the Hugging Face Hub.
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
//! The fields of the model have the same names. With `attention_bias` the four projections of attention also have a
//! `bias`. No key of this list is ignored. Quantized layers have `scales` and `biases` beside their `weight`.

mod config;

pub use config::{MODEL_TYPE, OwnKeys};

use mlx_causal_lm::Architecture;
use mlx_checkpoint::TensorNames;
use mlx_decoder::Decoder;

/// An OLMo 3 language model.
pub type Olmo3 = Decoder<OwnKeys>;

/// The entry for a table of architectures.
pub const ARCHITECTURE: Architecture = Architecture {
    model_types: &[MODEL_TYPE],
    name: "OLMo 3",
    released: RELEASED,
    load: |checkpoint, _options| Ok(Box::new(Olmo3::load(checkpoint)?)),
    names: TensorNames::in_order(ORDER),
};

/// The released models whose facts `tests/released.rs` checks.
const RELEASED: &[&str] = &["Olmo-3-1025-7B", "Olmo-3.1-32B-Instruct"];

/// The parts of its keys, in the order of mlx-lm's modules.
#[rustfmt::skip]
const ORDER: &[&str] = &[
    "embed_tokens", "layers", "self_attn", "mlp", "q_proj", "k_proj", "v_proj", "o_proj", "q_norm",
    "k_norm", "gate_proj", "down_proj", "up_proj", "post_attention_layernorm", "post_feedforward_layernorm",
    "norm", "lm_head",
];

/// Compiles the README's example.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
