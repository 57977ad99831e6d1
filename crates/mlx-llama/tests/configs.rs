//! Configs: those of released models, their forms, and the error of every kind of bad config.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use approx::assert_relative_eq;
use mlx_decoder::DecoderConfig;
use mlx_kvcache::LayerKind;
use mlx_layers::AttentionBias;
use mlx_llama::OwnKeys;
use mlx_testing::decoder::{self, without};
use serde_json::{Value, json};

const FULL: LayerKind = LayerKind::Full;

/// Llama-3.2-1B.
fn llama() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 128_000, "eos_token_id": 128_001, "head_dim": 64, "hidden_act": "silu",
        "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 8192,
        "max_position_embeddings": 131_072, "mlp_bias": false, "model_type": "llama",
        "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8, "pretraining_tp": 1,
        "rms_norm_eps": 1e-05, "rope_scaling": {
            "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3",
        },
        "rope_theta": 500_000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "transformers_version": "4.45.0.dev0", "use_cache": true, "vocab_size": 128_256,
    })
}

/// Mistral-7B-v0.1.
fn mistral() -> Value {
    json!({
        "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
        "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
        "max_position_embeddings": 32768, "model_type": "mistral", "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 10_000.0,
        "sliding_window": 4096, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
        "transformers_version": "4.34.0.dev0", "use_cache": true, "vocab_size": 32000,
    })
}

/// The config of a checkpoint folder, or the messages of the error and its causes.
fn read(config: &Value) -> Result<DecoderConfig, String> {
    decoder::read::<OwnKeys>(config)
}

/// A config with these keys changed.
fn with(mut config: Value, changes: Value) -> Value {
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    config
}

/// The frequencies of the first layer's rotation. All layers rotate alike.
fn frequencies(config: &DecoderConfig) -> Vec<f32> {
    config.layers[0].rope.as_ref().unwrap().frequencies(1).unwrap()
}

#[test]
fn llama_3_2() {
    let config = read(&llama()).unwrap();
    assert_eq!((config.num_attention_heads, config.num_key_value_heads, config.head_dim), (32, 8, 64));
    assert_eq!(config.context_length, 131_072);
    assert!(config.layers.len() == 16 && config.layers.iter().all(|layer| layer.kind == FULL));
    assert!(!config.has_own_head && config.attention_bias == AttentionBias::None && !config.mlp_bias);
    // The fastest pair keeps its speed, and the slowest turns 32 times slower.
    let frequencies = frequencies(&config);
    assert_eq!(frequencies[0], 1.0);
    let slowest = 500_000_f32.powf(-62.0 / 64.0) / 32.0;
    assert_relative_eq!(frequencies[31], slowest, epsilon = 0.0, max_relative = 1e-4);
    assert_eq!(config.layers[0].rope.as_ref().unwrap().attention_factor(1), 1.0);
}

#[test]
fn mistral_7b() {
    let config = read(&mistral()).unwrap();
    assert!(config.layers.iter().all(|layer| layer.kind == LayerKind::Sliding { window: 4096 }));
    assert!(config.has_own_head && config.unlike_mlx_lm.ignores_windows);
    assert_eq!((config.head_dim, config.context_length), (128, 32768));
    // From v0.2 on there is no window.
    let config = read(&with(mistral(), json!({ "sliding_window": null, "rope_theta": 1e6 }))).unwrap();
    assert!(config.layers.iter().all(|layer| layer.kind == FULL));
}

#[test]
fn mistral_nemo_has_a_head_size_of_its_own() {
    let nemo = json!({
        "hidden_size": 5120, "head_dim": 128, "num_hidden_layers": 40, "vocab_size": 131_072,
        "max_position_embeddings": 131_072, "rope_theta": 1_000_000.0, "sliding_window": null,
    });
    let config = read(&with(mistral(), nemo)).unwrap();
    assert_eq!((config.head_dim, config.num_attention_heads), (128, 32));
}

