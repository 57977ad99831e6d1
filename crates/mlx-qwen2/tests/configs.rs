//! Configs: a released one, its forms, and the error of every kind of bad config.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use approx::assert_relative_eq;
use mlx_decoder::DecoderConfig;
use mlx_kvcache::LayerKind;
use mlx_layers::AttentionBias;
use mlx_qwen2::OwnKeys;
use mlx_rope::Rope;
use mlx_testing::decoder::{self, without};
use serde_json::{Value, json};

const FULL: LayerKind = LayerKind::Full;

/// Qwen2.5-0.5B, as the file of its checkpoint has it.
fn released() -> Value {
    json!({
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151_643,
        "eos_token_id": 151_643, "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02,
        "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 24,
        "model_type": "qwen2", "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06, "rope_theta": 1_000_000.0, "sliding_window": 32768, "tie_word_embeddings": true,
        "torch_dtype": "bfloat16", "transformers_version": "4.40.1", "use_cache": true, "use_mrope": false,
        "use_sliding_window": false, "vocab_size": 151_936,
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

/// The rotation of the last layer, which is that of all.
fn rope(config: &DecoderConfig) -> &Rope {
    config.layers.last().unwrap().rope.as_ref().unwrap()
}

#[test]
fn the_released_config() {
    let config = read(&released()).unwrap();
    assert_eq!((config.num_attention_heads, config.num_key_value_heads, config.head_dim), (14, 2, 64));
    assert_eq!(config.context_length, 32768);
    assert!(config.layers.len() == 24 && config.layers.iter().all(|layer| layer.kind == FULL));
    assert_eq!((config.attention_bias, config.mlp_bias), (AttentionBias::Inputs, false));
    assert!(!config.has_own_head && config.unlike_mlx_lm.ignores_windows);
    let rope = rope(&config);
    let last = *rope.frequencies(1).unwrap().last().unwrap();
    assert_relative_eq!(last, 1e6_f32.powf(-62.0 / 64.0), epsilon = 0.0, max_relative = 1e-4);
    assert_eq!(rope.attention_factor(1), 1.0);
}

/// As in transformers. mlx-lm divides the stream by the heads.
#[test]
fn heads_may_have_a_size_of_their_own() {
    assert_eq!(read(&with(json!({ "head_dim": 128 }))).unwrap().head_dim, 128);
    assert_eq!(read(&with(json!({ "head_dim": null }))).unwrap().head_dim, 64);
}

/// The biases are part of the architecture, whatever a config says.
#[test]
fn no_key_changes_the_biases() {
    let config = read(&with(json!({ "attention_bias": false, "mlp_bias": true }))).unwrap();
    assert_eq!((config.attention_bias, config.mlp_bias), (AttentionBias::Inputs, false));
}

/// YaRN as the model card tells users to switch it on, in both forms. The context is 131072, as it says.
#[test]
fn configs_of_transformers_4_and_5_give_one_model() {
    let old = with(json!({
        "rope_scaling": { "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768 },
    }));
    let mut new = without(released(), "rope_theta");
    new["rope_parameters"] = json!({
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768, "rope_theta": 1_000_000,
    });
    let [old, new] = [old, new].map(|config| read(&config).unwrap());
    for config in [&old, &new] {
        assert_eq!(config.context_length, 131_072);
        assert_eq!(rope(config).attention_factor(1), (0.1 * 4.0_f64.ln() + 1.0) as f32);
    }
    assert_eq!(rope(&old).frequencies(1).unwrap(), rope(&new).frequencies(1).unwrap());
    assert_eq!(old.unlike_mlx_lm.rotation, None);
    assert!(new.unlike_mlx_lm.rotation.unwrap().contains("does not read the scaling"));
}

/// mlx-lm takes a base of 1 000 000 where it finds none outside of `rope_parameters`.
#[test]
fn a_base_that_mlx_lm_does_not_read() {
    let mut new = without(released(), "rope_theta");
    new["rope_parameters"] = json!({ "rope_type": "default", "rope_theta": 10_000.0 });
    assert!(read(&new).unwrap().unlike_mlx_lm.rotation.unwrap().contains("does not read the base"));
    new["rope_parameters"]["rope_theta"] = json!(1_000_000.0);
    assert_eq!(read(&new).unwrap().unlike_mlx_lm.rotation, None);
}

#[test]
fn which_layers_have_a_window() {
    let window = LayerKind::Sliding { window: 8 };
    let first = [vec!["sliding_attention"; 5], vec!["full_attention"; 19]].concat();
    for (changes, expected) in [
        // Numbers without the switch mean nothing.
        (json!({ "sliding_window": 8, "max_window_layers": 5 }), [FULL, FULL]),
        (json!({ "use_sliding_window": null, "sliding_window": 0, "max_window_layers": -1 }), [FULL, FULL]),
        (json!({ "use_sliding_window": true, "sliding_window": 8, "max_window_layers": 5 }), [FULL, window]),
        (
            json!({ "use_sliding_window": true, "sliding_window": 8, "max_window_layers": 0 }),
            [window, window],
        ),
        (json!({ "use_sliding_window": true, "max_window_layers": 70 }), [FULL, FULL]),
        // The list decides over the number.
        (
            json!({
                "use_sliding_window": true, "sliding_window": 8, "max_window_layers": 24, "layer_types": first,
            }),
            [window, FULL],
        ),
    ] {
        let layers = read(&with(changes.clone())).unwrap().layers;
        assert_eq!([layers[0].kind, layers[23].kind], expected, "{changes}");
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
        "rope_theta",
    ] {
        let error = read(&without(released(), key)).unwrap_err();
        let known = [format!("missing field `{key}`"), format!("{key} is missing")];
        assert!(known.iter().any(|message| error.contains(message)), "{error}");
    }
    for key in ["tie_word_embeddings", "hidden_act", "use_sliding_window", "sliding_window"] {
        assert!(read(&without(released(), key)).is_ok(), "{key}");
    }
    assert!(read(&without(released(), "tie_word_embeddings")).unwrap().has_own_head);
}

#[test]
fn a_bad_config_is_an_error_that_names_the_key() {
    let mut types = vec!["full_attention"; 24];
    types[5] = "chunked_attention";
    let on = |window: Value, first: Value| json!({ "use_sliding_window": true, "sliding_window": window, "max_window_layers": first });
    let scaling = |scaling: Value| json!({ "rope_scaling": scaling });
    for (changes, needle) in [
        (json!({ "hidden_size": "896" }), "hidden_size: invalid type: string"),
        (json!({ "hidden_size": 0 }), "hidden_size is 0, and must be between"),
        (json!({ "hidden_size": 900 }), "hidden_size is 900, and must be a multiple"),
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
        (json!({ "tie_word_embeddings": 1 }), "tie_word_embeddings: invalid type"),
        (json!({ "rope_traditional": true }), "rope_traditional is true"),
        (json!({ "is_causal": false }), "is_causal is false, and this architecture knows true only"),
        // Windows.
        (json!({ "use_sliding_window": 1 }), "use_sliding_window: invalid type"),
        (on(json!(null), json!(3)), "sliding_window is missing"),
        (on(json!(0), json!(3)), "sliding_window is 0"),
        (on(json!(8), json!(null)), "max_window_layers is missing"),
        (on(json!(8), json!(-1)), "max_window_layers is -1"),
        (
            json!({ "sliding_window": 8, "layer_types": vec!["sliding_attention"; 24] }),
            "contradicts itself: use_sliding_window is false",
        ),
        (json!({ "layer_types": ["full_attention"] }), "layer_types has 1 entries"),
        (json!({ "layer_types": types }), "layer_types[5] is \"chunked_attention\""),
        // Rotations.
        (json!({ "rope_theta": -1.0 }), "rope_theta is -1"),
        (json!({ "partial_rotary_factor": 0.5 }), "partial_rotary_factor is 0.5"),
        (json!({ "rope_parameters": { "rope_type": "default", "rope_theta": 7.0 } }), "contradicts itself"),
        (scaling(json!([])), "rope_scaling: invalid type: sequence, expected an object"),
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
