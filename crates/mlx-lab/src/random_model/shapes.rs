//! The shapes of real models: their configs and their tensors.

use serde_json::{Value, json};

use crate::parity::weights::{PARTS, Stored, Tensor};

/// The sizes of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Shape {
    /// Gemma 3 with 270 million weights, most of them in its embedding
    #[value(name = "gemma3-270m")]
    Gemma3,
    /// Lille with 130 million weights
    #[value(name = "lille-130m")]
    Lille,
    /// Llama 3.2 with 1.2 billion weights
    #[value(name = "llama3.2-1b")]
    Llama,
    /// Phi-3-mini with 3.8 billion weights, without its window
    #[value(name = "phi3-mini")]
    Phi3,
    /// Qwen 2.5 with half a billion weights
    #[value(name = "qwen2.5-0.5b")]
    Qwen2,
    /// Six layers of width 64 in the form of Gemma 3; its time is mostly overhead
    Tiny,
}

/// The sizes of a model in the form of Gemma 3.
struct Gemma3 {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    layers: usize,
    heads: usize,
    head_dim: usize,
    sliding_window: usize,
}

/// The sizes of the released Gemma 3 270M.
const GEMMA3_270M: Gemma3 = Gemma3 {
    vocab_size: 262_144,
    hidden_size: 640,
    intermediate_size: 2048,
    layers: 18,
    heads: 4,
    head_dim: 256,
    sliding_window: 512,
};
/// Sizes that are small enough to keep all weights in the fastest cache.
const TINY: Gemma3 = Gemma3 {
    vocab_size: 256,
    hidden_size: 64,
    intermediate_size: 128,
    layers: 6,
    heads: 2,
    head_dim: 64,
    sliding_window: 512,
};
/// In both shapes, one layer in this many has full attention.
const PATTERN: usize = 6;

/// The sizes of the released Lille-130M: vocabulary, features, features of the feed-forward network, layers,
/// heads.
const LILLE: [usize; 6] = [32_768, 640, 1792, 24, 10, 2];

/// The sizes of a model in the form of Llama or Qwen 2.
struct Llama {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    /// Whether queries, keys and values have a bias.
    has_bias: bool,
}

/// The sizes of the released Llama 3.2 1B.
const LLAMA_3_2_1B: Llama = Llama {
    vocab_size: 128_256,
    hidden_size: 2048,
    intermediate_size: 8192,
    layers: 16,
    heads: 32,
    kv_heads: 8,
    has_bias: false,
};
/// The sizes of the released Phi-3-mini.
const PHI_3_MINI: Llama = Llama {
    vocab_size: 32_064,
    hidden_size: 3072,
    intermediate_size: 8192,
    layers: 32,
    heads: 32,
    kv_heads: 32,
    has_bias: false,
};
/// The sizes of the released Qwen 2.5 0.5B.
const QWEN_2_5_0_5B: Llama = Llama {
    vocab_size: 151_936,
    hidden_size: 896,
    intermediate_size: 4864,
    layers: 24,
    heads: 14,
    kv_heads: 2,
    has_bias: true,
};

impl Shape {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Gemma3 => "gemma3-270m",
            Self::Lille => "lille-130m",
            Self::Llama => "llama3.2-1b",
            Self::Phi3 => "phi3-mini",
            Self::Qwen2 => "qwen2.5-0.5b",
            Self::Tiny => "tiny",
        }
    }

    /// The bytes of keys and values in half precision that a token reads when this many tokens precede it,
    /// including its own.
    pub(crate) fn key_value_bytes(self, tokens_before: usize) -> usize {
        let tokens = tokens_before + 1;
        let numbers = match self {
            Self::Gemma3 => gemma3_key_values(&GEMMA3_270M, tokens),
            Self::Tiny => gemma3_key_values(&TINY, tokens),
            Self::Lille => {
                let [_, features, _, layers, heads, kv_heads] = LILLE;
                2 * layers * kv_heads * (features / heads) * tokens
            }
            Self::Llama => LLAMA_3_2_1B.key_values(tokens),
            Self::Phi3 => PHI_3_MINI.key_values(tokens),
            Self::Qwen2 => QWEN_2_5_0_5B.key_values(tokens),
        };
        2 * numbers
    }

    pub(super) fn config(self) -> Value {
        let mut config = match self {
            Self::Gemma3 => gemma3_config(&GEMMA3_270M),
            Self::Tiny => gemma3_config(&TINY),
            Self::Lille => lille_config(),
            Self::Llama => llama_config(),
            Self::Phi3 => phi3_config(),
            Self::Qwen2 => qwen2_config(),
        };
        config["tie_word_embeddings"] = json!(self != Self::Phi3);
        config["torch_dtype"] = json!("bfloat16");
        config
    }

    pub(super) fn tensors(self) -> Vec<Tensor> {
        match self {
            Self::Gemma3 => gemma3_tensors(&GEMMA3_270M),
            Self::Tiny => gemma3_tensors(&TINY),
            Self::Lille => lille_tensors(),
            Self::Llama => LLAMA_3_2_1B.tensors(),
            Self::Phi3 => phi3_tensors(),
            Self::Qwen2 => QWEN_2_5_0_5B.tensors(),
        }
    }
}

