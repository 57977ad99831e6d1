//! Configs: their forms, and the error of every kind of bad config.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use approx::{assert_abs_diff_eq, relative_eq};
use mlx_decoder::{DecoderConfig, KeyLayout};
use mlx_gemma3::OwnKeys;
use mlx_kvcache::LayerKind;
use mlx_layers::AttentionBias;
use mlx_testing::decoder;
use serde_json::{Value, json};

/// The released 270M model, from its checkpoint.
fn released() -> Value {
    let types = |i| if i % 6 == 5 { "full_attention" } else { "sliding_attention" };
    json!({
        "model_type": "gemma3_text", "_sliding_window_pattern": 6, "architectures": ["Gemma3ForCausalLM"],
        "attention_bias": false, "attention_dropout": 0.0, "attn_logit_softcapping": null, "bos_token_id": 2,
        "eos_token_id": 1, "final_logit_softcapping": null, "head_dim": 256, "hidden_activation":
        "gelu_pytorch_tanh", "hidden_size": 640, "initializer_range": 0.02, "intermediate_size": 2048,
        "layer_types": (0..18).map(types).collect::<Vec<_>>(), "max_position_embeddings": 32768,
        "num_attention_heads": 4, "num_hidden_layers": 18, "num_key_value_heads": 1, "pad_token_id": 0,
        "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6, "rope_local_base_freq": 10000.0,
        "rope_scaling": null, "rope_theta": 1000000.0, "sliding_window": 512, "use_bidirectional_attention": false,
        "use_cache": true, "vocab_size": 262144,
    })
}

/// The released 4B model, whose config states little about its language model.
fn released_multimodal() -> Value {
    json!({
        "model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999,
        "eoi_token_index": 256000, "image_token_index": 262144, "mm_tokens_per_image": 256,
        "text_config": {
            "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
            "rope_scaling": { "factor": 8.0, "rope_type": "linear" }, "sliding_window": 1024,
        },
        "vision_config": { "hidden_size": 1152, "model_type": "siglip_vision_model" },
    })
}

/// The config of a checkpoint folder, or the messages of the error and its causes.
fn read(config: &Value) -> Result<DecoderConfig, String> {
    decoder::read::<OwnKeys>(config)
}

/// The config with this key changed, or removed where `value` is `None`.
fn with(mut config: Value, pointer: &str, value: Option<Value>) -> Value {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = config.pointer_mut(parent).unwrap();
    match value {
        Some(value) => parent[key] = value,
        None => drop(parent.as_object_mut().unwrap().remove(key)),
    }
    config
}

/// The slowest frequency of a layer.
fn frequency(config: &DecoderConfig, layer: usize) -> f32 {
    *config.layers[layer].rope.as_ref().unwrap().frequencies(1).unwrap().last().unwrap()
}

/// Local layers have the base 10 000, global ones 1 000 000.
#[track_caller]
fn assert_bases(config: &DecoderConfig) {
    for (layer, base) in [(0, 1e4_f64), (5, 1e6)] {
        let expected = base.powf(-254.0 / 256.0);
        let found = f64::from(frequency(config, layer));
        assert!(relative_eq!(found, expected, max_relative = 1e-5), "{layer}: {found} {expected}");
    }
}

fn global_layers(config: &DecoderConfig) -> Vec<usize> {
    (0..config.layers.len()).filter(|&i| config.layers[i].kind == LayerKind::Full).collect()
}

#[test]
fn the_released_config() {
    let config = read(&released()).unwrap();
    assert_eq!(global_layers(&config), [5, 11, 17]);
    assert_eq!(config.layers[0].kind, LayerKind::Sliding { window: 512 });
    assert_eq!((config.keys, config.attention_scale), (KeyLayout::Text, 1.0 / 16.0));
    assert_bases(&config);
    assert!(
        !config.has_own_head && config.attention_bias == AttentionBias::None && config.logits_cap.is_none()
    );
}

