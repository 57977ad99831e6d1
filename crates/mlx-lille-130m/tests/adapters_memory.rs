//! The memory that adapters take, by MLX's own count. This test is alone in its file, because MLX counts the whole process.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use mlx_checkpoint::{AdapterConfig, AdapterKind, Adapters, Checkpoint};
use mlx_lille_130m::{Config, Lille130m};
use mlx_rs::Dtype;
use mlx_rs::memory::{active_memory, clear_cache, peak_memory, reset_peak_memory};
use mlx_rs::module::ModuleParameters;
use mlx_rs::transforms::eval_params;
use mlx_testing::RandomParameters;
use mlx_testing::checkpoints::{folder, tensors, without_tensors};
use serde_json::json;

/// The peak is the memory of the finished model, because intermediate results are of one layer at a time. DoRA's fused
/// linear layers are float32, as in mlx-lm, from a checkpoint in bfloat16.
#[test]
fn adapters_are_loaded_and_fused_layer_by_layer() {
    mlx_testing::use_cpu("MLX frees the memory of a GPU's temporary arrays some time after they were used");
    let config = json!({
        "model_type": "lille-130m", "block_size": 64, "layer_norm_eps": 1e-5, "n_embd": 512, "n_head": 8,
        "n_kv_heads": 2, "n_layer": 8, "rope_theta": 10000.0, "vocab_size": 16384,
    });
    let saved = {
        let read = Config::from_checkpoint(&without_tensors(&config)).unwrap();
        let model = Lille130m::new(&read, &mut RandomParameters::new(1, Dtype::Bfloat16));
        folder(&config, tensors(&model))
    };
    for kind in [AdapterKind::Lora, AdapterKind::Dora] {
        let adapted = || {
            let config =
                AdapterConfig { kind, rank: 8, scale: 2.0, dropout: 0.0, num_layers: -1, keys: None };
            let fresh = Adapters::fresh(config, 1).unwrap();
            Checkpoint::open(saved.path()).unwrap().with_adapters(fresh)
        };
        for (name, checkpoint) in [("loaded", adapted()), ("fused", adapted().fused(false))] {
            clear_cache().unwrap();
            let before = active_memory().unwrap();
            reset_peak_memory().unwrap();
            let model = Lille130m::load(&checkpoint).unwrap();
            if name == "fused" {
                let out = tempfile::tempdir().unwrap();
                let fused = out.path().join("fused");
                checkpoint
                    .save_as(fused, model.parameters().flatten(), &mlx_lille_130m::ARCHITECTURE.names)
                    .unwrap();
            } else {
                eval_params(model.parameters()).unwrap();
            }
            let peak = peak_memory().unwrap() - before;
            let parameters: usize = model.parameters().flatten().values().map(|array| array.nbytes()).sum();
            assert!(parameters > 50_000_000, "{parameters} bytes are too few to tell weights from the rest");
            let most = parameters + parameters / 10;
            assert!(peak <= most, "{kind:?} {name}: {peak} bytes at the peak for {parameters}");
        }
    }
}
