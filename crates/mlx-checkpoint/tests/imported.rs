//! Checkpoints that other programs quantized. The fixtures have the weights that these programs compute.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::{Path, PathBuf};

use half::{bf16, f16};
use mlx_checkpoint::{Checkpoint, CheckpointError, TensorDtype};
use mlx_layers::{Linear, ParameterSource, Parameters, Quantization};
use mlx_rs::module::ModuleParameters;
use mlx_rs::{Array, Dtype};
use mlx_testing::checkpoints::whole_message;
use mlx_testing::foreign::{self, Stored};
use serde_json::{Value, json};
use tempfile::TempDir;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/imported").join(name)
}

/// The weight that the other program computes.
fn expected(name: &str) -> Array {
    Array::load_safetensors(fixture(name).join("expected.safetensors"))
        .unwrap()
        .remove("layer.weight")
        .unwrap()
}

fn affine(bits: i32, group_size: i32) -> Option<Quantization> {
    Some(Quantization::affine(bits, group_size).unwrap())
}

/// The layer of a checkpoint, with a bias if it is stored.
fn layer(folder: &Path, outputs: i32, inputs: i32) -> Result<Linear, CheckpointError> {
    let checkpoint = Checkpoint::open(folder)?;
    let mut tensors = checkpoint.tensors()?;
    let has_bias = checkpoint.headers().contains_key("layer.bias");
    let layer = Linear::with_bias(Parameters::root(&mut tensors).at("layer"), inputs, outputs, has_bias);
    tensors.finish(|_| false)?;
    Ok(layer)
}

fn numbers(array: &Array) -> Vec<f32> {
    array.as_dtype(Dtype::Float32).unwrap().as_slice::<f32>().to_vec()
}

/// The nearest number of this dtype.
fn rounded(x: f32, dtype: Dtype) -> f32 {
    match dtype {
        Dtype::Float16 => f16::from_f32(x).to_f32(),
        Dtype::Bfloat16 => bf16::from_f32(x).to_f32(),
        _ => x,
    }
}

/// `scale * code + bias` in float32, and the scale and the bias of each number.
fn affine_numbers(layer: &Linear, quantization: Quantization) -> Vec<[f32; 3]> {
    let parameters = layer.parameters().flatten();
    let [scales, biases] = ["scales", "biases"].map(|name| numbers(parameters[name]));
    let (bits, group) = (quantization.bits() as usize, quantization.group_size() as usize);
    let words = parameters["weight"].as_slice::<u32>();
    let codes = words
        .iter()
        .flat_map(|word| (0..32 / bits).map(move |at| word >> (at * bits) & (u32::MAX >> (32 - bits))));
    codes
        .enumerate()
        .map(|(at, code)| {
            let [scale, bias] = [scales[at / group], biases[at / group]];
            [code as f32 * scale + bias, scale, bias]
        })
        .collect()
}

#[test]
fn whole_numbers_become_affine_and_give_the_same_weights() {
    for (name, quantization, dtype) in [
        ("awq_32", affine(4, 32), Dtype::Float16),
        ("awq_64", affine(4, 64), Dtype::Float16),
        ("awq_128", affine(4, 128), Dtype::Float16),
        ("awq_symmetric", affine(4, 32), Dtype::Float16),
        ("gptq_32", affine(4, 32), Dtype::Float16),
        ("gptq_64_symmetric", affine(4, 64), Dtype::Float16),
        ("gptq_128_bf16", affine(4, 128), Dtype::Bfloat16),
        ("gptq_v2_32", affine(4, 32), Dtype::Float16),
        ("gptq_all", affine(4, 128), Dtype::Float16),
        ("gptq_8_bits", affine(8, 32), Dtype::Float16),
        ("gptq_2_bits", affine(2, 32), Dtype::Float16),
        ("rows_32", affine(4, 32), Dtype::Bfloat16),
        ("rows_32_zeros", affine(4, 32), Dtype::Float16),
    ] {
        let expected = expected(name);
        let &[outputs, inputs] = expected.shape() else { panic!() };
        let layer = layer(&fixture(name), outputs, inputs).unwrap();
        assert_eq!(layer.quantization(), quantization, "{name}");
        assert_eq!(
            (layer.parameters().flatten()["scales"].dtype(), expected.dtype()),
            (dtype, dtype),
            "{name}"
        );
        let found = affine_numbers(&layer, quantization.unwrap());
        for (at, ([x, scale, bias], expected)) in found.into_iter().zip(numbers(&expected)).enumerate() {
            let zero = (-bias / scale).round();
            if bias == -zero * scale {
                assert_eq!(rounded(x, dtype), expected, "{name}: {at}");
            } else {
                // The bias is rounded, so a weight differs by that much at most, and by the rounding of the reference.
                assert_eq!(bias, rounded(-zero * scale, dtype), "{name}: {at}");
                let moved = bias + zero * scale;
                let exact = x - moved;
                let most = moved.abs() + (rounded(exact, dtype) - exact).abs();
                assert!((x - expected).abs() <= 1.001 * most, "{name}: {at}: {x} and {expected}");
            }
        }
    }
}

