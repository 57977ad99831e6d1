//! Configs: their forms, and the error of every kind of bad config. `released.rs` has those of released models.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use approx::assert_relative_eq;
use mlx_decoder::DecoderConfig;
use mlx_kvcache::LayerKind;
use mlx_layers::AttentionBias;
use mlx_olmo2::OwnKeys;
use mlx_testing::decoder;
use serde_json::{Value, json};

/// OLMo-2-1124-7B.
fn released() -> Value {
    json!({
        "architectures": ["Olmo2ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "eos_token_id": 100_257, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
        "intermediate_size": 11008, "max_position_embeddings": 4096, "model_type": "olmo2",
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
        "pad_token_id": 100_277, "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 500_000,
        "tie_word_embeddings": false, "torch_dtype": "float32", "transformers_version": "4.47.0.dev0",
        "use_cache": true, "vocab_size": 100_352,
    })
}

/// The config of a checkpoint folder, or the messages of the error and its causes.
fn read(config: &Value) -> Result<DecoderConfig, String> {
    decoder::read::<OwnKeys>(config)
}

/// The released config with these keys changed.
fn with(changes: Value) -> Value {
    decoder::with(released(), &changes)
}

fn without(key: &str) -> Value {
    decoder::without(released(), key)
}

/// By how much the slowest pair of a head is rotated for each token.
fn slowest(config: &DecoderConfig) -> f32 {
    *config.layers[31].rope.as_ref().unwrap().frequencies(1).unwrap().last().unwrap()
}

#[test]
fn the_released_config() {
    let config = read(&released()).unwrap();
    assert_eq!((config.head_dim, config.num_key_value_heads, config.context_length), (128, 32, 4096));
    assert!(config.layers.len() == 32 && config.layers.iter().all(|layer| layer.kind == LayerKind::Full));
    assert!(config.has_own_head && config.attention_bias == AttentionBias::None);
    let expected = 500_000_f32.powf(-126.0 / 128.0);
    assert_relative_eq!(slowest(&config), expected, epsilon = 0.0, max_relative = 1e-4);
}

#[test]
fn configs_of_transformers_4_and_5_give_one_model() {
    let yarn = json!({ "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 4096 });
    let old = read(&with(json!({ "rope_scaling": yarn }))).unwrap();
    let mut new = without("rope_theta");
    new.as_object_mut().unwrap().remove("rope_scaling");
    new["rope_parameters"] = yarn;
    new["rope_parameters"]["rope_theta"] = json!(500_000.0);
    let new = read(&new).unwrap();
    assert_eq!(slowest(&old), slowest(&new));
    assert_eq!((old.context_length, new.context_length), (32768, 32768));
    assert_eq!(old.unlike_mlx_lm.rotation, None);
    assert!(new.unlike_mlx_lm.rotation.unwrap().contains("does not read the scaling"));
}

#[test]
fn the_default_base() {
    let expected = 10_000_f32.powf(-126.0 / 128.0);
    let found = slowest(&read(&without("rope_theta")).unwrap());
    assert_relative_eq!(found, expected, epsilon = 0.0, max_relative = 1e-4);
}

#[test]
fn keys_that_may_be_missing() {
    for key in ["tie_word_embeddings", "attention_bias", "hidden_act", "rope_scaling", "num_key_value_heads"]
    {
        let config = read(&without(key)).unwrap();
        assert!(config.has_own_head && config.num_key_value_heads == 32, "{key}");
    }
    assert!(!read(&with(json!({ "tie_word_embeddings": true }))).unwrap().has_own_head);
    assert_eq!(read(&with(json!({ "head_dim": 96 }))).unwrap().head_dim, 96);
    let biased = read(&with(json!({ "attention_bias": true }))).unwrap();
    assert_eq!(biased.attention_bias, AttentionBias::All);
}

#[test]
fn a_bad_config_is_an_error_that_names_the_key() {
    let scaling = |scaling: Value| json!({ "rope_scaling": scaling });
    for (changes, needle) in [
        (json!({ "hidden_size": null }), "hidden_size"),
        (json!({ "max_position_embeddings": null }), "max_position_embeddings is missing"),
        (json!({ "rms_norm_eps": null }), "rms_norm_eps is missing"),
        (json!({ "vocab_size": null }), "vocab_size is missing"),
        (json!({ "hidden_size": "4096" }), "hidden_size: invalid type: string"),
        (json!({ "hidden_size": 0 }), "hidden_size is 0, and must be between"),
        (json!({ "hidden_size": 100 }), "hidden_size is 100, and must be a multiple of num_attention_heads"),
        (json!({ "intermediate_size": -4 }), "intermediate_size is -4"),
        (json!({ "num_hidden_layers": 1_000_000 }), "num_hidden_layers is 1000000"),
        (json!({ "num_attention_heads": 0 }), "num_attention_heads is 0"),
        (json!({ "num_key_value_heads": 5 }), "must be a multiple of num_key_value_heads, which is 5"),
        (json!({ "head_dim": 0 }), "head_dim is 0"),
        (json!({ "head_dim": 7 }), "over 7 features"),
        (json!({ "vocab_size": -1 }), "vocab_size is -1"),
        (json!({ "max_position_embeddings": 0 }), "max_position_embeddings is 0"),
        (json!({ "rms_norm_eps": 0.0 }), "rms_norm_eps is 0.0, and must be a positive number"),
        (json!({ "hidden_act": "gelu" }), "hidden_act is \"gelu\""),
        (json!({ "attention_bias": "no" }), "attention_bias: invalid type"),
        (json!({ "mlp_bias": true }), "mlp_bias is true"),
        (json!({ "tie_word_embeddings": 1 }), "tie_word_embeddings: invalid type"),
        (json!({ "rope_traditional": true }), "rope_traditional is true"),
        (json!({ "rope_theta": -1.0 }), "rope_theta is -1"),
        (json!({ "partial_rotary_factor": 0.5 }), "partial_rotary_factor is 0.5"),
        (json!({ "rope_parameters": { "rope_type": "default", "rope_theta": 7.0 } }), "contradicts itself"),
        (scaling(json!([])), "rope_scaling: invalid type: sequence, expected an object"),
        (scaling(json!({ "rope_type": "spiral" })), "spiral"),
        (scaling(json!({ "rope_type": "dynamic", "factor": 2.0 })), "rope_type is \"dynamic\""),
        (scaling(json!({ "rope_type": "linear", "factor": 0.5 })), "factor is 0.5"),
        (
            scaling(json!({ "rope_type": "yarn", "factor": 8.0 })),
            "original_max_position_embeddings is missing",
        ),
    ] {
        let error = read(&with(changes.clone())).unwrap_err();
        assert!(error.contains(needle), "{changes}: {error}");
    }
}
