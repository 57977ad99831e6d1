//! The facts of released models, from the configs of their checkpoints.

use mlx_olmo3::{ARCHITECTURE, Olmo3};
use mlx_testing::released::{Facts, Released, facts_are_read};
use serde_json::{Value, json};

const OLMO_3: Released = Released {
    names: &["Olmo-3-1025-7B"],
    model_type: "olmo3",
    sizes: [4096, 11008, 32, 100_278],
    heads: [32, 32],
    context: 65536,
    base: 500_000.0,
    rest,
    head_dim: 128,
    // YaRN stretches the layers of full attention.
    slowest: |model, layer| model.plain(layer) / if is_full(layer) { 8.0 } else { 1.0 },
    window: |layer| (!is_full(layer)).then_some(4096),
    has_own_head: true,
};

const RELEASED: &[Released] = &[
    OLMO_3,
    Released {
        names: &["Olmo-3.1-32B-Instruct"],
        sizes: [5120, 27648, 64, 100_278],
        heads: [40, 8],
        rest: || {
            let kind = |layer| if is_full(layer) { "full_attention" } else { "sliding_attention" };
            let mut rest = rest();
            rest["layer_types"] = (0..64).map(kind).collect();
            rest
        },
        ..OLMO_3
    },
];

fn is_full(layer: usize) -> bool {
    layer % 4 == 3
}

fn rest() -> Value {
    json!({
        "attention_bias": false, "rms_norm_eps": 1e-6, "sliding_window": 4096, "tie_word_embeddings": false,
        "rope_scaling": {
            "attention_factor": 1.2079441541679836, "beta_fast": 32, "beta_slow": 1, "factor": 8.0,
            "original_max_position_embeddings": 8192, "rope_type": "yarn",
        },
    })
}

#[test]
fn the_facts_of_released_models() {
    facts_are_read(&ARCHITECTURE, RELEASED, |checkpoint| {
        let config = Olmo3::config(checkpoint)?;
        Ok(Facts {
            heads: [config.num_attention_heads, config.num_key_value_heads],
            head_dim: config.head_dim,
            context_length: config.context_length,
            layers: config.layers,
            has_own_head: config.has_own_head,
        })
    });
}
