//! The model compared with itself: changes that must not change its logits. The parity cases compare the logits with those
//! of other programs.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use approx::assert_relative_eq;
use mlx_causal_lm::CausalLm;
use mlx_kvcache::{LayerKind, LayerSpec};
use mlx_olmo3::{ARCHITECTURE, Olmo3, OwnKeys};
use mlx_rs::module::ModuleParameters;
use mlx_testing::decoder::{self, tokens};
use mlx_testing::models::all_logits;
use mlx_testing::tensor;
use serde_json::{Value, json};

/// Layers 0, 1 and 2 have a window of 5 tokens, layer 3 is full and rotates by YaRN.
fn config() -> Value {
    json!({
        "model_type": "olmo3", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 128, "sliding_window": 5, "rope_theta": 500000.0,
        "rope_scaling": { "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16 },
    })
}

fn with(changes: Value) -> Value {
    decoder::with(config(), &changes)
}

fn random(config: &Value) -> Olmo3 {
    decoder::random(config)
}

mlx_testing::decoder_tests! {
    keys: OwnKeys,
    architecture: ARCHITECTURE,
    configs: [
        config(),
        with(json!({ "layer_types": vec!["sliding_attention"; 4] })),
        with(json!({ "layer_types": vec!["full_attention"; 4], "sliding_window": null })),
    ],
    learns: [(config(), 4), (with(json!({ "tie_word_embeddings": true, "attention_bias": true })), 5)],
}

#[test]
fn each_layer_has_the_cache_of_its_kind() {
    let spec = |kind| LayerSpec { kind, heads: 2, key_dim: 8, value_dim: 8 };
    let (sliding, full) = (spec(LayerKind::Sliding { window: 5 }), spec(LayerKind::Full));
    assert_eq!(random(&config()).info().layers, [sliding, sliding, sliding, full]);
}

/// A window as long as the sequence changes nothing.
#[test]
fn a_window_as_long_as_the_sequence_sees_everything() {
    let plain = json!({ "rope_scaling": null, "sliding_window": 18 });
    let answer = |kind: &str| {
        let mut config = with(plain.clone());
        config["layer_types"] = json!(vec![kind; 4]);
        all_logits(&mut random(&config), &tokens())
    };
    let [found, expected] = ["sliding_attention", "full_attention"].map(|kind| tensor(&answer(kind)));
    assert_relative_eq!(found, expected, epsilon = 1e-5, max_relative = 1e-5);
}

#[test]
fn heads_are_derived_where_the_config_does_not_say_them() {
    let mut short = with(json!({ "head_dim": null, "num_key_value_heads": null }));
    assert_eq!(
        random(&short).info().layers[0],
        LayerSpec { kind: LayerKind::Sliding { window: 5 }, heads: 4, key_dim: 8, value_dim: 8 }
    );
    short["head_dim"] = json!(12);
    let wide = random(&short);
    assert_eq!(wide.info().layers[0].key_dim, 12);
    let parameters = wide.parameters().flatten();
    assert_eq!(parameters["model.layers.0.self_attn.q_norm.weight"].shape(), [48]);
}

#[test]
fn the_parameters_of_a_block() {
    let bias = with(json!({ "attention_bias": true, "tie_word_embeddings": true }));
    for (config, count) in [(config(), 3 + 4 * 11), (bias, 2 + 4 * 15)] {
        let model = random(&config);
        let parameters = model.parameters().flatten();
        assert_eq!(parameters.len(), count);
        assert_eq!(parameters["model.layers.3.self_attn.k_norm.weight"].shape(), [16]);
        assert_eq!(parameters["model.layers.3.post_feedforward_layernorm.weight"].shape(), [32]);
    }
}
