//! The model compared with itself: changes that must not change its logits. The parity cases compare the logits with those
//! of other programs.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use approx::{assert_relative_eq, assert_relative_ne};
use mlx_causal_lm::CausalLm;
use mlx_gemma2::{ARCHITECTURE, Gemma2, OwnKeys};
use mlx_kvcache::{LayerKind, LayerSpec};
use mlx_rs::Array;
use mlx_rs::module::ModuleParameters;
use mlx_testing::checkpoints::{load, tensors};
use mlx_testing::decoder::{self, tokens};
use mlx_testing::models::all_logits;
use mlx_testing::tensor;
use serde_json::{Value, json};

/// Layers 0 and 2 have a window of 5 tokens, layer 1 is global. Many scores are near the cap.
fn config() -> Value {
    json!({
        "model_type": "gemma2", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12, "vocab_size": 64,
        "rms_norm_eps": 1e-6, "max_position_embeddings": 128, "query_pre_attn_scalar": 8, "sliding_window": 5,
        "attn_logit_softcapping": 0.5, "final_logit_softcapping": 3.0, "tie_word_embeddings": false,
    })
}

fn with(changes: Value) -> Value {
    decoder::with(config(), &changes)
}

/// A window in all layers, a key-value head for each query head, and biases.
fn only_windows() -> Value {
    with(json!({
        "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention"],
        "num_key_value_heads": 4, "attention_bias": true,
    }))
}

fn without_caps() -> Value {
    with(json!({ "attn_logit_softcapping": null, "final_logit_softcapping": null }))
}

fn random(config: &Value) -> Gemma2 {
    decoder::random(config)
}

mlx_testing::decoder_tests! {
    keys: OwnKeys,
    architecture: ARCHITECTURE,
    configs: [config(), only_windows(), without_caps()],
    learns: [(config(), 5), (decoder::with(only_windows(), &json!({ "tie_word_embeddings": true })), 5)],
}

#[test]
fn each_layer_has_the_cache_of_its_kind() {
    let spec = |kind, heads| LayerSpec { kind, heads, key_dim: 12, value_dim: 12 };
    let sliding = LayerKind::Sliding { window: 5 };
    let [local, global] = [sliding, LayerKind::Full].map(|kind| spec(kind, 2));
    assert_eq!(random(&config()).info().layers, [local, global, local]);
    assert_eq!(random(&only_windows()).info().layers, [spec(sliding, 4); 3]);
}

fn answer(config: &Value) -> mlx_testing::Tensor {
    tensor(&all_logits(&mut random(config), &tokens()))
}

/// A cap far above all numbers changes nothing; a cap near them does.
#[test]
fn caps_far_above_the_scores_and_logits_change_nothing() {
    let capped = |scores: f64, logits: f64| {
        answer(&with(json!({ "attn_logit_softcapping": scores, "final_logit_softcapping": logits })))
    };
    let uncapped = answer(&without_caps());
    assert_relative_eq!(capped(1e4, 1e4), uncapped, epsilon = 1e-4, max_relative = 1e-4);
    assert_relative_ne!(capped(0.5, 1e4), uncapped, epsilon = 1e-3, max_relative = 1e-3);
    assert_relative_ne!(capped(1e4, 3.0), uncapped, epsilon = 1e-3, max_relative = 1e-3);
}

/// A window as long as the sequence changes nothing; a shorter window does.
#[test]
fn a_window_as_long_as_the_sequence_sees_everything() {
    let [long, short] = [18, 5].map(|window| answer(&with(json!({ "sliding_window": window }))));
    let full =
        answer(&with(json!({ "layer_types": ["full_attention", "full_attention", "full_attention"] })));
    assert_relative_eq!(long, full, epsilon = 1e-5, max_relative = 1e-5);
    assert_relative_ne!(short, full, epsilon = 2e-5, max_relative = 2e-5);
}

/// However large the projections are, no score leaves the cap, so that each key keeps a weight.
#[test]
fn larger_queries_do_not_change_scores_at_the_cap() {
    let scaled = |factor: f32, config: &Value| {
        let mut tensors = tensors(&random(config));
        for (key, array) in &mut tensors {
            if key.ends_with("q_proj.weight") {
                *array = array.multiply(Array::from_f32(factor)).unwrap();
            }
        }
        tensor(&all_logits(&mut *load(&ARCHITECTURE, config, tensors).unwrap(), &tokens()))
    };
    let [large, larger] = [1e6, 2e6].map(|factor| scaled(factor, &config()));
    assert_relative_eq!(large, larger, epsilon = 1e-3, max_relative = 1e-3);
    assert_relative_ne!(large, scaled(1e6, &without_caps()), epsilon = 1e-2, max_relative = 1e-2);
}

#[test]
fn the_parameters_of_a_block() {
    for (config, count) in [(config(), 3 + 3 * 11), (only_windows(), 3 + 3 * 15)] {
        assert_eq!(random(&config).parameters().flatten().len(), count);
    }
    let model = random(&config());
    let parameters = model.parameters().flatten();
    assert_eq!(parameters["model.layers.2.self_attn.q_proj.weight"].shape(), [48, 32]);
    assert_eq!(parameters["model.layers.2.self_attn.k_proj.weight"].shape(), [24, 32]);
    assert_eq!(parameters["model.layers.2.pre_feedforward_layernorm.weight"].shape(), [32]);
}
