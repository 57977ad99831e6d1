//! Configs: that of the released model, their forms, and the error of every kind of bad config.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use approx::assert_relative_eq;
use mlx_config::Layer;
use mlx_decoder::DecoderConfig;
use mlx_kvcache::LayerKind;
use mlx_layers::AttentionBias;
use mlx_smollm3::OwnKeys;
use mlx_testing::decoder;
use serde_json::{Value, json};

const FULL: LayerKind = LayerKind::Full;
const WINDOW: LayerKind = LayerKind::Sliding { window: 8 };

/// SmolLM3-3B.
fn released() -> Value {
    let rotates: Vec<i32> = (0..36).map(|layer| i32::from(layer % 4 != 3)).collect();
    json!({
        "architectures": ["SmolLM3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": null, "eos_token_id": 128_012, "hidden_act": "silu", "hidden_size": 2048,
        "initializer_range": 0.02, "intermediate_size": 11008, "layer_types": vec!["full_attention"; 36],
        "max_position_embeddings": 65536, "max_window_layers": 28, "mlp_bias": false,
        "model_type": "smollm3", "no_rope_layer_interval": 4, "no_rope_layers": rotates,
        "num_attention_heads": 16, "num_hidden_layers": 36, "num_key_value_heads": 4,
        "pad_token_id": 128_004, "pretraining_tp": 2, "rms_norm_eps": 1e-06, "rope_scaling": null,
        "rope_theta": 5_000_000.0, "sliding_window": null, "tie_word_embeddings": true,
        "torch_dtype": "bfloat16", "use_cache": false, "use_sliding_window": false, "vocab_size": 128_256,
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

fn without(keys: &[&str]) -> Value {
    let mut config = released();
    for &key in keys {
        config.as_object_mut().unwrap().remove(key).unwrap();
    }
    config
}

/// The layers that have no rotation.
fn unrotated(config: &DecoderConfig) -> Vec<usize> {
    let layers = config.layers.iter().enumerate();
    layers.filter(|(_, layer)| layer.rope.is_none()).map(|(index, _)| index).collect()
}

/// By how much the slowest pair of a head is rotated for each token.
fn slowest(layer: &Layer) -> f32 {
    *layer.rope.as_ref().unwrap().frequencies(1).unwrap().last().unwrap()
}

#[test]
fn the_released_config() {
    let config = read(&released()).unwrap();
    assert_eq!((config.num_attention_heads, config.num_key_value_heads, config.head_dim), (16, 4, 128));
    assert_eq!((config.context_length, config.layers.len()), (65536, 36));
    assert!(config.layers.iter().all(|layer| layer.kind == FULL));
    assert_eq!(unrotated(&config), [3, 7, 11, 15, 19, 23, 27, 31, 35]);
    assert!(!config.has_own_head && config.attention_bias == AttentionBias::None && !config.mlp_bias);
    let expected = 5_000_000_f32.powf(-126.0 / 128.0);
    assert_relative_eq!(slowest(&config.layers[34]), expected, epsilon = 0.0, max_relative = 1e-4);
}

#[test]
fn configs_of_transformers_4_and_5_give_one_model() {
    // YaRN as the model card extends the context.
    let yarn = json!({ "rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 65536 });
    let old = read(&with(json!({ "rope_scaling": yarn }))).unwrap();
    let mut new = without(&["rope_theta", "rope_scaling"]);
    new["rope_parameters"] = yarn;
    new["rope_parameters"]["rope_theta"] = json!(5_000_000.0);
    let new = read(&new).unwrap();
    assert_eq!(slowest(&old.layers[0]), slowest(&new.layers[0]));
    assert_eq!(unrotated(&old), unrotated(&new));
    assert_eq!((old.context_length, new.context_length), (131_072, 131_072));
    assert_eq!(old.unlike_mlx_lm.rotation, None);
    assert!(new.unlike_mlx_lm.rotation.unwrap().contains("does not read the scaling"));
}

#[test]
fn which_layers_rotate() {
    let few = |changes: Value| {
        let mut config = without(&["layer_types", "no_rope_layers", "no_rope_layer_interval"]);
        config["num_hidden_layers"] = json!(6);
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        unrotated(&read(&config).unwrap())
    };
    assert_eq!(few(json!({})), [3]);
    assert_eq!(few(json!({ "no_rope_layer_interval": 2 })), [1, 3, 5]);
    assert_eq!(few(json!({ "no_rope_layers": [1, 1, 0, 1, 1, 1] })), [2]);
    // The list counts, and not the interval.
    let both = json!({ "no_rope_layers": vec![0; 6], "no_rope_layer_interval": 2 });
    assert_eq!(few(both), [0, 1, 2, 3, 4, 5]);
}

/// Without a list, those that have no rotation.
#[test]
fn which_layers_have_a_window() {
    let kinds = |mut config: Value, changes: Value| {
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        let config = read(&config).unwrap();
        ([config.layers[2].kind, config.layers[3].kind], config.unlike_mlx_lm.ignores_windows)
    };
    let on = json!({ "use_sliding_window": true, "sliding_window": 8 });
    assert_eq!(kinds(released(), on.clone()), ([FULL, FULL], false));
    assert_eq!(kinds(without(&["layer_types"]), on), ([FULL, WINDOW], true));
    assert_eq!(kinds(without(&["layer_types"]), json!({ "sliding_window": 8 })), ([FULL, FULL], true));
    let types = [vec!["sliding_attention"; 3], vec!["full_attention"; 33]].concat();
    let listed = json!({ "sliding_window": 8, "layer_types": types });
    assert_eq!(kinds(released(), listed), ([WINDOW, FULL], false));
}

#[test]
fn keys_that_may_be_missing() {
    for key in ["tie_word_embeddings", "attention_bias", "mlp_bias", "hidden_act", "use_sliding_window"] {
        assert!(!read(&without(&[key])).unwrap().has_own_head, "{key}");
    }
    let config = with(json!({ "tie_word_embeddings": false, "attention_bias": true, "head_dim": 96 }));
    let config = read(&config).unwrap();
    assert!(config.has_own_head && config.attention_bias == AttentionBias::All && config.head_dim == 96);
}

#[test]
fn a_bad_config_is_an_error_that_names_the_key() {
    let scaling = |scaling: Value| json!({ "rope_scaling": scaling });
    let mut types = vec!["full_attention"; 36];
    types[5] = "chunked_attention";
    for (changes, needle) in [
        (json!({ "rope_theta": null }), "rope_theta is missing"),
        (json!({ "num_key_value_heads": null }), "num_key_value_heads is missing"),
        (json!({ "max_position_embeddings": null }), "max_position_embeddings is missing"),
        (json!({ "hidden_size": "2048" }), "hidden_size: invalid type: string"),
        (json!({ "hidden_size": 0 }), "hidden_size is 0, and must be between"),
        (json!({ "intermediate_size": -4 }), "intermediate_size is -4"),
        (json!({ "num_attention_heads": 0 }), "num_attention_heads is 0"),
        (json!({ "num_key_value_heads": 5 }), "must be a multiple of num_key_value_heads, which is 5"),
        (json!({ "head_dim": 7 }), "over 7 features"),
        (json!({ "vocab_size": -1 }), "vocab_size is -1"),
        (json!({ "rms_norm_eps": 0.0 }), "rms_norm_eps is 0.0, and must be a positive number"),
        (json!({ "hidden_act": "gelu" }), "hidden_act is \"gelu\""),
        (json!({ "attention_bias": 1 }), "attention_bias: invalid type"),
        (json!({ "mlp_bias": "no" }), "mlp_bias: invalid type"),
        (json!({ "tie_word_embeddings": 1 }), "tie_word_embeddings: invalid type"),
        (json!({ "rope_traditional": true }), "rope_traditional is true"),
        (json!({ "no_rope_layers": [1, 0] }), "no_rope_layers has 2 entries, and num_hidden_layers is 36"),
        (
            json!({ "no_rope_layers": vec![2; 36] }),
            "no_rope_layers is 2, and this architecture knows 0 and 1",
        ),
        (json!({ "no_rope_layers": vec!["1"; 36] }), "no_rope_layers[0]: invalid type"),
        (json!({ "no_rope_layers": null, "no_rope_layer_interval": 0 }), "no_rope_layer_interval is 0"),
        (json!({ "layer_types": ["full_attention"] }), "layer_types has 1 entries"),
        (json!({ "layer_types": types }), "layer_types[5] is \"chunked_attention\""),
        (json!({ "layer_types": vec!["sliding_attention"; 36] }), "sliding_window is missing"),
        (json!({ "layer_types": null, "use_sliding_window": true }), "sliding_window is missing"),
        (
            json!({ "layer_types": null, "use_sliding_window": true, "sliding_window": 0 }),
            "sliding_window is 0",
        ),
        (json!({ "use_sliding_window": 1 }), "use_sliding_window: invalid type"),
        (json!({ "rope_theta": -1.0 }), "rope_theta is -1"),
        (json!({ "partial_rotary_factor": 0.5 }), "partial_rotary_factor is 0.5"),
        (scaling(json!({ "rope_type": "spiral" })), "spiral"),
        (scaling(json!({ "rope_type": "dynamic", "factor": 2.0 })), "rope_type is \"dynamic\""),
        (scaling(json!({ "rope_type": "linear", "factor": 0.5 })), "factor is 0.5"),
    ] {
        let error = read(&with(changes.clone())).unwrap_err();
        assert!(error.contains(needle), "{changes}: {error}");
    }
}
