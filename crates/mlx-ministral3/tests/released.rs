//! The facts of released models, from the configs of their checkpoints.
use mlx_ministral3::{ARCHITECTURE, Ministral3};
use mlx_testing::released::{Released, facts_are_read};
use serde_json::{Value, json};

const MINISTRAL_3B: Released = Released {
    names: &["Ministral-3-3B-Instruct-2512-BF16"],
    model_type: "mistral3",
    sizes: [3072, 9216, 26, 131_072],
    heads: [32, 8],
    context: 262_144,
    base: 1_000_000.0,
    rest: || multimodal(&ministral([3072, 9216, 26], true)),
    head_dim: 128,
    // YaRN stretches the slowest pairs by its whole factor.
    slowest: |model, layer| model.plain(layer) / 16.0,
    window: Released::no_window,
    has_own_head: false,
};

const RELEASED: &[Released] = &[
    MINISTRAL_3B,
    Released {
        names: &["Ministral-3-8B-Instruct-2512-BF16"],
        sizes: [4096, 14336, 34, 131_072],
        rest: || multimodal(&ministral([4096, 14336, 34], false)),
        has_own_head: true,
        ..MINISTRAL_3B
    },
    Released {
        names: &["Devstral-Small-2-24B-Instruct-2512"],
        sizes: [5120, 32768, 40, 131_072],
        context: 393_216,
        base: 100_000_000.0,
        rest: || {
            let mut text = ministral([5120, 32768, 40], false);
            text["max_position_embeddings"] = json!(393_216);
            text["rope_parameters"]["factor"] = json!(48.0);
            text["rope_parameters"]["original_max_position_embeddings"] = json!(8192);
            text["rope_parameters"]["rope_theta"] = json!(100_000_000.0);
            text.as_object_mut().into_iter().for_each(|text| drop(text.remove("tie_word_embeddings")));
            let mut rest = multimodal(&text);
            rest["tie_word_embeddings"] = json!(false);
            rest["quantization_config"] = fp8();
            rest
        },
        slowest: |model, layer| model.plain(layer) / 48.0,
        has_own_head: true,
        ..MINISTRAL_3B
    },
    Released {
        names: &["Devstral-2-123B-Instruct-2512"],
        model_type: "ministral3",
        sizes: [12288, 28672, 88, 131_072],
        heads: [96, 8],
        rest: || {
            let rope = json!({
                "beta_fast": 4.0, "beta_slow": 1.0, "factor": 64.0, "llama_4_scaling_beta": 0.0, "mscale": 1.0,
                "mscale_all_dim": 0.0, "original_max_position_embeddings": 4096, "rope_theta": 1_000_000.0,
                "rope_type": "yarn", "type": "yarn",
            });
            json!({
                "head_dim": 128, "rope_parameters": rope, "rope_theta": null, "sliding_window": null,
                "tie_word_embeddings": false, "quantization_config": fp8(),
            })
        },
        slowest: |model, layer| model.plain(layer) / 64.0,
        has_own_head: true,
        ..MINISTRAL_3B
    },
    Released {
        names: &["Mistral-Small-3.1-24B-Instruct-2503"],
        sizes: [5120, 32768, 40, 131_072],
        context: 131_072,
        base: 1_000_000_000.0,
        rest: || multimodal(&mistral()),
        slowest: Released::plain,
        ..MINISTRAL_3B
    },
];

/// The description of a Ministral 3.
fn ministral([hidden, inside, layers]: [i32; 3], tied: bool) -> Value {
    json!({
        "attention_dropout": 0.0, "head_dim": 128, "hidden_act": "silu", "hidden_size": hidden,
        "initializer_range": 0.02, "intermediate_size": inside, "max_position_embeddings": 262_144,
        "model_type": "ministral3", "num_attention_heads": 32, "num_hidden_layers": layers,
        "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_parameters": {
            "beta_fast": 32.0, "beta_slow": 1.0, "factor": 16.0, "llama_4_scaling_beta": 0.1, "mscale": 1.0,
            "mscale_all_dim": 1.0, "original_max_position_embeddings": 16384, "rope_theta": 1_000_000.0,
            "rope_type": "yarn", "type": "yarn",
        },
        "sliding_window": null, "tie_word_embeddings": tied, "use_cache": true, "vocab_size": 131_072,
    })
}

/// Weights in FP8, with one scale for each matrix.
fn fp8() -> Value {
    json!({
        "activation_scheme": "static", "dequantize": false, "quant_method": "fp8", "weight_block_size": null,
        "modules_to_not_convert": ["model.vision_tower", "model.multi_modal_projector", "lm_head"],
    })
}

/// The description of the language model of Mistral Small 3.1.
fn mistral() -> Value {
    json!({
        "attention_dropout": 0.0, "head_dim": 128, "hidden_act": "silu", "hidden_size": 5120,
        "initializer_range": 0.02, "intermediate_size": 32768, "max_position_embeddings": 131_072,
        "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 40, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05, "rope_theta": 1_000_000_000.0, "sliding_window": null, "use_cache": true,
        "vocab_size": 131_072,
    })
}

/// The config around this description. The keys of [`Released::config`] are not in it.
fn multimodal(text: &Value) -> Value {
    json!({
        "text_config": text, "vision_config": { "hidden_size": 1024, "model_type": "pixtral" },
        "image_token_index": 10, "multimodal_projector_bias": false, "projector_hidden_act": "gelu",
        "spatial_merge_size": 2, "vision_feature_layer": -1,
        "hidden_size": null, "intermediate_size": null, "num_hidden_layers": null, "vocab_size": null,
        "num_attention_heads": null, "num_key_value_heads": null, "max_position_embeddings": null,
        "rope_theta": null, "rms_norm_eps": null, "hidden_act": null,
    })
}

#[test]
fn the_facts_of_released_models() {
    facts_are_read(&ARCHITECTURE, RELEASED, |checkpoint| Ok(Ministral3::config(checkpoint)?.into()));
}
