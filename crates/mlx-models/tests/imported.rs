//! Models that other programs quantized compute what the same models with dequantized weights compute, and are converted,
//! adapted and fused like any other model.
#![cfg(feature = "architectures")]
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use approx::assert_relative_ne;
use mlx_models::{
    CausalLm, Checkpoint, ConvertOptions, FuseOptions, LoadOptions, Quantization, QuantizeOptions, Weights,
    convert, fuse, load, load_with,
};
use mlx_rs::Array;
use mlx_testing::checkpoints::{self, with_warnings};
use mlx_testing::foreign::{self, Program, quantized_by};
use mlx_testing::models::all_logits;
use mlx_testing::tensor;
use serde_json::{Value, json};
use tempfile::TempDir;

const PROGRAMS: [Program; 4] =
    [Program::AutoAwq(32), Program::AutoGptq(32), Program::AutoGptqReordered(16), Program::Fp8([24, 24])];

/// A Phi-3 with adapters.
fn case() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../xtask/cases/peft_lora_phi3")
}

fn tokens() -> Array {
    Array::load_safetensors(case().join("reference.safetensors")).unwrap().remove("tokens").unwrap()
}

fn section(program: Program) -> Value {
    let gptq = |group, desc_act| json!({ "quant_method": "gptq", "bits": 4, "group_size": group, "desc_act": desc_act });
    match program {
        Program::AutoAwq(group) => {
            json!({ "quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm" })
        }
        Program::AutoGptq(group) => gptq(group, false),
        Program::AutoGptqReordered(group) => gptq(group, true),
        Program::Fp8(block) => json!({ "quant_method": "fp8", "weight_block_size": block }),
    }
}

/// The model as a program quantized it, and with the weights that this program computes.
fn folders(program: Program) -> [TempDir; 2] {
    let config = fs::read_to_string(case().join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    let dtype = if matches!(program, Program::Fp8(_)) { "bfloat16" } else { "float16" };
    ["dtype", "torch_dtype"].iter().for_each(|key| drop(config.as_object_mut().unwrap().remove(*key)));
    config["torch_dtype"] = json!(dtype);
    let tensors = Array::load_safetensors(case().join("model.safetensors")).unwrap();
    let (stored, twin) = quantized_by(program, tensors.into_iter().collect());
    let twin = checkpoints::folder(&config, twin);
    config["quantization_config"] = section(program);
    [foreign::folder(&config, &stored), twin]
}

fn logits(mut model: Box<dyn CausalLm>) -> Array {
    all_logits(&mut *model, &tokens()).as_dtype(mlx_rs::Dtype::Float32).unwrap()
}

/// The length of the difference of two tensors, as a part of the length of the second.
fn distance(found: &Array, expected: &Array) -> f32 {
    let length = |array: &Array| array.square().unwrap().sum(None).unwrap().item_exact::<f32>().sqrt();
    assert_eq!(found.shape(), expected.shape());
    length(&(found - expected)) / length(expected)
}

/// As close as the products of weights in 4 bits whose biases are rounded to float16. Another order of the numbers, or zero
/// points that are off by one, would be further away than 0.3.
///
/// Fused weights are rounded to 16 bits once more, after the adapters were added.
#[track_caller]
fn assert_near(program: Program, found: &Array, expected: &Array) {
    let distance = distance(found, expected);
    assert!(distance < 0.06, "{program:?}: {distance}");
}

#[test]
fn the_logits_are_those_of_the_dequantized_weights() {
    for program in PROGRAMS {
        let [quantized, twin] = folders(program);
        let (model, warnings) = with_warnings(|| load(quantized.path()).unwrap());
        let (found, expected) = (logits(model), logits(load(twin.path()).unwrap()));
        let checkpoint = Checkpoint::open(quantized.path()).unwrap();
        let in_4_bits = Some(Quantization::affine(4, 32).unwrap());
        let quantization = checkpoint.quantization_of("model.layers.0.mlp.down_proj");
        let dtype = match program {
            Program::AutoAwq(_) | Program::AutoGptq(_) => {
                assert_near(program, &found, &expected);
                assert_eq!((quantization, warnings), (in_4_bits, vec![]), "{program:?}");
                continue;
            }
            Program::AutoGptqReordered(_) => "GPTQ become F16",
            Program::Fp8(_) => "FP8 become BF16",
        };
        assert_eq!(tensor(&found).named(format!("{program:?}")), tensor(&expected));
        assert_eq!(quantization, None, "{program:?}");
        let layers = format!(": {} layers of {dtype}, since MLX has no ", 4 * checkpoint_layers(&checkpoint));
        assert!(warnings.len() == 1 && warnings[0].contains(&layers), "{warnings:?}");
    }
}

fn checkpoint_layers(checkpoint: &Checkpoint) -> usize {
    let config: Value = checkpoint.config().unwrap();
    config["num_hidden_layers"].as_u64().unwrap() as usize
}

#[test]
fn they_are_converted() {
    let go_on = |_: mlx_models::Progress<'_>| ControlFlow::Continue(());
    let quantize = Weights::Quantized(QuantizeOptions {
        quantization: Quantization::affine(8, 32).unwrap(),
        recipe: None,
        layers: Vec::new(),
    });
    for program in PROGRAMS {
        let [quantized, _] = folders(program);
        let expected = logits(load(quantized.path()).unwrap());
        let scratch = tempfile::tempdir().unwrap();
        let in_full = !matches!(program, Program::AutoAwq(_) | Program::AutoGptq(_));
        let mut ways = vec![("kept", Weights::Kept), ("dequantized", Weights::Dequantized)];
        ways.extend(in_full.then(|| ("quantized", quantize.clone())));
        for (name, weights) in ways {
            let out = scratch.path().join(name);
            let options = ConvertOptions { weights, ..ConvertOptions::default() };
            convert(quantized.path(), None, &out, &options, go_on).unwrap();
            let config = fs::read_to_string(out.join("config.json")).unwrap();
            assert!(!config.contains("quant_method"), "{config}");
            let found = logits(load(&out).unwrap());
            // What was dequantized while it was loaded is written as it is.
            if name == "kept" || (in_full && name == "dequantized") {
                assert_eq!(tensor(&found).named(format!("{program:?}")), tensor(&expected));
            } else {
                assert_near(program, &found, &expected);
            }
        }
    }
}

#[test]
fn they_take_adapters() {
    for program in PROGRAMS {
        let [quantized, twin] = folders(program);
        let adapters = case().join("adapters");
        let adapted = |folder: &TempDir| {
            let options = LoadOptions { adapters: Some(adapters.clone()), ..LoadOptions::default() };
            logits(load_with(folder.path(), &options).unwrap())
        };
        let (found, expected) = (adapted(&quantized), adapted(&twin));
        assert_near(program, &found, &expected);
        let plain = logits(load(quantized.path()).unwrap());
        assert_relative_ne!(tensor(&found), tensor(&plain), epsilon = 0.1, max_relative = 0.1);

        let scratch = tempfile::tempdir().unwrap();
        let out = scratch.path().join("fused");
        let options = FuseOptions { dequantize: true };
        fuse(quantized.path(), &adapters, &out, &options).unwrap();
        assert_near(program, &logits(load(&out).unwrap()), &found);
    }
}
