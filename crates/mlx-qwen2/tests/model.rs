//! The model compared with itself: changes that must not change its logits. The parity cases compare the logits with those
//! of other programs.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use approx::{assert_relative_eq, assert_relative_ne};
use mlx_causal_lm::CausalLm;
use mlx_kvcache::{LayerKind, LayerSpec};
use mlx_qwen2::{ARCHITECTURE, OwnKeys, Qwen2};
use mlx_rs::Array;
use mlx_rs::module::ModuleParameters;
use mlx_testing::checkpoints::{load, tensors};
use mlx_testing::decoder::{self, tokens};
use mlx_testing::models::all_logits;
use mlx_testing::tensor;
use serde_json::{Value, json};

/// Three layers without a window.
fn config() -> Value {
    json!({
        "model_type": "qwen2", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 128, "rope_theta": 1_000_000.0, "tie_word_embeddings": false,
        "use_sliding_window": false, "sliding_window": 5, "max_window_layers": 1,
    })
}

fn with(changes: Value) -> Value {
    decoder::with(config(), &changes)
}

/// Layers 1 and 2 have a window of 5 tokens, heads are wider than the stream, and all rotate by YaRN.
fn windows() -> Value {
    let yarn = json!({ "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8 });
    with(json!({ "use_sliding_window": true, "head_dim": 12, "rope_scaling": yarn }))
}

/// All layers have a window of 5 tokens.
fn all_windows() -> Value {
    with(json!({ "use_sliding_window": true, "max_window_layers": 0 }))
}

fn random(config: &Value) -> Qwen2 {
    decoder::random(config)
}

mlx_testing::decoder_tests! {
    keys: OwnKeys,
    architecture: ARCHITECTURE,
    configs: [config(), windows(), all_windows()],
    learns: [(config(), 1), (decoder::with(windows(), &json!({ "tie_word_embeddings": true })), 1)],
}

#[test]
fn each_layer_has_the_cache_of_its_kind() {
    let spec = |kind, size| LayerSpec { kind, heads: 2, key_dim: size, value_dim: size };
    let sliding = |size| spec(LayerKind::Sliding { window: 5 }, size);
    assert_eq!(random(&config()).info().layers, [spec(LayerKind::Full, 8); 3]);
    assert_eq!(random(&windows()).info().layers, [spec(LayerKind::Full, 12), sliding(12), sliding(12)]);
    assert_eq!(random(&all_windows()).info().layers, [sliding(8); 3]);
}

/// A window as long as the sequence changes nothing; a shorter window does.
#[test]
fn a_window_as_long_as_the_sequence_sees_everything() {
    let answer = |changes: Value| tensor(&all_logits(&mut random(&with(changes)), &tokens()));
    let windowed = |window: i32| answer(json!({ "use_sliding_window": true, "sliding_window": window }));
    let [long, short, full] = [windowed(18), windowed(5), answer(json!({}))];
    assert_relative_eq!(long, full, epsilon = 1e-5, max_relative = 1e-5);
    assert_relative_ne!(short, full, epsilon = 2e-5, max_relative = 2e-5);
}

/// The rotation turns the bias of keys differently at each position, so that the softmax does not cancel it.
#[test]
fn the_biases_of_queries_keys_and_values_matter() {
    let mut model = random(&config());
    let expected = tensor(&all_logits(&mut model, &tokens()));
    for part in ["q_proj", "k_proj", "v_proj"] {
        let mut without = tensors(&model);
        for (key, bias) in &mut without {
            if key.ends_with(&format!("{part}.bias")) {
                *bias = Array::zeros::<f32>(bias.shape()).unwrap();
            }
        }
        let mut without = load(&ARCHITECTURE, &config(), without).unwrap();
        let found = tensor(&all_logits(&mut *without, &tokens()));
        assert_relative_ne!(found, expected, epsilon = 1e-4, max_relative = 1e-4);
    }
}

#[test]
fn the_parameters_of_a_block() {
    let tied = with(json!({ "tie_word_embeddings": true }));
    for (config, count) in [(config(), 3 + 3 * 12), (tied, 2 + 3 * 12)] {
        let model = random(&config);
        let parameters = model.parameters().flatten();
        assert_eq!(parameters.len(), count);
        for (part, rows) in [("q_proj", 32), ("k_proj", 16), ("v_proj", 16)] {
            let shape = |parameter: &str| {
                parameters[format!("model.layers.2.self_attn.{part}.{parameter}").as_str()].shape().to_vec()
            };
            assert_eq!((shape("weight"), shape("bias")), (vec![rows, 32], vec![rows]));
        }
        assert!(!parameters.contains_key("model.layers.2.self_attn.o_proj.bias"));
    }
}
