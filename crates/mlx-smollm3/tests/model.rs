//! The model compared with itself: changes that must not change its logits. The parity cases compare the logits with those
//! of other programs.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use approx::{assert_relative_eq, assert_relative_ne};
use mlx_causal_lm::{CausalLm, Logits};
use mlx_kvcache::{CacheOptions, LayerKind, LayerSpec};
use mlx_rs::Array;
use mlx_rs::module::ModuleParameters;
use mlx_smollm3::{ARCHITECTURE, OwnKeys, SmolLm3};
use mlx_testing::decoder::{self, tokens};
use mlx_testing::models::all_logits;
use mlx_testing::{Tensor, tensor};
use serde_json::{Value, json};

/// Layer 1 of three has no rotation.
fn config() -> Value {
    json!({
        "model_type": "smollm3", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 128, "rope_theta": 5_000_000.0, "no_rope_layer_interval": 2,
        "tie_word_embeddings": false,
    })
}

fn with(changes: Value) -> Value {
    decoder::with(config(), &changes)
}

/// Layers without a rotation have a window of 5 tokens.
fn windows() -> Value {
    with(json!({ "use_sliding_window": true, "sliding_window": 5, "no_rope_layers": [0, 1, 0] }))
}

/// No layer has a rotation.
fn unrotated() -> Value {
    with(json!({ "no_rope_layer_interval": 1 }))
}

/// What the released model does not have.
fn unusual() -> Value {
    let yarn = json!({ "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16 });
    with(json!({ "attention_bias": true, "mlp_bias": true, "head_dim": 12, "rope_scaling": yarn }))
}

fn random(config: &Value) -> SmolLm3 {
    decoder::random(config)
}

mlx_testing::decoder_tests! {
    keys: OwnKeys,
    architecture: ARCHITECTURE,
    configs: [config(), windows(), unrotated(), unusual()],
    learns: [(config(), 1), (decoder::with(unusual(), &json!({ "tie_word_embeddings": true })), 1)],
}

#[test]
fn each_layer_has_the_cache_and_the_rotation_of_its_kind() {
    let spec = |kind| LayerSpec { kind, heads: 2, key_dim: 8, value_dim: 8 };
    let (full, sliding) = (spec(LayerKind::Full), spec(LayerKind::Sliding { window: 5 }));
    let rotates = |model: &SmolLm3| -> Vec<bool> {
        model.info().rotations.iter().map(|rotation| rotation.is_some()).collect()
    };
    let [plain, windows] = [config(), windows()].map(|config| random(&config));
    assert_eq!(plain.info().layers, [full; 3]);
    assert_eq!(rotates(&plain), [true, false, true]);
    assert_eq!(windows.info().layers, [sliding, full, sliding]);
    assert_eq!(rotates(&windows), [false, true, false]);
}

/// The logits of the last of these tokens.
fn last(model: &mut SmolLm3, tokens: &[u32]) -> Tensor {
    let mut cache = model.new_cache(&CacheOptions::default()).unwrap();
    let tokens = Array::from_slice(tokens, &[1, tokens.len() as i32]);
    tensor(&model.forward(&tokens, &mut cache, Logits::Last).unwrap())
}

/// In one layer without a rotation, a token does not see where the others are.
#[test]
fn one_layer_without_a_rotation_does_not_know_the_order_of_tokens() {
    let one = |interval: i64| {
        let mut config = with(json!({ "num_hidden_layers": 1, "no_rope_layer_interval": interval }));
        config["rope_theta"] = json!(100.0);
        random(&config)
    };
    let [sorted, mixed] = [[3, 14, 15, 9, 2], [9, 15, 3, 14, 2]];
    let mut model = one(1);
    assert_relative_eq!(
        last(&mut model, &sorted),
        last(&mut model, &mixed),
        epsilon = 1e-5,
        max_relative = 1e-5
    );
    let mut model = one(2);
    assert_relative_ne!(
        last(&mut model, &sorted),
        last(&mut model, &mixed),
        epsilon = 1e-3,
        max_relative = 1e-3
    );
}

/// A window as long as the sequence changes nothing; a shorter window does.
#[test]
fn a_window_as_long_as_the_sequence_sees_everything() {
    let windowed = |window: i64| {
        let config = decoder::with(windows(), &json!({ "sliding_window": window }));
        tensor(&all_logits(&mut random(&config), &tokens()))
    };
    let full = decoder::with(windows(), &json!({ "use_sliding_window": false }));
    let full = tensor(&all_logits(&mut random(&full), &tokens()));
    assert_relative_eq!(windowed(18), full, epsilon = 1e-5, max_relative = 1e-5);
    assert_relative_ne!(windowed(5), full, epsilon = 1e-3, max_relative = 1e-3);
}

#[test]
fn the_parameters_of_a_block() {
    for (config, count) in [(config(), 3 + 3 * 9), (unusual(), 3 + 3 * 16)] {
        let model = random(&config);
        let parameters = model.parameters().flatten();
        assert_eq!(parameters.len(), count);
        assert_eq!(parameters["model.layers.2.input_layernorm.weight"].shape(), [32]);
    }
}