/// The number of values in the keys and values of the last tokens: one head of each per layer, which attends to
/// its window or to everything.
fn gemma3_key_values(sizes: &Gemma3, tokens: usize) -> usize {
    let full = sizes.layers / PATTERN;
    let seen = full * tokens + (sizes.layers - full) * tokens.min(sizes.sliding_window);
    2 * sizes.head_dim * seen
}

fn gemma3_config(sizes: &Gemma3) -> Value {
    json!({
        "model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"],
        "vocab_size": sizes.vocab_size, "hidden_size": sizes.hidden_size,
        "intermediate_size": sizes.intermediate_size, "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads, "num_key_value_heads": 1, "head_dim": sizes.head_dim,
        "query_pre_attn_scalar": sizes.head_dim, "sliding_window": sizes.sliding_window,
        "sliding_window_pattern": PATTERN, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0, "rope_local_base_freq": 10000.0, "rope_scaling": null,
        "hidden_activation": "gelu_pytorch_tanh", "attention_bias": false,
    })
}

fn gemma3_tensors(sizes: &Gemma3) -> Vec<Tensor> {
    let &Gemma3 { vocab_size, hidden_size, intermediate_size, layers, heads, head_dim, .. } = sizes;
    let mut tensors = vec![matrix("model.embed_tokens.weight", vocab_size, hidden_size)];
    for layer in 0..layers {
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        for part in ["q_norm", "k_norm"] {
            tensors.push(vector(name(&format!("self_attn.{part}")), head_dim, 0));
        }
        for part in ["input", "post_attention", "pre_feedforward", "post_feedforward"] {
            tensors.push(vector(name(&format!("{part}_layernorm")), hidden_size, 0));
        }
        for (part, rows, columns) in [
            ("self_attn.q_proj", heads * head_dim, hidden_size),
            ("self_attn.k_proj", head_dim, hidden_size),
            ("self_attn.v_proj", head_dim, hidden_size),
            ("self_attn.o_proj", hidden_size, heads * head_dim),
            ("mlp.gate_proj", intermediate_size, hidden_size),
            ("mlp.up_proj", intermediate_size, hidden_size),
            ("mlp.down_proj", hidden_size, intermediate_size),
        ] {
            tensors.push(matrix(name(part), rows, columns));
        }
    }
    tensors.push(vector("model.norm.weight", hidden_size, 0));
    tensors
}

fn lille_config() -> Value {
    let [vocab_size, n_embd, _, n_layer, n_head, n_kv_heads] = LILLE;
    // The released model has 512 positions, too few for a long prompt. Nothing else depends on this value.
    json!({
        "model_type": "lille-130m", "architectures": ["LilleForCausalLM"], "vocab_size": vocab_size,
        "n_embd": n_embd, "n_layer": n_layer, "n_head": n_head, "n_kv_heads": n_kv_heads,
        "block_size": 4096, "layer_norm_eps": 1e-5, "rope_theta": 10000.0,
    })
}

