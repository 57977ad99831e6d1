//! The model compared with itself: changes that must not change its logits. The parity cases compare the logits with those
//! of other programs.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use approx::{assert_relative_eq, assert_relative_ne};
use mlx_causal_lm::CausalLm;
use mlx_kvcache::{LayerKind, LayerSpec};
use mlx_qwen3::{ARCHITECTURE, OwnKeys, Qwen3};
use mlx_rs::Array;
use mlx_rs::module::ModuleParameters;
use mlx_testing::checkpoints::{load, tensors};
use mlx_testing::decoder::{self, tokens};
use mlx_testing::models::all_logits;
use mlx_testing::tensor;
use serde_json::{Value, json};

/// Three layers, heads wider than the stream, no window.
fn config() -> Value {
    json!({
        "model_type": "qwen3", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12, "vocab_size": 64,
        "rms_norm_eps": 1e-6, "max_position_embeddings": 128, "rope_theta": 1_000_000.0,
        "tie_word_embeddings": false, "use_sliding_window": false, "sliding_window": 5, "max_window_layers": 1,
    })
}

fn with(changes: Value) -> Value {
    decoder::with(config(), &changes)
}

/// Layers 1 and 2 have a window of 5 tokens, and all rotate by YaRN.
fn windows() -> Value {
    let yarn = json!({ "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8 });
    with(json!({ "use_sliding_window": true, "rope_scaling": yarn }))
}

fn random(config: &Value) -> Qwen3 {
    decoder::random(config)
}

mlx_testing::decoder_tests! {
    keys: OwnKeys,
    architecture: ARCHITECTURE,
    configs: [config(), windows(), with(json!({ "use_sliding_window": true, "max_window_layers": 0 }))],
    learns: [
        (config(), 1),
        (decoder::with(windows(), &json!({ "tie_word_embeddings": true, "attention_bias": true })), 1),
    ],
}

#[test]
fn each_layer_has_the_cache_of_its_kind() {
    let spec = |kind| LayerSpec { kind, heads: 2, key_dim: 12, value_dim: 12 };
    let (full, sliding) = (spec(LayerKind::Full), spec(LayerKind::Sliding { window: 5 }));
    assert_eq!(random(&config()).info().layers, [full, full, full]);
    assert_eq!(random(&windows()).info().layers, [full, sliding, sliding]);
}

/// A window as long as the sequence changes nothing; a shorter window does.
#[test]
fn a_window_as_long_as_the_sequence_sees_everything() {
    let answer = |changes: Value| all_logits(&mut random(&with(changes)), &tokens());
    let windowed = |window: i32| answer(json!({ "use_sliding_window": true, "sliding_window": window }));
    let [long, short, full] = [windowed(18), windowed(5), answer(json!({}))].map(|logits| tensor(&logits));
    assert_relative_eq!(long, full, epsilon = 1e-5, max_relative = 1e-5);
    assert_relative_ne!(short, full, epsilon = 2e-5, max_relative = 2e-5);
}

/// The norms of queries and keys come between the projections and the scores, so the size of the weights of those
/// projections does not matter.
#[test]
fn the_size_of_a_projection_does_not_matter() {
    let mut model = random(&config());
    let expected = all_logits(&mut model, &tokens());
    let mut larger = tensors(&model);
    for (key, weight) in &mut larger {
        if key.ends_with("q_proj.weight") || key.ends_with("k_proj.weight") {
            *weight = weight.multiply(Array::from_f32(1024.0)).unwrap();
        }
    }
    let found = all_logits(&mut *load(&ARCHITECTURE, &config(), larger).unwrap(), &tokens());
    assert_relative_eq!(tensor(&found), tensor(&expected), epsilon = 1e-3, max_relative = 1e-3);
}

#[test]
fn the_parameters_of_a_block() {
    let bias = with(json!({ "attention_bias": true, "tie_word_embeddings": true }));
    for (config, count) in [(config(), 3 + 3 * 11), (bias, 2 + 3 * 15)] {
        let model = random(&config);
        let parameters = model.parameters().flatten();
        assert_eq!(parameters.len(), count);
        assert_eq!(parameters["model.layers.2.self_attn.q_proj.weight"].shape(), [48, 32]);
        assert_eq!(parameters["model.layers.2.self_attn.k_norm.weight"].shape(), [12]);
    }
}
