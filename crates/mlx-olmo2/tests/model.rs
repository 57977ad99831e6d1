//! The model compared with itself: changes that must not change its logits. The parity cases compare the logits with those
//! of other programs.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use approx::assert_relative_ne;
use mlx_causal_lm::CausalLm;
use mlx_kvcache::{LayerKind, LayerSpec};
use mlx_olmo2::{ARCHITECTURE, Olmo2, OwnKeys};
use mlx_rs::Array;
use mlx_rs::module::ModuleParameters;
use mlx_testing::checkpoints::{load, tensors};
use mlx_testing::decoder::{self, tokens};
use mlx_testing::models::all_logits;
use mlx_testing::tensor;
use serde_json::{Value, json};

/// Two query heads share a key-value head, as in the 32B model.
fn config() -> Value {
    json!({
        "model_type": "olmo2", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 128, "rope_theta": 500_000.0, "tie_word_embeddings": false,
    })
}

fn with(changes: Value) -> Value {
    decoder::with(config(), &changes)
}

/// What no released model has: biases, heads that are wider than the stream, YaRN.
fn unusual() -> Value {
    let yarn = json!({ "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16 });
    with(json!({
        "attention_bias": true, "head_dim": 12, "num_key_value_heads": null, "rope_scaling": yarn,
    }))
}

fn random(config: &Value) -> Olmo2 {
    decoder::random(config)
}

mlx_testing::decoder_tests! {
    keys: OwnKeys,
    architecture: ARCHITECTURE,
    configs: [config(), unusual()],
    learns: [(config(), 5), (decoder::with(unusual(), &json!({ "tie_word_embeddings": true })), 5)],
}

#[test]
fn each_layer_keeps_all_tokens() {
    let spec = |heads, dim| LayerSpec { kind: LayerKind::Full, heads, key_dim: dim, value_dim: dim };
    assert_eq!(random(&config()).info().layers, [spec(2, 8); 3]);
    assert_eq!(random(&unusual()).info().layers, [spec(4, 12); 3]);
}

/// A norm of each head would make up for another size of one head; a norm over all heads does not.
#[test]
fn a_larger_head_stays_larger() {
    let answer = |scale: f32| {
        let mut tensors = tensors(&random(&config()));
        for (key, array) in &mut tensors {
            if key == "model.layers.0.self_attn.q_proj.weight" {
                // The rows of the first head, out of four.
                let mut rows = vec![1.0_f32; 32];
                rows[..8].fill(scale);
                *array = array.multiply(Array::from_slice(&rows, &[32, 1])).unwrap();
            }
        }
        tensor(&all_logits(&mut *load(&ARCHITECTURE, &config(), tensors).unwrap(), &tokens()))
    };
    assert_relative_ne!(answer(1.0), answer(3.0), epsilon = 1e-3, max_relative = 1e-3);
}

#[test]
fn the_parameters_of_a_block() {
    for (config, count) in [(config(), 3 + 3 * 11), (unusual(), 3 + 3 * 15)] {
        assert_eq!(random(&config).parameters().flatten().len(), count);
    }
    let model = random(&config());
    let parameters = model.parameters().flatten();
    assert_eq!(parameters["model.layers.2.self_attn.q_norm.weight"].shape(), [32]);
    assert_eq!(parameters["model.layers.2.self_attn.k_norm.weight"].shape(), [16]);
    assert_eq!(parameters["model.layers.2.post_feedforward_layernorm.weight"].shape(), [32]);
}
