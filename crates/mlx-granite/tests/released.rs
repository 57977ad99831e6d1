//! The facts of released models, from the configs of their checkpoints.
use mlx_granite::{ARCHITECTURE, Granite};
use mlx_testing::released::{Released, facts_are_read};
use serde_json::{Value, json};

/// The keys of Granite, with the factors that depend on the size of a head and of the stream.
fn keys(attention_multiplier: f64, logits_scaling: f64) -> Value {
    json!({
        "attention_bias": false, "mlp_bias": false, "tie_word_embeddings": true, "embedding_multiplier": 12.0,
        "residual_multiplier": 0.22, "attention_multiplier": attention_multiplier,
        "logits_scaling": logits_scaling,
    })
}

const GRANITE_3_1_2B: Released = Released {
    names: &["granite-3.1-2b-base"],
    model_type: "granite",
    sizes: [2048, 8192, 40, 49152],
    heads: [32, 8],
    context: 131_072,
    base: 5_000_000.0,
    rest: || keys(0.015_625, 8.0),
    head_dim: 64,
    slowest: Released::plain,
    window: Released::no_window,
    has_own_head: false,
};
const GRANITE_3_3_8B: Released = Released {
    names: &["granite-3.3-8b-instruct"],
    sizes: [4096, 12800, 40, 49159],
    base: 10_000_000.0,
    rest: || keys(0.007_812_5, 16.0),
    head_dim: 128,
    ..GRANITE_3_1_2B
};

const RELEASED: &[Released] = &[
    GRANITE_3_1_2B,
    Released {
        names: &["granite-3.3-2b-instruct"],
        sizes: [2048, 8192, 40, 49159],
        base: 10_000_000.0,
        ..GRANITE_3_1_2B
    },
    GRANITE_3_3_8B,
    Released {
        names: &["granite-4.1-3b"],
        sizes: [2560, 8192, 40, 100_352],
        heads: [40, 8],
        rest: || keys(0.015_625, 10.0),
        head_dim: 64,
        ..GRANITE_3_3_8B
    },
    Released { names: &["granite-4.1-8b"], sizes: [4096, 12800, 40, 100_352], ..GRANITE_3_3_8B },
];

#[test]
fn the_facts_of_released_models() {
    facts_are_read(&ARCHITECTURE, RELEASED, |checkpoint| {
        let config = Granite::config(checkpoint)?;
        // The rule that the factors follow in every size.
        assert_eq!(config.attention_scale, 1.0 / config.head_dim as f32);
        assert_eq!(config.logits_divisor, config.hidden_size as f32 / 256.0);
        Ok(config.into())
    });
}
