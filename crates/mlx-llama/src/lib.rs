//! Llama 2 to 3.3 and Mistral, and the many models with the same block: TinyLlama, SmolLM2, the distillations of DeepSeek-R1
//! into Llama.
//!
//! API: [`Llama::load`] builds the model of a checkpoint; `mlx-models` does it by `model_type`.
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
//!         │    rope  rope   │                   halves; slower pairs stretched from Llama 3.1 on
//!         │      Q    K    V ── cache           H query heads, H_kv key-value heads
//!         │       ╲   │   ╱
//!         │      attention                      full; with a window in Mistral 7B v0.1
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
//! - **Norms before attention and network**, for stable training, and of the root mean square alone, without mean and bias
//!   ([Touvron et al. 2023a](https://arxiv.org/abs/2302.13971), section 2.2;
//!   [Zhang and Sennrich](https://arxiv.org/abs/1910.07467)).
//! - **SwiGLU** instead of ReLU ([Shazeer](https://arxiv.org/abs/2002.05202); Touvron et al. 2023a, section 2.2).
//! - **Grouped queries** in the large models of Llama 2, in all sizes of Llama 3 and in Mistral, which keep the cache small
//!   ([Ainslie et al.](https://arxiv.org/abs/2305.13245); [Touvron et al. 2023b](https://arxiv.org/abs/2307.09288), section
//!   2.2). Without `num_key_value_heads` each query head has a key-value head.
//! - **A base of 500 000** from Llama 3 on, for longer contexts
//!   ([Grattafiori et al.](https://arxiv.org/abs/2407.21783), section 3.2).
//! - **Slower pairs stretched** from Llama 3.1 on (`rope_type` `llama3`): pairs that turn less than once in the 8192 tokens of
//!   the first training turn `factor` times slower, pairs that turn often keep their speed, and between them the speed
//!   changes smoothly ([`mlx_rope`], `Llama3Scaling`). It extends the context to 131 072 tokens.
//! - **A window** of 4096 tokens in every layer of Mistral 7B v0.1, which bounds its cache
//!   ([Jiang et al.](https://arxiv.org/abs/2310.06825), section 2). Later models of the family have `sliding_window: null`.
//!   transformers and this crate apply the window; mlx-lm does not.
//! - **Heads of 128 features** in Mistral Nemo, whose stream of 5120 over 32 heads would give 160: `head_dim` in its config.
//! - **Tied embeddings** in the 1B and 3B models of Llama 3.2 and in SmolLM2, where the table is a large part of the weights
//!   ([Press and Wolf](https://arxiv.org/abs/1608.05859)).
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

pub use config::{MODEL_TYPES, OwnKeys};

use mlx_causal_lm::Architecture;
use mlx_checkpoint::TensorNames;
use mlx_decoder::Decoder;

/// A Llama or Mistral language model.
pub type Llama = Decoder<OwnKeys>;

/// The entry for a table of architectures.
pub const ARCHITECTURE: Architecture = Architecture {
    model_types: MODEL_TYPES,
    name: "Llama 2 to 3.3, Mistral, and models with the same block",
    released: RELEASED,
    load: |checkpoint, _options| Ok(Box::new(Llama::load(checkpoint)?)),
    names: TensorNames::in_order(ORDER),
};

/// The released models whose facts `tests/released.rs` checks.
#[rustfmt::skip]
const RELEASED: &[&str] = &[
    "Llama-2-7b", "Llama-2-13b", "Llama-2-70b", "TinyLlama-1.1B-Chat-v1.0", "ALLaM-7B-Instruct-preview",
    "Yi-1.5-34B", "Meta-Llama-3-8B", "Meta-Llama-3-70B", "Llama-3.1-8B", "Llama-3.1-8B-Instruct",
    "DeepSeek-R1-Distill-Llama-8B", "Llama-3.1-70B", "Llama-3.3-70B-Instruct",
    "DeepSeek-R1-Distill-Llama-70B", "Llama-3.1-405B", "Llama-3.2-1B", "Llama-3.2-3B",
    "Llama-3.2-3B-Instruct", "SmolLM2-135M", "SmolLM2-360M", "SmolLM2-1.7B", "Mistral-7B-v0.1",
    "Mistral-7B-Instruct-v0.2", "Mistral-7B-v0.3", "Mistral-7B-Instruct-v0.3", "Mistral-Nemo-Base-2407",
    "Mistral-Small-24B-Base-2501",
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
