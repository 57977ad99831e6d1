//! Qwen 2 and Qwen 2.5: the dense language models of the Qwen family from 0.5 to 72 billion parameters, with Qwen2.5-Coder,
//! Qwen2.5-Math, QwQ, and the distillations of DeepSeek-R1 into Qwen.
//!
//! API: [`Qwen2::load`] builds the model of a checkpoint; `mlx-models` does it by `model_type`.
//!
//! # The block
//!
//! ```text
//!         x  [B, L, D]
//!         │
//!         ├───────────┐
//!         │    input_layernorm                  RMSNorm
//!         │       ╱   │   ╲
//!         │   q_proj k_proj v_proj              to H d, H_kv d, H_kv d features, with biases
//!         │    rope  rope   │                   halves; YaRN where the config has it
//!         │      Q    K    V ── cache           H query heads, H_kv key-value heads
//!         │       ╲   │   ╱
//!         │      attention                      full, or with a window where the config asks for it
//!         │       o_proj                        without a bias
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
//! - **Biases of queries, keys and values**, and of nothing else. They help the model with texts longer than those of its
//!   training ([Bai et al.](https://arxiv.org/abs/2309.16609), section 2.3). No key of the config states them.
//! - **Grouped queries** share key-value heads, 2 to 8 by size
//!   ([Ainslie et al.](https://arxiv.org/abs/2305.13245)), which keeps the cache small. Qwen 1.5, whose checkpoints have
//!   the same `model_type`, has a key-value head for each query head in most sizes.
//! - **A base of 1 000 000.** It was raised from 10 000 for the last stage of training, on 32 768 tokens
//!   ([Xiong et al.](https://arxiv.org/abs/2309.16039), section 2; report of Qwen 2, section 3.2). Qwen2.5-Math, with a
//!   context of 4096 tokens, kept 10 000, and so did the distillations of DeepSeek-R1 that began with it. The references
//!   have different default bases, so the config must state it.
//! - **YaRN, switched on by the user.** `rope_scaling` of type `yarn` with factor 4 extends the context to 131 072 tokens
//!   without training ([Peng et al.](https://arxiv.org/abs/2309.00071)). Released configs do not have it, because it
//!   applies to texts of every length and makes results on short texts a little worse.
//! - **Windows, switched off.** The config can give the layers from `max_window_layers` on a window of `sliding_window`
//!   tokens, which bounds their cache. `use_sliding_window` switches windows on; it is `false` in every released model, so
//!   that the two numbers have no effect. `layer_types`, where it is given, states the kind of each layer. All layers have
//!   the same rotation. transformers and this crate apply windows; mlx-lm does not.
//! - **Tied embeddings** up to 3B, where the table of 151 936 rows is a large part of the weights
//!   ([Press and Wolf](https://arxiv.org/abs/1608.05859)). The distillation of DeepSeek-R1 with 1.5B has a head of its own.
//!
//! The reports: Qwen Team, *Qwen2 Technical Report*, <https://arxiv.org/abs/2407.10671>, section 2.2.1, and *Qwen2.5 Technical
//! Report*, <https://arxiv.org/abs/2412.15115>, section 2. Model cards: `Qwen/Qwen2.5-0.5B`, `Qwen/Qwen2.5-7B-Instruct`,
//! `Qwen/QwQ-32B`, `deepseek-ai/DeepSeek-R1-Distill-Qwen-7B` on the Hugging Face Hub.
//!
//! # Checkpoint
//!
//! | key | shape |
//! |---|---|
//! | `model.embed_tokens.weight` | `[V, D]` |
//! | `model.layers.N.input_layernorm.weight` | `[D]` |
//! | `model.layers.N.self_attn.q_proj.weight`, `.bias` | `[H d, D]`, `[H d]` |
//! | `model.layers.N.self_attn.k_proj.weight`, `.bias` | `[H_kv d, D]`, `[H_kv d]` |
//! | `model.layers.N.self_attn.v_proj.weight`, `.bias` | `[H_kv d, D]`, `[H_kv d]` |
//! | `model.layers.N.self_attn.o_proj.weight` | `[D, H d]` |
//! | `model.layers.N.post_attention_layernorm.weight` | `[D]` |
//! | `model.layers.N.mlp.gate_proj.weight` | `[hidden, D]` |
//! | `model.layers.N.mlp.up_proj.weight` | `[hidden, D]` |
//! | `model.layers.N.mlp.down_proj.weight` | `[D, hidden]` |
//! | `model.norm.weight` | `[D]` |
//! | `lm_head.weight`, where the head is not tied | `[V, D]` |
//!
//! The fields of the model have the same names. Quantized layers have `scales` and `biases` beside their `weight`.

mod config;

pub use config::{MODEL_TYPE, OwnKeys};

use mlx_causal_lm::Architecture;
use mlx_checkpoint::TensorNames;
use mlx_decoder::Decoder;

/// A Qwen 2 language model.
pub type Qwen2 = Decoder<OwnKeys>;

/// The entry for a table of architectures.
pub const ARCHITECTURE: Architecture = Architecture {
    model_types: &[MODEL_TYPE],
    name: "Qwen 2 and 2.5, QwQ, and the distillations of DeepSeek-R1 into Qwen",
    released: RELEASED,
    load: |checkpoint, _options| Ok(Box::new(Qwen2::load(checkpoint)?)),
    names: TensorNames::in_order(ORDER),
};

/// The released models whose facts `tests/released.rs` checks.
#[rustfmt::skip]
const RELEASED: &[&str] = &[
    "Qwen1.5-0.5B", "Qwen2-0.5B", "Qwen2-7B-Instruct", "Qwen2.5-0.5B", "Qwen2.5-0.5B-Instruct", "Qwen2.5-1.5B-Instruct",
    "Qwen2.5-3B", "Qwen2.5-3B-Instruct", "Qwen2.5-7B", "Qwen2.5-7B-Instruct", "Qwen2.5-Coder-7B",
    "Qwen2.5-Coder-7B-Instruct", "Qwen2.5-14B", "Qwen2.5-32B", "Qwen2.5-32B-Instruct", "QwQ-32B-Preview", "QwQ-32B",
    "Qwen2.5-72B-Instruct", "Qwen2.5-Math-7B-Instruct", "DeepSeek-R1-Distill-Qwen-1.5B",
    "DeepSeek-R1-Distill-Qwen-7B", "DeepSeek-R1-Distill-Qwen-32B",
];

/// The parts of its keys, in the order of mlx-lm's modules.
#[rustfmt::skip]
const ORDER: &[&str] = &[
    "embed_tokens", "layers", "self_attn", "mlp", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj",
    "down_proj", "up_proj", "input_layernorm", "post_attention_layernorm", "norm", "lm_head",
];

/// Compiles the README's example.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
