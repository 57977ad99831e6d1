//! The memory that loading takes, by MLX's own count. This test is alone in its file, because MLX counts the whole process.

use mlx_granite::{ARCHITECTURE, OwnKeys};
use mlx_testing::decoder::loading_takes_no_more_than_a_quantized_checkpoint;
use serde_json::json;

#[test]
fn loading_takes_no_more_memory_than_the_checkpoint() {
    let config = json!({
        "model_type": "granite", "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 4,
        "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 16384, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 128, "rope_theta": 10_000_000.0, "tie_word_embeddings": true,
        "embedding_multiplier": 12.0, "attention_multiplier": 0.015625, "residual_multiplier": 0.22,
        "logits_scaling": 8.0,
    });
    loading_takes_no_more_than_a_quantized_checkpoint::<OwnKeys>(&ARCHITECTURE, &config);
}
