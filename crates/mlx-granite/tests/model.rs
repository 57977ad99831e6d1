//! The model compared with itself: changes that must not change its logits. The parity cases compare the logits with those
//! of other programs.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use approx::{assert_relative_eq, assert_relative_ne};
use mlx_causal_lm::CausalLm;
use mlx_granite::{ARCHITECTURE, Granite, OwnKeys};
use mlx_kvcache::{LayerKind, LayerSpec};
use mlx_rs::Array;
use mlx_rs::module::ModuleParameters;
use mlx_testing::checkpoints::{Tensors, load, tensors};
use mlx_testing::decoder::{self, tokens};
use mlx_testing::models::all_logits;
use mlx_testing::tensor;
use serde_json::{Value, json};

/// Three layers, and factors that are all different.
fn config() -> Value {
    json!({
        "model_type": "granite", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 128, "rope_theta": 10_000.0, "tie_word_embeddings": false,
        "embedding_multiplier": 3.0, "attention_multiplier": 0.125, "residual_multiplier": 0.5,
        "logits_scaling": 2.0,
    })
}

fn with(changes: Value) -> Value {
    decoder::with(config(), &changes)
}

/// Biases everywhere, and heads of their own size.
fn other() -> Value {
    with(json!({ "attention_bias": true, "mlp_bias": true, "head_dim": 12 }))
}

fn random(config: &Value) -> Granite {
    decoder::random(config)
}

mlx_testing::decoder_tests! {
    keys: OwnKeys,
    architecture: ARCHITECTURE,
    configs: [config(), other()],
    learns: [(config(), 1), (decoder::with(other(), &json!({ "tie_word_embeddings": true })), 1)],
}

#[test]
fn all_layers_have_a_full_cache() {
    let full = LayerSpec { kind: LayerKind::Full, heads: 2, key_dim: 8, value_dim: 8 };
    assert_eq!(random(&config()).info().layers, [full; 3]);
}

/// A tensor multiplied by a number.
fn scaled(tensors: &mut Tensors, part: &str, factor: f32) {
    for (key, array) in tensors.iter_mut().filter(|(key, _)| key.contains(part)) {
        *array = array.multiply(Array::from_f32(factor)).unwrap();
        assert!(key.ends_with(".weight"));
    }
}

/// Each factor of the config has the effect of the same factor of weights.
#[test]
fn factors_are_factors_of_weights() {
    let weights = || tensors(&random(&config()));
    let logits = |config: &Value, tensors| {
        tensor(&all_logits(&mut *load(&ARCHITECTURE, config, tensors).unwrap(), &tokens()))
    };
    let expected = logits(&config(), weights());
    for (key, value, part, factor) in [
        ("embedding_multiplier", 1.0, "embed_tokens", 3.0),
        ("attention_multiplier", 0.25, "q_proj", 0.5),
        ("logits_scaling", 1.0, "lm_head", 0.5),
    ] {
        let other = with(json!({ key: value }));
        assert_relative_ne!(logits(&other, weights()), expected, epsilon = 1e-3, max_relative = 1e-3);
        let mut changed = weights();
        scaled(&mut changed, part, factor);
        assert_relative_eq!(logits(&other, changed), expected, epsilon = 1e-5, max_relative = 1e-5);
    }
    let other = with(json!({ "residual_multiplier": 1.0 }));
    assert_relative_ne!(logits(&other, weights()), expected, epsilon = 1e-3, max_relative = 1e-3);
    let mut changed = weights();
    scaled(&mut changed, "o_proj", 0.5);
    scaled(&mut changed, "down_proj", 0.5);
    assert_relative_eq!(logits(&other, changed), expected, epsilon = 1e-5, max_relative = 1e-5);
}

#[test]
fn the_parameters_of_a_block() {
    for (config, count) in [(config(), 3 + 3 * 9), (other(), 3 + 3 * 16)] {
        let model = random(&config);
        let parameters = model.parameters().flatten();
        assert_eq!(parameters.len(), count);
        assert_eq!(parameters["model.layers.2.mlp.down_proj.weight"].shape(), [32, 48]);
    }
}
