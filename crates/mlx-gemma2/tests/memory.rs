//! The memory that loading takes, by MLX's own count. This test is alone in its file, because MLX counts the whole process.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use mlx_gemma2::{ARCHITECTURE, Gemma2};
use mlx_layers::Quantization;
use mlx_rs::Dtype;
use mlx_testing::RandomParameters;
use mlx_testing::checkpoints::{
    folder, loading_takes_no_more_than_the_checkpoint, quantized, tensors, without_tensors,
};
use serde_json::json;

#[test]
fn loading_takes_no_more_than_a_quantized_checkpoint() {
    mlx_testing::use_cpu("MLX frees the memory of a GPU's temporary arrays some time after they were used");
    let config = json!({
        "model_type": "gemma2", "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 16384,
        "rms_norm_eps": 1e-6, "max_position_embeddings": 128, "query_pre_attn_scalar": 64,
        "sliding_window": 64, "quantization": { "group_size": 64, "bits": 4 },
    });
    let saved = {
        let read = Gemma2::config(&without_tensors(&config)).unwrap();
        let model = Gemma2::new(&read, &mut RandomParameters::new(1, Dtype::Bfloat16));
        folder(&config, quantized(tensors(&model), Quantization::affine(4, 64).unwrap()))
    };
    loading_takes_no_more_than_the_checkpoint(&ARCHITECTURE, saved.path());
}
