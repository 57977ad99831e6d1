//! The facts of released models, from the configs of their checkpoints.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use mlx_causal_lm::LoadOptions;
use mlx_config::Layer;
use mlx_kvcache::LayerKind;
use mlx_layers::Quantization;
use mlx_phi3::{ARCHITECTURE, Config};
use mlx_testing::checkpoints::without_tensors;
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

const PHI_4_MINI: Released = Released {
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
};

const RELEASED: &[Released] = &[
    PHI_3,
    PHI_3_LONG,
    Released {
        names: &["Phi-3-medium-4k-instruct"],
        sizes: [5120, 17920, 40, 32064],
        heads: [40, 10],
        head_dim: 128,
        ..PHI_3
    },
    Released {
        names: &["Phi-3.5-mini-instruct"],
        rest: || long_rope([1.0, 2.839_999_437_332_153], [1.080_000_042_915_344_2, 64.839_996_337_890_62]),
        slowest: |model, layer| model.plain(layer) / 2.84,
        ..PHI_3_LONG
    },
    PHI_4_MINI,
    Released {
        names: &["phi-4"],
        sizes: [5120, 17920, 40, 100_352],
        heads: [40, 10],
        context: 16384,
        base: 250_000.0,
        rest: || {
            json!({
                "attention_bias": false, "original_max_position_embeddings": 16384, "sliding_window": null,
                "tie_word_embeddings": false,
            })
        },
        head_dim: 128,
        window: Released::no_window,
        ..PHI_3
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

/// A conversion of the mlx-community: the config of the model, and how mlx-lm quantized it under both keys.
#[test]
fn a_conversion_by_mlx_lm_has_the_facts_of_its_model() {
    let mut config = PHI_4_MINI.config();
    let plain = Config::from_checkpoint(&without_tensors(&config), &LoadOptions::default()).unwrap();
    let section = json!({ "group_size": 64, "bits": 4 });
    config["quantization"] = section.clone();
    config["quantization_config"] = section;
    let checkpoint = without_tensors(&config);
    assert_eq!(checkpoint.default_quantization(), Some(Quantization::affine(4, 64).unwrap()));
    let converted = Config::from_checkpoint(&checkpoint, &LoadOptions::default()).unwrap();
    assert_eq!(format!("{converted:?}"), format!("{plain:?}"));
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
