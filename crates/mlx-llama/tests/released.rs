//! The facts of released models, from the configs of their checkpoints.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use approx::assert_relative_eq;
use mlx_kvcache::LayerKind;
use mlx_llama::Config;
use mlx_testing::checkpoints::without_tensors;
use serde_json::{Value, json};

/// What a config states.
struct Released {
    name: &'static str,
    model_type: &'static str,
    /// `hidden_size`, `intermediate_size`, `num_hidden_layers`, `vocab_size`
    sizes: [i32; 4],
    /// `num_attention_heads`, `num_key_value_heads`
    heads: [i32; 2],
    context: i32,
    base: f64,
    /// The other keys.
    rest: fn() -> Value,
    /// Features of a head.
    head_dim: i32,
    /// By how much the slowest pair of a head is stretched.
    stretched: f32,
    window: Option<i32>,
    has_own_head: bool,
}

fn llama3(factor: f64) -> Value {
    json!({
        "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    })
}

const LLAMA: Released = Released {
    name: "Llama-2-7b",
    model_type: "llama",
    sizes: [4096, 11008, 32, 32000],
    heads: [32, 32],
    context: 4096,
    base: 10_000.0,
    rest: || json!({ "tie_word_embeddings": false }),
    head_dim: 128,
    stretched: 1.0,
    window: None,
    has_own_head: true,
};
const LLAMA_3: Released = Released {
    name: "Meta-Llama-3-8B",
    sizes: [4096, 14336, 32, 128_256],
    heads: [32, 8],
    context: 8192,
    base: 500_000.0,
    ..LLAMA
};
const LLAMA_3_1: Released = Released {
    name: "Llama-3.1-8B, DeepSeek-R1-Distill-Llama-8B",
    context: 131_072,
    rest: || json!({ "tie_word_embeddings": false, "rope_scaling": llama3(8.0) }),
    stretched: 8.0,
    ..LLAMA_3
};
const LLAMA_3_2: Released = Released {
    name: "Llama-3.2-1B",
    sizes: [2048, 8192, 16, 128_256],
    rest: || json!({ "tie_word_embeddings": true, "head_dim": 64, "rope_scaling": llama3(32.0) }),
    head_dim: 64,
    stretched: 32.0,
    has_own_head: false,
    ..LLAMA_3_1
};
const SMOLLM2: Released = Released {
    name: "SmolLM2-135M",
    sizes: [576, 1536, 30, 49152],
    heads: [9, 3],
    context: 8192,
    base: 100_000.0,
    rest: || json!({ "tie_word_embeddings": true, "rope_interleaved": false, "is_llama_config": true }),
    head_dim: 64,
    has_own_head: false,
    ..LLAMA
};
const MISTRAL: Released = Released {
    name: "Mistral-7B-v0.1",
    model_type: "mistral",
    sizes: [4096, 14336, 32, 32000],
    heads: [32, 8],
    context: 32768,
    rest: || json!({ "tie_word_embeddings": false, "sliding_window": 4096 }),
    window: Some(4096),
    ..LLAMA
};
const MISTRAL_2: Released = Released {
    name: "Mistral-7B-Instruct-v0.2",
    base: 1_000_000.0,
    rest: || json!({ "tie_word_embeddings": false, "sliding_window": null }),
    window: None,
    ..MISTRAL
};

const RELEASED: &[Released] = &[
    LLAMA,
    Released { name: "Llama-2-13b", sizes: [5120, 13824, 40, 32000], heads: [40, 40], ..LLAMA },
    Released { name: "Llama-2-70b", sizes: [8192, 28672, 80, 32000], heads: [64, 8], ..LLAMA },
    Released {
        name: "TinyLlama-1.1B-Chat-v1.0",
        sizes: [2048, 5632, 22, 32000],
        heads: [32, 4],
        context: 2048,
        head_dim: 64,
        ..LLAMA
    },
    LLAMA_3,
    Released { name: "Meta-Llama-3-70B", sizes: [8192, 28672, 80, 128_256], heads: [64, 8], ..LLAMA_3 },
    LLAMA_3_1,
    Released {
        name: "Llama-3.1-70B, Llama-3.3-70B-Instruct, DeepSeek-R1-Distill-Llama-70B",
        sizes: [8192, 28672, 80, 128_256],
        heads: [64, 8],
        ..LLAMA_3_1
    },
    Released { name: "Llama-3.1-405B", sizes: [16384, 53248, 126, 128_256], heads: [128, 8], ..LLAMA_3_1 },
    LLAMA_3_2,
    Released {
        name: "Llama-3.2-3B",
        sizes: [3072, 8192, 28, 128_256],
        heads: [24, 8],
        rest: || json!({ "tie_word_embeddings": true, "head_dim": 128, "rope_scaling": llama3(32.0) }),
        head_dim: 128,
        ..LLAMA_3_2
    },
    SMOLLM2,
    Released { name: "SmolLM2-360M", sizes: [960, 2560, 32, 49152], heads: [15, 5], ..SMOLLM2 },
    Released {
        name: "SmolLM2-1.7B",
        sizes: [2048, 8192, 24, 49152],
        heads: [32, 32],
        base: 130_000.0,
        ..SMOLLM2
    },
    MISTRAL,
    MISTRAL_2,
    Released { name: "Mistral-7B-v0.3", sizes: [4096, 14336, 32, 32768], ..MISTRAL_2 },
    Released {
        name: "Mistral-Nemo-Base-2407",
        sizes: [5120, 14336, 40, 131_072],
        context: 128_000,
        rest: || json!({ "tie_word_embeddings": false, "sliding_window": null, "head_dim": 128 }),
        ..MISTRAL_2
    },
    Released {
        name: "Mistral-Small-24B-Base-2501",
        sizes: [5120, 32768, 40, 131_072],
        base: 100_000_000.0,
        rest: || json!({ "tie_word_embeddings": false, "sliding_window": null, "head_dim": 128 }),
        ..MISTRAL_2
    },
];

impl Released {
    fn config(&self) -> Value {
        let ([hidden, inside, layers, vocabulary], [heads, key_heads]) = (self.sizes, self.heads);
        let mut config = json!({
            "model_type": self.model_type, "hidden_size": hidden, "intermediate_size": inside,
            "num_hidden_layers": layers, "vocab_size": vocabulary, "num_attention_heads": heads,
            "num_key_value_heads": key_heads, "max_position_embeddings": self.context, "rope_theta": self.base,
            "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_scaling": null,
        });
        config.as_object_mut().unwrap().extend((self.rest)().as_object().unwrap().clone());
        config
    }

    fn slowest(&self) -> f32 {
        let exponent = -f64::from(self.head_dim - 2) / f64::from(self.head_dim);
        self.base.powf(exponent) as f32 / self.stretched
    }
}

#[test]
fn the_facts_of_released_models() {
    for released in RELEASED {
        let name = released.name;
        let config = Config::from_checkpoint(&without_tensors(&released.config())).unwrap();
        assert_eq!(config.head_dim, released.head_dim, "{name}");
        assert_eq!([config.num_attention_heads, config.num_key_value_heads], released.heads, "{name}");
        assert_eq!(config.context_length, released.context, "{name}");
        assert_eq!(config.has_own_head, released.has_own_head, "{name}");
        assert_eq!(config.layers.len(), released.sizes[2] as usize, "{name}");
        let kind = released.window.map_or(LayerKind::Full, |window| LayerKind::Sliding { window });
        assert!(config.layers.iter().all(|layer| layer.kind == kind), "{name}");
        let frequencies = config.layers[0].rope.frequencies(1).unwrap();
        assert_eq!(frequencies[0], 1.0, "{name}");
        let slowest = *frequencies.last().unwrap();
        assert_relative_eq!(slowest, released.slowest(), epsilon = 0.0, max_relative = 1e-4);
    }
}
