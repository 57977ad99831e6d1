//! Configs: those that are read, and the error of every kind of bad config.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use approx::assert_abs_diff_eq;
use common::{long_rope, plain, read, with};
use mlx_causal_lm::{LoadError, LoadOptions};
use mlx_checkpoint::CheckpointError;
use mlx_config::ConfigError;
use mlx_phi3::Config;
use mlx_rope::RopeError;
use mlx_testing::checkpoints::{with_warnings, without_tensors};
use serde_json::{Value, json};

fn refusal(config: &Value) -> LoadError {
    match Config::from_checkpoint(&without_tensors(config), &LoadOptions::default()) {
        Err(error) => error,
        Ok(read) => panic!("{config} was read as {read:?}"),
    }
}

/// The config of Phi-3-mini-4k-instruct, as it is published.
fn mini_4k() -> Value {
    json!({
        "architectures": ["Phi3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "auto_map": { "AutoConfig": "configuration_phi3.Phi3Config" }, "bos_token_id": 1, "embd_pdrop": 0.0,
        "eos_token_id": 32000, "hidden_act": "silu", "hidden_size": 3072, "initializer_range": 0.02,
        "intermediate_size": 8192, "max_position_embeddings": 4096, "model_type": "phi3",
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
        "original_max_position_embeddings": 4096, "pad_token_id": 32000, "resid_pdrop": 0.0,
        "rms_norm_eps": 1e-05, "rope_scaling": null, "rope_theta": 10000.0, "sliding_window": 2047,
        "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.40.2",
        "use_cache": true, "vocab_size": 32064,
    })
}

#[test]
fn published_configs_are_read() {
    let config = read(&mini_4k(), &LoadOptions::default());
    assert_eq!((config.head_dim, config.rope.dims(), config.sliding_window), (96, 96, Some(2047)));
    assert_eq!((config.rope.frequencies(1).unwrap()[0], config.context_length), (1.0, 4096));

    // Phi-4-mini: three quarters of a head, LongRoPE, tied.
    let factors = |scale: f64| (0..48).map(|i| 1.0 + scale * f64::from(i)).collect::<Vec<_>>();
    let phi_4_mini = json!({
        "model_type": "phi3", "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
        "num_attention_heads": 24, "num_key_value_heads": 8, "vocab_size": 200_064, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131_072, "original_max_position_embeddings": 4096,
        "partial_rotary_factor": 0.75, "rope_theta": 10000.0, "sliding_window": 262_144,
        "tie_word_embeddings": true, "mlp_bias": false, "lm_head_bias": false, "full_attn_mod": 1,
        "rope_scaling": { "type": "longrope", "short_factor": factors(0.0), "long_factor": factors(1.0) },
    });
    let config = read(&phi_4_mini, &LoadOptions::default());
    assert_eq!((config.head_dim, config.rope.dims(), config.has_own_head), (128, 96, false));
    assert!(!config.rope.rotates_alike(4096, 4097));
    assert_eq!(config.context_length, 131_072);
    let expected = (1.0_f64 + 32.0_f64.ln() / 4096.0_f64.ln()).sqrt() as f32;
    assert_eq!(config.rope.attention_factor(1), expected);
}

#[test]
fn configs_of_transformers_4_and_5_give_one_model() {
    let mut scaling = long_rope()["rope_scaling"].clone();
    scaling["rope_type"] = scaling["type"].take();
    scaling.as_object_mut().unwrap().remove("type");
    scaling["rope_theta"] = json!(10000.0);
    scaling["partial_rotary_factor"] = json!(1.0);
    let inside = with(scaling.clone(), &[("original_max_position_embeddings", json!(8))]);

    let mut v5 = long_rope();
    v5.as_object_mut().unwrap().retain(|key, _| !key.starts_with("rope_"));
    let v5 = with(v5, &[("rope_parameters", inside.clone())]);
    let mut only_inside = v5.clone();
    only_inside.as_object_mut().unwrap().remove("original_max_position_embeddings");

    let mut su = long_rope();
    su["rope_scaling"]["type"] = json!("su");
    let mut both_names = long_rope();
    both_names["rope_scaling"]["rope_type"] = json!("longrope");

    let expected = read(&long_rope(), &LoadOptions::default()).rope;
    for config in [v5, only_inside, su, both_names] {
        let found = read(&config, &LoadOptions::default()).rope;
        for length in [8, 9] {
            assert_eq!(found.frequencies(length).unwrap(), expected.frequencies(length).unwrap());
            assert_eq!(found.attention_factor(length), expected.attention_factor(length));
        }
    }
}

#[test]
fn keys_with_a_default_may_be_missing() {
    let mut config = plain();
    for key in ["num_key_value_heads", "rope_theta", "rope_scaling", "original_max_position_embeddings"] {
        config.as_object_mut().unwrap().remove(key);
    }
    let config = read(&config, &LoadOptions::default());
    assert_eq!((config.num_key_value_heads, config.sliding_window), (4, None));
    assert!(config.has_own_head);
    // Base 10000 over 8 features.
    assert_abs_diff_eq!(config.rope.frequencies(1).unwrap()[1], 0.1, epsilon = 1e-6);
}

#[test]
#[allow(clippy::too_many_lines, reason = "one table of cases")]
fn a_config_that_describes_no_model_is_refused() {
    let scaling = |scaling: Value| ("rope_scaling", scaling);
    let long = |key: &str, value: Value| {
        let mut long = long_rope()["rope_scaling"].clone();
        long[key] = value;
        ("rope_scaling", long)
    };
    let linear = json!({ "type": "linear", "factor": 2.0 });
    let cases: Vec<(Vec<(&str, Value)>, &str)> = vec![
        (vec![("hidden_size", json!(0))], "hidden_size is 0, and must be between 1 and"),
        (
            vec![("hidden_size", json!(33))],
            "hidden_size is 33, and must be a multiple of num_attention_heads",
        ),
        (vec![("intermediate_size", json!(-64))], "intermediate_size is -64"),
        (vec![("num_hidden_layers", json!(0))], "num_hidden_layers is 0"),
        (vec![("num_attention_heads", json!(i64::MAX))], "num_attention_heads is 9223372036854775807"),
        (vec![("num_key_value_heads", json!(3))], "must be a multiple of num_key_value_heads, which is 3"),
        (vec![("num_key_value_heads", json!(0))], "num_key_value_heads is 0"),
        (vec![("head_dim", json!(0))], "head_dim is 0"),
        (vec![("head_dim", json!(7))], "rotary embedding over 7 features"),
        (vec![("vocab_size", json!(-1))], "vocab_size is -1"),
        (vec![("max_position_embeddings", json!(0))], "max_position_embeddings is 0"),
        (vec![("sliding_window", json!(0))], "sliding_window is 0, and must be between 1"),
        (vec![("sliding_window", json!(-1))], "sliding_window is -1"),
        (vec![("rms_norm_eps", json!(0.0))], "rms_norm_eps is 0.0, and must be"),
        (vec![("rms_norm_eps", json!(1.0))], "rms_norm_eps is 1.0, and must be"),
        (
            vec![("hidden_act", json!("gelu"))],
            "hidden_act is \"gelu\", and this architecture knows silu only",
        ),
        (vec![("attention_bias", json!(true))], "attention_bias is true"),
        (vec![("mlp_bias", json!(true))], "mlp_bias is true"),
        (vec![("lm_head_bias", json!(true))], "lm_head_bias is true"),
        (vec![("is_causal", json!(false))], "is_causal is false"),
        (vec![("layer_types", json!(["full_attention", "sliding_attention"]))], "layer_types is"),
        (vec![("partial_rotary_factor", json!(0.0))], "partial_rotary_factor is 0"),
        (vec![("partial_rotary_factor", json!(1.5))], "partial_rotary_factor is 1.5"),
        (vec![("rope_theta", json!(-1.0))], "rope_theta is -1.0"),
        (vec![("rope_local_base_freq", json!(10.0))], "rope_local_base_freq is for models with two kinds"),
        // Types of scaling: those that exist but not here, those that exist nowhere, and parts of them.
        (
            vec![scaling(json!({ "type": "dynamic", "factor": 2.0 }))],
            "rope_type is \"dynamic\", and this architecture knows default, linear",
        ),
        (
            vec![scaling(json!({ "type": "yarn", "factor": 2.0, "original_max_position_embeddings": 8 }))],
            "rope_type is \"yarn\", and this architecture knows default, linear, longrope and su only",
        ),
        (vec![scaling(json!({ "type": "ntk", "factor": 2.0 }))], "unknown rope_type \"ntk\""),
        (vec![scaling(json!({ "type": "linear" }))], "factor is missing, and rope_type \"linear\" needs it"),
        (vec![scaling(json!({ "type": "linear", "factor": 0.5 }))], "factor is 0.5"),
        (vec![long("short_factor", Value::Null)], "short_factor is missing"),
        (vec![long("short_factor", json!([1, 2, 3]))], "short_factor has 3 entries, and 4 are needed"),
        (vec![long("long_factor", json!([1, 2, 3, 4, 5]))], "long_factor has 5 entries, and 4 are needed"),
        (vec![long("long_factor", json!([1, 2, 3, 0]))], "long_factor is 0"),
        (vec![long("rope_type", json!("linear"))], "contradicts itself about rope_type"),
        (
            vec![long("original_max_position_embeddings", json!(9))],
            "contradicts itself about original_max_position_embeddings: 9 and 8",
        ),
        (
            vec![long("rope_type", json!("longrope")), ("original_max_position_embeddings", Value::Null)],
            "original_max_position_embeddings is missing, and rope_type \"longrope\" needs it",
        ),
        (
            vec![long("rope_type", json!("longrope")), ("rope_traditional", json!(true))],
            "rope_traditional is true, and this architecture knows false for longrope only",
        ),
        (
            vec![
                scaling(linear.clone()),
                ("rope_parameters", json!({ "rope_type": "linear", "factor": 3.0 })),
            ],
            "contradicts itself about rope_scaling",
        ),
        (
            vec![("rope_parameters", json!({ "full_attention": { "rope_theta": 10000.0 } }))],
            "full_attention is for models with two kinds of layers",
        ),
    ];
    assert!(cases.len() >= 15);
    for (changes, needle) in cases {
        let config = with(plain(), &changes);
        let error = refusal(&config);
        let LoadError::Config { model_type, source } = error else { panic!("{config}: {error}") };
        assert_eq!(model_type, "phi3");
        assert!(source.to_string().contains(needle), "{config}: {source}");
    }
}

#[test]
fn keys_that_are_missing_or_of_the_wrong_type_are_named() {
    for key in [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
        "max_position_embeddings",
        "rms_norm_eps",
    ] {
        let mut missing = plain();
        missing.as_object_mut().unwrap().remove(key);
        let error = refusal(&missing);
        let LoadError::Checkpoint(CheckpointError::Config { source, .. }) = &error else { panic!("{error}") };
        assert!(source.to_string().contains(key), "{source}");

        let error = refusal(&with(plain(), &[(key, json!("many"))]));
        let LoadError::Checkpoint(CheckpointError::Config { key: found, .. }) = &error else {
            panic!("{error}")
        };
        assert_eq!(found, key);
    }
    for (key, value) in [
        ("sliding_window", json!("2047")),
        ("rope_scaling", json!("linear")),
        ("rope_scaling", json!({ "type": "longrope", "short_factor": 1.0 })),
        ("tie_word_embeddings", json!(1)),
    ] {
        let error = refusal(&with(plain(), &[(key, value)]));
        assert!(matches!(&error, LoadError::Checkpoint(CheckpointError::Config { .. })), "{error}");
    }
}

#[test]
fn errors_are_typed() {
    let refused = |key: &str, value: Value| {
        let LoadError::Config { source, .. } = refusal(&with(plain(), &[(key, value)])) else {
            panic!("{key}")
        };
        *source.downcast::<ConfigError>().unwrap()
    };
    assert!(matches!(refused("vocab_size", json!(0)), ConfigError::Size { key: "vocab_size", .. }));
    assert!(matches!(refused("hidden_size", json!(34)), ConfigError::Multiple { divisor: 4, .. }));
    assert!(matches!(refused("rms_norm_eps", json!(-1.0)), ConfigError::Number { .. }));
    assert!(matches!(refused("head_dim", json!(9)), ConfigError::Rope(RopeError::Dims { dims: 9 })));
    let dynamic = json!({ "type": "dynamic", "factor": 2.0 });
    assert!(matches!(refused("rope_scaling", dynamic), ConfigError::Unsupported { key: "rope_type", .. }));
    assert!(matches!(refused("mlp_bias", json!(true)), ConfigError::Unsupported { key: "mlp_bias", .. }));
}

/// mlx-lm requires both lists in every scaling, and uses neither for this kind.
#[test]
fn linear_scaling_with_the_lists_of_longrope() {
    let scaling = json!({ "type": "linear", "factor": 2.0, "short_factor": [1.0], "long_factor": [2.0] });
    let config = with(plain(), &[("rope_scaling", scaling)]);
    let (config, warnings) = with_warnings(|| read(&config, &LoadOptions::default()));
    assert_eq!(config.rope.frequencies(1).unwrap()[0], 0.5);
    let said: Vec<&str> = warnings.iter().map(|text| text.split_once("config.json: ").unwrap().1).collect();
    assert_eq!(
        said,
        ["short_factor", "long_factor"].map(|key| format!("rope_scaling.{key} has no use, and is ignored"))
    );
}
