//! Configs: their forms, and the error of every kind of bad config. `released.rs` has those of released models.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use approx::assert_relative_eq;
use mlx_decoder::DecoderConfig;
use mlx_gemma2::OwnKeys;
use mlx_kvcache::LayerKind;
use mlx_layers::AttentionBias;
use mlx_testing::decoder;
use serde_json::{Value, json};

/// gemma-2-9b.
fn released() -> Value {
    json!({
        "architectures": ["Gemma2ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "attn_logit_softcapping": 50.0, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": 1,
        "final_logit_softcapping": 30.0, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 3584, "initializer_range": 0.02,
        "intermediate_size": 14336, "max_position_embeddings": 8192, "model_type": "gemma2",
        "num_attention_heads": 16, "num_hidden_layers": 42, "num_key_value_heads": 8, "pad_token_id": 0,
        "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "sliding_window": 4096,
        "sliding_window_size": 4096, "torch_dtype": "bfloat16", "transformers_version": "4.45.2",
        "use_cache": true, "vocab_size": 256_000,
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
    for key in keys {
        config.as_object_mut().unwrap().remove(*key).unwrap();
    }
    config
}

/// By how much the slowest pair of a head is rotated for each token.
fn slowest(config: &DecoderConfig, layer: usize) -> f32 {
    *config.layers[layer].rope.as_ref().unwrap().frequencies(1).unwrap().last().unwrap()
}

#[test]
fn the_released_config() {
    let config = read(&released()).unwrap();
    assert_eq!((config.head_dim, config.num_key_value_heads, config.context_length), (256, 8, 8192));
    for (index, layer) in config.layers.iter().enumerate() {
        let local = LayerKind::Sliding { window: 4096 };
        assert_eq!(layer.kind, if index % 2 == 0 { local } else { LayerKind::Full }, "layer {index}");
    }
    assert_eq!(
        (config.attention_scale, config.attention_cap, config.logits_cap),
        (0.0625, Some(50.0), Some(30.0))
    );
    assert_relative_eq!(config.embedding_scale, 59.866_52, max_relative = 1e-6);
    assert!(!config.has_own_head && config.attention_bias == AttentionBias::None);
    assert!(config.unlike_mlx_lm.ignores_windows && config.unlike_mlx_lm.rotation.is_none());
}

#[test]
fn scores_are_divided_by_the_root_of_their_own_number() {
    let config = read(&with(json!({ "query_pre_attn_scalar": 144, "head_dim": 128 }))).unwrap();
    assert_relative_eq!(config.attention_scale, 1.0 / 12.0, max_relative = 1e-6);
}

/// Both references have these defaults.
#[test]
fn keys_that_may_be_missing() {
    let keys = [
        "attention_bias",
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "hidden_act",
        "hidden_activation",
        "rope_theta",
    ];
    let (short, full) = (read(&without(&keys)).unwrap(), read(&released()).unwrap());
    assert_eq!(format!("{short:?}"), format!("{full:?}"));
}

#[test]
fn a_cap_that_is_null_is_none() {
    let config = read(&with(json!({ "attn_logit_softcapping": null }))).unwrap();
    assert_eq!((config.attention_cap, config.logits_cap), (None, Some(30.0)));
    let config = read(&with(json!({ "final_logit_softcapping": null }))).unwrap();
    assert_eq!((config.attention_cap, config.logits_cap), (Some(50.0), None));
}

#[test]
fn layer_types_may_state_other_layers() {
    let types = |i| if i < 40 { "full_attention" } else { "sliding_attention" };
    let types: Vec<&str> = (0..42).map(types).collect();
    let config = read(&with(json!({ "layer_types": types }))).unwrap();
    let local = |layer: &mlx_decoder::Layer| layer.kind != LayerKind::Full;
    assert_eq!(config.layers.iter().position(local), Some(40));
    let full = with(json!({ "layer_types": vec!["full_attention"; 42], "sliding_window": null }));
    assert!(!read(&full).unwrap().layers.iter().any(local));
}

#[test]
fn configs_of_transformers_4_and_5_give_one_model() {
    let linear = json!({ "rope_type": "linear", "factor": 8.0 });
    let old = read(&with(json!({ "rope_scaling": linear }))).unwrap();
    let mut new = without(&["rope_theta"]);
    new["rope_parameters"] = json!({ "rope_type": "linear", "factor": 8.0, "rope_theta": 1e4 });
    let new = read(&new).unwrap();
    let plain = read(&released()).unwrap();
    for layer in [0, 1] {
        assert_eq!(slowest(&old, layer), slowest(&new, layer));
        assert_relative_eq!(slowest(&plain, layer) / slowest(&new, layer), 8.0, max_relative = 1e-5);
    }
    // mlx-lm reads the base of the old form, and no scaling.
    let unlike = |config: &DecoderConfig| config.unlike_mlx_lm.rotation.unwrap();
    assert!(unlike(&old).contains("scaling") && unlike(&new).contains("scaling"));
    let mut base = without(&["rope_theta"]);
    base["rope_parameters"] = json!({ "rope_type": "default", "rope_theta": 1e4 });
    assert!(read(&base).unwrap().unlike_mlx_lm.rotation.is_none());
    base["rope_parameters"]["rope_theta"] = json!(1e5);
    assert!(unlike(&read(&base).unwrap()).contains("base"));
}

#[test]
fn a_bad_config_is_an_error_that_names_the_key() {
    for (key, needle) in [
        ("hidden_size", "missing field `hidden_size`"),
        ("intermediate_size", "missing field `intermediate_size`"),
        ("num_hidden_layers", "missing field `num_hidden_layers`"),
        ("num_attention_heads", "num_attention_heads is missing"),
        ("num_key_value_heads", "num_key_value_heads is missing"),
        ("head_dim", "head_dim is missing"),
        ("vocab_size", "vocab_size is missing"),
        ("max_position_embeddings", "max_position_embeddings is missing"),
        ("rms_norm_eps", "rms_norm_eps is missing"),
        ("query_pre_attn_scalar", "query_pre_attn_scalar is missing"),
        ("sliding_window", "sliding_window is missing"),
    ] {
        let error = read(&without(&[key])).unwrap_err();
        assert!(error.contains(needle), "{key}: {error}");
    }
    let mut types = vec!["sliding_attention"; 42];
    types[7] = "chunked_attention";
    for (changes, needle) in [
        (json!({ "hidden_size": 3584.5 }), "hidden_size: invalid type: floating point"),
        (json!({ "hidden_size": 0 }), "hidden_size is 0"),
        (json!({ "num_hidden_layers": -1 }), "num_hidden_layers is -1"),
        (json!({ "num_key_value_heads": 3 }), "must be a multiple of num_key_value_heads, which is 3"),
        (json!({ "head_dim": 7 }), "over 7 features"),
        (json!({ "rms_norm_eps": -0.5 }), "rms_norm_eps is -0.5"),
        (json!({ "query_pre_attn_scalar": 0 }), "query_pre_attn_scalar is 0"),
        (json!({ "query_pre_attn_scalar": "256" }), "query_pre_attn_scalar: invalid type: string"),
        (json!({ "attn_logit_softcapping": 0.0 }), "attn_logit_softcapping is 0"),
        (json!({ "attn_logit_softcapping": true }), "attn_logit_softcapping: invalid type: boolean"),
        (json!({ "final_logit_softcapping": -30.0 }), "final_logit_softcapping is -30"),
        (json!({ "sliding_window": null }), "sliding_window is missing"),
        (json!({ "sliding_window": 0 }), "sliding_window is 0"),
        (json!({ "layer_types": ["full_attention"] }), "layer_types has 1 entries"),
        (json!({ "layer_types": types }), "layer_types[7] is \"chunked_attention\""),
        (json!({ "hidden_activation": "gelu" }), "hidden_activation is \"gelu\""),
        (json!({ "hidden_act": "silu" }), "hidden_act is \"silu\""),
        (json!({ "rope_traditional": true }), "rope_traditional is true"),
        (json!({ "use_bidirectional_attention": true }), "use_bidirectional_attention is true"),
        (json!({ "rope_theta": 0 }), "rope_theta is 0"),
        (json!({ "rope_scaling": { "rope_type": "linear" } }), "factor is missing"),
        (json!({ "rope_scaling": { "rope_type": "dynamic", "factor": 8 } }), "rope_type is \"dynamic\""),
        (json!({ "rope_parameters": { "rope_type": "default", "rope_theta": 5.0 } }), "contradicts itself"),
        (json!({ "partial_rotary_factor": 0.5 }), "partial_rotary_factor is 0.5"),
        (json!({ "tie_word_embeddings": 1 }), "tie_word_embeddings: invalid type"),
    ] {
        let error = read(&with(changes.clone())).unwrap_err();
        assert!(error.contains(needle), "{changes}: {error}");
    }
}
