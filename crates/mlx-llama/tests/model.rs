//! The model compared with itself: changes that must not change its logits. The parity cases compare the logits with those
//! of other programs.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use approx::{assert_relative_eq, assert_relative_ne};
use mlx_causal_lm::CausalLm;
use mlx_kvcache::{LayerKind, LayerSpec};
use mlx_llama::{ARCHITECTURE, Llama, OwnKeys};
use mlx_rs::module::ModuleParameters;
use mlx_testing::decoder::{self, tokens};
use mlx_testing::models::all_logits;
use mlx_testing::tensor;
use serde_json::{Value, json};

/// Three layers, heads wider than the stream, the rotation of Llama 3.1.
fn config() -> Value {
    json!({
        "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12, "vocab_size": 64,
        "rms_norm_eps": 1e-5, "max_position_embeddings": 128, "rope_theta": 500_000.0,
        "tie_word_embeddings": false, "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    })
}

fn with(changes: Value) -> Value {
    decoder::with(config(), &changes)
}

/// A Mistral model, whose layers all have a window of 5 tokens.
fn mistral() -> Value {
    with(json!({ "model_type": "mistral", "sliding_window": 5, "rope_scaling": null }))
}

/// Layers 1 and 2 have a window of 5 tokens.
fn some_windows() -> Value {
    let types = ["full_attention", "sliding_attention", "sliding_attention"];
    with(json!({ "sliding_window": 5, "layer_types": types }))
}

fn random(config: &Value) -> Llama {
    decoder::random(config)
}

mlx_testing::decoder_tests! {
    keys: OwnKeys,
    architecture: ARCHITECTURE,
    configs: [config(), some_windows(), mistral()],
    learns: [(config(), 1), (with_biases(), 1)],
}

/// A tied Mistral model with all biases.
fn with_biases() -> Value {
    let biases = json!({ "tie_word_embeddings": true, "attention_bias": true, "mlp_bias": true });
    decoder::with(mistral(), &biases)
}

#[test]
fn each_layer_has_the_cache_of_its_kind() {
    let spec = |kind| LayerSpec { kind, heads: 2, key_dim: 12, value_dim: 12 };
    let (full, sliding) = (spec(LayerKind::Full), spec(LayerKind::Sliding { window: 5 }));
    assert_eq!(random(&config()).info().layers, [full, full, full]);
    assert_eq!(random(&mistral()).info().layers, [sliding; 3]);
    assert_eq!(random(&some_windows()).info().layers, [full, sliding, sliding]);
}

/// A window as long as the sequence changes nothing; a shorter window does.
#[test]
fn a_window_as_long_as_the_sequence_sees_everything() {
    let windowed = |window: Value| {
        let config = with(json!({ "model_type": "mistral", "sliding_window": window }));
        tensor(&all_logits(&mut random(&config), &tokens()))
    };
    let [long, short, full] = [json!(18), json!(5), json!(null)].map(windowed);
    assert_relative_eq!(long, full, epsilon = 1e-5, max_relative = 1e-5);
    assert_relative_ne!(short, full, epsilon = 2e-5, max_relative = 2e-5);
}

#[test]
fn the_scaling_of_the_rotation_matters() {
    let answer = |changes: Value| tensor(&all_logits(&mut random(&with(changes)), &tokens()));
    let [scaled, unscaled] = [answer(json!({})), answer(json!({ "rope_scaling": null }))];
    assert_relative_ne!(scaled, unscaled, epsilon = 1e-4, max_relative = 1e-4);
}

#[test]
fn the_parameters_of_a_block() {
    let bias = with(json!({ "attention_bias": true, "mlp_bias": true, "tie_word_embeddings": true }));
    for (config, count) in [(config(), 3 + 3 * 9), (bias, 2 + 3 * 16)] {
        let model = random(&config);
        let parameters = model.parameters().flatten();
        assert_eq!(parameters.len(), count);
        assert_eq!(parameters["model.layers.2.self_attn.q_proj.weight"].shape(), [48, 32]);
        assert_eq!(parameters["model.layers.2.self_attn.k_proj.weight"].shape(), [24, 32]);
    }
}
