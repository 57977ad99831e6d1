//! What loading costs, by MLX's own count. Alone in its file: other tests would be counted as well.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use mlx_checkpoint::Checkpoint;
use mlx_olmo3::{ARCHITECTURE, Config, Olmo3};
use mlx_rs::{Array, Dtype};
use mlx_testing::RandomParameters;
use mlx_testing::checkpoints::{folder, loading_takes_no_more_than_the_checkpoint, sharded_folder, tensors};
use serde_json::json;

#[test]
fn loading_takes_no_more_than_a_checkpoint_of_three_files() {
    let config = json!({
        "model_type": "olmo3", "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 4,
        "num_attention_heads": 8, "vocab_size": 8192, "rms_norm_eps": 1e-6, "max_position_embeddings": 128,
        "sliding_window": 64, "rope_theta": 500000.0,
    });
    let saved = {
        let empty = folder(&config, vec![("x".to_owned(), Array::from_f32(0.0))]);
        let config_of = Config::from_checkpoint(&Checkpoint::open(empty.path()).unwrap()).unwrap();
        let model = Olmo3::new(&config_of, &mut RandomParameters::new(1, Dtype::Float16));
        sharded_folder(&config, tensors(&model), 3)
    };
    assert_eq!(Checkpoint::open(saved.path()).unwrap().files().len(), 3);
    loading_takes_no_more_than_the_checkpoint(&ARCHITECTURE, saved.path());
}
