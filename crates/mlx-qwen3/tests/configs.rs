//! Configs: their forms, and the error of every kind of bad config.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use approx::assert_relative_eq;
use mlx_decoder::DecoderConfig;
use mlx_kvcache::LayerKind;
use mlx_layers::AttentionBias;
use mlx_qwen3::OwnKeys;
use mlx_testing::decoder;
use serde_json::{Value, json};

/// The released 0.6B model, from its checkpoint.
fn released() -> Value {
    json!({
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu",
        "hidden_size": 1024, "initializer_range": 0.02, "intermediate_size": 3072,
        "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3",
        "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
        "rope_scaling": null, "rope_theta": 1000000, "sliding_window": null, "tie_word_embeddings": true,
        "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": true,
        "use_sliding_window": false, "vocab_size": 151936,
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

/// The number of full layers, which come first, and the kind of the others.
fn windows(config: &DecoderConfig) -> (usize, Option<LayerKind>) {
    let is_full = |kind: LayerKind| kind == LayerKind::Full;
    let full = config.layers.iter().take_while(|layer| is_full(layer.kind)).count();
    assert!(config.layers[full..].iter().all(|layer| !is_full(layer.kind)));
    (full, config.layers.get(full).map(|layer| layer.kind))
}

#[test]
fn the_released_config() {
    let config = read(&released()).unwrap();
    assert_eq!((config.num_attention_heads, config.num_key_value_heads, config.head_dim), (16, 8, 128));
    assert_eq!(windows(&config), (28, None));
    assert!(!config.has_own_head && config.attention_bias == AttentionBias::None);
    let rope = config.layers[0].rope.as_ref().unwrap();
    let last = *rope.frequencies(1).unwrap().last().unwrap();
    assert_relative_eq!(last, 1e6_f32.powf(-126.0 / 128.0), epsilon = 0.0, max_relative = 1e-4);
    assert_eq!(rope.attention_factor(1), 1.0);
}

/// A copy of the config of Qwen3-8B has no `head_dim`, and transformers takes 128.
#[test]
fn a_config_without_a_head_dim() {
    assert_eq!(read(&without("head_dim")).unwrap().head_dim, 128);
}

/// The model card: add this `rope_scaling` and leave `max_position_embeddings` as it is; the context is 131072.
#[test]
fn the_context_that_yarn_extends() {
    let yarn = json!({ "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768 });
    assert_eq!(read(&released()).unwrap().context_length, 40_960);
    for stated in [40_960, 131_072] {
        let config = with(json!({ "rope_scaling": yarn, "max_position_embeddings": stated }));
        assert_eq!(read(&config).unwrap().context_length, 131_072);
    }
}

/// YaRN as the model card tells users to switch it on, in both forms.
#[test]
fn configs_of_transformers_4_and_5_give_one_model() {
    let old = with(json!({
        "rope_scaling": { "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768 },
    }));
    let mut new = without("rope_theta");
    new.as_object_mut().unwrap().remove("rope_scaling");
    new["rope_parameters"] = json!({
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768, "rope_theta": 1_000_000,
    });
    let [old, new] = [old, new].map(|config| read(&config).unwrap().layers.remove(27).rope.unwrap());
    assert_eq!(old.frequencies(1).unwrap(), new.frequencies(1).unwrap());
    assert_eq!(old.attention_factor(1), new.attention_factor(1));
    assert_eq!(old.attention_factor(1), (0.1 * 4.0_f64.ln() + 1.0) as f32);
}

#[test]
fn which_layers_have_a_window() {
    let sliding = Some(LayerKind::Sliding { window: 4096 });
    let five_full = [vec!["full_attention"; 5], vec!["sliding_attention"; 23]].concat();
    for (changes, expected) in [
        // Numbers without the switch mean nothing.
        (json!({ "sliding_window": 4096, "max_window_layers": 3 }), (28, None)),
        (json!({ "use_sliding_window": null, "sliding_window": 0, "max_window_layers": -1 }), (28, None)),
        (
            json!({ "use_sliding_window": true, "sliding_window": 4096, "max_window_layers": 21 }),
            (21, sliding),
        ),
        (json!({ "use_sliding_window": true, "sliding_window": 4096, "max_window_layers": 0 }), (0, sliding)),
        (json!({ "use_sliding_window": true, "sliding_window": null, "max_window_layers": 28 }), (28, None)),
        (json!({ "layer_types": vec!["full_attention"; 28] }), (28, None)),
        // The list decides over the number.
        (
            json!({
                "use_sliding_window": true, "sliding_window": 4096, "max_window_layers": 28,
                "layer_types": five_full,
            }),
            (5, sliding),
        ),
    ] {
        let config = read(&with(changes.clone())).unwrap();
        assert_eq!(windows(&config), expected, "{changes}");
    }
}

#[test]
fn a_missing_key_is_named() {
    for key in [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
        "max_position_embeddings",
        "rms_norm_eps",
    ] {
        let error = read(&without(key)).unwrap_err();
        let known = [format!("missing field `{key}`"), format!("{key} is missing")];
        assert!(known.iter().any(|message| error.contains(message)), "{error}");
    }
    assert!(read(&without("rope_theta")).unwrap_err().contains("rope_theta is missing"));
    for key in ["tie_word_embeddings", "attention_bias", "hidden_act", "use_sliding_window"] {
        assert!(read(&without(key)).is_ok(), "{key}");
    }
    assert!(read(&without("tie_word_embeddings")).unwrap().has_own_head);
}

#[test]
#[allow(clippy::too_many_lines, reason = "one table of cases")]
fn a_bad_config_is_an_error_that_names_the_key() {
    let mut types = vec!["full_attention"; 28];
    types[5] = "chunked_attention";
    let scaling = |scaling: Value| json!({ "rope_scaling": scaling });
    for (changes, needle) in [
        (json!({ "hidden_size": "1024" }), "hidden_size: invalid type: string"),
        (json!({ "hidden_size": 0 }), "hidden_size is 0, and must be between"),
        (json!({ "intermediate_size": -4 }), "intermediate_size is -4"),
        (json!({ "num_hidden_layers": 1_000_000 }), "num_hidden_layers is 1000000"),
        (json!({ "num_attention_heads": 0 }), "num_attention_heads is 0"),
        (json!({ "num_key_value_heads": 5 }), "must be a multiple of num_key_value_heads, which is 5"),
        (json!({ "num_key_value_heads": null }), "num_key_value_heads is missing"),
        (json!({ "head_dim": 0 }), "head_dim is 0"),
        (json!({ "head_dim": 7 }), "over 7 features"),
        (json!({ "vocab_size": -1 }), "vocab_size is -1"),
        (json!({ "max_position_embeddings": 0 }), "max_position_embeddings is 0"),
        (json!({ "rms_norm_eps": 0.0 }), "rms_norm_eps is 0.0, and must be a positive number"),
        (json!({ "hidden_act": "gelu" }), "hidden_act is \"gelu\""),
        (json!({ "mlp_bias": true }), "mlp_bias is true"),
        (json!({ "attention_bias": "no" }), "attention_bias: invalid type"),
        (json!({ "tie_word_embeddings": 1 }), "tie_word_embeddings: invalid type"),
        // Windows.
        (
            json!({ "use_sliding_window": true, "max_window_layers": 3 }),
            "sliding_window is missing, and layers of kind sliding_attention need it",
        ),
        (
            json!({ "use_sliding_window": true, "max_window_layers": 3, "sliding_window": 0 }),
            "sliding_window is 0",
        ),
        (
            json!({ "use_sliding_window": true, "max_window_layers": null, "sliding_window": 8 }),
            "max_window_layers is missing",
        ),
        (
            json!({ "use_sliding_window": true, "max_window_layers": -1, "sliding_window": 8 }),
            "max_window_layers is -1",
        ),
        (
            json!({ "sliding_window": 8, "layer_types": vec!["sliding_attention"; 28] }),
            "contradicts itself: use_sliding_window is false",
        ),
        (
            json!({ "layer_types": ["full_attention"] }),
            "layer_types has 1 entries, and num_hidden_layers is 28",
        ),
        (json!({ "layer_types": types }), "layer_types[5] is \"chunked_attention\""),
        // Rotations.
        (json!({ "rope_theta": -1.0 }), "rope_theta is -1"),
        (json!({ "partial_rotary_factor": 0.5 }), "partial_rotary_factor is 0.5"),
        (json!({ "rope_local_base_freq": 10.0 }), "rope_local_base_freq is for models with two kinds"),
        (
            json!({ "rope_parameters": { "full_attention": { "rope_theta": 1_000_000 } } }),
            "full_attention is for models with two kinds",
        ),
        (json!({ "rope_parameters": { "rope_type": "default", "rope_theta": 7.0 } }), "contradicts itself"),
        (json!({ "rope_theta": 1e-40 }), "rope_theta is 1e-40"),
        (scaling(json!([])), "rope_scaling: invalid type: sequence, expected an object"),
        (json!({ "rope_parameters": [] }), "rope_parameters: invalid type: sequence, expected an object"),
        (
            json!({ "rope_parameters": { "full_attention": [] } }),
            "rope_parameters.full_attention: invalid type: sequence",
        ),
        (scaling(json!({ "rope_type": "spiral" })), "spiral"),
        (
            scaling(json!({ "rope_type": "yarn", "factor": 4.0 })),
            "original_max_position_embeddings is missing",
        ),
        (scaling(json!({ "rope_type": "dynamic", "factor": 2.0 })), "rope_type is \"dynamic\""),
        (scaling(json!({ "rope_type": "linear", "factor": 0.5 })), "factor is 0.5"),
    ] {
        let error = read(&with(changes.clone())).unwrap_err();
        assert!(error.contains(needle), "{changes}: {error}");
    }
}
