//! The facts of released models, from the configs of their checkpoints.

use mlx_qwen3::{ARCHITECTURE, Qwen3};
use mlx_testing::released::{Facts, Released, facts_are_read};
use serde_json::{Value, json};

const QWEN_3: Released = Released {
    names: &["Qwen3-0.6B"],
    model_type: "qwen3",
    sizes: [1024, 3072, 28, 151_936],
    heads: [16, 8],
    context: 40960,
    base: 1_000_000.0,
    rest: || rest(28, true),
    head_dim: 128,
    slowest: Released::plain,
    window: Released::no_window,
    has_own_head: false,
};
const QWEN_3_4B: Released = Released {
    names: &["Qwen3-4B"],
    sizes: [2560, 9728, 36, 151_936],
    heads: [32, 8],
    rest: || rest(36, true),
    ..QWEN_3
};

const QWEN_3_8B: Released = Released {
    names: &["Qwen3-8B"],
    sizes: [4096, 12288, 36, 151_936],
    heads: [32, 8],
    rest: || rest(36, false),
    has_own_head: true,
    ..QWEN_3
};

const RELEASED: &[Released] = &[
    QWEN_3,
    Released { names: &["Qwen3-1.7B"], sizes: [2048, 6144, 28, 151_936], ..QWEN_3 },
    QWEN_3_4B,
    Released { names: &["Qwen3-4B-Instruct-2507"], context: 262_144, base: 5_000_000.0, ..QWEN_3_4B },
    QWEN_3_8B,
    Released {
        names: &["Qwen3-14B"],
        sizes: [5120, 17408, 40, 151_936],
        heads: [40, 8],
        rest: || rest(40, false),
        has_own_head: true,
        ..QWEN_3
    },
    Released {
        names: &["Qwen3-32B"],
        sizes: [5120, 25600, 64, 151_936],
        heads: [64, 8],
        rest: || rest(64, false),
        has_own_head: true,
        ..QWEN_3
    },
    // Their tables end with the last token.
    Released { names: &["Qwen3-Embedding-0.6B"], sizes: [1024, 3072, 28, 151_669], context: 32768, ..QWEN_3 },
    Released { names: &["Qwen3-Embedding-4B"], sizes: [2560, 9728, 36, 151_665], ..QWEN_3_4B },
    Released { names: &["Qwen3-Embedding-8B"], sizes: [4096, 12288, 36, 151_665], ..QWEN_3_8B },
];

/// `max_window_layers` has no effect without `use_sliding_window`.
fn rest(max_window_layers: i32, tie_word_embeddings: bool) -> Value {
    json!({
        "attention_bias": false, "head_dim": 128, "max_window_layers": max_window_layers, "rms_norm_eps": 1e-6,
        "sliding_window": null, "tie_word_embeddings": tie_word_embeddings, "use_sliding_window": false,
    })
}

#[test]
fn the_facts_of_released_models() {
    facts_are_read(&ARCHITECTURE, RELEASED, |checkpoint| {
        let config = Qwen3::config(checkpoint)?;
        Ok(Facts {
            heads: [config.num_attention_heads, config.num_key_value_heads],
            head_dim: config.head_dim,
            context_length: config.context_length,
            layers: config.layers,
            has_own_head: config.has_own_head,
        })
    });
}
