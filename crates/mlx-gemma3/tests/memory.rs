//! The memory that loading takes, by MLX's own count. This test is alone in its file, because MLX counts the whole process.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use mlx_checkpoint::Checkpoint;
use mlx_gemma3::{ARCHITECTURE, Gemma3};
use mlx_rs::{Array, Dtype};
use mlx_testing::RandomParameters;
use mlx_testing::checkpoints::{folder, loading_takes_no_more_than_the_checkpoint, tensors, without_tensors};
use serde_json::json;

/// The vision part, which is ignored, takes no memory.
#[test]
fn loading_takes_no_more_than_the_language_model_of_a_checkpoint() {
    mlx_testing::use_cpu("MLX frees the memory of a GPU's temporary arrays some time after they were used");
    let config = json!({
        "model_type": "gemma3", "vision_config": {},
        "text_config": {
            "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 8,
            "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 16384, "sliding_window": 64,
        },
    });
    let saved = |vision: bool| {
        let read = Gemma3::config(&without_tensors(&config)).unwrap();
        let model = Gemma3::new(&read, &mut RandomParameters::new(1, Dtype::Bfloat16));
        let mut all = tensors(&model);
        if vision {
            // A fifth of the whole: more than the test allows beside the weights.
            all.push(("vision_tower.a.weight".to_owned(), Array::zeros::<f32>(&[2048, 1024]).unwrap()));
        }
        folder(&config, all)
    };
    loading_takes_no_more_than_the_checkpoint(&ARCHITECTURE, saved(false).path());
    let with_vision = saved(true);
    let text = Checkpoint::open(saved(false).path()).unwrap().size_on_disk().unwrap() as usize;
    let loaded = loading_takes_no_more_than_the_checkpoint(&ARCHITECTURE, with_vision.path());
    assert!(loaded <= text + text / 10, "{loaded} bytes at the peak for a language model of {text}");
}
