//! What loading costs, by MLX's own count. Alone in its file: other tests would be counted as well.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;

use mlx_causal_lm::{CausalLm, Logits};
use mlx_checkpoint::Checkpoint;
use mlx_kvcache::CacheOptions;
use mlx_lille_130m::{Config, Lille130m};
use mlx_rs::memory::{active_memory, clear_cache, peak_memory, reset_peak_memory};
use mlx_rs::module::ModuleParameters;
use mlx_rs::transforms::eval_params;
use mlx_rs::{Array, Dtype};
use mlx_testing::RandomParameters;

const CONFIG: &str = r#"{
    "model_type": "lille-130m", "block_size": 64, "layer_norm_eps": 1e-5, "n_embd": 512, "n_head": 8,
    "n_kv_heads": 2, "n_layer": 8, "rope_theta": 10000.0, "vocab_size": 16384, "tie_word_embeddings": true
}"#;

/// Each tensor is read once, when it is first used, and nothing is held twice.
#[test]
fn loading_takes_no_more_than_the_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), CONFIG).unwrap();
    let file = folder.path().join("model.safetensors");
    {
        Array::save_safetensors([("x", &Array::from_f32(0.0))], None, &file).unwrap();
        let config = Config::from_checkpoint(&Checkpoint::open(folder.path()).unwrap()).unwrap();
        let model = Lille130m::new(&config, &mut RandomParameters::new(1, Dtype::Bfloat16));
        let parameters = model.parameters().flatten();
        let tensors = parameters.into_iter().map(|(key, array)| (key.to_string(), array.clone()));
        Array::save_safetensors(tensors.collect::<Vec<_>>(), None, &file).unwrap();
    }
    let size = fs::metadata(&file).unwrap().len() as usize;
    assert!(size > 50_000_000, "{size}");

    clear_cache().unwrap();
    let before = active_memory().unwrap();
    reset_peak_memory().unwrap();
    let mut model = Lille130m::load(&Checkpoint::open(folder.path()).unwrap()).unwrap();
    let built = peak_memory().unwrap().saturating_sub(before);
    assert!(built < size / 100, "{built} bytes before anything was used");

    eval_params(model.parameters()).unwrap();
    let loaded = peak_memory().unwrap() - before;
    assert!(loaded <= size + size / 10, "{loaded} bytes at the peak for {size} on disk");

    // The first tokens need their own memory, and no second copy of the weights.
    let mut cache = model.new_cache(&CacheOptions::default()).unwrap();
    let tokens = Array::from_slice(&[1_u32, 2, 3], &[1, 3]);
    model.forward(&tokens, &mut cache, Logits::Last).unwrap().eval().unwrap();
    assert!(active_memory().unwrap() - before <= size + size / 10);
}