fn lille_tensors() -> Vec<Tensor> {
    let [vocab_size, n_embd, hidden_dim, layers, heads, kv_heads] = LILLE;
    let head_dim = n_embd / heads;
    let mut tensors = vec![matrix("transformer.tok_embeddings.weight", vocab_size, n_embd)];
    for layer in 0..layers {
        let name = |part: &str| format!("transformer.layers.{layer}.{part}.weight");
        for part in ["attention.norm", "feed_forward.norm"] {
            tensors.push(vector(name(part), n_embd, 1));
        }
        for (part, rows, columns) in [
            ("attention.qkv_proj", (heads + 2 * kv_heads) * head_dim, n_embd),
            ("attention.out_proj", n_embd, n_embd),
            ("feed_forward.gate_proj", hidden_dim, n_embd),
            ("feed_forward.up_proj", hidden_dim, n_embd),
            ("feed_forward.down_proj", n_embd, hidden_dim),
        ] {
            tensors.push(matrix(name(part), rows, columns));
        }
    }
    tensors.push(vector("transformer.norm.weight", n_embd, 1));
    tensors
}

fn llama_config() -> Value {
    let mut config = LLAMA_3_2_1B.config();
    config["model_type"] = json!("llama");
    config["architectures"] = json!(["LlamaForCausalLM"]);
    config["max_position_embeddings"] = json!(131_072);
    config["rms_norm_eps"] = json!(1e-5);
    config["rope_theta"] = json!(500_000.0);
    config["rope_scaling"] = json!({
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    });
    config
}

fn phi3_config() -> Value {
    let mut config = PHI_3_MINI.config();
    config["model_type"] = json!("phi3");
    config["architectures"] = json!(["Phi3ForCausalLM"]);
    // The released model has 4096 positions and a window of 2047 tokens, or 131072 positions and other rotations. Nothing else
    // depends on these values.
    config["max_position_embeddings"] = json!(131_072);
    config["original_max_position_embeddings"] = json!(131_072);
    config["rms_norm_eps"] = json!(1e-5);
    config["rope_theta"] = json!(10000.0);
    config["rope_scaling"] = Value::Null;
    config["sliding_window"] = Value::Null;
    config
}

fn phi3_tensors() -> Vec<Tensor> {
    let Llama { vocab_size, hidden_size, intermediate_size, layers, .. } = PHI_3_MINI;
    let mut tensors = vec![matrix("model.embed_tokens.weight", vocab_size, hidden_size)];
    for layer in 0..layers {
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        for part in ["input_layernorm", "post_attention_layernorm"] {
            tensors.push(vector(name(part), hidden_size, 1));
        }
        for (part, rows, columns) in [
            ("self_attn.qkv_proj", 3 * hidden_size, hidden_size),
            ("self_attn.o_proj", hidden_size, hidden_size),
            ("mlp.gate_up_proj", 2 * intermediate_size, hidden_size),
            ("mlp.down_proj", hidden_size, intermediate_size),
        ] {
            tensors.push(matrix(name(part), rows, columns));
        }
    }
    tensors.push(vector("model.norm.weight", hidden_size, 1));
    tensors.push(matrix("lm_head.weight", vocab_size, hidden_size));
    tensors
}

fn qwen2_config() -> Value {
    let mut config = QWEN_2_5_0_5B.config();
    config["model_type"] = json!("qwen2");
    config["architectures"] = json!(["Qwen2ForCausalLM"]);
    config["max_position_embeddings"] = json!(32768);
    config["rms_norm_eps"] = json!(1e-6);
    config["rope_theta"] = json!(1_000_000.0);
    config["use_sliding_window"] = json!(false);
    config
}

impl Llama {
    fn head_dim(&self) -> usize {
        self.hidden_size / self.heads
    }

    /// The number of values in the keys and values of this many tokens.
    fn key_values(&self, tokens: usize) -> usize {
        2 * self.layers * self.kv_heads * self.head_dim() * tokens
    }

    fn config(&self) -> Value {
        json!({
            "vocab_size": self.vocab_size, "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads, "hidden_act": "silu",
        })
    }