#[test]
fn what_mlx_has_no_form_for_is_dequantized_bit_for_bit() {
    for name in [
        "gptq_desc_act",
        "gptq_v2_desc_act",
        "gptq_48",
        "fp8_blocks",
        "fp8_cut_blocks",
        "fp8_exponents",
        "fp8_tensor",
        "fp8_rows",
        "fp8_compressed",
    ] {
        let expected = expected(name);
        let &[outputs, inputs] = expected.shape() else { panic!() };
        let layer = layer(&fixture(name), outputs, inputs).unwrap();
        assert_eq!(layer.quantization(), None, "{name}");
        let weight = layer.parameters().flatten()["weight"].clone();
        assert_eq!((weight.dtype(), weight.shape()), (expected.dtype(), expected.shape()), "{name}");
        assert_eq!(numbers(&weight), numbers(&expected), "{name}");
    }
}

fn words(name: &str, shape: &[usize], word: u32) -> Stored {
    foreign::words(format!("layer.{name}"), shape, std::iter::repeat_n(word, shape.iter().product()))
}

fn halves(name: &str, shape: &[usize], number: f32) -> Stored {
    foreign::halves(format!("layer.{name}"), shape, std::iter::repeat_n(number, shape.iter().product()))
}

fn floats(shape: &[usize]) -> Stored {
    let bytes = vec![0; shape.iter().product()];
    Stored { key: "layer.weight".to_owned(), dtype: TensorDtype::F8_E4M3, shape: shape.to_vec(), bytes }
}

fn write(config: &Value, tensors: &[Stored]) -> TempDir {
    foreign::folder(&json!({ "model_type": "test", "quantization_config": config }), tensors)
}

/// A layer of GPTQ with 16 outputs and 64 inputs, of which each weight is 3 - 7.
fn gptq() -> (Value, Vec<Stored>) {
    let config = json!({ "quant_method": "gptq", "bits": 4, "group_size": 32, "sym": false });
    let tensors = vec![
        words("qweight", &[8, 16], 0x3333_3333),
        words("qzeros", &[2, 2], 0x6666_6666),
        halves("scales", &[2, 16], 1.0),
    ];
    (config, tensors)
}

fn error(config: &Value, tensors: &[Stored]) -> String {
    whole_message(&layer(write(config, tensors).path(), 16, 64).unwrap_err())
}

#[test]
fn zero_points_of_the_first_version_are_stored_less_one() {
    let (mut config, tensors) = gptq();
    let weight = |config: &Value, word: u32| {
        let mut tensors = tensors.clone();
        tensors[1] = words("qzeros", &[2, 2], word);
        affine_numbers(&layer(write(config, &tensors).path(), 16, 64).unwrap(), affine(4, 32).unwrap())[0]
    };
    assert_eq!(weight(&config, 0x6666_6666), [-4.0, 1.0, -7.0]);
    // Zero less one.
    assert_eq!(weight(&config, u32::MAX), [3.0, 1.0, 0.0]);
    config["checkpoint_format"] = json!("gptq_v2");
    assert_eq!(weight(&config, 0x6666_6666), [-3.0, 1.0, -6.0]);
}

