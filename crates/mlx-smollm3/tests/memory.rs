//! The memory that loading takes, by MLX's own count. This test is alone in its file, because MLX counts the whole process.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use mlx_layers::Quantization;
use mlx_rs::Dtype;
use mlx_smollm3::{ARCHITECTURE, SmolLm3};
use mlx_testing::RandomParameters;
use mlx_testing::checkpoints::{
    folder, loading_takes_no_more_than_the_checkpoint, quantized, tensors, without_tensors,
};
use serde_json::json;

#[test]
fn loading_takes_no_more_than_a_quantized_checkpoint() {
    mlx_testing::use_cpu("MLX frees the memory of a GPU's temporary arrays some time after they were used");
    let config = json!({
        "model_type": "smollm3", "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 4,
        "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 16384,
        "rms_norm_eps": 1e-5, "max_position_embeddings": 128, "rope_theta": 1_000_000.0,
        "tie_word_embeddings": true, "quantization": { "group_size": 64, "bits": 4 },
    });
    let saved = {
        let read = SmolLm3::config(&without_tensors(&config)).unwrap();
        let model = SmolLm3::new(&read, &mut RandomParameters::new(1, Dtype::Bfloat16));
        folder(&config, quantized(tensors(&model), Quantization::affine(4, 64).unwrap()))
    };
    loading_takes_no_more_than_the_checkpoint(&ARCHITECTURE, saved.path());
}
