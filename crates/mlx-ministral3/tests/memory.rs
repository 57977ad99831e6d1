//! The memory that loading takes, by MLX's own count. This test is alone in its file, because MLX counts the whole process.

use mlx_ministral3::{ARCHITECTURE, OwnKeys};
use mlx_testing::decoder::loading_takes_no_more_than_a_quantized_checkpoint;
use serde_json::json;

#[test]
fn loading_takes_no_more_memory_than_the_checkpoint() {
    let config = json!({
        "model_type": "ministral3", "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 4,
        "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 16384, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 128, "head_dim": 64, "tie_word_embeddings": true, "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 1_000_000.0, "factor": 8.0, "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 16,
        },
    });
    loading_takes_no_more_than_a_quantized_checkpoint::<OwnKeys>(&ARCHITECTURE, &config);
}
