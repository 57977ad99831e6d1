//! The facts of released models, from the configs of their checkpoints.
use mlx_llama::{ARCHITECTURE, Llama};
use mlx_testing::released::{Released, facts_are_read};
use serde_json::{Value, json};

fn llama3(factor: f64) -> Value {
    json!({
        "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    })
}

const LLAMA: Released = Released {
    names: &["Llama-2-7b"],
    model_type: "llama",
    sizes: [4096, 11008, 32, 32000],
    heads: [32, 32],
    context: 4096,
    base: 10_000.0,
    rest: || json!({ "tie_word_embeddings": false }),
    head_dim: 128,
    slowest: Released::plain,
    window: Released::no_window,
    has_own_head: true,
};
const LLAMA_3: Released = Released {
    names: &["Meta-Llama-3-8B"],
    sizes: [4096, 14336, 32, 128_256],
    heads: [32, 8],
    context: 8192,
    base: 500_000.0,
    ..LLAMA
};
const LLAMA_3_1: Released = Released {
    names: &["Llama-3.1-8B", "Llama-3.1-8B-Instruct", "DeepSeek-R1-Distill-Llama-8B"],
    context: 131_072,
    rest: || json!({ "tie_word_embeddings": false, "rope_scaling": llama3(8.0) }),
    slowest: |model, layer| model.plain(layer) / 8.0,
    ..LLAMA_3
};
const LLAMA_3_2: Released = Released {
    names: &["Llama-3.2-1B"],
    sizes: [2048, 8192, 16, 128_256],
    rest: || json!({ "tie_word_embeddings": true, "head_dim": 64, "rope_scaling": llama3(32.0) }),
    head_dim: 64,
    slowest: |model, layer| model.plain(layer) / 32.0,
    has_own_head: false,
    ..LLAMA_3_1
};
const SMOLLM2: Released = Released {
    names: &["SmolLM2-135M"],
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
    names: &["Mistral-7B-v0.1"],
    model_type: "mistral",
    sizes: [4096, 14336, 32, 32000],
    heads: [32, 8],
    context: 32768,
    rest: || json!({ "tie_word_embeddings": false, "sliding_window": 4096 }),
    window: |_| Some(4096),
    ..LLAMA
};
const MISTRAL_2: Released = Released {
    names: &["Mistral-7B-Instruct-v0.2"],
    base: 1_000_000.0,
    rest: || json!({ "tie_word_embeddings": false, "sliding_window": null }),
    window: Released::no_window,
    ..MISTRAL
};

const RELEASED: &[Released] = &[
    LLAMA,
    Released { names: &["Llama-2-13b"], sizes: [5120, 13824, 40, 32000], heads: [40, 40], ..LLAMA },
    Released { names: &["Llama-2-70b"], sizes: [8192, 28672, 80, 32000], heads: [64, 8], ..LLAMA },
    Released {
        names: &["TinyLlama-1.1B-Chat-v1.0"],
        sizes: [2048, 5632, 22, 32000],
        heads: [32, 4],
        context: 2048,
        head_dim: 64,
        ..LLAMA
    },
    Released {
        names: &["ALLaM-7B-Instruct-preview"],
        sizes: [4096, 11008, 32, 64000],
        base: 1_000_000.0,
        rest: || json!({ "tie_word_embeddings": false, "attention_bias": false, "mlp_bias": false, "head_dim": 128 }),
        ..LLAMA
    },
    Released {
        names: &["Yi-1.5-34B"],
        sizes: [7168, 20480, 60, 64000],
        heads: [56, 8],
        base: 5_000_000.0,
        rest: || json!({ "tie_word_embeddings": false, "rms_norm_eps": 1e-6, "attention_bias": false }),
        ..LLAMA
    },
    LLAMA_3,
    Released { names: &["Meta-Llama-3-70B"], sizes: [8192, 28672, 80, 128_256], heads: [64, 8], ..LLAMA_3 },
    LLAMA_3_1,
    Released {
        names: &["Llama-3.1-70B", "Llama-3.3-70B-Instruct", "DeepSeek-R1-Distill-Llama-70B"],
        sizes: [8192, 28672, 80, 128_256],
        heads: [64, 8],
        ..LLAMA_3_1
    },
    Released {
        names: &["Llama-3.1-405B"],
        sizes: [16384, 53248, 126, 128_256],
        heads: [128, 8],
        ..LLAMA_3_1
    },
    LLAMA_3_2,
    Released {
        names: &["Llama-3.2-3B", "Llama-3.2-3B-Instruct"],
        sizes: [3072, 8192, 28, 128_256],
        heads: [24, 8],
        rest: || json!({ "tie_word_embeddings": true, "head_dim": 128, "rope_scaling": llama3(32.0) }),
        head_dim: 128,
        ..LLAMA_3_2
    },
    SMOLLM2,
    Released { names: &["SmolLM2-360M"], sizes: [960, 2560, 32, 49152], heads: [15, 5], ..SMOLLM2 },
    Released {
        names: &["SmolLM2-1.7B"],
        sizes: [2048, 8192, 24, 49152],
        heads: [32, 32],
        base: 130_000.0,
        ..SMOLLM2
    },
    MISTRAL,
    MISTRAL_2,
    Released {
        names: &["Mistral-7B-v0.3", "Mistral-7B-Instruct-v0.3"],
        sizes: [4096, 14336, 32, 32768],
        ..MISTRAL_2
    },
    Released {
        names: &["Mistral-Nemo-Base-2407"],
        sizes: [5120, 14336, 40, 131_072],
        context: 128_000,
        rest: || json!({ "tie_word_embeddings": false, "sliding_window": null, "head_dim": 128 }),
        ..MISTRAL_2
    },
    Released {
        names: &["Mistral-Small-24B-Base-2501"],
        sizes: [5120, 32768, 40, 131_072],
        base: 100_000_000.0,
        rest: || json!({ "tie_word_embeddings": false, "sliding_window": null, "head_dim": 128 }),
        ..MISTRAL_2
    },
];

#[test]
fn the_facts_of_released_models() {
    facts_are_read(&ARCHITECTURE, RELEASED, |checkpoint| Ok(Llama::config(checkpoint)?.into()));
}
