//! Configs: the released config, and the error of every kind of bad config.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use mlx_lille_130m::{ARCHITECTURE, Config};
use mlx_testing::checkpoints::{whole_message, without_tensors};
use serde_json::{Value, json};

/// The released model, from its checkpoint.
fn released() -> Value {
    json!({
        "architectures": ["LilleForCausalLM"], "block_size": 512, "dropout": 0.0, "layer_norm_eps": 1e-05,
        "model_type": "lille-130m", "n_embd": 640, "n_head": 10, "n_kv_heads": 2, "n_layer": 24,
        "rope_theta": 10000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16", "vocab_size": 32768,
    })
}

/// The config of a checkpoint folder, or the messages of the error and its causes.
fn read(config: &Value) -> Result<Config, String> {
    Config::from_checkpoint(&without_tensors(config)).map_err(|error| whole_message(&error))
}

/// The released config with these keys changed.
fn with(changes: Value) -> Value {
    let mut config = released();
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    config
}

#[test]
fn the_released_config() {
    let config = read(&released()).unwrap();
    assert_eq!((config.n_embd, config.n_head, config.n_kv_heads, config.head_dim), (640, 10, 2, 64));
    assert_eq!(
        (config.hidden_dim, config.n_layer, config.vocab_size, config.context_length),
        (1792, 24, 32768, 512)
    );
    assert_eq!(config.rope.dims(), 64);
    assert_eq!(ARCHITECTURE.released, ["lille-130m-base"]);
}

#[test]
fn optional_keys_of_a_config() {
    let mut config = with(json!({ "hidden_act": "silu", "attention_bias": false, "rope_scaling": null }));
    assert!(read(&config).is_ok());
    config.as_object_mut().unwrap().remove("tie_word_embeddings").unwrap();
    assert!(read(&config).is_ok());
}

#[test]
fn a_missing_key_is_named() {
    for key in ["block_size", "layer_norm_eps", "n_embd", "n_head", "n_kv_heads", "n_layer", "vocab_size"] {
        let mut config = released();
        config.as_object_mut().unwrap().remove(key).unwrap();
        let error = read(&config).unwrap_err();
        assert!(error.contains(&format!("missing field `{key}`")), "{error}");
    }
    let mut config = released();
    config.as_object_mut().unwrap().remove("rope_theta").unwrap();
    assert!(read(&config).unwrap_err().contains("rope_theta is missing"));
}

#[test]
fn a_bad_config_is_an_error_that_names_the_key() {
    let scaling = |scaling: Value| json!({ "rope_scaling": scaling });
    for (changes, needle) in [
        (json!({ "block_size": 0 }), "block_size is 0, and must be between 1 and"),
        (json!({ "layer_norm_eps": 0.0 }), "layer_norm_eps is 0.0, and must be a positive number below 1"),
        (json!({ "layer_norm_eps": 1.5 }), "layer_norm_eps is 1.5"),
        (json!({ "layer_norm_eps": null }), "layer_norm_eps: invalid type: null"),
        (json!({ "n_embd": "640" }), "n_embd: invalid type: string \"640\""),
        (json!({ "n_embd": 1e99 }), "n_embd: invalid type: floating point"),
        (json!({ "n_embd": -640 }), "n_embd is -640"),
        (json!({ "n_embd": 40 }), "n_embd is 40"),
        (json!({ "n_embd": 70 }), "rotary embedding over 7 features"),
        (json!({ "n_head": 12 }), "n_embd is 640, and must be a multiple of n_head, which is 12"),
        (json!({ "n_head": 0 }), "n_head is 0"),
        (json!({ "n_kv_heads": 4 }), "n_head is 10, and must be a multiple of n_kv_heads, which is 4"),
        (json!({ "n_kv_heads": 1 << 20 }), "n_kv_heads is 1048576"),
        (json!({ "n_layer": 0 }), "n_layer is 0"),
        (json!({ "n_layer": 2.5 }), "n_layer: invalid type: floating point"),
        (json!({ "vocab_size": -96 }), "vocab_size is -96"),
        (json!({ "vocab_size": 1_i64 << 40 }), "vocab_size is 1099511627776"),
        (json!({ "hidden_act": "gelu" }), "hidden_act is \"gelu\", and this architecture knows silu only"),
        (json!({ "attention_bias": true }), "attention_bias is true"),
        (json!({ "mlp_bias": true }), "mlp_bias is true"),
        (json!({ "tie_word_embeddings": false }), "tie_word_embeddings is false"),
        (json!({ "tie_word_embeddings": null }), "tie_word_embeddings: invalid type: null"),
        // Rotations.
        (json!({ "rope_theta": 0.0 }), "rope_theta is 0.0, and must be a finite number from 1 on"),
        (json!({ "rope_theta": -1.0 }), "rope_theta is -1.0"),
        (json!({ "rope_theta": 1e-40 }), "rope_theta is 1e-40"),
        (json!({ "rope_theta": "10000" }), "rope_theta: invalid type: string"),
        (json!({ "rope_local_base_freq": 10.0 }), "rope_local_base_freq is for models with two kinds"),
        (json!({ "partial_rotary_factor": 0.5 }), "partial_rotary_factor is 0.5"),
        (json!({ "rope_parameters": { "rope_theta": 7.0 } }), "contradicts itself about rope_theta"),
        (json!({ "rope_parameters": [] }), "rope_parameters: invalid type: sequence, expected an object"),
        (scaling(json!([])), "rope_scaling: invalid type: sequence, expected an object"),
        (scaling(json!({ "type": "linear", "factor": 2.0 })), "rope_type is \"linear\""),
        (scaling(json!({ "type": "spiral" })), "unknown rope_type \"spiral\""),
    ] {
        let error = read(&with(changes.clone())).unwrap_err();
        assert!(error.contains(needle), "{changes}: {error}");
    }
}
