//! The facts of released models, from the configs of their checkpoints.

use mlx_causal_lm::LoadOptions;
use mlx_config::Layer;
use mlx_kvcache::LayerKind;
use mlx_phi3::{ARCHITECTURE, Config};
use mlx_testing::released::{Facts, Released, facts_are_read, slowest};
use serde_json::{Value, json};

const PHI_3: Released = Released {
    names: &["Phi-3-mini-4k-instruct"],
    model_type: "phi3",
    sizes: [3072, 8192, 32, 32064],
    heads: [32, 32],
    context: 4096,
    base: 10_000.0,
    rest: || {
        json!({
            "attention_bias": false, "original_max_position_embeddings": 4096, "sliding_window": 2047,
            "tie_word_embeddings": false,
        })
    },
    head_dim: 96,
    slowest: Released::plain,
    window: |_| Some(2047),
    has_own_head: true,
};
const PHI_3_LONG: Released = Released {
    names: &["Phi-3-mini-128k-instruct"],
    context: 131_072,
    rest: || long_rope([1.1, 3.049_999_999_999_997], [1.070_000_052_452_087_4, 64.760_002_136_230_47]),
    slowest: |model, layer| model.plain(layer) / 3.05,
    window: |_| Some(262_144),
    ..PHI_3
};

const RELEASED: &[Released] = &[
    PHI_3,
    PHI_3_LONG,
    Released {
        names: &["Phi-3.5-mini-instruct"],
        rest: || long_rope([1.0, 2.839_999_437_332_153], [1.080_000_042_915_344_2, 64.839_996_337_890_62]),
        slowest: |model, layer| model.plain(layer) / 2.84,
        ..PHI_3_LONG
    },
    Released {
        names: &["Phi-4-mini-instruct"],
        sizes: [3072, 8192, 32, 200_064],
        heads: [24, 8],
        rest: || {
            let mut rest = long_rope([1.0, 1.0], [1.0, 47.77]);
            rest["partial_rotary_factor"] = json!(0.75);
            rest["tie_word_embeddings"] = json!(true);
            rest["mlp_bias"] = json!(false);
            rest["lm_head_bias"] = json!(false);
            rest
        },
        head_dim: 128,
        slowest: |model, _| slowest(model.base, 96),
        has_own_head: false,
        ..PHI_3_LONG
    },
];

/// LongRoPE. Its lists have the first and the last factor of the released config; those between are evenly spaced here.
fn long_rope(short: [f64; 2], long: [f64; 2]) -> Value {
    let factors = |[first, last]: [f64; 2]| -> Vec<f64> {
        (0..48).map(|i| first + (last - first) * f64::from(i) / 47.0).collect()
    };
    json!({
        "attention_bias": false, "original_max_position_embeddings": 4096, "sliding_window": 262_144,
        "tie_word_embeddings": false,
        "rope_scaling": { "type": "longrope", "short_factor": factors(short), "long_factor": factors(long) },
    })
}

#[test]
fn the_facts_of_released_models() {
    facts_are_read(&ARCHITECTURE, RELEASED, |checkpoint| {
        let config = Config::from_checkpoint(checkpoint, &LoadOptions::default())?;
        let kind = config.sliding_window.map_or(LayerKind::Full, |window| LayerKind::Sliding { window });
        Ok(Facts {
            heads: [config.num_attention_heads, config.num_key_value_heads],
            head_dim: config.head_dim,
            context_length: config.context_length,
            layers: vec![Layer { kind, rope: Some(config.rope) }; config.num_hidden_layers],
            has_own_head: config.has_own_head,
        })
    });
}