    fn tensors(&self) -> Vec<Tensor> {
        let &Self { vocab_size, hidden_size, intermediate_size, layers, heads, kv_heads, has_bias } = self;
        let (queries, keys) = (heads * self.head_dim(), kv_heads * self.head_dim());
        let mut tensors = vec![matrix("model.embed_tokens.weight", vocab_size, hidden_size)];
        for layer in 0..layers {
            let name = |part: &str| format!("model.layers.{layer}.{part}");
            for part in ["input_layernorm", "post_attention_layernorm"] {
                tensors.push(vector(name(&format!("{part}.weight")), hidden_size, 1));
            }
            for (part, rows) in [("q", queries), ("k", keys), ("v", keys)] {
                tensors.push(matrix(name(&format!("self_attn.{part}_proj.weight")), rows, hidden_size));
                if has_bias {
                    tensors.push(vector(name(&format!("self_attn.{part}_proj.bias")), rows, 0));
                }
            }
            for (part, rows, columns) in [
                ("self_attn.o_proj", hidden_size, queries),
                ("mlp.gate_proj", intermediate_size, hidden_size),
                ("mlp.up_proj", intermediate_size, hidden_size),
                ("mlp.down_proj", hidden_size, intermediate_size),
            ] {
                tensors.push(matrix(name(&format!("{part}.weight")), rows, columns));
            }
        }
        tensors.push(vector("model.norm.weight", hidden_size, 1));
        tensors
    }
}

/// Random weights with the variance 1 / columns, so that the outputs are about as large as the inputs.
fn matrix(name: impl Into<String>, rows: usize, columns: usize) -> Tensor {
    // The variance of a uniform number is a third of the square of its bound.
    let bound = (3.0 / columns as f64).sqrt();
    let scale = (bound * PARTS).round() as i64;
    Tensor { name: name.into(), shape: vec![rows, columns], dtype: Stored::Bf16, scale, offset: 0 }
}

/// The weight of a norm: around 1, or around 0 if the model itself adds 1. Or a bias, around 0.
fn vector(name: impl Into<String>, length: usize, center: i64) -> Tensor {
    let scale = (0.1 * PARTS).round() as i64;
    let offset = center * PARTS as i64;
    Tensor { name: name.into(), shape: vec![length], dtype: Stored::Bf16, scale, offset }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use crate::parity::weights;

    fn weights_of(shape: Shape) -> usize {
        shape.tensors().iter().map(|tensor| tensor.shape.iter().product::<usize>()).sum()
    }

    #[test]
    fn the_shapes_have_the_sizes_of_the_released_models() {
        // The numbers in the model cards and checkpoints: 268,098,176, 127.17 million, 1.24, 3.8 and 0.49 billion.
        assert_eq!(weights_of(Shape::Gemma3), 268_098_176);
        assert_eq!(weights_of(Shape::Lille), 127_171_200);
        assert_eq!(weights_of(Shape::Llama), 1_235_814_400);
        assert_eq!(weights_of(Shape::Phi3), 3_821_079_552);
        assert_eq!(weights_of(Shape::Qwen2), 494_032_768);
        // The tiny shape: six layers of width 64.
        let config = Shape::Tiny.config();
        assert_eq!((&config["num_hidden_layers"], &config["hidden_size"]), (&json!(6), &json!(64)));
    }

    #[test]
    fn a_token_reads_the_keys_and_values_that_its_layers_see() {
        // 24 layers of 2 heads of 64, in 2 bytes.
        assert_eq!(Shape::Lille.key_value_bytes(1023), 12_582_912);
        assert_eq!(Shape::Qwen2.key_value_bytes(1023), 12_582_912);
        // 32 layers of 32 heads of 96.
        assert_eq!(Shape::Phi3.key_value_bytes(1023), 402_653_184);
        // 16 layers of 8 heads of 64.
        assert_eq!(Shape::Llama.key_value_bytes(1023), 33_554_432);
        // 3 layers attend to everything, 15 to the last 512; one head of 256.
        assert_eq!(Shape::Gemma3.key_value_bytes(1023), 11_010_048);
        assert_eq!(Shape::Gemma3.key_value_bytes(0), 18_432);
    }

    /// The matrices' mean square keeps activations near 1.
    #[test]
    fn matrices_keep_the_size_of_what_they_multiply() {
        let bytes = weights::bytes(&matrix("m", 64, 640), 1).unwrap();
        let values = bytes.chunks_exact(2).map(|word| half::bf16::from_le_bytes([word[0], word[1]]).to_f64());
        let squares: f64 = values.map(|value| value * value).sum::<f64>() / 64.0;
        approx::assert_abs_diff_eq!(squares, 1.0, epsilon = 0.05);
    }
}
