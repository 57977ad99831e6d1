//! SmolLM3: an open language model of 3 billion parameters, in which every fourth layer has no rotation.
//!
//! API: [`SmolLm3::load`] builds the model of a checkpoint; `mlx-models` does it by `model_type`.
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
//!         │    rope  rope   │                   halves; none in layers 3, 7, 11 and so on
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
//!    same with the feed-forward network. `post_attention_layernorm` is the norm before the feed-forward network.
//! 3. `norm` normalizes the stream after the last block, and the head computes the logits: the embedding table, used as a
//!    linear layer, or, without `tie_word_embeddings`, `lm_head`.
//!
//! # Choices, and why
//!
//! - **No rotation in every fourth layer** (NoPE). Such a layer finds a token by its content at any distance, which helps
//!   with long texts, while the other layers keep track of positions
//!   ([Yang et al.](https://arxiv.org/abs/2501.18795)). The causal mask still tells a layer without a rotation
//!   something about order: the first tokens see fewer keys ([Kazemnejad et al.](https://arxiv.org/abs/2305.19466), section
//!   5). `no_rope_layers` lists which layers rotate (1) and which do not (0); without the list, `no_rope_layer_interval`
//!   counts.
//! - **A base of 5 000 000**, to which it was raised while the context grew from 4096 to 65 536 tokens
//!   ([report](https://huggingface.co/blog/smollm3)). YaRN extends it further, in the layers that rotate.
//! - **Grouped queries**: four query heads share a key-value head ([Ainslie et al.](https://arxiv.org/abs/2305.13245)).
//! - **Tied embeddings**, because the table is a large part of a small model
//!   ([Press and Wolf](https://arxiv.org/abs/1608.05859)).
//! - **Windows** are not used by the released model. With `use_sliding_window` the layers without a rotation have one, as in
//!   transformers; `layer_types` states it for each layer.
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
//! With `attention_bias` the four projections of attention also have a `bias`, and with `mlp_bias` the three of the
//! feed-forward network. Quantized layers have `scales` and `biases` beside their `weight`.

mod config;

pub use config::{MODEL_TYPE, OwnKeys};

use mlx_causal_lm::Architecture;
use mlx_checkpoint::TensorNames;
use mlx_decoder::Decoder;

/// A SmolLM3 language model.
pub type SmolLm3 = Decoder<OwnKeys>;

/// The entry for a table of architectures.
pub const ARCHITECTURE: Architecture = Architecture {
    model_types: &[MODEL_TYPE],
    name: "SmolLM3",
    released: &["SmolLM3-3B"],
    load: |checkpoint, _options| Ok(Box::new(SmolLm3::load(checkpoint)?)),
    names: TensorNames::in_order(ORDER),
};

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
