//! The memory that loading takes, by MLX's own count. This test is alone in its file, because MLX counts the whole process.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use mlx_checkpoint::Checkpoint;
use mlx_olmo3::{ARCHITECTURE, Olmo3};
use mlx_rs::Dtype;
use mlx_testing::RandomParameters;
use mlx_testing::checkpoints::{
    loading_takes_no_more_than_the_checkpoint, sharded_folder, tensors, without_tensors,
};
use serde_json::json;

#[test]
fn loading_takes_no_more_than_a_checkpoint_of_three_files() {
    mlx_testing::use_cpu("MLX frees the memory of a GPU's temporary arrays some time after they were used");
    let config = json!({
        "model_type": "olmo3", "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 4,
        "num_attention_heads": 8, "vocab_size": 8192, "rms_norm_eps": 1e-6, "max_position_embeddings": 128,
        "sliding_window": 64, "rope_theta": 500000.0,
    });
    let saved = {
        let read = Olmo3::config(&without_tensors(&config)).unwrap();
        let model = Olmo3::new(&read, &mut RandomParameters::new(1, Dtype::Float16));
        sharded_folder(&config, tensors(&model), 3)
    };
    assert_eq!(Checkpoint::open(saved.path()).unwrap().files().len(), 3);
    loading_takes_no_more_than_the_checkpoint(&ARCHITECTURE, saved.path());
}
