//! Ministral 3 and Devstral 2, and the language models of Mistral Small 3.1 and later models with a vision part.
//!
//! API: [`Ministral3::load`] builds the model of a checkpoint; `mlx-models` does it by `model_type`.
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
//!         │    rope  rope   │                   halves; YaRN
//!         │     × s   │     │                   by position, beyond the original context length
//!         │      Q    K    V ── cache           H query heads, H_kv key-value heads
//!         │       ╲   │   ╱
//!         │      attention                      full
//!         │       o_proj
//!         ⊕───────────┘
//!         ├───────────┐
//!         │  post_attention_layernorm           RMSNorm
//!         │       ╱       ╲
//!         │   gate_proj  up_proj
//!         │      silu      │
//!         │       ╲───⊙───╱                     SwiGLU
//!         │       down_proj
//!         ⊕───────────┘
//!         │
//! ```
//!
//! # From token to logits
//!
//! 1. Its row of `embed_tokens` starts the residual stream. Nothing scales it.
//! 2. Each block normalizes a copy of the stream, applies attention and adds the output to the stream; then it does the
//!    same with the feed-forward network. The stream itself is not normalized.
//! 3. `norm` normalizes the stream after the last block, and the head computes the logits: `lm_head`, or, with
//!    `tie_word_embeddings`, the embedding table, used as a linear layer.
//!
//! # Choices, and why
//!
//! The block is that of Mistral 7B, with two changes for long texts
//! ([Liu et al.](https://arxiv.org/abs/2601.08584), section 2):
//!
//! - **YaRN** extends the rotation from 16 384 tokens to 262 144 ([Peng et al.](https://arxiv.org/abs/2309.00071)). `mscale` and
//!   `mscale_all_dim` are equal in Ministral 3, so that its attention factor is 1. In Devstral 2 it is `0.1 ln 64 + 1`.
//! - **A factor of queries by position** ([`mlx_rope::QueryScale`]): `1 + beta ln(1 + floor(p / m))` at position `p`, with the
//!   original context length `m`. The softmax over many keys becomes flatter, and larger queries make it sharper
//!   ([Nakanishi](https://arxiv.org/abs/2501.19399)). In Devstral 2 `beta` is 0.
//! - **Heads of 128 features** in all sizes, also where the stream over the heads would give less: 3072 features over 32 heads in
//!   the 3B model.
//! - **Tied embeddings** in the 3B model, where the table is a large part of the weights
//!   ([Press and Wolf](https://arxiv.org/abs/1608.05859)).
//! - **Grouped queries** ([Ainslie et al.](https://arxiv.org/abs/2305.13245)) and **SwiGLU**
//!   ([Shazeer](https://arxiv.org/abs/2002.05202)), as in Mistral 7B.
//!
//! A checkpoint of type `mistral3` has a vision part too, which is ignored. Its language model is a `ministral3`, or a `mistral`,
//! as in Mistral Small 3.1 and 3.2; a `mistral` has neither YaRN nor the factor of queries.
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
//! The fields of the model have the same names. A checkpoint of type `mistral3` describes the language model under `text_config`,
//! and has longer names; [`KeyLayout`] lists them. Quantized layers have `scales` and `biases` beside
//! their `weight`. Released checkpoints with weights in fp8 are refused; those in bfloat16 (`...-BF16`), and those that mlx-lm
//! converted, are read.

mod config;

pub use config::{MINISTRAL, MULTIMODAL, OwnKeys};

use mlx_causal_lm::Architecture;
use mlx_checkpoint::TensorNames;
use mlx_decoder::{Decoder, KeyLayout};

/// A Ministral 3, or the language model of a Mistral 3.
pub type Ministral3 = Decoder<OwnKeys>;

/// The entry for a table of architectures.
pub const ARCHITECTURE: Architecture = Architecture {
    model_types: &[MINISTRAL, MULTIMODAL],
    name: "Ministral 3, Devstral 2, Mistral Small 3.1 and 3.2 (text only)",
    released: RELEASED,
    load: |checkpoint, _options| Ok(Box::new(Ministral3::load(checkpoint)?)),
    names: TensorNames::in_order(ORDER)
        .with_renaming(|checkpoint| KeyLayout::renaming(checkpoint, MULTIMODAL)),
};

/// The released models whose facts `tests/released.rs` checks.
#[rustfmt::skip]
const RELEASED: &[&str] = &[
    "Ministral-3-3B-Instruct-2512-BF16", "Ministral-3-8B-Instruct-2512-BF16",
    "Devstral-Small-2-24B-Instruct-2512", "Devstral-2-123B-Instruct-2512",
    "Mistral-Small-3.1-24B-Instruct-2503",
];

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
