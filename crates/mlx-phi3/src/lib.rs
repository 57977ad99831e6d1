//! Phi-3: Microsoft's small language models, for contexts of up to 131072 tokens.
//!
//! API: [`Phi3::load`] builds the model of a checkpoint; `mlx-models` does it by `model_type`.
//!
//! # The block
//!
//! ```text
//!         x  [B, L, D]
//!         │
//!         ├───────────┐
//!         │    input_layernorm                  RMSNorm
//!         │           │
//!         │       qkv_proj                      one product for queries, keys and values
//!         │       ╱   │   ╲
//!         │    rope rope   │                    LongRoPE, over a part of each head in some models
//!         │      Q    K    V ── cache           H query heads, H_kv key-value heads
//!         │       ╲   │   ╱
//!         │      attention                      causal, in a window where the config has one
//!         │           │
//!         │        o_proj
//!         ⊕───────────┘
//!         ├───────────┐
//!         │  post_attention_layernorm           RMSNorm
//!         │           │
//!         │     gate_up_proj                    one product for both halves
//!         │       ╱       ╲
//!         │     gate      up
//!         │      silu      │
//!         │       ╲───⊙───╱                     SwiGLU
//!         │       down_proj
//!         ⊕───────────┘
//!         │
//! ```
//!
//! # From token to logits
//!
//! 1. `embed_tokens` looks up a row of D features for each token. Nothing scales it.
//! 2. Each block adds to this residual stream twice: `h = x + attention(norm(x))`, then
//!    `h + mlp(norm(h))`. There is a norm before each part and none on the stream itself, so that gradients reach every
//!    block unchanged ([Xiong et al.](https://arxiv.org/abs/2002.04745)). `post_attention_layernorm` is the norm before the
//!    feed-forward network; it comes after attention, hence its name.
//! 3. `norm`, a last RMSNorm, brings the stream back to the size that the head was trained on.
//! 4. The head computes the logits: `lm_head`, or in tied models the embedding table, used as a linear layer.
//!
//! # Choices, and why
//!
//! - **Fused projections.** `qkv_proj` and `gate_up_proj` are one product each, where Llama has three and two, so that the
//!   input is read once. Queries come first, then keys, then values; the gate comes before the features that it scales.
//! - **Grouped queries.** In the larger models several query heads share a key-value head, and the
//!   cache is smaller by that factor ([Ainslie et al.](https://arxiv.org/abs/2305.13245)).
//! - **The rotation.** A model for 4096 tokens rotates without scaling ([Su et al.](https://arxiv.org/abs/2104.09864)). A
//!   model for 131072 tokens was trained on 4096 first and then extended by LongRoPE
//!   ([Ding et al.](https://arxiv.org/abs/2402.13753)), which slows each pair of features by a separate factor. The factors
//!   were found by a search, because slowing all pairs alike, as linear scaling does, harms the fast pairs, which
//!   distinguish neighbours. Linear scaling needs one number and no search, so finetunes of the short models use it.
//! - **Two lists of factors.** Results on a text of at most 4096 tokens should not get worse, so there are short factors (all
//!   near 1) for it, and long factors for longer texts. The length is that of the whole sequence: when it crosses the
//!   border, the keys of all earlier tokens change. A cache holds no tokens to compute them from, so `Session` of
//!   `mlx-generate` reads the sequence again, when [`rotates_alike`](mlx_causal_lm::CausalLm::rotates_alike) says so. mlx-lm
//!   always uses the long factors, as does [`LongRopeMode::MlxLm`](mlx_causal_lm::LongRopeMode).
//! - **The attention factor.** A softmax over more keys is flatter. To compensate, queries and keys are each multiplied by
//!   `sqrt(1 + ln(max / original) / ln(original))`, about 1.19 from 4096 to 131072 tokens. The factor is the same on both
//!   sides of the border.
//! - **Partial rotation.** With `partial_rotary_factor` 0.75, as in Phi-4-mini, a quarter of each head carries no position.
//!   These features can hold what does not depend on the distance, and fewer pairs have to be extended
//!   ([Black et al.](https://arxiv.org/abs/2204.06745), section 2.1, where the idea was first used at scale).
//! - **A sliding window.** Phi-3-mini-4k attends to the newest 2047 tokens only (`sliding_window`, which counts the query
//!   itself), so its cache needs no more than those ([Jiang et al.](https://arxiv.org/abs/2310.06825), section 2).
//!   transformers and this crate apply the window; mlx-lm does not. Models for long contexts have a window beyond their
//!   context, which has no effect.
//! - **Tied embeddings** in Phi-4-mini, where a separate head would store another 200064 rows
//!   ([Press and Wolf](https://arxiv.org/abs/1608.05859)).
//! - **Other scalings are refused.** mlx-lm prints a warning and continues without scaling; here loading returns an error
//!   that names the type.
//!
//! # Reference
//!
//! Abdin et al., *Phi-3 Technical Report* (<https://arxiv.org/abs/2404.14219>), section 2; *Phi-4-Mini
//! Technical Report* (<https://arxiv.org/abs/2503.01743>), section 2. The model cards are
//! `microsoft/Phi-3-mini-4k-instruct`, `microsoft/Phi-3-mini-128k-instruct`,
//! `microsoft/Phi-3-medium-128k-instruct`, `microsoft/Phi-3.5-mini-instruct` and
//! `microsoft/Phi-4-mini-instruct` on the Hugging Face Hub. `modeling_phi3.py` of transformers and
//! `phi3.py` of mlx-lm are what this crate is compared with.
//!
//! # Checkpoint
//!
//! | key | field | shape |
//! |---|---|---|
//! | `model.embed_tokens.weight` | `Transformer::embed_tokens` | `[V, D]` |
//! | `model.layers.N.input_layernorm.weight` | `Block::input_layernorm` | `[D]` |
//! | `model.layers.N.self_attn.qkv_proj.weight` | `Attention::qkv_proj` | `[(H + 2 H_kv) d, D]` |
//! | `model.layers.N.self_attn.o_proj.weight` | `Attention::o_proj` | `[D, H d]` |
//! | `model.layers.N.post_attention_layernorm.weight` | `Block::post_attention_layernorm` | `[D]` |
//! | `model.layers.N.mlp.gate_up_proj.weight` | `Mlp::gate_up_proj` | `[2 F, D]` |
//! | `model.layers.N.mlp.down_proj.weight` | `Mlp::down_proj` | `[D, F]` |
//! | `model.norm.weight` | `Transformer::norm` | `[D]` |
//! | `lm_head.weight`, unless tied | `Phi3::lm_head` | `[V, D]` |
//!
//! B batch, L tokens, D `hidden_size`, d `head_dim`, F `intermediate_size`, V `vocab_size`.
//! Quantized layers have `scales` and `biases` beside their `weight`.