#[test]
fn a_config_with_a_vision_part_relies_on_defaults() {
    let config = read(&released_multimodal()).unwrap();
    assert_eq!((config.num_attention_heads, config.num_key_value_heads, config.head_dim), (8, 4, 256));
    assert_eq!((config.vocab_size, config.context_length), (262_208, 131_072));
    assert_eq!(global_layers(&config), [5, 11, 17, 23, 29]);
    assert_eq!(config.keys, KeyLayout::LanguageModel);
    let plain = read(&with(released_multimodal(), "/text_config/rope_scaling", None)).unwrap();
    assert_eq!(frequency(&config, 0), frequency(&plain, 0));
    assert_abs_diff_eq!(frequency(&plain, 5) / frequency(&config, 5), 8.0, epsilon = 1e-5);
    assert_bases(&plain);
}

#[test]
fn layer_types_apply_before_a_pattern() {
    let irregular = ["full_attention", "sliding_attention", "full_attention"];
    let mut config = with(released(), "/layer_types", Some(json!(irregular)));
    config["num_hidden_layers"] = json!(3);
    config["sliding_window_pattern"] = json!(2);
    assert_eq!(global_layers(&read(&config).unwrap()), [0, 2]);

    let config = with(config, "/layer_types", None);
    let error = read(&config).unwrap_err();
    assert!(error.contains("sliding_window_pattern is 2, and _sliding_window_pattern is 6"), "{error}");
    let config = with(config, "/_sliding_window_pattern", None);
    assert_eq!(global_layers(&read(&config).unwrap()), [1]);
    let config = with(config, "/sliding_window_pattern", None);
    assert_eq!(global_layers(&read(&config).unwrap()), [0; 0], "fewer layers than the pattern");
    let config = with(config, "/_sliding_window_pattern", Some(json!(1)));
    assert_eq!(global_layers(&read(&config).unwrap()), [0, 1, 2]);
}

#[test]
fn configs_of_transformers_4_and_5_give_one_model() {
    let linear = json!({ "rope_type": "linear", "factor": 8.0 });
    let old = read(&with(released(), "/rope_scaling", Some(linear))).unwrap();
    let mut new = released();
    for key in ["rope_theta", "rope_local_base_freq", "rope_scaling"] {
        new.as_object_mut().unwrap().remove(key);
    }
    new["rope_parameters"] = json!({
        "full_attention": { "rope_type": "linear", "factor": 8.0, "rope_theta": 1e6 },
        "sliding_attention": { "rope_type": "default", "rope_theta": 1e4 },
    });
    let new = read(&new).unwrap();
    for layer in [0, 5] {
        assert_eq!(frequency(&old, layer), frequency(&new, layer));
    }
}

