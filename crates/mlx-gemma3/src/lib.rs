//! Gemma 3: language models most of whose layers attend through short windows.
//!
//! API: [`Gemma3::load`] builds the model of a checkpoint; `mlx-models` does it by `model_type`.
//!
//! # The block
//!
//! ```text
//!         x  [B, L, D]
//!         │
//!         ├───────────┐
//!         │      input_layernorm                offset RMSNorm
//!         │       ╱   │   ╲
//!         │   q_proj k_proj v_proj
//!         │   q_norm k_norm │                   offset RMSNorm over each head
//!         │    rope  rope   │                   halves; base and scaling by the kind of layer
//!         │      Q    K    V ── cache           H query heads, H_kv key-value heads
//!         │       ╲   │   ╱
//!         │      attention                      global, or local with a window
//!         │       o_proj
//!         │  post_attention_layernorm           offset RMSNorm
//!         ⊕───────────┘                         within float16's range
//!         ├───────────┐
//!         │  pre_feedforward_layernorm          offset RMSNorm
//!         │       ╱       ╲
//!         │   gate_proj  up_proj
//!         │      gelu      │
//!         │       ╲───⊙───╱                     GeGLU
//!         │       down_proj
//!         │  post_feedforward_layernorm         offset RMSNorm
//!         ⊕───────────┘
//!         │
//! ```
//!
//! # From token to logits
//!
//! 1. Its row of `embed_tokens`, times the square root of D, starts the residual stream.
//! 2. Each block normalizes a copy of the stream, applies attention, normalizes the output and adds it to the stream.
//!    It does the same with the feed-forward network. The stream itself is not normalized.
//! 3. `norm` normalizes the stream after the last block, and the head computes the logits: `lm_head` where the checkpoint
//!    has one, otherwise the embedding table, used as a linear layer.
//! 4. Where the config has `final_logit_softcapping`, the logits are limited to `cap * tanh(logits / cap)`.
//!
//! # Choices, and why
//!
//! - **Local and global layers.** Five of six layers attend to the newest 512 or 1024 tokens only, and their cache is a
//!   ring of that size; every sixth layer attends to all tokens. At 32 K tokens the cache takes less than a sixth of the
//!   memory, and the report finds hardly any loss (section 5.2). `layer_types` states which layers are global, otherwise
//!   `sliding_window_pattern` does. Where a config has both, the list counts, because the pattern is often left over from
//!   the model that this one was made from.
//! - **Two bases of the rotation.** Local layers keep the base 10 000 of short contexts, because distances in a window are
//!   short. Global layers have the base 1 000 000, which slows all pairs but the first, so that far positions still
//!   differ. In the models for 128 K tokens, the positions in global layers are also divided by 8 (`rope_scaling`,
//!   linear), which was added after training on 32 K. The distances in local layers did not grow, so those are not scaled.
//! - **Four norms in each block.** The norm before a module keeps the size of its input independent of the size of the
//!   stream. The norm after it bounds what the module adds to the stream, which otherwise grows with depth and disturbs
//!   training ([Ding et al.](https://arxiv.org/abs/2105.13290), section 2.4, as "Sandwich LayerNorm").
//! - **Norms with an offset.** The parameter is the scale minus 1; see `mlx-norms`.
//! - **Norms of queries and keys**, head by head, bound the scores for all weights of the projections
//!   ([Dehghani et al.](https://arxiv.org/abs/2302.05442), section 2). They replace Gemma 2's soft capping of scores.
//! - **`query_pre_attn_scalar`.** Scores are divided by the square root of this number, which is not always the size of a
//!   head: the 27B model takes D / H = 168 with heads of 128 features.
//! - **The residual sum is clipped in float16**, because the stream of these models exceeds 65504; see
//!   `mlx_norms::clip_residual`.
//! - **The embedding scale is a bfloat16 number**: 25.25 for the square root of 640, 34 for that of 1152.
//! - **Grouped queries** share key-value heads ([Ainslie et al.](https://arxiv.org/abs/2305.13245)),
//!   **the gate is GeGLU** ([Shazeer](https://arxiv.org/abs/2002.05202)).
//!
//! The report: Gemma Team, *Gemma 3 Technical Report*, <https://arxiv.org/abs/2503.19786>. Model cards:
//! `google/gemma-3-270m`, `google/gemma-3-1b-it`, `google/gemma-3-4b-it`, `google/gemma-3-27b-it` on the
//! Hugging Face Hub.
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
//! | `model.layers.N.self_attn.q_norm.weight` | `[d]` |
//! | `model.layers.N.self_attn.k_norm.weight` | `[d]` |
//! | `model.layers.N.post_attention_layernorm.weight` | `[D]` |
//! | `model.layers.N.pre_feedforward_layernorm.weight` | `[D]` |
//! | `model.layers.N.mlp.gate_proj.weight` | `[hidden, D]` |
//! | `model.layers.N.mlp.up_proj.weight` | `[hidden, D]` |
//! | `model.layers.N.mlp.down_proj.weight` | `[D, hidden]` |
//! | `model.layers.N.post_feedforward_layernorm.weight` | `[D]` |
//! | `model.norm.weight` | `[D]` |
//! | `lm_head.weight`, not where it is tied | `[V, D]` |
//!
//! The fields of the model have the same names. With `attention_bias` the projections of attention also have a `bias`.
//! A checkpoint of type `gemma3` also holds a vision part, describes the language model under `text_config`, and has longer
//! names; [`KeyLayout`] lists the names and the tensors that are ignored. Quantized layers have `scales` and `biases`
//! beside their `weight`.

mod config;

pub use config::{MULTIMODAL, OwnKeys, TEXT};

use mlx_causal_lm::Architecture;
use mlx_checkpoint::TensorNames;
use mlx_decoder::{Decoder, KeyLayout};

/// A Gemma 3 language model.
pub type Gemma3 = Decoder<OwnKeys>;

/// The entry for a table of architectures.
pub const ARCHITECTURE: Architecture = Architecture {
    model_types: &[TEXT, MULTIMODAL],
    name: "Gemma 3",
    released: RELEASED,
    load: |checkpoint, _options| Ok(Box::new(Gemma3::load(checkpoint)?)),
    names: TensorNames::in_order(ORDER)
        .with_renaming(|checkpoint| KeyLayout::renaming(checkpoint, MULTIMODAL)),
};

/// The released models whose facts `tests/released.rs` checks.
const RELEASED: &[&str] =
    &["gemma-3-270m", "gemma-3-1b-it", "gemma-3-4b-it", "gemma-3-12b-it", "gemma-3-27b-it"];

/// The parts of its keys, in the order of mlx-lm's modules.
#[rustfmt::skip]
const ORDER: &[&str] = &[
    "embed_tokens", "layers", "self_attn", "mlp", "q_proj", "k_proj", "v_proj", "o_proj", "q_norm",
    "k_norm", "gate_proj", "down_proj", "up_proj", "input_layernorm", "post_attention_layernorm",
    "pre_feedforward_layernorm", "post_feedforward_layernorm", "norm", "lm_head",
];

/// Compiles the README's example.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
