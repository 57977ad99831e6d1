//! Configs: those of released models, their forms, and the error of every kind of bad config.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use approx::assert_relative_eq;
use mlx_decoder::DecoderConfig;
use mlx_kvcache::LayerKind;
use mlx_ministral3::OwnKeys;
use mlx_rope::{QueryScale, Rope};
use mlx_testing::decoder::{self, without};
use serde_json::{Value, json};

const FULL: LayerKind = LayerKind::Full;

/// The language model of Ministral-3-8B-Instruct-2512.
fn ministral() -> Value {
    json!({
        "attention_dropout": 0.0, "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096,
        "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 262_144,
        "model_type": "ministral3", "num_attention_heads": 32, "num_hidden_layers": 34,
        "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_parameters": {
            "beta_fast": 32.0, "beta_slow": 1.0, "factor": 16.0, "llama_4_scaling_beta": 0.1, "mscale": 1.0,
            "mscale_all_dim": 1.0, "original_max_position_embeddings": 16384, "rope_theta": 1_000_000.0,
            "rope_type": "yarn", "type": "yarn",
        },
        "sliding_window": null, "tie_word_embeddings": false, "use_cache": true, "vocab_size": 131_072,
    })
}

/// The language model of Mistral-Small-3.1-24B-Instruct-2503.
fn mistral() -> Value {
    json!({
        "attention_dropout": 0.0, "head_dim": 128, "hidden_act": "silu", "hidden_size": 5120,
        "initializer_range": 0.02, "intermediate_size": 32768, "max_position_embeddings": 131_072,
        "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 40, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05, "rope_theta": 1_000_000_000.0, "sliding_window": null, "use_cache": true,
        "vocab_size": 131_072,
    })
}

fn multimodal(text: Value) -> Value {
    json!({ "model_type": "mistral3", "text_config": text, "vision_config": { "model_type": "pixtral" } })
}

/// The config of a checkpoint folder, or the messages of the error and its causes.
fn read(config: &Value) -> Result<DecoderConfig, String> {
    decoder::read::<OwnKeys>(config)
}

/// The rotation of the layers, which all rotate alike.
fn rotation(config: &DecoderConfig) -> &Rope {
    config.layers[9].rope.as_ref().unwrap()
}

/// A config with these keys changed.
fn with(mut config: Value, changes: Value) -> Value {
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    config
}

/// The config of Ministral 3 8B with these keys of its rotation changed.
fn rope(changes: Value) -> Value {
    let parameters = with(ministral()["rope_parameters"].clone(), changes);
    with(ministral(), json!({ "rope_parameters": parameters }))
}

#[test]
fn ministral_3() {
    for config in [ministral(), multimodal(ministral())] {
        let config = read(&config).unwrap();
        assert_eq!((config.num_attention_heads, config.num_key_value_heads, config.head_dim), (32, 8, 128));
        assert_eq!(config.context_length, 262_144);
        assert!(config.layers.len() == 34 && config.layers.iter().all(|layer| layer.kind == FULL));
        assert!(config.has_own_head && config.unlike_mlx_lm.rotation.is_none());
        let scale = Some(QueryScale::new(0.1, 16384).unwrap());
        assert!(config.layers.iter().all(|layer| layer.rope.as_ref().unwrap().query_scale() == scale));
        assert_eq!(rotation(&config).attention_factor(1), 1.0);
        // The fastest pair keeps its speed, and the slowest turns 16 times slower.
        let frequencies = rotation(&config).frequencies(1).unwrap();
        assert_eq!(frequencies[0], 1.0);
        let slowest = 1e6_f32.powf(-126.0 / 128.0) / 16.0;
        assert_relative_eq!(frequencies[63], slowest, epsilon = 0.0, max_relative = 1e-4);
    }
}

/// The rotation of Devstral-2-123B-Instruct-2512.
#[test]
fn devstral_2() {
    let config = rope(json!({
        "beta_fast": 4.0, "factor": 64.0, "original_max_position_embeddings": 4096, "mscale_all_dim": 0.0,
        "llama_4_scaling_beta": 0,
    }));
    let config = read(&config).unwrap();
    assert_eq!(config.context_length, 262_144);
    assert_eq!(rotation(&config).query_scale(), Some(QueryScale::new(0.0, 4096).unwrap()));
    assert_relative_eq!(rotation(&config).attention_factor(1), 1.0 + 0.1 * 64_f32.ln());
}

