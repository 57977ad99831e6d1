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
//! # The flow of the data
//!
//! 1. `embed_tokens` looks up a row of D features for each token. Nothing scales it.
//! 2. Each block adds to this residual stream twice: `h = x + attention(norm(x))`, then
//!    `h + mlp(norm(h))`. A norm stands before each part and none on the stream itself, so that
//!    gradients reach every block unchanged ([Xiong et al.](https://arxiv.org/abs/2002.04745)).
//!    `post_attention_layernorm` is the one before the feed-forward network; the name says only where
//!    it comes.
//! 3. `norm`, a last RMSNorm, brings the stream back to the size that the head was trained on.
//! 4. `lm_head`, or in tied models the embedding table, compares it with every token.
//!
//! # Choices, and why
//!
//! - **Fused projections.** `qkv_proj` and `gate_up_proj` are one product each where Llama has three
//!   and two: the input is read once. Queries come first, then keys, then values; the gate comes
//!   before what it gates.
//! - **Grouped queries.** In the larger models several query heads share a key-value head, and the
//!   cache is smaller by that factor ([Ainslie et al.](https://arxiv.org/abs/2305.13245)).
//! - **Which rotation.** A model for 4096 tokens rotates plainly ([Su et
//!   al.](https://arxiv.org/abs/2104.09864)). One for 131072 was trained on 4096 first and stretched
//!   by LongRoPE ([Ding et al.](https://arxiv.org/abs/2402.13753)): each pair of features has a factor
//!   of its own by which it turns more slowly, found by a search, because stretching all pairs alike,
//!   as linear scaling does, blurs the fast ones that tell neighbours apart. Linear scaling needs one
//!   number and no search, so it is what finetunes of the short models use.
//! - **Two lists of factors.** A text that fits into the original 4096 tokens should be read as well as
//!   before, so there are short factors (all near 1) for it and long ones beyond. The length is that of
//!   the whole sequence: when it grows over the border, the keys of all tokens before change. A cache
//!   cannot mend that; `Session` of `mlx-generate` reads the sequence again, and
//!   [`rotates_alike`](mlx_causal_lm::CausalLm::rotates_alike) is how it knows. mlx-lm uses the long
//!   factors always, which [`LongRopeMode::MlxLm`](mlx_causal_lm::LongRopeMode) does too.
//! - **The attention factor.** Over more keys a softmax gets flatter. Queries and keys are each
//!   multiplied by `sqrt(1 + ln(max / original) / ln(original))`, about 1.19 from 4096 to 131072, which
//!   keeps it as decided as it was; on both sides of the border.
//! - **Partial rotation.** With `partial_rotary_factor` 0.75, as in Phi-4-mini, a quarter of each head
//!   carries no position: what does not depend on the distance has a place of its own, and there is
//!   less to stretch ([Black et al.](https://arxiv.org/abs/2204.06745), section 2.1, where the idea was
//!   first used at scale).
//! - **A sliding window.** Phi-3-mini-4k attends to the newest 2047 tokens only (`sliding_window`, which
//!   counts the query itself), so its cache stays as small ([Jiang et
//!   al.](https://arxiv.org/abs/2310.06825), section 2). transformers applies it, and so does this
//!   crate; mlx-lm does not. Models for long contexts have a window beyond their context, which does nothing.
//! - **Tied embeddings** in Phi-4-mini, whose table of 200064 rows would otherwise be there twice
//!   ([Press and Wolf](https://arxiv.org/abs/1608.05859)).
//! - **Other scalings are refused.** mlx-lm prints a warning and goes on without scaling; here loading is an
//!   error that names the type.
//!
//! # Reference
//!
//! Abdin et al., *Phi-3 Technical Report* (<https://arxiv.org/abs/2404.14219>), section 2; *Phi-4-Mini
//! Technical Report* (<https://arxiv.org/abs/2503.01743>), section 2. The model cards are
//! `microsoft/Phi-3-mini-4k-instruct`, `microsoft/Phi-3-mini-128k-instruct`,
//! `microsoft/Phi-3-medium-128k-instruct`, `microsoft/Phi-3.5-mini-instruct` and
//! `microsoft/Phi-4-mini-instruct` on the Hugging Face hub. `modeling_phi3.py` of transformers and
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

/// The architecture, for a table of architectures.
pub const ARCHITECTURE: Architecture = Architecture {
    model_types: &[MODEL_TYPE],
    load: |checkpoint, options| Ok(Box::new(Phi3::load(checkpoint, options)?)),
    names: TensorNames::in_order(ORDER),
};

/// The parts of its keys, in the order of mlx-lm's modules.
#[rustfmt::skip]
const ORDER: &[&str] = &[
    "embed_tokens", "layers", "self_attn", "mlp", "qkv_proj", "o_proj", "gate_up_proj", "down_proj",
    "input_layernorm", "post_attention_layernorm", "norm", "lm_head",
];
