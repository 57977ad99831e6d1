//! The memory that loading takes, by MLX's own count. This test is alone in its file, because MLX counts the whole process.

use mlx_gemma2::{ARCHITECTURE, OwnKeys};
use mlx_testing::decoder::loading_takes_no_more_than_a_quantized_checkpoint;
use serde_json::json;

#[test]
fn loading_takes_no_more_memory_than_the_checkpoint() {
    let config = json!({
        "model_type": "gemma2", "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 16384,
        "rms_norm_eps": 1e-6, "max_position_embeddings": 128, "query_pre_attn_scalar": 64,
        "sliding_window": 64,
    });
    loading_takes_no_more_than_a_quantized_checkpoint::<OwnKeys>(&ARCHITECTURE, &config);
}
