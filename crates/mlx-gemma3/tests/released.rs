//! The facts of released models, from the configs of their checkpoints.

use mlx_gemma3::{ARCHITECTURE, Gemma3};
use mlx_testing::released::{Facts, Released, facts_are_read, slowest};
use serde_json::{Value, json};

/// A model of text alone.
const GEMMA_3: Released = Released {
    names: &["gemma-3-270m"],
    model_type: "gemma3_text",
    sizes: [640, 2048, 18, 262_144],
    heads: [4, 1],
    context: 32768,
    base: 1_000_000.0,
    rest: || {
        let kind = |layer| if is_full(layer) { "full_attention" } else { "sliding_attention" };
        let mut rest = text_rest();
        rest["layer_types"] = (0..18).map(kind).collect();
        rest["_sliding_window_pattern"] = json!(6);
        rest
    },
    head_dim: 256,
    slowest: |model, layer| slowest(base(model, layer), model.head_dim),
    window: |layer| (!is_full(layer)).then_some(512),
    has_own_head: false,
};
/// A model with a vision part, whose config says little about its language model.
const GEMMA_3_4B: Released = Released {
    names: &["gemma-3-4b-it"],
    model_type: "gemma3",
    sizes: [2560, 10240, 34, 262_208],
    heads: [8, 4],
    context: 131_072,
    rest: || multimodal(&json!({ "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34 })),
    slowest: |model, layer| {
        slowest(base(model, layer), model.head_dim) / if is_full(layer) { 8.0 } else { 1.0 }
    },
    window: |layer| (!is_full(layer)).then_some(1024),
    ..GEMMA_3
};

const RELEASED: &[Released] = &[
    GEMMA_3,
    Released {
        names: &["gemma-3-1b-it"],
        sizes: [1152, 6912, 26, 262_144],
        rest: || {
            let mut rest = text_rest();
            rest["sliding_window_pattern"] = json!(6);
            rest
        },
        ..GEMMA_3
    },
    GEMMA_3_4B,
    Released {
        names: &["gemma-3-12b-it"],
        sizes: [3840, 15360, 48, 262_208],
        heads: [16, 8],
        rest: || {
            multimodal(&json!({
                "hidden_size": 3840, "intermediate_size": 15360, "num_hidden_layers": 48,
                "num_attention_heads": 16, "num_key_value_heads": 8,
            }))
        },
        ..GEMMA_3_4B
    },
    Released {
        names: &["gemma-3-27b-it"],
        sizes: [5376, 21504, 62, 262_208],
        heads: [32, 16],
        rest: || {
            multimodal(&json!({
                "hidden_size": 5376, "intermediate_size": 21504, "num_hidden_layers": 62, "head_dim": 128,
                "num_attention_heads": 32, "num_key_value_heads": 16, "query_pre_attn_scalar": 168,
            }))
        },
        head_dim: 128,
        ..GEMMA_3_4B
    },
];

fn is_full(layer: usize) -> bool {
    layer % 6 == 5
}

fn base(model: &Released, layer: usize) -> f64 {
    if is_full(layer) { model.base } else { 10_000.0 }
}

fn text_rest() -> Value {
    json!({
        "attention_bias": false, "attn_logit_softcapping": null, "final_logit_softcapping": null, "head_dim": 256,
        "hidden_act": null, "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-6, "rope_local_base_freq": 10000, "sliding_window": 512,
    })
}

/// The keys of the whole config. Those of [`Released::config`] are not in it.
fn multimodal(sizes: &Value) -> Value {
    let mut text = json!({
        "model_type": "gemma3_text", "rope_scaling": { "factor": 8.0, "rope_type": "linear" },
        "sliding_window": 1024,
    });
    for (key, value) in sizes.as_object().into_iter().flatten() {
        text[key] = value.clone();
    }
    json!({
        "text_config": text, "vision_config": { "hidden_size": 1152, "model_type": "siglip_vision_model" },
        "hidden_size": null, "intermediate_size": null, "num_hidden_layers": null, "vocab_size": null,
        "num_attention_heads": null, "num_key_value_heads": null, "max_position_embeddings": null,
        "rope_theta": null, "rms_norm_eps": null, "hidden_act": null,
    })
}

#[test]
fn the_facts_of_released_models() {
    facts_are_read(&ARCHITECTURE, RELEASED, |checkpoint| {
        let config = Gemma3::config(checkpoint)?;
        Ok(Facts {
            heads: [config.num_attention_heads, config.num_key_value_heads],
            head_dim: config.head_dim,
            context_length: config.context_length,
            layers: config.layers,
            has_own_head: config.has_own_head,
        })
    });
}