/// The defaults of transformers' configs.
#[test]
fn what_a_config_does_not_say_has_a_default() {
    let (_, mut tensors) = gptq();
    tensors[0] = words("qweight", &[32, 16], 0x3333_3333);
    let folder = write(&json!({ "quant_method": "gptq", "bits": 4 }), &tensors);
    assert_eq!(layer(folder.path(), 16, 256).unwrap().quantization(), affine(4, 128));
    let awq = [words("qweight", &[128, 2], 0), words("qzeros", &[1, 2], 0), halves("scales", &[1, 16], 1.0)];
    let folder = write(&json!({ "quant_method": "awq" }), &awq);
    assert_eq!(layer(folder.path(), 16, 128).unwrap().quantization(), affine(4, 128));
}

#[test]
fn other_floats_take_the_dtype_of_the_scales() {
    let (config, mut tensors) = gptq();
    let bytes = [1.5_f32, -2.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    tensors.push(Stored { key: "norm".to_owned(), dtype: TensorDtype::F32, shape: vec![2], bytes });
    let folder = write(&config, &tensors);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let norm = checkpoint.tensors().unwrap().parameter("norm", &[2]);
    assert_eq!((norm.dtype(), numbers(&norm)), (Dtype::Float16, vec![1.5, -2.0]));
}

/// Programs that quantize write biases of zeros for layers without a bias.
#[test]
fn a_bias_of_zeros_that_no_model_takes_is_ignored() {
    let (config, mut tensors) = gptq();
    let build = |tensors: &[Stored]| {
        let folder = write(&config, tensors);
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let mut source = checkpoint.tensors().unwrap();
        Linear::new(Parameters::root(&mut source).at("layer"), 64, 16);
        source.finish(|_| false)
    };
    tensors.push(halves("bias", &[16], 0.0));
    build(&tensors).unwrap();
    *tensors.last_mut().unwrap() = halves("bias", &[16], 0.5);
    let error = build(&tensors).unwrap_err().to_string();
    assert!(error.contains("layer.bias: unexpected"), "{error}");
}

#[test]
fn the_config_says_afterwards_how_mlx_has_the_layers() {
    let (config, tensors) = gptq();
    let checkpoint = Checkpoint::open(write(&config, &tensors).path()).unwrap();
    let config: Value = checkpoint.config().unwrap();
    let quantization = json!({ "bits": 4, "group_size": 32, "mode": "affine" });
    let mut expected = quantization.clone();
    expected["layer"] = quantization;
    assert_eq!(config, json!({ "model_type": "test", "quantization": expected }));
    assert_eq!(checkpoint.parameter_count(["layer.weight", "layer.scales", "layer.biases"]), 16 * 64);
}

#[test]
fn tensors_that_do_not_belong_together_are_refused_by_name() {
    let (config, tensors) = gptq();
    let with = |index: usize, tensor: Stored| {
        let mut tensors = tensors.clone();
        tensors[index] = tensor;
        error(&config, &tensors)
    };
    let order = |groups: &[u32]| {
        let order = foreign::words("layer.g_idx", &[groups.len()], groups.iter().copied());
        error(&config, &[&tensors[..], &[order]].concat())
    };
    let mut last = [0; 64];
    last[63] = 2;
    let mut negative = [0; 64];
    negative[1] = u32::MAX;
    for (error, needle) in [
        (with(0, words("other", &[1], 0)), "layer.other: unexpected"),
        (with(0, words("qweight", &[128], 0)), "layer: qweight has the shape [128], and two axes are needed"),
        (with(0, words("qweight", &[8, 12], 0)), "layer: qweight has 12 outputs and 64 inputs"),
        (with(0, words("qweight", &[0, 16], 0)), "layer: qweight has 16 outputs and 0 inputs"),
        (with(0, halves("qweight", &[8, 16], 0.0)), "layer: qweight is F16, and I32 is needed"),
        (
            with(0, words("qweight", &[4, 16], 0)),
            "layer: scales has the shape [2, 16], and [1, 16] is needed",
        ),
        (with(1, words("qzeros", &[2, 4], 0)), "layer: qzeros has the shape [2, 4], and [2, 2] is needed"),
        (with(1, halves("qzeros", &[2, 2], 0.0)), "layer: qzeros is F16"),
        (with(1, words("other", &[1], 0)), "layer: qzeros is missing, and the config does not say"),
        (with(2, words("other", &[1], 0)), "layer: scales is missing"),
        (with(2, words("scales", &[2, 16], 0)), "layer: scales is I32, and F16, BF16 or F32 is needed"),
        (
            with(2, halves("scales", &[3, 16], 0.0)),
            "layer: scales has the shape [3, 16], and [2, 16] is needed",
        ),
        (order(&[0; 63]), "layer: g_idx has the shape [63], and [64] is needed"),
        (order(&last), "layer: g_idx has 2 at 63, and the groups are 0 to 1"),
        (order(&negative), "layer: g_idx has -1 at 1, and the groups are 0 to 1"),
    ] {
        assert!(error.contains(needle), "{error}");
    }
    let reordered = json!({ "quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": true });
    let found = error(&reordered, &tensors);
    assert!(
        found.contains("layer: g_idx is missing, and the config says that inputs are reordered"),
        "{found}"
    );
    let error = error(&json!({ "quant_method": "gptq", "bits": 4, "group_size": 24 }), &tensors);
    assert!(error.contains("layer: scales has the shape [2, 16], and [3, 16] is needed"), "{error}");
}

/// All inputs of a layer are in its only group, whatever their order is.
#[test]
fn a_layer_of_one_group_needs_no_order() {
    let config = json!({ "quant_method": "gptq", "bits": 4, "group_size": -1, "desc_act": true });
    let tensors =
        [words("qweight", &[8, 16], 0), words("qzeros", &[1, 2], 0), halves("scales", &[1, 16], 1.0)];
    assert_eq!(layer(write(&config, &tensors).path(), 16, 64).unwrap().quantization(), affine(4, 64));
}

/// Rules for some layers that say the same of them, or that they are not quantized.
#[test]
fn rules_for_layers_may_agree_with_the_rest() {
    let (mut config, tensors) = gptq();
    config["dynamic"] = json!({ "+:layer": { "bits": 4, "group_size": 32 }, "-:.*head": {} });
    assert_eq!(layer(write(&config, &tensors).path(), 16, 64).unwrap().quantization(), affine(4, 32));
}

#[test]
fn floats_without_their_scales_are_refused_by_name() {
    let config = json!({ "quant_method": "fp8", "weight_block_size": [8, 8] });
    let with = |scales: Stored| error(&config, &[floats(&[16, 64]), scales]);
    for (error, needle) in [
        (error(&config, &[floats(&[16, 64])]), "layer: weight_scale_inv is missing"),
        (
            with(halves("weight_scale_inv", &[3, 8], 1.0)),
            "has the shape [3, 8], which does not fit a weight of [16, 64] in blocks",
        ),
        (with(halves("weight_scale_inv", &[0, 8], 1.0)), "has the shape [0, 8], which does not fit"),
        (with(halves("weight_scale_inv", &[1, 2, 8], 1.0)), "has the shape [1, 2, 8]"),
        (
            with(words("weight_scale_inv", &[2, 8], 1)),
            "weight_scale_inv is I32, and F32, F16, BF16 or F8_E8M0 is needed",
        ),
        (
            error(&json!({ "quant_method": "fbgemm_fp8" }), &[floats(&[4])]),
            "layer: weight has the shape [4], and two axes are needed",
        ),
        (
            error(&config, &[Stored { dtype: TensorDtype::F8_E5M2, ..floats(&[16, 64]) }]),
            "layer: weight is F8_E5M2, and FP8 is supported in F8_E4M3 only; take the model in bfloat16",
        ),
    ] {
        assert!(error.contains(needle), "{error}");
    }
}

/// A config of compressed-tensors with this format, and these bits for all layers.
fn groups(format: &str, bits: i32) -> Value {
    let group = json!({ "weights": { "num_bits": bits, "type": "int", "group_size": 32 } });
    json!({ "quant_method": "compressed-tensors", "format": format, "config_groups": { "group_0": group } })
}

#[test]
fn several_kinds_of_layers_and_methods_without_a_name_are_refused() {
    let mixed = |other: Value| {
        let mut config = groups("pack-quantized", 4);
        config["config_groups"]["group_1"] = json!({ "weights": other });
        config
    };
    let several = "compressed-tensors with several config_groups, whose weights are stored differently, is not supported";
    for (config, needle) in [
        (mixed(json!({ "num_bits": 8, "type": "int", "group_size": 32 })), several),
        (mixed(json!({ "num_bits": 4, "type": "int", "group_size": 64 })), several),
        (
            json!({ "quant_method": "gptq", "bits": 4, "group_size": 32, "dynamic": { "+:.*mlp": { "bits": 8 } } }),
            "for the layers \"+:.*mlp\" (dynamic) is not supported; take the model in bfloat16",
        ),
        (
            json!({ "quant_method": "gptq", "bits": 4, "dynamic": { "head": { "group_size": 32 } } }),
            "GPTQ with other bits or another group size for the layers \"head\"",
        ),
        (
            json!({ "quant_method": "gptq", "bits": 4, "is_marlin_format": true }),
            "GPTQ with is_marlin_format is not supported; take the model in bfloat16",
        ),
        (
            json!({ "load_in_4bit": true, "load_in_8bit": false }),
            "bitsandbytes (load_in_4bit) is not supported; take",
        ),
        (json!({ "load_in_8bit": true }), "bitsandbytes (load_in_8bit) is not supported; take"),
    ] {
        let error = error(&config, &[]);
        assert!(error.contains(needle), "{error}");
    }
}

#[test]
fn what_is_not_supported_is_refused_by_its_name() {
    for (config, needle) in [
        (
            json!({ "quant_method": "bitsandbytes", "load_in_4bit": true }),
            "quant_method \"bitsandbytes\" is not supported",
        ),
        (json!({ "quant_method": "hqq" }), "quant_method \"hqq\" is not supported; known are awq, gptq, fp8"),
        (
            json!({ "quant_method": "torchao" }),
            "take the model in bfloat16, which `mlx-models convert --quantize` makes small",
        ),
        (json!({ "quant_method": 4 }), "quant_method is 4, and a name is needed"),
        (json!({ "quant_method": "awq", "bits": 8 }), "AWQ of 8 bits is not supported, 4 bits are"),
        (
            json!({ "quant_method": "awq", "bits": 4, "version": "gemv" }),
            "AWQ of version \"gemv\" is not supported, only gemm is",
        ),
        (
            json!({ "quant_method": "gptq", "bits": 3 }),
            "GPTQ of 3 bits is not supported, 2, 4 and 8 bits are",
        ),
        (json!({ "quant_method": "gptq" }), "bits is missing"),
        (
            json!({ "quant_method": "gptq", "bits": 4, "group_size": 0 }),
            "group_size is 0, and a positive whole number or -1",
        ),
        (
            json!({ "quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin" }),
            "GPTQ of checkpoint_format \"marlin\" is not supported, only gptq and gptq_v2 are",
        ),
        (
            json!({ "quant_method": "fp8", "weight_block_size": [128] }),
            "weight_block_size is [128], and a list of two sizes is needed",
        ),
        (
            groups("nvfp4-pack-quantized", 4),
            "compressed-tensors of format \"nvfp4-pack-quantized\" is not supported",
        ),
        (groups("int-quantized", 8), "compressed-tensors of format \"int-quantized\" is not supported"),
        (groups("pack-quantized", 3), "compressed-tensors of 3 bits is not supported"),
        (
            json!({ "quant_method": "compressed-tensors", "format": "pack-quantized" }),
            "without config_groups",
        ),
    ] {
        let error = error(&config, &[]);
        assert!(error.contains(needle), "{error}");
        assert!(error.starts_with("config.json: quantization of every layer: "), "{error}");
    }
}
