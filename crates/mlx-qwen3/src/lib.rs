//! Qwen 3: the dense language models of the Qwen family, from 0.6 to 32 billion parameters.
//!
//! API: [`Qwen3::load`] builds the model of a checkpoint; `mlx-models` does it by `model_type`.
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
//!         │   q_norm k_norm │                   RMSNorm over each head by itself
//!         │    rope  rope   │                   halves; YaRN where the config has it
//!         │      Q    K    V ── cache           H query heads, H_kv key-value heads
//!         │       ╲   │   ╱
//!         │      attention                      full, or with a window where the config asks for it
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
//!    same with the feed-forward network. The stream itself is not normalized. `post_attention_layernorm` is the norm
//!    before the feed-forward network; it comes after attention, hence its name.
//! 3. `norm` normalizes the stream after the last block, and the head computes the logits: `lm_head`, or, with
//!    `tie_word_embeddings`, the embedding table, used as a linear layer.
//!
//! # Choices, and why
//!
//! - **Norms of queries and keys, head by head**, before the rotation, which keeps their length. They bound the scores for
//!   all weights of the projections, so that training stays stable
//!   ([Dehghani et al.](https://arxiv.org/abs/2302.05442), section 2). They replace the biases that Qwen 2 had in its
//!   projections (report, section 2). All query heads share one weight, and all key heads share another; OLMo 3
//!   normalizes all heads together instead, with a weight for each feature of each head.
//! - **Heads wider than the stream.** `head_dim` is 128 in every size, independently of D / H: the 0.6B model computes 2048
//!   features of queries from a stream of 1024.
//! - **Grouped queries** share key-value heads, 8 in every size
//!   ([Ainslie et al.](https://arxiv.org/abs/2305.13245)), which keeps the cache small.
//! - **A base of 1 000 000.** It was raised from 10 000 for the last stage of training, on 32 768 tokens: with slower pairs,
//!   more of them distinguish far positions
//!   ([Xiong et al.](https://arxiv.org/abs/2309.16039), section 2; report, section 3.2).
//! - **YaRN, switched on by the user.** `rope_scaling` of type `yarn` with factor 4 extends the context to 131 072 tokens
//!   without training ([Peng et al.](https://arxiv.org/abs/2309.00071)). Released configs do not have it, because it
//!   applies to texts of every length and makes results on short texts a little worse.
//! - **Windows, switched off.** The config can give the layers from `max_window_layers` on a window of `sliding_window`
//!   tokens, which bounds their cache. `use_sliding_window` switches windows on; it is `false` in every released model, so
//!   that the two numbers have no effect. `layer_types`, where it is given, states the kind of each layer. All layers have
//!   the same rotation. transformers and this crate apply windows; mlx-lm does not.
//! - **Tied embeddings** up to 4B, where the table of 151 936 rows is a large part of the weights
//!   ([Press and Wolf](https://arxiv.org/abs/1608.05859)). Some of those checkpoints store the table a second time as
//!   `lm_head.weight`; a head in a checkpoint is used.
//!
//! The report: Qwen Team, *Qwen3 Technical Report*, <https://arxiv.org/abs/2505.09388>, section 2. Model cards:
//! `Qwen/Qwen3-0.6B`, `Qwen/Qwen3-4B`, `Qwen/Qwen3-8B`, `Qwen/Qwen3-32B` on the Hugging Face Hub.
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
//! | `model.layers.N.mlp.gate_proj.weight` | `[hidden, D]` |
//! | `model.layers.N.mlp.up_proj.weight` | `[hidden, D]` |
//! | `model.layers.N.mlp.down_proj.weight` | `[D, hidden]` |
//! | `model.norm.weight` | `[D]` |
//! | `lm_head.weight`, where the head is not tied | `[V, D]` |
//!
//! The fields of the model have the same names. With `attention_bias` the four projections of attention also have a
//! `bias`. Quantized layers have `scales` and `biases` beside their `weight`.

mod config;

pub use config::{MODEL_TYPE, OwnKeys};

use mlx_causal_lm::Architecture;
use mlx_checkpoint::TensorNames;
use mlx_decoder::Decoder;

/// A Qwen 3 language model.
pub type Qwen3 = Decoder<OwnKeys>;

/// The entry for a table of architectures.
pub const ARCHITECTURE: Architecture = Architecture {
    model_types: &[MODEL_TYPE],
    name: "Qwen 3",
    released: RELEASED,
    load: |checkpoint, _options| Ok(Box::new(Qwen3::load(checkpoint)?)),
    names: TensorNames::in_order(ORDER),
};

/// The released models whose facts `tests/released.rs` checks.
#[rustfmt::skip]
const RELEASED: &[&str] = &[
    "Qwen3-0.6B", "Qwen3-1.7B", "Qwen3-4B", "Qwen3-4B-Instruct-2507", "Qwen3-8B", "Qwen3-14B", "Qwen3-32B",
    "Qwen3-Embedding-0.6B", "Qwen3-Embedding-4B", "Qwen3-Embedding-8B",
];

/// The parts of its keys, in the order of mlx-lm's modules.
#[rustfmt::skip]
const ORDER: &[&str] = &[
    "embed_tokens", "layers", "self_attn", "mlp", "q_proj", "k_proj", "v_proj", "o_proj", "q_norm",
    "k_norm", "gate_proj", "down_proj", "up_proj", "input_layernorm", "post_attention_layernorm", "norm",
    "lm_head",
];

/// Compiles the README's example.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
