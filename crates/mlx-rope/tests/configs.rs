//! Configs in the shapes of real models, in the forms of transformers 4 and 5.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use approx::{assert_abs_diff_eq, relative_eq};
use mlx_rope::{
    Llama3Scaling, LongRopeMode, RopeError, RopeKeys, RopeLayout, RopeScaling, RopeSettings, YarnScaling,
};
use serde_json::{Value, json};

fn keys(config: &Value) -> RopeKeys {
    serde_json::from_value(config.clone()).unwrap()
}

/// What two configs of the same rotation have in common: the angles and the attention factor, at short and long lengths.
fn rotation(settings: &RopeSettings, head_dim: i32) -> Vec<f32> {
    let rope = settings.rope(head_dim, RopeLayout::Halves).unwrap();
    let mut all = vec![rope.dims() as f32];
    for length in [1, 4096, 4097, 100_000] {
        all.extend(rope.frequencies(length).unwrap());
        all.push(rope.attention_factor(length));
    }
    all
}

fn ramp(pairs: usize, step: f64) -> Vec<f64> {
    (0..pairs).map(|pair| 1.0 + step * pair as f64).collect()
}

struct Model {
    name: &'static str,
    head_dim: i32,
    v4: Value,
    v5: Value,
    /// The kind of scaling, and the first and last frequency in a sequence of one token.
    expected: (&'static str, f64, f64),
}

#[allow(clippy::too_many_lines, reason = "one table of cases")]
fn models() -> Vec<Model> {
    let phi3 = |pairs| (ramp(pairs, 0.05), ramp(pairs, 1.2));
    let (phi3_short, phi3_long) = phi3(48);
    let yarn = json!({ "type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0,
        "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096 });
    vec![
        Model {
            name: "Phi-3-mini-128k",
            head_dim: 96,
            v4: json!({ "rope_theta": 10000.0, "max_position_embeddings": 131072,
                "original_max_position_embeddings": 4096,
                "rope_scaling": { "type": "su", "short_factor": phi3_short, "long_factor": phi3_long } }),
            v5: json!({ "max_position_embeddings": 131072, "original_max_position_embeddings": 4096,
                "rope_parameters": { "rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 1.0,
                    "original_max_position_embeddings": 4096, "short_factor": phi3_short, "long_factor": phi3_long } }),
            expected: ("longrope", 1.0, 10000_f64.powf(-94.0 / 96.0) / 3.35),
        },
        Model {
            name: "Phi-4-mini",
            head_dim: 128,
            v4: json!({ "rope_theta": 10000.0, "max_position_embeddings": 131072, "partial_rotary_factor": 0.75,
                "original_max_position_embeddings": 4096,
                "rope_scaling": { "type": "longrope", "short_factor": vec![1.0; 48], "long_factor": phi3_long } }),
            v5: json!({ "max_position_embeddings": 131072,
                "rope_parameters": { "rope_type": "longrope", "type": "longrope", "rope_theta": 10000.0,
                    "partial_rotary_factor": 0.75, "original_max_position_embeddings": 4096,
                    "short_factor": vec![1.0; 48], "long_factor": phi3_long } }),
            expected: ("longrope", 1.0, 10000_f64.powf(-94.0 / 96.0)),
        },
        Model {
            name: "Llama-3.1-8B",
            head_dim: 128,
            v4: json!({ "rope_theta": 500000.0, "max_position_embeddings": 131072,
                "rope_scaling": { "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0, "original_max_position_embeddings": 8192 } }),
            v5: json!({ "max_position_embeddings": 131072,
                "rope_parameters": { "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0,
                    "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192 } }),
            expected: ("llama3", 1.0, 500000_f64.powf(-126.0 / 128.0) / 8.0),
        },
        Model {
            name: "Qwen2.5-7B-1M",
            head_dim: 128,
            v4: json!({ "rope_theta": 10000000.0, "max_position_embeddings": 1010000, "rope_scaling": null }),
            v5: json!({ "max_position_embeddings": 1010000,
                "rope_parameters": { "rope_type": "default", "rope_theta": 10000000.0 } }),
            expected: ("default", 1.0, 10000000_f64.powf(-126.0 / 128.0)),
        },
        Model {
            name: "DeepSeek-V3",
            head_dim: 64,
            v4: json!({ "rope_theta": 10000, "max_position_embeddings": 163840, "rope_scaling": yarn }),
            v5: json!({ "max_position_embeddings": 163840,
                "rope_parameters": { "rope_type": "yarn", "rope_theta": 10000, "factor": 40, "beta_fast": 32,
                    "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0,
                    "original_max_position_embeddings": 4096 } }),
            expected: ("yarn", 1.0, 10000_f64.powf(-62.0 / 64.0) / 40.0),
        },
        Model {
            name: "Qwen2-VL",
            head_dim: 128,
            v4: json!({ "rope_theta": 1000000.0,
                "rope_scaling": { "type": "mrope", "mrope_section": [16, 24, 24] } }),
            v5: json!({ "rope_parameters": { "type": "mrope", "rope_type": "default", "rope_theta": 1000000.0,
                "mrope_section": [16, 24, 24] } }),
            expected: ("mrope", 1.0, 1000000_f64.powf(-126.0 / 128.0)),
        },
    ]
}

#[test]
fn both_forms_of_a_model_give_the_same_rotation() {
    for Model { name, head_dim, v4, v5, expected } in models() {
        let (v4, v5) = (keys(&v4).uniform(None).unwrap(), keys(&v5).uniform(None).unwrap());
        assert_eq!(v4, v5, "{name}");
        assert_eq!(rotation(&v4, head_dim), rotation(&v5, head_dim), "{name}");

        let (rope_type, first, last) = expected;
        assert_eq!(v4.scaling.rope_type(), rope_type, "{name}");
        let found = v4.rope(head_dim, RopeLayout::Halves).unwrap().frequencies(1).unwrap();
        for (found, expected) in [(found[0], first), (found[found.len() - 1], last)] {
            let is_close = relative_eq!(f64::from(found), expected, max_relative = 1e-5);
            assert!(is_close, "{name}: {found} {expected}");
        }
    }
}

/// A model with both kinds of layers: its name, both forms, what full and sliding layers have.
#[test]
fn both_forms_of_a_model_with_two_kinds_of_layers_give_the_same_rotations() {
    let olmo = json!({ "rope_type": "yarn", "factor": 8.0, "attention_factor": 1.2079441541679836,
        "beta_fast": 32.0, "beta_slow": 1.0, "original_max_position_embeddings": 8192 });
    let with_base = |scaling: &Value, base: f64| {
        let mut scaling = scaling.clone();
        scaling["rope_theta"] = json!(base);
        scaling
    };
    let plain = json!({ "rope_type": "default" });
    let linear = json!({ "rope_type": "linear", "factor": 8.0 });
    for (name, v4, v5, default_local, full, sliding) in [
        (
            "OLMo-3-7B",
            json!({ "rope_theta": 500000.0, "max_position_embeddings": 65536, "rope_scaling": olmo }),
            json!({ "max_position_embeddings": 65536, "rope_parameters": {
                "full_attention": with_base(&olmo, 500000.0), "sliding_attention": with_base(&plain, 500000.0) } }),
            None,
            ("yarn", 500000.0),
            ("default", 500000.0),
        ),
        (
            "Gemma-3-1B",
            json!({ "rope_theta": 1000000, "rope_local_base_freq": 10000, "rope_scaling": null }),
            json!({ "rope_parameters": {
                "full_attention": with_base(&plain, 1e6), "sliding_attention": with_base(&plain, 1e4) } }),
            Some(10000.0),
            ("default", 1e6),
            ("default", 1e4),
        ),
        (
            "Gemma-3-4B",
            json!({ "rope_theta": 1000000, "rope_scaling": { "factor": 8.0, "rope_type": "linear" } }),
            json!({ "rope_parameters": {
                "full_attention": with_base(&linear, 1e6), "sliding_attention": with_base(&plain, 1e4) } }),
            Some(10000.0),
            ("linear", 1e6),
            ("default", 1e4),
        ),
    ] {
        let (v4, v5) = (keys(&v4), keys(&v5));
        let both = |keys: &RopeKeys| {
            (keys.full_attention(None).unwrap(), keys.sliding_attention(default_local).unwrap())
        };
        let ((full4, sliding4), (full5, sliding5)) = (both(&v4), both(&v5));
        assert_eq!(full4, full5, "{name}");
        assert_eq!(sliding4, sliding5, "{name}");
        assert_eq!((full4.scaling.rope_type(), full4.base), full, "{name}");
        assert_eq!((sliding4.scaling.rope_type(), sliding4.base), sliding, "{name}");
        assert_eq!(rotation(&full4, 128), rotation(&full5, 128));
    }
}

#[test]
fn olmo_uses_the_attention_factor_that_it_gives() {
    let config = json!({ "rope_theta": 5e5, "rope_scaling": { "rope_type": "yarn", "factor": 8.0,
        "attention_factor": 1.5, "original_max_position_embeddings": 8192 } });
    let rope = keys(&config).full_attention(None).unwrap().rope(128, RopeLayout::Halves).unwrap();
    assert_eq!(rope.attention_factor(1), 1.5);
}

#[test]
fn both_forms_in_one_config_may_agree() {
    let config = json!({ "rope_theta": 1e4, "rope_scaling": { "type": "linear", "factor": 2.0 },
        "rope_parameters": { "rope_type": "linear", "factor": 2.0, "rope_theta": 1e4 } });
    assert_eq!(keys(&config).uniform(None).unwrap().scaling, RopeScaling::Linear { factor: 2.0 });
    // An outer length that their kind has no use for, as in every config of Phi-3.
    let mut outer = config;
    outer["original_max_position_embeddings"] = json!(64);
    assert_eq!(keys(&outer).uniform(None).unwrap().scaling, RopeScaling::Linear { factor: 2.0 });
    // A length that stands inside of one of them, and outside.
    let yarn = json!({ "rope_type": "yarn", "factor": 2.0 });
    let mut inside = yarn.clone();
    inside["original_max_position_embeddings"] = json!(64);
    for (v4, v5) in [(yarn.clone(), yarn.clone()), (inside.clone(), yarn.clone()), (yarn, inside)] {
        let mut config = json!({ "rope_theta": 1e4, "rope_scaling": v4, "rope_parameters": v5,
            "original_max_position_embeddings": 64 });
        assert_eq!(keys(&config).uniform(None).unwrap().scaling.rope_type(), "yarn");
        config["rope_scaling"]["original_max_position_embeddings"] = json!(32);
        assert!(matches!(keys(&config).uniform(None), Err(RopeError::Contradiction { .. })), "{config}");
    }
}

#[test]
fn long_rope_scores_may_have_factors_of_their_own() {
    let config = json!({ "rope_theta": 1e4, "max_position_embeddings": 128, "original_max_position_embeddings": 64,
        "rope_scaling": { "type": "longrope", "short_factor": [1.0, 1.0], "long_factor": [2.0, 2.0],
            "short_mscale": 1.25, "long_mscale": 1.75 } });
    let settings = keys(&config).uniform(None).unwrap();
    let rope = settings.rope(4, RopeLayout::Halves).unwrap();
    assert_eq!((rope.attention_factor(64), rope.attention_factor(65)), (1.25, 1.75));
    let mlx_lm = settings.with_long_rope_mode(LongRopeMode::MlxLm).rope(4, RopeLayout::Halves).unwrap();
    assert_eq!(mlx_lm.attention_factor(1), 1.75);
}

/// The error of a whole config: its rotation is read, and built for heads of eight features.
fn error(config: Value) -> RopeError {
    match keys(&config).uniform(None) {
        Ok(settings) => settings.rope(8, RopeLayout::Halves).unwrap_err(),
        Err(error) => error,
    }
}

/// The same for a `rope_scaling` of its own.
fn scaling_error(scaling: Value) -> RopeError {
    error(json!({ "rope_theta": 1e4, "rope_scaling": scaling }))
}

#[test]
#[allow(clippy::too_many_lines, reason = "one table of cases")]
fn every_wrong_config_says_what_is_wrong() {
    let long = |list: &str, value: Value| {
        let mut scaling = json!({ "type": "longrope", "short_factor": [1, 1, 1, 1], "long_factor": [1, 1, 1, 1],
            "original_max_position_embeddings": 64, "factor": 2.0 });
        scaling[list] = value;
        scaling_error(scaling)
    };
    let yarn = |key: &str, value: Value| {
        let mut scaling = json!({ "type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64 });
        scaling[key] = value;
        scaling_error(scaling)
    };
    for (error, text) in [
        (error(json!({})), "rope_theta is missing"),
        (error(json!({ "rope_theta": 0.0 })), "rope_theta is 0.0"),
        (error(json!({ "rope_theta": -1e4 })), "rope_theta is -10000.0"),
        (error(json!({ "rope_theta": 1e-40 })), "rope_theta is 1e-40, and must be a finite number from 1 on"),
        (error(json!({ "rope_theta": 0.99 })), "rope_theta is 0.99"),
        (error(json!({ "rope_theta": 1e300 })), "rope_theta is 1e300"),
        (
            scaling_error(json!({ "type": "ntk" })),
            "unknown rope_type \"ntk\"; known are default, linear, dynamic",
        ),
        (scaling_error(json!({ "type": "linear" })), "factor is missing, and rope_type \"linear\" needs it"),
        (scaling_error(json!({ "type": "dynamic" })), "factor is missing"),
        (scaling_error(json!({ "type": "llama3" })), "factor is missing"),
        (scaling_error(json!({ "type": "yarn" })), "factor is missing"),
        (
            scaling_error(json!({ "type": "linear", "factor": 0.5 })),
            "factor is 0.5, and must be a finite number from 1 on",
        ),
        (scaling_error(json!({ "type": "dynamic", "factor": 2.0 })), "max_position_embeddings is missing"),
        (scaling_error(json!({ "factor": 2.0 })), "factor has no meaning for rope_type \"default\""),
        // Without a kind of its own a key means that somebody wanted another.
        (scaling_error(json!({ "beta_fast": 3 })), "beta_fast has no meaning for rope_type \"default\""),
        (
            scaling_error(json!({ "type": "linear", "rope_type": "yarn", "factor": 2.0 })),
            "contradicts itself about rope_type: type linear and rope_type yarn",
        ),
        (
            yarn("original_max_position_embeddings", Value::Null),
            "original_max_position_embeddings is missing",
        ),
        (yarn("original_max_position_embeddings", json!(0)), "original_max_position_embeddings is 0"),
        (yarn("original_max_position_embeddings", json!(1.5)), "original_max_position_embeddings is 1.5"),
        (yarn("beta_slow", json!(64)), "beta_fast is 32, and must not be below beta_slow, which is 64"),
        (yarn("beta_fast", json!(0)), "beta_fast is 0"),
        (yarn("attention_factor", json!(-1)), "attention_factor is -1"),
        (long("short_factor", json!([1, 1])), "short_factor has 2 entries, and 4 are needed"),
        (long("long_factor", json!([1, 1, 1, 1, 1])), "long_factor has 5 entries"),
        (long("long_factor", json!([1, 1, 0, 1])), "long_factor is 0"),
        (long("short_factor", Value::Null), "short_factor is missing"),
        (
            long("original_max_position_embeddings", Value::Null),
            "original_max_position_embeddings is missing",
        ),
        (long("factor", Value::Null), "max_position_embeddings is missing"),
        (long("original_max_position_embeddings", json!(1)), "original_max_position_embeddings is 1"),
        (
            scaling_error(json!({ "type": "llama3", "factor": 2 })),
            "original_max_position_embeddings is missing, and rope_type \"llama3\" needs it",
        ),
        (
            scaling_error(
                json!({ "type": "llama3", "factor": 2, "low_freq_factor": 4, "high_freq_factor": 4 }),
            ),
            "high_freq_factor is 4, and must be above low_freq_factor",
        ),
        (scaling_error(json!({ "type": "mrope" })), "mrope_section is missing"),
        (
            scaling_error(json!({ "type": "mrope", "mrope_section": [2, 2] })),
            "mrope_section has 2 entries, and 3 are needed",
        ),
        (
            scaling_error(json!({ "type": "mrope", "mrope_section": [2, 2, 2] })),
            "mrope_section has 6 entries, and 4 are needed",
        ),
        (scaling_error(json!({ "type": "mrope", "mrope_section": [0, 2, 2] })), "mrope_section is 0"),
        (error(json!({ "rope_theta": 1e4, "partial_rotary_factor": 0 })), "partial_rotary_factor is 0"),
        (error(json!({ "rope_theta": 1e4, "partial_rotary_factor": 1.5 })), "partial_rotary_factor is 1.5"),
        (error(json!({ "rope_theta": 1e4, "partial_rotary_factor": 0.4 })), "over 3 features"),
        (error(json!({ "rope_theta": 1e4, "max_position_embeddings": 0 })), "max_position_embeddings is 0"),
        (
            error(json!({ "rope_theta": 1e4, "rope_local_base_freq": 1e4 })),
            "rope_local_base_freq is for models with two kinds",
        ),
        (
            error(json!({ "rope_theta": 1e4, "rope_parameters": { "rope_theta": 1e5 } })),
            "contradicts itself about rope_theta: 100000 and 10000",
        ),
        (
            error(json!({ "rope_theta": 1e4, "rope_scaling": { "type": "linear", "factor": 2.0 },
                "rope_parameters": { "rope_type": "linear", "factor": 4.0 } })),
            "contradicts itself about rope_scaling",
        ),
        (
            error(json!({ "partial_rotary_factor": 0.5,
                "rope_parameters": { "rope_theta": 1e4, "partial_rotary_factor": 0.25 } })),
            "contradicts itself about partial_rotary_factor",
        ),
        (
            error(json!({ "original_max_position_embeddings": 32, "rope_theta": 1e4,
                "rope_scaling": { "type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64 } })),
            "contradicts itself about original_max_position_embeddings",
        ),
        (
            error(json!({ "rope_parameters": { "full_attention": { "rope_theta": 1e4 } } })),
            "full_attention is for models with two kinds of layers",
        ),
    ] {
        assert!(error.to_string().contains(text), "{text}: {error}");
    }
}

#[test]
fn configs_for_two_kinds_of_layers_must_be_whole() {
    let keys = keys(&json!({ "rope_parameters": { "full_attention": { "rope_theta": 1e4 } } }));
    assert!(keys.full_attention(None).is_ok());
    let error = keys.sliding_attention(Some(1e4)).unwrap_err();
    assert!(error.to_string().contains("rope_parameters has no sliding_attention"), "{error}");
    let mixed = json!({ "rope_parameters": { "rope_theta": 1e4, "full_attention": { "rope_theta": 1e4 } } });
    let error = self::keys(&mixed).full_attention(None).unwrap_err();
    assert!(matches!(error, RopeError::Contradiction { key: "rope_parameters", .. }), "{error}");
}

/// What transformers saves for models of the Qwen-VL family.
#[test]
fn mrope_is_known_by_its_sections() {
    for config in [
        json!({ "rope_theta": 1e6, "rope_scaling": { "type": "default", "rope_type": "default", "mrope_section": [1, 1, 2] } }),
        json!({ "rope_parameters": { "rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2],
            "mrope_interleaved": true } }),
    ] {
        assert_eq!(keys(&config).uniform(None).unwrap().scaling, RopeScaling::Mrope { sections: [1, 1, 2] });
    }
}

#[test]
fn sliding_layers_take_the_base_that_is_theirs() {
    for (config, default_base, base) in [
        (json!({ "rope_theta": 1e6, "rope_scaling": { "type": "linear", "factor": 8 } }), Some(1e4), 1e4),
        (
            json!({ "rope_parameters": { "rope_type": "linear", "factor": 8, "rope_theta": 1e6 } }),
            Some(1e4),
            1e4,
        ),
        (
            json!({ "rope_parameters": { "rope_type": "linear", "factor": 8, "rope_theta": 1e6 },
            "rope_local_base_freq": 2e4 }),
            Some(1e4),
            2e4,
        ),
        (json!({ "rope_parameters": { "rope_type": "linear", "factor": 8, "rope_theta": 1e6 } }), None, 1e6),
        (json!({ "rope_scaling": { "type": "linear", "factor": 8, "rope_theta": 1e6 } }), None, 1e6),
    ] {
        let settings = keys(&config).sliding_attention(default_base).unwrap();
        assert_eq!((settings.base, &settings.scaling), (base, &RopeScaling::Default), "{config}");
    }
    let partial = json!({ "rope_parameters": { "rope_theta": 1e6, "partial_rotary_factor": 0.5 } });
    assert_eq!(keys(&partial).sliding_attention(None).unwrap().partial_rotary_factor, 0.5);
}

#[test]
fn nothing_inside_an_old_scaling_is_lost_beside_the_new_form() {
    for key in ["rope_theta", "partial_rotary_factor"] {
        let mut config = json!({ "rope_scaling": { "type": "linear", "factor": 2.0 },
            "rope_parameters": { "rope_type": "linear", "factor": 2.0, "rope_theta": 0.25, "partial_rotary_factor": 0.25 } });
        config["rope_scaling"][key] = json!(0.5);
        let error = keys(&config).uniform(None).unwrap_err();
        assert!(matches!(error, RopeError::Contradiction { key: found, .. } if found == key), "{error}");
    }
}

/// What a program makes is checked as what a config says.
#[test]
fn typed_scalings_are_checked_when_a_rotation_is_built() {
    let build = |scaling: &RopeScaling, longest| {
        mlx_rope::initialize_rope(8, 1e4, RopeLayout::Halves, scaling, Some(longest)).map(drop)
    };
    let yarn = YarnScaling {
        factor: 2.0,
        original_max_position_embeddings: Some(64),
        beta_fast: 32.0,
        beta_slow: 1.0,
        mscale: 1.0,
        mscale_all_dim: 0.0,
        attention_factor: None,
        truncate: true,
    };
    let llama3 = Llama3Scaling {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 64,
    };
    assert!(build(&RopeScaling::Yarn(yarn.clone()), 128).is_ok());
    assert!(build(&RopeScaling::Llama3(llama3.clone()), 128).is_ok());
    for (scaling, longest, text) in [
        (RopeScaling::Linear { factor: 0.0 }, 64, "factor is 0"),
        (RopeScaling::Dynamic { factor: 0.5 }, 64, "factor is 0.5"),
        (RopeScaling::Dynamic { factor: 2.0 }, 0, "max_position_embeddings is 0"),
        (RopeScaling::Dynamic { factor: f64::NAN }, 64, "factor is NaN"),
        (
            RopeScaling::Llama3(Llama3Scaling { high_freq_factor: 1.0, ..llama3.clone() }),
            64,
            "high_freq_factor is 1",
        ),
        (
            RopeScaling::Llama3(Llama3Scaling { original_max_position_embeddings: 0, ..llama3 }),
            64,
            "embeddings is 0",
        ),
        (RopeScaling::Yarn(YarnScaling { beta_fast: 0.5, ..yarn.clone() }), 64, "beta_fast is 0.5"),
        (RopeScaling::Yarn(YarnScaling { mscale: -20.0, ..yarn.clone() }), 64, "mscale is -20"),
        (
            RopeScaling::Yarn(YarnScaling { original_max_position_embeddings: Some(0), ..yarn }),
            64,
            "embeddings is 0",
        ),
        (RopeScaling::Mrope { sections: [-4, 4, 4] }, 64, "mrope_section is -4"),
        (
            RopeScaling::Proportional { partial_rotary_factor: 2.0, factor: 1.0 },
            64,
            "partial_rotary_factor is 2",
        ),
        (RopeScaling::Proportional { partial_rotary_factor: 0.1, factor: 1.0 }, 64, "over 0 features"),
    ] {
        let error = build(&scaling, longest).unwrap_err();
        assert!(error.to_string().contains(text), "{text}: {error}");
    }
    let yarn = json!({ "rope_theta": 1.0, "rope_scaling":
        { "type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64 } });
    assert!(error(yarn).to_string().contains("rope_theta is 1, and must be above 1 for yarn"));
}

/// `apply_yarn_mscale(1.0, config)` of mlx-lm 0.32.2 with DeepSeek-V3's numbers.
#[test]
fn deepseek_scales_its_scores_by_mscale_all_dim() {
    let scaling = |mscale_all_dim: f64| -> RopeScaling {
        serde_json::from_value(
            json!({ "type": "yarn", "factor": 40, "mscale": 1.0, "mscale_all_dim": mscale_all_dim,
            "original_max_position_embeddings": 4096 }),
        )
        .unwrap()
    };
    assert_abs_diff_eq!(scaling(1.0).score_factor(), 1.8738542070926265, epsilon = 1e-12);
    assert_eq!(scaling(0.0).score_factor(), 1.0);
    assert_eq!(RopeScaling::Default.score_factor(), 1.0);
}

#[test]
fn an_unknown_key_is_refused_by_name() {
    let config =
        json!({ "rope_theta": 1e4, "rope_scaling": { "type": "linear", "factor": 2.0, "fator": 3.0 } });
    let error = serde_json::from_value::<RopeKeys>(config).unwrap_err();
    assert!(error.to_string().contains("unknown field `fator`"), "{error}");
}

#[test]
fn calls_that_do_not_fit_are_errors() {
    let rope = mlx_rope::Rope::new(8, 1e4, RopeLayout::Halves).unwrap();
    let ones = |shape: &[i32]| mlx_rs::Array::ones::<f32>(shape).unwrap();
    let error = rope.rotate(&ones(&[1, 2, 3, 6]), 0).unwrap_err();
    assert!(error.what().contains("over 8 features of a head that has 6"), "{error}");
    let error = rope.rotate(&ones(&[2, 1, 3, 8]), &[1, 2, 3][..]).unwrap_err();
    assert!(error.what().contains("3 offsets for a batch of 2 rows"), "{error}");
    let error = rope.rotate(&ones(&[3, 8]), 0).unwrap_err();
    assert!(error.what().contains("[B, H, L, D] is rotated, not [3, 8]"), "{error}");
    for dims in [0, -2, 7] {
        let error = mlx_rope::Rope::new(dims, 1e4, RopeLayout::Halves).unwrap_err();
        assert!(matches!(error, RopeError::Dims { .. }), "{error}");
    }
    let dynamic = RopeScaling::Dynamic { factor: 2.0 };
    assert!(mlx_rope::initialize_rope(2, 1e4, RopeLayout::Halves, &dynamic, Some(8)).is_err());
}

/// transformers warns of such keys, and mlx-lm does not look at them.
#[test]
fn keys_of_another_kind_of_scaling_are_ignored_and_listed() {
    let full = json!({ "rope_type": "linear", "factor": 2.0, "attention_factor": 1.5 });
    let sliding = json!({ "rope_type": "default", "rope_theta": 100.0, "factor": 8.0 });
    for (config, plain, ignored) in [
        (
            json!({ "rope_theta": 1e4, "rope_scaling": {
                "type": "linear", "factor": 2.0, "short_factor": [1, 2], "long_factor": [3] } }),
            json!({ "rope_theta": 1e4, "rope_scaling": { "type": "linear", "factor": 2.0 } }),
            vec!["rope_scaling.short_factor", "rope_scaling.long_factor"],
        ),
        (
            json!({ "rope_parameters": { "rope_type": "default", "rope_theta": 1e4, "factor": 8.0, "beta_fast": 32,
                "original_max_position_embeddings": 64 } }),
            json!({ "rope_theta": 1e4 }),
            vec![
                "rope_parameters.factor",
                "rope_parameters.original_max_position_embeddings",
                "rope_parameters.beta_fast",
            ],
        ),
        // The context length follows from it.
        (
            json!({ "rope_theta": 1e4, "rope_scaling": {
                "type": "linear", "factor": 2.0, "original_max_position_embeddings": 64 } }),
            json!({ "rope_theta": 1e4, "rope_scaling": { "type": "linear", "factor": 2.0 } }),
            vec![],
        ),
        (json!({ "rope_theta": 1e4, "rope_scaling": {} }), json!({ "rope_theta": 1e4 }), vec![]),
    ] {
        let keys = keys(&config);
        assert_eq!(keys.ignored(), ignored, "{config}");
        let plain = serde_json::from_value::<RopeKeys>(plain).unwrap().uniform(None).unwrap();
        assert_eq!(keys.uniform(None).unwrap(), plain, "{config}");
    }
    let both = keys(&json!({ "rope_parameters": { "full_attention": full, "sliding_attention": sliding } }));
    let paths =
        ["rope_parameters.full_attention.attention_factor", "rope_parameters.sliding_attention.factor"];
    assert_eq!(both.ignored(), paths);
    assert_eq!(both.sliding_attention(None).unwrap().scaling, RopeScaling::Default);
    // What is read by itself has nobody to tell.
    let error =
        serde_json::from_value::<RopeScaling>(json!({ "type": "linear", "factor": 2, "beta_fast": 3 }));
    assert!(error.unwrap_err().to_string().contains("beta_fast has no meaning for rope_type \"linear\""));
    // A key that no kind has may change anything.
    assert!(
        serde_json::from_value::<RopeKeys>(json!({ "rope_scaling": { "type": "yarn", "attn_factor": 1 } }))
            .is_err()
    );
}
