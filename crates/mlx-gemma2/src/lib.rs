//! Gemma 2: language models whose attention scores and logits are soft-capped.
//!
//! API: [`Gemma2::load`] builds the model of a checkpoint; `mlx-models` does it by `model_type`.
//!
//! # The block
//!
//! ```text
//!         x  [B, L, D]
//!         │
//!         ├───────────┐
//!         │      input_layernorm                offset RMSNorm
//!         │       ╱   │   ╲
//!         │   q_proj k_proj v_proj              to H d, H_kv d, H_kv d features
//!         │    rope  rope   │                   halves
//!         │      Q    K    V ── cache           H query heads, H_kv key-value heads
//!         │       ╲   │   ╱
//!         │      attention                      soft-capped scores; local with a window, or global
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
//! The block is [`SandwichBlock`](mlx_decoder::SandwichBlock), which Gemma 3 has too.
//!
//! # From token to logits
//!
//! 1. Its row of `embed_tokens`, times the square root of D, starts the residual stream.
//! 2. Each block normalizes a copy of the stream, applies attention, normalizes the output and adds it to the stream.
//!    It does the same with the feed-forward network. The stream itself is not normalized.
//! 3. `norm` normalizes the stream after the last block, and the head computes the logits: `lm_head` where the checkpoint
//!    has one, otherwise the embedding table, used as a linear layer.
//! 4. The logits are limited to `cap * tanh(logits / cap)`, with `final_logit_softcapping` as the cap.
//!
//! # Choices, and why
//!
//! - **Soft-capped scores.** Each score s of attention becomes `cap * tanh(s / cap)`, with the cap 50
//!   (`attn_logit_softcapping`), before the mask is applied. So no score leaves `-50..50`, whatever the weights are, and small
//!   scores hardly change (`KeysValues::softcapped_attention` of `mlx-kvcache`). The logits
//!   have a cap of 30. `null` means no cap.
//! - **Local and global layers** take turns: layers 0, 2, 4 and so on attend to the newest 4096 tokens only, and their cache
//!   is a ring of that size; the others attend to all tokens (report, section 2). `layer_types` may state other layers.
//! - **`query_pre_attn_scalar`.** Scores are divided by the square root of this number, which is not always the size of a
//!   head: the 27B model takes D / H = 144 with heads of 128 features.
//! - **Four norms in each block.** The norm before a module keeps the size of its input independent of the size of the
//!   stream. The norm after it bounds what the module adds to the stream.
//! - **Norms with an offset.** The parameter is the scale minus 1; see `mlx-norms`.
//! - **The embedding scale** is the square root of D in the dtype of the model: for D = 3584 59.87 in float32, and 59.75 in
//!   bfloat16. Gemma 3 has a bfloat16 number in every dtype.
//! - **The residual sum is clipped in float16**, as in Gemma 3, where a sum beyond 65504 would make all later tokens NaN; see
//!   `mlx_norms::clip_residual`.
//! - **Grouped queries** share key-value heads ([Ainslie et al.](https://arxiv.org/abs/2305.13245)), **the gate is GeGLU**
//!   ([Shazeer](https://arxiv.org/abs/2002.05202)), **the head is tied to the embedding**
//!   ([Press and Wolf](https://arxiv.org/abs/1608.05859)).
//!
//! The report: Gemma Team, *Gemma 2: Improving Open Language Models at a Practical Size*,
//! <https://arxiv.org/abs/2408.00118>. Model cards: `google/gemma-2-2b`, `google/gemma-2-9b`, `google/gemma-2-27b` and
//! their `-it` forms on the Hugging Face Hub.
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
//! | `model.layers.N.pre_feedforward_layernorm.weight` | `[D]` |
//! | `model.layers.N.mlp.gate_proj.weight` | `[hidden, D]` |
//! | `model.layers.N.mlp.up_proj.weight` | `[hidden, D]` |
//! | `model.layers.N.mlp.down_proj.weight` | `[D, hidden]` |
//! | `model.layers.N.post_feedforward_layernorm.weight` | `[D]` |
//! | `model.norm.weight` | `[D]` |
//! | `lm_head.weight`, not where it is tied | `[V, D]` |
//!
//! The fields of the model have the same names. With `attention_bias` the projections of attention also have a `bias`.
//! Quantized layers have `scales` and `biases` beside their `weight`.

mod config;

pub use config::{MODEL_TYPE, OwnKeys};

use mlx_causal_lm::Architecture;
use mlx_checkpoint::TensorNames;
use mlx_decoder::Decoder;

/// A Gemma 2 language model.
pub type Gemma2 = Decoder<OwnKeys>;

/// The entry for a table of architectures.
pub const ARCHITECTURE: Architecture = Architecture {
    model_types: &[MODEL_TYPE],
    name: "Gemma 2",
    released: RELEASED,
    load: |checkpoint, _options| Ok(Box::new(Gemma2::load(checkpoint)?)),
    names: TensorNames::in_order(ORDER),
};

/// The released models whose facts `tests/released.rs` checks.
const RELEASED: &[&str] = &["gemma-2-2b", "gemma-2-2b-it", "gemma-2-9b", "gemma-2-27b"];

/// The parts of its keys, in the order of mlx-lm's modules.
#[rustfmt::skip]
const ORDER: &[&str] = &[
    "embed_tokens", "layers", "self_attn", "q_proj", "k_proj", "v_proj", "o_proj", "mlp",
    "gate_proj", "down_proj", "up_proj", "input_layernorm", "pre_feedforward_layernorm",
    "post_feedforward_layernorm", "post_attention_layernorm", "norm", "lm_head",
];

/// Compiles the README's example.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