#[test]
fn mistral_small_3_1() {
    let config = read(&multimodal(mistral())).unwrap();
    assert_eq!((config.head_dim, config.context_length), (128, 131_072));
    assert!(config.layers.iter().all(|layer| layer.kind == FULL));
    assert_eq!(rotation(&config).query_scale(), None);
    let slowest = 1e9_f32.powf(-126.0 / 128.0);
    let found = rotation(&config).frequencies(1).unwrap()[63];
    assert_relative_eq!(found, slowest, epsilon = 0.0, max_relative = 1e-4);
    // Both references take `mistral` for a language model without a type.
    assert!(read(&multimodal(without(mistral(), "model_type"))).is_ok());
}

#[test]
fn the_head_is_tied_as_transformers_says() {
    let tied = json!({ "tie_word_embeddings": true });
    let untied = json!({ "tie_word_embeddings": false });
    let unsaid = without(ministral(), "tie_word_embeddings");
    for (config, has_own_head) in [
        (unsaid.clone(), true),
        (with(ministral(), tied.clone()), false),
        (multimodal(unsaid), false),
        (multimodal(with(ministral(), tied.clone())), false),
        // The outer key counts.
        (with(multimodal(with(ministral(), tied.clone())), untied.clone()), true),
        (with(multimodal(with(ministral(), untied)), tied), false),
    ] {
        assert_eq!(read(&config).unwrap().has_own_head, has_own_head, "{config}");
    }
}

#[test]
fn configs_of_transformers_4_and_5_give_one_model() {
    let mut old = without(ministral(), "rope_parameters");
    let scaling = ministral()["rope_parameters"].clone();
    old["rope_theta"] = scaling["rope_theta"].clone();
    old["rope_scaling"] = without(scaling, "rope_theta");
    let [old, new] = [old, ministral()].map(|config| read(&config).unwrap());
    assert_eq!(rotation(&old).frequencies(1).unwrap(), rotation(&new).frequencies(1).unwrap());
    assert_eq!(rotation(&old).query_scale(), rotation(&new).query_scale());
    // The default of transformers has a length inside.
    assert!(read(&rope(json!({ "max_position_embeddings": 262_144 }))).is_ok());
}

#[test]
fn which_layers_have_a_window() {
    let window = LayerKind::Sliding { window: 8 };
    let types = [vec!["full_attention"; 5], vec!["sliding_attention"; 29]].concat();
    let eight = json!({ "sliding_window": 8 });
    for (config, expected) in [
        (ministral(), [FULL, FULL]),
        (without(ministral(), "sliding_window"), [FULL, FULL]),
        (with(ministral(), eight.clone()), [window, window]),
        (with(ministral(), json!({ "sliding_window": 8, "layer_types": types })), [FULL, window]),
        (multimodal(with(mistral(), eight)), [window, window]),
    ] {
        let config = read(&config).unwrap();
        assert_eq!([config.layers[0].kind, config.layers[33].kind], expected);
    }
    let ignores = |config: &Value| read(config).unwrap().unlike_mlx_lm.ignores_windows;
    assert!(ignores(&ministral()));
    assert!(!ignores(&with(ministral(), json!({ "layer_types": vec!["full_attention"; 34] }))));
    let error = read(&multimodal(without(mistral(), "sliding_window"))).unwrap_err();
    assert!(error.contains("sliding_window is missing, and Mistral models"), "{error}");
}

