//! Helpers of this crate's tests: a small config, and checkpoint folders.
#![allow(dead_code, reason = "not every test uses everything")]

use mlx_causal_lm::LoadOptions;
use mlx_phi3::{Config, Phi3};
use mlx_rs::{Array, Dtype};
use mlx_testing::RandomParameters;
use mlx_testing::checkpoints::without_tensors;
use serde_json::{Value, json};

/// A config of 2 layers, 4 query heads of 8 features and 2 key-value heads, with LongRoPE whose border is
/// at 8 tokens.
pub(crate) fn long_rope() -> Value {
    json!({
        "model_type": "phi3", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 96, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 64, "original_max_position_embeddings": 8, "rope_theta": 10000.0,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0, 1.1, 1.25, 1.5],
            "long_factor": [1.0, 2.0, 4.5, 7.0],
        },
    })
}

/// [`long_rope`] without scaling.
pub(crate) fn plain() -> Value {
    with(long_rope(), &[("rope_scaling", Value::Null)])
}

pub(crate) fn with(mut config: Value, changes: &[(&str, Value)]) -> Value {
    for (key, value) in changes {
        config[*key] = value.clone();
    }
    config
}

pub(crate) fn read(config: &Value, options: &LoadOptions) -> Config {
    Config::from_checkpoint(&without_tensors(config), options).unwrap()
}

/// A model with random weights, which are the same for the same shapes.
pub(crate) fn model(config: &Value) -> Phi3 {
    model_with(config, &LoadOptions::default())
}

pub(crate) fn model_with(config: &Value, options: &LoadOptions) -> Phi3 {
    Phi3::new(&read(config, options), &mut RandomParameters::new(4, Dtype::Float32))
}

/// `[rows, length]`, different rows.
pub(crate) fn tokens(rows: u32, length: u32) -> Array {
    let ids: Vec<u32> = (0..rows * length).map(|i| (i * i * 7 + i) % 96).collect();
    Array::from_slice(&ids, &[rows as i32, length as i32])
}