mod config;
mod model;

pub use config::{Config, MODEL_TYPE};
pub use model::Phi3;

use mlx_causal_lm::Architecture;
use mlx_checkpoint::TensorNames;

/// The entry for a table of architectures.
pub const ARCHITECTURE: Architecture = Architecture {
    model_types: &[MODEL_TYPE],
    name: "Phi-3, Phi-3.5 and Phi-4-mini",
    released: RELEASED,
    load: |checkpoint, options| Ok(Box::new(Phi3::load(checkpoint, options)?)),
    names: TensorNames::in_order(ORDER),
};

/// The released models whose facts `tests/released.rs` checks.
#[rustfmt::skip]
const RELEASED: &[&str] = &[
    "Phi-3-mini-4k-instruct", "Phi-3-mini-128k-instruct", "Phi-3-medium-4k-instruct", "Phi-3.5-mini-instruct",
    "Phi-4-mini-instruct", "phi-4",
];

/// The parts of its keys, in the order of mlx-lm's modules.
#[rustfmt::skip]
const ORDER: &[&str] = &[
    "embed_tokens", "layers", "self_attn", "mlp", "qkv_proj", "o_proj", "gate_up_proj", "down_proj",
    "input_layernorm", "post_attention_layernorm", "norm", "lm_head",
];

/// Compiles the README's example.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