#[test]
fn a_missing_key_is_named() {
    for key in ["hidden_size", "intermediate_size", "num_hidden_layers"] {
        let error = read(&without(ministral(), key)).unwrap_err();
        assert!(error.contains(&format!("missing field `{key}`")), "{error}");
    }
    for key in [
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
        "max_position_embeddings",
        "rms_norm_eps",
    ] {
        let error = read(&without(ministral(), key)).unwrap_err();
        assert!(error.contains(&format!("{key} is missing")), "{error}");
    }
    let parameters = ministral()["rope_parameters"].clone();
    for key in ["llama_4_scaling_beta", "original_max_position_embeddings", "rope_theta", "factor"] {
        let parameters = without(parameters.clone(), key);
        let error = read(&with(ministral(), json!({ "rope_parameters": parameters }))).unwrap_err();
        assert!(error.contains(&format!("{key} is missing")), "{error}");
    }
    for key in ["tie_word_embeddings", "hidden_act", "attention_dropout"] {
        assert!(read(&without(ministral(), key)).is_ok(), "{key}");
    }
}

#[test]
fn a_bad_config_is_an_error_that_names_the_key() {
    let text = |changes: Value| with(ministral(), changes);
    for (config, needle) in [
        (text(json!({ "hidden_size": "4096" })), "hidden_size: invalid type: string"),
        (text(json!({ "hidden_size": 0 })), "hidden_size is 0, and must be between"),
        (text(json!({ "intermediate_size": -4 })), "intermediate_size is -4"),
        (text(json!({ "num_hidden_layers": 1_000_000 })), "num_hidden_layers is 1000000"),
        (text(json!({ "num_attention_heads": 0 })), "num_attention_heads is 0"),
        (text(json!({ "num_key_value_heads": 5 })), "must be a multiple of num_key_value_heads, which is 5"),
        (text(json!({ "head_dim": 7 })), "over 7 features"),
        (text(json!({ "vocab_size": -1 })), "vocab_size is -1"),
        (text(json!({ "max_position_embeddings": 0 })), "max_position_embeddings is 0"),
        (text(json!({ "rms_norm_eps": 0.0 })), "rms_norm_eps is 0.0, and must be a positive number"),
        (text(json!({ "hidden_act": "gelu" })), "hidden_act is \"gelu\""),
        (text(json!({ "attention_bias": true })), "attention_bias is true"),
        (text(json!({ "mlp_bias": true })), "mlp_bias is true"),
        (text(json!({ "rope_traditional": true })), "rope_traditional is true"),
        (text(json!({ "tie_word_embeddings": 1 })), "tie_word_embeddings: invalid type"),
        (text(json!({ "sliding_window": "8" })), "sliding_window: invalid type"),
        (text(json!({ "layer_types": ["full_attention"] })), "layer_types has 1 entries"),
        (text(json!({ "layer_types": vec!["sliding_attention"; 34] })), "sliding_window is missing"),
        (
            text(json!({ "rope_parameters": [] })),
            "rope_parameters: invalid type: sequence, expected an object",
        ),
        (rope(json!({ "rope_type": "spiral", "type": "spiral" })), "spiral"),
        (rope(json!({ "type": "dynamic" })), "contradicts itself about rope_type"),
        (rope(json!({ "factor": 0.5 })), "factor is 0.5"),
        (rope(json!({ "beta_fast": 0.5 })), "beta_fast is 0.5, and must not be below beta_slow"),
        (rope(json!({ "rope_theta": -1.0 })), "rope_theta is -1"),
        (rope(json!({ "llama_4_scaling_beta": -0.1 })), "llama_4_scaling_beta is -0.1"),
        (rope(json!({ "llama_4_scaling_beta": "0.1" })), "invalid type: string"),
        (rope(json!({ "original_max_position_embeddings": 0 })), "original_max_position_embeddings is 0"),
        (
            rope(json!({ "max_position_embeddings": 4096 })),
            "contradicts itself about max_position_embeddings",
        ),
        (rope(json!({ "beta": 1.0 })), "unknown field `beta`"),
        (multimodal(text(json!({ "model_type": "mistral4" }))), "text_config.model_type is \"mistral4\""),
        (with(multimodal(ministral()), json!({ "vocab_size": 9 })), "vocab_size"),
        (json!({ "model_type": "mistral3" }), "missing field `text_config`"),
    ] {
        let error = read(&config).unwrap_err();
        assert!(error.contains(needle), "{config}: {error}");
    }
}
