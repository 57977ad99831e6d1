//! Configs: those of released models, their forms, and the error of every kind of bad config.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use mlx_decoder::DecoderConfig;
use mlx_granite::OwnKeys;
use mlx_kvcache::LayerKind;
use mlx_layers::AttentionBias;
use mlx_testing::decoder::{self, without};
use serde_json::{Value, json};

/// granite-3.3-8b-instruct.
fn granite() -> Value {
    json!({
        "architectures": ["GraniteForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "attention_multiplier": 0.007_812_5, "bos_token_id": 0, "embedding_multiplier": 12.0, "eos_token_id": 0,
        "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 12800,
        "logits_scaling": 16.0, "max_position_embeddings": 131_072, "mlp_bias": false, "model_type": "granite",
        "num_attention_heads": 32, "num_hidden_layers": 40, "num_key_value_heads": 8, "pad_token_id": 0,
        "residual_multiplier": 0.22, "rms_norm_eps": 1e-05, "rope_scaling": null, "rope_theta": 10_000_000.0,
        "tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version": "4.49.0",
        "use_cache": true, "vocab_size": 49159,
    })
}

/// The config of a checkpoint folder, or the messages of the error and its causes.
fn read(config: &Value) -> Result<DecoderConfig, String> {
    decoder::read::<OwnKeys>(config)
}

/// The config of Granite 3.3 8B with these keys changed.
fn with(changes: Value) -> Value {
    decoder::with(granite(), &changes)
}

#[test]
fn granite_3_3() {
    let config = read(&granite()).unwrap();
    assert_eq!((config.num_attention_heads, config.num_key_value_heads, config.head_dim), (32, 8, 128));
    assert_eq!(config.context_length, 131_072);
    assert!(config.layers.len() == 40 && config.layers.iter().all(|layer| layer.kind == LayerKind::Full));
    assert!(!config.has_own_head && !config.mlp_bias && config.attention_bias == AttentionBias::None);
    let factors =
        [config.embedding_scale, config.attention_scale, config.residual_scale, config.logits_divisor];
    assert_eq!(factors, [12.0, 1.0 / 128.0, 0.22, 16.0]);
}

fn frequencies(config: &DecoderConfig) -> Vec<f32> {
    config.layers[9].rope.as_ref().unwrap().frequencies(1).unwrap()
}

#[test]
fn configs_of_transformers_4_and_5_give_one_model() {
    let mut new = without(without(granite(), "rope_theta"), "rope_scaling");
    new["rope_parameters"] = json!({ "rope_type": "default", "rope_theta": 10_000_000.0 });
    let [old, new] = [granite(), new].map(|config| read(&config).unwrap());
    assert_eq!(frequencies(&old), frequencies(&new));
    assert!(old.unlike_mlx_lm.rotation.is_none() && new.unlike_mlx_lm.rotation.is_none());
}

#[test]
fn a_scaling_that_mlx_lm_does_not_read() {
    let mut config = without(without(granite(), "rope_theta"), "rope_scaling");
    config["rope_parameters"] = json!({ "rope_type": "linear", "factor": 2.0, "rope_theta": 1e7 });
    let reason = read(&config).unwrap().unlike_mlx_lm.rotation.unwrap();
    assert!(reason.contains("does not read the scaling"), "{reason}");
}

#[test]
fn biases_and_the_size_of_a_head_can_be_stated() {
    let config = read(&with(json!({ "attention_bias": true, "mlp_bias": true, "head_dim": 64 }))).unwrap();
    assert!(config.mlp_bias && config.attention_bias == AttentionBias::All);
    // The factor of scores does not follow from the size of a head.
    assert_eq!((config.head_dim, config.attention_scale), (64, 1.0 / 128.0));
}

#[test]
fn a_missing_key_is_named() {
    for key in ["hidden_size", "intermediate_size", "num_hidden_layers"] {
        let error = read(&without(granite(), key)).unwrap_err();
        assert!(error.contains(&format!("missing field `{key}`")), "{error}");
    }
    for key in [
        "num_attention_heads",
        "vocab_size",
        "max_position_embeddings",
        "rms_norm_eps",
        "embedding_multiplier",
        "attention_multiplier",
        "residual_multiplier",
        "logits_scaling",
    ] {
        let error = read(&without(granite(), key)).unwrap_err();
        assert!(error.contains(&format!("{key} is missing")), "{error}");
    }
    for key in ["tie_word_embeddings", "attention_bias", "mlp_bias", "hidden_act", "rope_theta"] {
        assert!(read(&without(granite(), key)).is_ok(), "{key}");
    }
    assert!(read(&without(granite(), "tie_word_embeddings")).unwrap().has_own_head);
    assert_eq!(read(&without(granite(), "num_key_value_heads")).unwrap().num_key_value_heads, 32);
}

#[test]
fn a_bad_config_is_an_error_that_names_the_key() {
    let scaling = |scaling: Value| json!({ "rope_scaling": scaling });
    for (changes, needle) in [
        (json!({ "hidden_size": "4096" }), "hidden_size: invalid type: string"),
        (json!({ "hidden_size": 0 }), "hidden_size is 0, and must be between"),
        (json!({ "intermediate_size": -4 }), "intermediate_size is -4"),
        (json!({ "num_hidden_layers": 1_000_000 }), "num_hidden_layers is 1000000"),
        (json!({ "num_attention_heads": 0 }), "num_attention_heads is 0"),
        (json!({ "num_attention_heads": 24 }), "hidden_size is 4096, and must be a multiple"),
        (json!({ "num_key_value_heads": 5 }), "must be a multiple of num_key_value_heads, which is 5"),
        (json!({ "head_dim": 7 }), "over 7 features"),
        (json!({ "vocab_size": -1 }), "vocab_size is -1"),
        (json!({ "max_position_embeddings": 0 }), "max_position_embeddings is 0"),
        (json!({ "rms_norm_eps": 0.0 }), "rms_norm_eps is 0.0, and must be a positive number"),
        (json!({ "hidden_act": "gelu" }), "hidden_act is \"gelu\""),
        (json!({ "mlp_bias": "no" }), "mlp_bias: invalid type"),
        (json!({ "attention_bias": 1 }), "attention_bias: invalid type"),
        (json!({ "tie_word_embeddings": 1 }), "tie_word_embeddings: invalid type"),
        (
            json!({ "embedding_multiplier": 0.0 }),
            "embedding_multiplier is 0.0, and must be a positive finite",
        ),
        (json!({ "attention_multiplier": -0.5 }), "attention_multiplier is -0.5"),
        (json!({ "residual_multiplier": 1e300 }), "residual_multiplier is 1e300"),
        (json!({ "logits_scaling": 0 }), "logits_scaling is 0.0"),
        (json!({ "logits_scaling": "16" }), "logits_scaling: invalid type"),
        (json!({ "rope_theta": -1.0 }), "rope_theta is -1"),
        (json!({ "partial_rotary_factor": 0.5 }), "partial_rotary_factor is 0.5"),
        (scaling(json!([])), "rope_scaling: invalid type: sequence, expected an object"),
        (scaling(json!({ "rope_type": "spiral" })), "spiral"),
        (scaling(json!({ "rope_type": "dynamic", "factor": 2.0 })), "rope_type is \"dynamic\""),
        (scaling(json!({ "rope_type": "linear", "factor": 0.5 })), "factor is 0.5"),
    ] {
        let error = read(&with(changes.clone())).unwrap_err();
        assert!(error.contains(needle), "{changes}: {error}");
    }
}
