//! What these tests share: a tiny model with random weights, and texts.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![allow(dead_code, reason = "not every test needs all of it")]

use mlx_causal_lm::LoadOptions;
use mlx_checkpoint::Checkpoint;
use mlx_phi3::{Config, Phi3};
use mlx_rs::Dtype;
use mlx_testing::RandomParameters;

/// A Phi-3 with a vocabulary of 96 and heads of 32: `window` for all layers, LongRoPE with this border.
pub(crate) fn model(window: Option<i32>, border: Option<i32>) -> Phi3 {
    model_of(window, border, 96, 11)
}

/// Another one: with other weights, or with another vocabulary too.
pub(crate) fn model_of(window: Option<i32>, border: Option<i32>, vocab_size: i32, seed: u64) -> Phi3 {
    let folder = tempfile::tempdir().unwrap();
    let factors = [vec!["1.0"; 16].join(", "), vec!["3.5"; 16].join(", ")];
    let scaling = match border {
        Some(_) => format!(
            r#"{{"type": "longrope", "short_factor": [{}], "long_factor": [{}]}}"#,
            factors[0], factors[1]
        ),
        None => "null".to_owned(),
    };
    let config = format!(
        r#"{{"model_type": "phi3", "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": {vocab_size}, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 128, "original_max_position_embeddings": {}, "sliding_window": {},
        "rope_scaling": {scaling}}}"#,
        border.unwrap_or(128),
        window.map_or_else(|| "null".to_owned(), |window| window.to_string()),
    );
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    std::fs::write(folder.path().join("model.safetensors"), b"\x02\0\0\0\0\0\0\0{}").unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let config = Config::from_checkpoint(&checkpoint, &LoadOptions::default()).unwrap();
    Phi3::new(&config, &mut RandomParameters::new(seed, Dtype::Float32))
}

pub(crate) fn text(length: u32) -> Vec<u32> {
    (0..length).map(|i| (i * i * 7 + i) % 96).collect()
}