/// Llama-2-7b, as the file of its checkpoint has it.
#[test]
fn llama_2_has_a_key_value_head_for_each_query_head() {
    let config = json!({
        "_name_or_path": "meta-llama/Llama-2-7b-hf", "architectures": ["LlamaForCausalLM"], "bos_token_id": 1,
        "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
        "intermediate_size": 11008, "max_position_embeddings": 4096, "model_type": "llama",
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32, "pretraining_tp": 1,
        "rms_norm_eps": 1e-05, "rope_scaling": null, "tie_word_embeddings": false, "torch_dtype": "float16",
        "transformers_version": "4.31.0.dev0", "use_cache": true, "vocab_size": 32000,
    });
    for config in [config.clone(), without(config, "num_key_value_heads")] {
        let config = read(&config).unwrap();
        assert_eq!((config.num_key_value_heads, config.head_dim), (32, 128));
        // The base that the config does not state.
        let frequencies = frequencies(&config);
        assert_relative_eq!(
            frequencies[63],
            10_000_f32.powf(-126.0 / 128.0),
            epsilon = 0.0,
            max_relative = 1e-4
        );
    }
}

#[test]
fn configs_of_transformers_4_and_5_give_one_model() {
    let mut new = without(without(llama(), "rope_theta"), "rope_scaling");
    new["rope_parameters"] = json!({
        "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3", "rope_theta": 500_000.0,
    });
    let [old, new] = [llama(), new].map(|config| read(&config).unwrap());
    assert_eq!(frequencies(&old), frequencies(&new));
    assert_eq!(old.unlike_mlx_lm.rotation, None);
    assert!(new.unlike_mlx_lm.rotation.unwrap().contains("does not read the scaling"));
}

/// mlx-lm takes a base of 10 000 where it finds none outside of `rope_parameters`.
#[test]
fn a_base_that_mlx_lm_does_not_read() {
    let mut new = without(without(llama(), "rope_theta"), "rope_scaling");
    new["rope_parameters"] = json!({ "rope_type": "default", "rope_theta": 500_000.0 });
    assert!(read(&new).unwrap().unlike_mlx_lm.rotation.unwrap().contains("does not read the base"));
    new["rope_parameters"]["rope_theta"] = json!(10_000.0);
    assert_eq!(read(&new).unwrap().unlike_mlx_lm.rotation, None);

    let mut inside = without(llama(), "rope_theta");
    inside["rope_scaling"]["rope_theta"] = json!(500_000.0);
    assert!(read(&inside).unwrap().unlike_mlx_lm.rotation.unwrap().contains("does not read the base"));
}

/// mlx-lm takes 8192 where it finds no length inside of `rope_scaling`.
#[test]
fn an_original_length_that_mlx_lm_does_not_read() {
    let mut outside = llama();
    outside["rope_scaling"].as_object_mut().unwrap().remove("original_max_position_embeddings");
    outside["original_max_position_embeddings"] = json!(4096);
    assert!(read(&outside).unwrap().unlike_mlx_lm.rotation.unwrap().contains("does not apply all"));
    outside["original_max_position_embeddings"] = json!(8192);
    assert_eq!(read(&outside).unwrap().unlike_mlx_lm.rotation, None);
}

#[test]
fn which_layers_have_a_window() {
    let window = LayerKind::Sliding { window: 8 };
    let types = [vec!["full_attention"; 5], vec!["sliding_attention"; 11]].concat();
    for (config, expected) in [
        // Llama has no windows, whatever the number.
        (with(llama(), json!({ "sliding_window": 8 })), [FULL, FULL]),
        (with(llama(), json!({ "sliding_window": 8, "layer_types": types })), [FULL, window]),
        (with(mistral(), json!({ "sliding_window": 8 })), [window, window]),
    ] {
        let layers = read(&config).unwrap().layers;
        assert_eq!([layers[0].kind, layers[15].kind], expected, "{config}");
    }
}

