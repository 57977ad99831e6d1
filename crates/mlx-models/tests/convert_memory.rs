//! The memory that converting takes, by MLX's own count. This test is alone in its file, because MLX counts the whole
//! process.
#![cfg(feature = "lille-130m")]
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::ops::ControlFlow;

use mlx_lille_130m::{Config, Lille130m};
use mlx_models::{ConvertOptions, FloatDtype, Quantization, QuantizeOptions, Weights, convert};
use mlx_rs::Dtype;
use mlx_rs::memory::{active_memory, clear_cache, peak_memory, reset_peak_memory};
use mlx_testing::RandomParameters;
use mlx_testing::checkpoints::{folder, tensors, without_tensors};
use serde_json::json;

/// The peak is the memory of the largest layer before and after: neither that of the model nor that of a file.
#[test]
fn a_model_is_converted_layer_by_layer() {
    mlx_testing::use_cpu("MLX frees the memory of a GPU's temporary arrays some time after they were used");
    let config = json!({
        "model_type": "lille-130m", "block_size": 64, "layer_norm_eps": 1e-5, "n_embd": 512, "n_head": 8,
        "n_kv_heads": 2, "n_layer": 16, "rope_theta": 10000.0, "vocab_size": 4096,
    });
    let saved = {
        let read = Config::from_checkpoint(&without_tensors(&config)).unwrap();
        let model = Lille130m::new(&read, &mut RandomParameters::new(1, Dtype::Bfloat16));
        folder(&config, tensors(&model))
    };
    let quantization = Quantization::affine(4, 64).unwrap();
    let quantized = Weights::Quantized(QuantizeOptions { quantization, recipe: None, layers: Vec::new() });
    let scratch = tempfile::tempdir().unwrap();
    for (name, weights, dtype) in [
        ("same", Weights::Kept, None),
        ("float32", Weights::Kept, Some(FloatDtype::Float32)),
        ("quantized", quantized, Some(FloatDtype::Float16)),
    ] {
        clear_cache().unwrap();
        let before = active_memory().unwrap();
        reset_peak_memory().unwrap();
        let options = ConvertOptions { weights, dtype, ..ConvertOptions::default() };
        let out = scratch.path().join(name);
        let converted = convert(saved.path(), None, out, &options, |_| ControlFlow::Continue(())).unwrap();
        let peak = peak_memory().unwrap() - before;
        // The embedding has 4 MB in bfloat16, 8 in float32; the model 50 and more.
        let model = converted.parameters * 2;
        assert!(model > 50_000_000, "{model} bytes are too few to tell a layer from the rest");
        assert!(peak < 18_000_000, "{name}: {peak} bytes at the peak, for {} written", converted.bytes);
    }
}
