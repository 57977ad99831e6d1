//! The memory that loading takes, by MLX's own count. This test is alone in its file, because MLX counts the whole process.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use mlx_lille_130m::{ARCHITECTURE, Config, Lille130m};
use mlx_rs::Dtype;
use mlx_testing::RandomParameters;
use mlx_testing::checkpoints::{folder, loading_takes_no_more_than_the_checkpoint, tensors, without_tensors};
use serde_json::json;

#[test]
fn loading_takes_no_more_than_a_checkpoint_of_one_file() {
    mlx_testing::use_cpu("MLX frees the memory of a GPU's temporary arrays some time after they were used");
    let config = json!({
        "model_type": "lille-130m", "block_size": 64, "layer_norm_eps": 1e-5, "n_embd": 512, "n_head": 8,
        "n_kv_heads": 2, "n_layer": 8, "rope_theta": 10000.0, "vocab_size": 16384, "tie_word_embeddings": true,
    });
    let saved = {
        let read = Config::from_checkpoint(&without_tensors(&config)).unwrap();
        let model = Lille130m::new(&read, &mut RandomParameters::new(1, Dtype::Bfloat16));
        folder(&config, tensors(&model))
    };
    loading_takes_no_more_than_the_checkpoint(&ARCHITECTURE, saved.path());
}