#[test]
fn a_bad_config_is_an_error_that_names_the_key() {
    let mut types = vec!["sliding_attention"; 18];
    types[7] = "linear_attention";
    for (key, value, needle) in [
        ("hidden_size", None, "missing field `hidden_size`"),
        ("num_hidden_layers", None, "missing field `num_hidden_layers`"),
        ("num_attention_heads", None, "num_attention_heads is missing"),
        ("num_key_value_heads", None, "num_key_value_heads is missing"),
        ("vocab_size", None, "vocab_size is missing"),
        ("max_position_embeddings", None, "max_position_embeddings is missing"),
        ("sliding_window", None, "sliding_window is missing"),
        ("hidden_size", Some(json!(640.5)), "hidden_size: invalid type: floating point"),
        ("hidden_size", Some(json!(0)), "hidden_size is 0"),
        ("intermediate_size", Some(json!(-1)), "intermediate_size is -1"),
        ("num_hidden_layers", Some(json!(0)), "num_hidden_layers is 0"),
        ("num_attention_heads", Some(json!(1_i64 << 40)), "num_attention_heads is 1099511627776"),
        ("num_key_value_heads", Some(json!(3)), "must be a multiple of num_key_value_heads, which is 3"),
        ("head_dim", Some(json!(-256)), "head_dim is -256"),
        ("head_dim", Some(json!(5)), "over 5 features"),
        ("vocab_size", Some(json!(0)), "vocab_size is 0"),
        ("max_position_embeddings", Some(json!(-5)), "max_position_embeddings is -5"),
        ("rms_norm_eps", Some(json!(2.0)), "rms_norm_eps is 2"),
        ("query_pre_attn_scalar", Some(json!(0)), "query_pre_attn_scalar is 0"),
        ("sliding_window", Some(json!(-512)), "sliding_window is -512"),
        ("layer_types", Some(json!(vec!["full_attention"; 17])), "layer_types has 17 entries"),
        ("layer_types", Some(json!(types)), "layer_types[7] is \"linear_attention\""),
        ("hidden_activation", Some(json!("silu")), "hidden_activation is \"silu\""),
        ("hidden_act", Some(json!("gelu")), "hidden_act is \"gelu\""),
        ("attn_logit_softcapping", Some(json!(50.0)), "attn_logit_softcapping is 50"),
        ("final_logit_softcapping", Some(json!(-30.0)), "final_logit_softcapping is -30"),
        ("use_bidirectional_attention", Some(json!(true)), "use_bidirectional_attention is true"),
        ("tie_word_embeddings", Some(json!(1)), "tie_word_embeddings: invalid type"),
        ("rope_theta", Some(json!(0)), "rope_theta is 0"),
        ("rope_local_base_freq", Some(json!(-1)), "rope_local_base_freq is -1"),
        ("rope_local_base_freq", Some(json!(1e-40)), "rope_local_base_freq is 1e-40"),
        ("rope_scaling", Some(json!([])), "rope_scaling: invalid type: sequence, expected an object"),
        ("partial_rotary_factor", Some(json!(0.25)), "partial_rotary_factor is 0.25"),
        ("rope_scaling", Some(json!({ "rope_type": "linear" })), "factor is missing"),
        ("rope_scaling", Some(json!({ "rope_type": "twisted", "factor": 8 })), "twisted"),
        ("rope_scaling", Some(json!({ "rope_type": "dynamic", "factor": 8 })), "rope_type is \"dynamic\""),
        ("rope_parameters", Some(json!({ "full_attention": { "rope_theta": 5.0 } })), "contradicts itself"),
    ] {
        let error = read(&with(released(), &format!("/{key}"), value.clone())).unwrap_err();
        assert!(error.contains(needle), "{key}: {value:?}: {error}");
    }
    let config = with(released(), "/layer_types", None);
    let config = with(config, "/_sliding_window_pattern", Some(json!(0)));
    assert!(read(&config).unwrap_err().contains("sliding_window_pattern is 0"));
}

#[test]
fn a_bad_config_with_a_vision_part_is_an_error() {
    for (pointer, value, needle) in [
        ("/text_config", None, "missing field `text_config`"),
        ("/text_config", Some(json!(7)), "text_config: invalid type"),
        ("/text_config/hidden_size", None, "text_config: missing field `hidden_size`"),
        ("/text_config/sliding_window", None, "sliding_window is missing"),
        ("/text_config/model_type", Some(json!("gemma2")), "text_config.model_type is \"gemma2\""),
        ("/text_config/num_key_value_heads", Some(json!(3)), "multiple of num_key_value_heads"),
        ("/vocab_size", Some(json!(0)), "vocab_size is 0"),
    ] {
        let error = read(&with(released_multimodal(), pointer, value)).unwrap_err();
        assert!(error.contains(needle), "{pointer}: {error}");
    }
    let config = with(released_multimodal(), "/vocab_size", Some(json!(5)));
    assert!(read(&config).is_ok());
    let error = read(&with(config, "/text_config/vocab_size", Some(json!(6)))).unwrap_err();
    assert!(error.contains("contradicts itself: vocab_size is"), "{error}");
}

/// transformers saves the default inside, for every model.
#[test]
fn the_outer_tie_word_embeddings_applies() {
    for (outer, inner) in [(true, false), (false, true)] {
        let config = with(released_multimodal(), "/tie_word_embeddings", Some(json!(outer)));
        let config = with(config, "/text_config/tie_word_embeddings", Some(json!(inner)));
        assert_eq!(read(&config).unwrap().has_own_head, !outer);
    }
}
