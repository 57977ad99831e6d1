//! Configs: their forms, and the error of every kind of bad config.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use approx::assert_abs_diff_eq;
use mlx_decoder::DecoderConfig;
use mlx_kvcache::LayerKind;
use mlx_layers::AttentionBias;
use mlx_olmo3::OwnKeys;
use mlx_testing::decoder;
use serde_json::{Value, json};

/// The released 7B model, from its checkpoint.
fn released() -> Value {
    json!({
        "model_type": "olmo3", "architectures": ["Olmo3ForCausalLM"], "attention_bias": false,
        "attention_dropout": 0.0, "eos_token_id": 100257, "hidden_act": "silu", "hidden_size": 4096,
        "initializer_range": 0.02, "intermediate_size": 11008, "max_position_embeddings": 65536,
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
        "pad_token_id": 100277, "rms_norm_eps": 1e-6, "rope_theta": 500000,
        "rope_scaling": {
            "attention_factor": 1.2079441541679836, "beta_fast": 32.0, "beta_slow": 1.0, "factor": 8.0,
            "original_max_position_embeddings": 8192, "rope_type": "yarn",
        },
        "sliding_window": 4096, "tie_word_embeddings": false, "use_cache": false, "vocab_size": 100278,
    })
}

/// The config of a checkpoint folder, or the messages of the error and its causes.
fn read(config: &Value) -> Result<DecoderConfig, String> {
    decoder::read::<OwnKeys>(config)
}

/// The released config with this key changed, or removed where `value` is `None`.
fn with(key: &str, value: Option<Value>) -> Value {
    let mut config = released();
    match value {
        Some(value) => config[key] = value,
        None => drop(config.as_object_mut().unwrap().remove(key)),
    }
    config
}

fn frequency(config: &DecoderConfig, layer: usize) -> f32 {
    *config.layers[layer].rope.as_ref().unwrap().frequencies(1).unwrap().last().unwrap()
}

#[test]
fn the_released_config() {
    let config = read(&released()).unwrap();
    // Stated, and 8 * 8192.
    assert_eq!(config.context_length, 65_536);
    assert_eq!((config.head_dim, config.num_key_value_heads, config.layers.len()), (128, 32, 32));
    let full: Vec<usize> = (0..32).filter(|&i| config.layers[i].kind == LayerKind::Full).collect();
    assert_eq!(full, [3, 7, 11, 15, 19, 23, 27, 31]);
    assert_eq!(config.layers[0].kind, LayerKind::Sliding { window: 4096 });
    // YaRN's factor.
    assert_abs_diff_eq!(frequency(&config, 0) / frequency(&config, 3), 8.0, epsilon = 1e-4);
    let factors = [0, 3].map(|layer| config.layers[layer].rope.as_ref().unwrap().attention_factor(1));
    assert_eq!(factors, [1.0, 1.207_944_2]);
    assert!(config.has_own_head && config.attention_bias == AttentionBias::None);
}

#[test]
fn configs_of_transformers_4_and_5_give_one_model() {
    let old = read(&released()).unwrap();
    let mut new = released();
    let object = new.as_object_mut().unwrap();
    let mut yarn = object.remove("rope_scaling").unwrap();
    let theta = object.remove("rope_theta").unwrap();
    yarn["rope_theta"] = theta.clone();
    let plain = json!({ "rope_type": "default", "rope_theta": theta });
    new["rope_parameters"] = json!({ "full_attention": yarn, "sliding_attention": plain });
    let new = read(&new).unwrap();
    for layer in [0, 3] {
        assert_eq!(frequency(&old, layer), frequency(&new, layer));
        let factors =
            [&old, &new].map(|config| config.layers[layer].rope.as_ref().unwrap().attention_factor(1));
        assert_eq!(factors[0], factors[1]);
    }
}

#[test]
fn a_window_is_needed_only_where_a_layer_has_one() {
    let mut all_full = with("layer_types", Some(json!(vec!["full_attention"; 32])));
    all_full["sliding_window"] = Value::Null;
    assert!(read(&all_full).is_ok());
}

#[test]
fn a_bad_config_is_an_error_that_names_the_key() {
    let mut types = vec!["sliding_attention"; 32];
    types[5] = "chunked_attention";
    for (key, value, needle) in [
        ("hidden_size", None, "missing field `hidden_size`"),
        ("vocab_size", None, "vocab_size is missing"),
        ("rms_norm_eps", None, "rms_norm_eps is missing"),
        ("rope_theta", None, "rope_theta is missing"),
        ("sliding_window", None, "sliding_window is missing"),
        ("hidden_size", Some(json!("4096")), "hidden_size: invalid type: string"),
        ("hidden_size", Some(json!(0)), "hidden_size is 0, and must be between"),
        (
            "hidden_size",
            Some(json!(100)),
            "hidden_size is 100, and must be a multiple of num_attention_heads",
        ),
        ("intermediate_size", Some(json!(-4)), "intermediate_size is -4"),
        ("num_hidden_layers", Some(json!(1_000_000)), "num_hidden_layers is 1000000"),
        ("num_attention_heads", Some(json!(0)), "num_attention_heads is 0"),
        ("num_key_value_heads", Some(json!(5)), "must be a multiple of num_key_value_heads, which is 5"),
        ("head_dim", Some(json!(0)), "head_dim is 0"),
        ("head_dim", Some(json!(7)), "over 7 features"),
        ("vocab_size", Some(json!(-1)), "vocab_size is -1"),
        ("max_position_embeddings", Some(json!(0)), "max_position_embeddings is 0"),
        ("rms_norm_eps", Some(json!(0.0)), "rms_norm_eps is 0.0, and must be a positive number"),
        ("sliding_window", Some(json!(0)), "sliding_window is 0"),
        (
            "layer_types",
            Some(json!(["full_attention"])),
            "layer_types has 1 entries, and num_hidden_layers is 32",
        ),
        ("layer_types", Some(json!(types)), "layer_types[5] is \"chunked_attention\""),
        ("layer_types", Some(json!(vec![1; 32])), "layer_types[0]: invalid type"),
        ("attention_bias", Some(json!("no")), "attention_bias: invalid type"),
        ("hidden_act", Some(json!("gelu")), "hidden_act is \"gelu\""),
        ("mlp_bias", Some(json!(true)), "mlp_bias is true"),
        ("rope_theta", Some(json!(-1.0)), "rope_theta is -1"),
        ("partial_rotary_factor", Some(json!(0.5)), "partial_rotary_factor is 0.5"),
        ("rope_scaling", Some(json!({ "rope_type": "spiral" })), "spiral"),
        (
            "rope_scaling",
            Some(json!({ "rope_type": "yarn", "factor": 8.0 })),
            "original_max_position_embeddings is missing",
        ),
        ("rope_scaling", Some(json!({ "rope_type": "dynamic", "factor": 2.0 })), "rope_type is \"dynamic\""),
        ("rope_parameters", Some(json!({ "rope_type": "default", "rope_theta": 7.0 })), "contradicts itself"),
        (
            "rope_parameters",
            Some(json!({ "full_attention": { "rope_type": "default" } })),
            "contradicts itself",
        ),
    ] {
        let error = read(&with(key, value.clone())).unwrap_err();
        assert!(error.contains(needle), "{key}: {value:?}: {error}");
    }
}
