//! The facts of released models, from the configs of their checkpoints.
use mlx_smollm3::{ARCHITECTURE, SmolLm3};
use mlx_testing::released::{Released, facts_are_read};
use serde_json::{Value, json};

const RELEASED: &[Released] = &[Released {
    names: &["SmolLM3-3B"],
    model_type: "smollm3",
    sizes: [2048, 11008, 36, 128_256],
    heads: [16, 4],
    context: 65536,
    base: 5_000_000.0,
    rest,
    head_dim: 128,
    slowest: |model, layer| if layer % 4 == 3 { 0.0 } else { model.plain(layer) },
    window: Released::no_window,
    has_own_head: false,
}];

fn rest() -> Value {
    let rotates: Vec<i32> = (0..36).map(|layer| i32::from(layer % 4 != 3)).collect();
    json!({
        "attention_bias": false, "layer_types": vec!["full_attention"; 36], "max_window_layers": 28,
        "mlp_bias": false, "no_rope_layer_interval": 4, "no_rope_layers": rotates, "rms_norm_eps": 1e-6,
        "sliding_window": null, "tie_word_embeddings": true, "use_sliding_window": false,
    })
}

#[test]
fn the_facts_of_released_models() {
    facts_are_read(&ARCHITECTURE, RELEASED, |checkpoint| Ok(SmolLm3::config(checkpoint)?.into()));
}
