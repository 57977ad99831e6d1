//! The memory that loading takes, by MLX's own count. This test is alone in its file, because MLX counts the whole process.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use mlx_causal_lm::LoadOptions;
use mlx_phi3::{ARCHITECTURE, Config, Phi3};
use mlx_rs::Dtype;
use mlx_testing::RandomParameters;
use mlx_testing::checkpoints::{folder, loading_takes_no_more_than_the_checkpoint, tensors, without_tensors};
use serde_json::json;

#[test]
fn loading_takes_no_more_than_a_checkpoint_with_fused_projections() {
    mlx_testing::use_cpu("MLX frees the memory of a GPU's temporary arrays some time after they were used");
    let config = json!({
        "model_type": "phi3", "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 4,
        "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 8192, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 128, "original_max_position_embeddings": 128, "rope_theta": 10000.0,
    });
    let saved = {
        let read = Config::from_checkpoint(&without_tensors(&config), &LoadOptions::default()).unwrap();
        let model = Phi3::new(&read, &mut RandomParameters::new(1, Dtype::Bfloat16));
        folder(&config, tensors(&model))
    };
    loading_takes_no_more_than_the_checkpoint(&ARCHITECTURE, saved.path());
}