#[test]
fn a_missing_key_is_named() {
    for key in [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
        "max_position_embeddings",
        "rms_norm_eps",
    ] {
        let error = read(&without(llama(), key)).unwrap_err();
        let known = [format!("missing field `{key}`"), format!("{key} is missing")];
        assert!(known.iter().any(|message| error.contains(message)), "{error}");
    }
    for key in ["tie_word_embeddings", "attention_bias", "mlp_bias", "hidden_act", "rope_theta", "head_dim"] {
        assert!(read(&without(llama(), key)).is_ok(), "{key}");
    }
    assert!(read(&without(llama(), "tie_word_embeddings")).unwrap().has_own_head);
    // The two references have different defaults.
    let error = read(&without(mistral(), "sliding_window")).unwrap_err();
    assert!(error.contains("sliding_window is missing, and Mistral models"), "{error}");
}

#[test]
fn a_bad_config_is_an_error_that_names_the_key() {
    let scaling = |scaling: Value| json!({ "rope_scaling": scaling });
    let llama3 = |key: &str, value: Value| {
        let mut scaling = llama()["rope_scaling"].clone();
        scaling[key] = value;
        json!({ "rope_scaling": scaling })
    };
    for (changes, needle) in [
        (json!({ "hidden_size": "2048" }), "hidden_size: invalid type: string"),
        (json!({ "hidden_size": 0 }), "hidden_size is 0, and must be between"),
        (json!({ "intermediate_size": -4 }), "intermediate_size is -4"),
        (json!({ "num_hidden_layers": 1_000_000 }), "num_hidden_layers is 1000000"),
        (json!({ "num_attention_heads": 0 }), "num_attention_heads is 0"),
        (json!({ "num_key_value_heads": 5 }), "must be a multiple of num_key_value_heads, which is 5"),
        (json!({ "head_dim": 0 }), "head_dim is 0"),
        (json!({ "head_dim": 7 }), "over 7 features"),
        (json!({ "head_dim": null, "num_attention_heads": 24 }), "hidden_size"),
        (json!({ "vocab_size": -1 }), "vocab_size is -1"),
        (json!({ "max_position_embeddings": 0 }), "max_position_embeddings is 0"),
        (json!({ "rms_norm_eps": 0.0 }), "rms_norm_eps is 0.0, and must be a positive number"),
        (json!({ "hidden_act": "gelu" }), "hidden_act is \"gelu\""),
        (json!({ "mlp_bias": "no" }), "mlp_bias: invalid type"),
        (json!({ "attention_bias": 1 }), "attention_bias: invalid type"),
        (json!({ "tie_word_embeddings": 1 }), "tie_word_embeddings: invalid type"),
        (json!({ "rope_traditional": true }), "rope_traditional is true"),
        (json!({ "sliding_window": "8" }), "sliding_window: invalid type"),
        (json!({ "layer_types": ["full_attention"] }), "layer_types has 1 entries"),
        (json!({ "layer_types": vec!["sliding_attention"; 16] }), "sliding_window is missing"),
        (json!({ "rope_theta": -1.0 }), "rope_theta is -1"),
        (json!({ "partial_rotary_factor": 0.5 }), "partial_rotary_factor is 0.5"),
        (scaling(json!([])), "rope_scaling: invalid type: sequence, expected an object"),
        (scaling(json!({ "rope_type": "spiral" })), "spiral"),
        (scaling(json!({ "rope_type": "dynamic", "factor": 2.0 })), "rope_type is \"dynamic\""),
        (scaling(json!({ "rope_type": "linear", "factor": 0.5 })), "factor is 0.5"),
        (llama3("factor", json!(0.5)), "factor is 0.5"),
        (llama3("high_freq_factor", json!(1.0)), "high_freq_factor"),
    ] {
        let error = read(&with(llama(), changes.clone())).unwrap_err();
        assert!(error.contains(needle), "{changes}: {error}");
    }
}
