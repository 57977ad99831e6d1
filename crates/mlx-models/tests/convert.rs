//! `convert` writes the same tensors as mlx-lm, bit for bit.
#![cfg(feature = "architectures")]
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use mlx_models::{
    Checkpoint, CheckpointError, ConvertError, ConvertOptions, FloatDtype, LayerChoice, LoadError,
    Quantization, QuantizeOptions, Recipe, Weights, convert, load,
};
use mlx_rs::{Array, Dtype};
use mlx_testing::with_cpu;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

const FIXTURE: &str = include_str!("fixtures/converted.json");

fn checkpoint(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../xtask/cases").join(name)
}

fn go_on(_: mlx_models::Progress<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// A copy of any size would fill the disk.
#[test]
fn a_companion_that_is_too_large_is_named() {
    let (folder, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for name in ["config.json", "model.safetensors"] {
        fs::copy(checkpoint("hf_qwen3_layer_types_yarn").join(name), folder.path().join(name)).unwrap();
    }
    let file = fs::File::create(folder.path().join("vocab.txt")).unwrap();
    file.set_len((512 << 20) + 1).unwrap();
    let out = scratch.path().join("out");
    let error = convert(folder.path(), None, &out, &ConvertOptions::default(), go_on).unwrap_err();
    let text = mlx_testing::checkpoints::whole_message(&error);
    assert!(
        text.contains("vocab.txt: it has 536870913 bytes or more, and may have at most 536870912"),
        "{text}"
    );
    assert!(!out.exists());
}

/// The options of a case, under the names of mlx-lm's function.
fn options(given: &Map<String, Value>) -> ConvertOptions {
    let text = |key| given.get(key).and_then(Value::as_str);
    let number = |key| given.get(key).and_then(Value::as_i64);
    let is_set = |key| given.get(key) == Some(&Value::Bool(true));
    let dtype = text("dtype").map(|name| FloatDtype::ALL.into_iter().find(|d| d.name() == name).unwrap());
    let mut options = ConvertOptions { dtype, ..ConvertOptions::default() };
    if let Some(largest) = number("largest_shard") {
        options.largest_shard = largest as u64;
    }
    if is_set("dequantize") {
        options.weights = Weights::Dequantized;
    }
    if is_set("quantize") {
        let quantization = match text("q_mode").unwrap() {
            "mxfp4" => Quantization::MXFP4,
            "mxfp8" => Quantization::MXFP8,
            "nvfp4" => Quantization::NVFP4,
            _ => {
                let [bits, group_size] = [("q_bits", 4), ("q_group_size", 64)]
                    .map(|(key, default)| number(key).unwrap_or(default) as i32);
                Quantization::affine(bits, group_size).unwrap()
            }
        };
        let recipe =
            text("quant_predicate").map(|name| Recipe::ALL.into_iter().find(|r| r.name() == name).unwrap());
        let layers = given.get("layers").and_then(Value::as_object).into_iter().flatten();
        let layers = layers.map(|(pattern, how)| LayerChoice {
            pattern: pattern.clone(),
            quantization: match how.as_str().unwrap() {
                "none" => None,
                "mxfp8" => Some(Quantization::MXFP8),
                sizes => {
                    let (bits, group_size) = sizes.split_once(':').unwrap();
                    Some(Quantization::affine(bits.parse().unwrap(), group_size.parse().unwrap()).unwrap())
                }
            },
        });
        options.weights =
            Weights::Quantized(QuantizeOptions { quantization, recipe, layers: layers.collect() });
    }
    options
}

/// The tensors in the form of the fixture, and their files.
fn describe(folder: &Path) -> (BTreeMap<String, String>, BTreeMap<String, Vec<String>>) {
    let (mut tensors, mut files) = (BTreeMap::new(), BTreeMap::new());
    for file in Checkpoint::open(folder).unwrap().files() {
        let (held, metadata) = Array::load_safetensors_with_metadata(file).unwrap();
        assert_eq!(metadata["format"], "mlx");
        let mut keys: Vec<String> = held.keys().cloned().collect();
        keys.sort();
        files.insert(file.file_name().unwrap().to_str().unwrap().to_owned(), keys);
        for (key, array) in held {
            let bytes = array.reshape(&[-1]).unwrap().view_dtype(Dtype::Uint8).unwrap();
            let digest = Sha256::digest(bytes.as_slice::<u8>());
            let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            let shape: Vec<String> = array.shape().iter().map(ToString::to_string).collect();
            let dtype = format!("{:?}", array.dtype()).to_lowercase();
            tensors.insert(key, format!("{dtype} {} {}", shape.join("x"), &digest[..12]));
        }
    }
    (tensors, files)
}

#[test]
fn converted_folders_are_those_of_mlx_lm() {
    with_cpu("the bits are compared with those of mlx-lm on the CPU", || {
        mlx_testing::stock_mlx();
        let fixture: Value = serde_json::from_str(FIXTURE).unwrap();
        let cases = fixture["cases"].as_array().unwrap();
        assert!(cases.len() > 80);
        let same_machine = cfg!(all(target_os = "linux", target_arch = "x86_64"));
        // Left there for mlx-lm to read: `cargo xtask fixtures --verify-ours`.
        let left = Path::new(env!("CARGO_TARGET_TMPDIR")).join("converted");
        let _ = fs::remove_dir_all(&left);
        let scratch = tempfile::tempdir().unwrap();
        for case in cases {
            let name = case["name"].as_str().unwrap();
            let given = case["options"].as_object().unwrap();
            let mut folder = checkpoint(case["checkpoint"].as_str().unwrap());
            let adapters = given.get("adapters").map(|adapters| folder.join(adapters.as_str().unwrap()));
            if given.contains_key("dequantize_first") {
                let options = ConvertOptions { weights: Weights::Dequantized, ..ConvertOptions::default() };
                let dequantized = scratch.path().join(format!("{name}-dequantized"));
                convert(&folder, None, &dequantized, &options, go_on).unwrap();
                folder = dequantized;
            }
            let out = left.join(name);
            let converted = convert(&folder, adapters.as_deref(), &out, &options(given), go_on)
                .unwrap_or_else(|e| panic!("{name}: {e}"));

            let (tensors, files) = describe(&out);
            let expected: BTreeMap<String, String> = serde_json::from_value(case["tensors"].clone()).unwrap();
            for (key, expected) in &expected {
                let found = &tensors.get(key).unwrap_or_else(|| panic!("{name}: no {key}"))[..];
                // Elsewhere last bits may differ, so dtype and shape alone are compared.
                let compared = |text: &str| {
                    if same_machine { text.len() } else { text.rfind(' ').unwrap_or(text.len()) }
                };
                assert_eq!(found[..compared(found)], expected[..compared(expected)], "{name}: {key}");
            }
            assert_eq!(tensors.len(), expected.len(), "{name}: {tensors:?}");
            match case.get("files") {
                None => assert_eq!(converted.files, ["model.safetensors"], "{name}"),
                Some(expected) => assert_eq!(&serde_json::to_value(&files).unwrap(), expected, "{name}"),
            }
            let json = |file: &str| -> Value {
                serde_json::from_str(&fs::read_to_string(out.join(file)).unwrap()).unwrap()
            };
            assert_eq!(json("config.json"), case["config"], "{name}");
            let index = json("model.safetensors.index.json");
            assert_eq!(index["metadata"], case["metadata"], "{name}");
            assert_eq!(index["weight_map"].as_object().unwrap().len(), tensors.len(), "{name}");
            assert_eq!(case["metadata"]["total_size"], converted.bytes, "{name}");
            load(&out).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
    });
}

#[test]
fn the_tokenizer_comes_along_and_the_generation_config_counts() {
    let folder = tempfile::tempdir().unwrap();
    let source = checkpoint("gemma3_bf16_whole");
    for name in ["config.json", "model.safetensors"] {
        fs::copy(source.join(name), folder.path().join(name)).unwrap();
    }
    for name in
        ["tokenizer.json", "tokenizer.model", "chat_template.jinja", "pytorch_model.bin", "other.index.json"]
    {
        fs::write(folder.path().join(name), "{}").unwrap();
    }
    fs::write(folder.path().join("generation_config.json"), r#"{"eos_token_id": [1, 7]}"#).unwrap();
    let out = folder.path().join("out");
    fs::create_dir(&out).unwrap();
    let converted = convert(folder.path(), None, &out, &ConvertOptions::default(), go_on).unwrap();
    assert_eq!((converted.quantized.len(), converted.full_precision.len()), (0, 29));
    assert_eq!(converted.bits_per_weight(), 16.0);
    let mut names: Vec<_> =
        fs::read_dir(&out).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let expected = [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer.model",
    ];
    assert_eq!(names, expected);
    let config: Value = serde_json::from_str(&fs::read_to_string(out.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["eos_token_id"], serde_json::json!([1, 7]));
}

#[test]
fn a_failed_conversion_leaves_no_files() {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("out");
    let quantize =
        |quantization| Weights::Quantized(QuantizeOptions { quantization, recipe: None, layers: Vec::new() });
    let refused = |name: &str, weights: Weights| {
        let options = ConvertOptions { weights, ..ConvertOptions::default() };
        match convert(checkpoint(name), None, &out, &options, go_on).unwrap_err() {
            LoadError::Checkpoint(CheckpointError::Convert(error)) => error,
            other => panic!("{other:?}"),
        }
    };
    let error = refused("phi3_q4_whole", quantize(Quantization::MXFP4));
    assert!(matches!(error, ConvertError::Quantized { .. }), "{error}");
    let error = refused("phi3_bf16_whole", Weights::Dequantized);
    assert_eq!(error, ConvertError::NotQuantized);
    let error = refused("phi3_bf16_whole", quantize(Quantization::affine(4, 128).unwrap()));
    assert!(matches!(error, ConvertError::FitsNoLayer { .. }), "{error}");

    let options = ConvertOptions::default();
    let source = checkpoint("phi3_bf16_whole");
    let mut layers = 0;
    let stop = |_: mlx_models::Progress<'_>| {
        layers += 1;
        if layers == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let error = convert(&source, None, &out, &options, stop).unwrap_err();
    assert!(matches!(error, LoadError::Checkpoint(CheckpointError::Stopped)), "{error:?}");
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);

    convert(&source, None, &out, &options, go_on).unwrap();
    let error = convert(&source, None, &out, &options, go_on).unwrap_err();
    assert!(matches!(error, LoadError::Checkpoint(CheckpointError::Exists { .. })), "{error:?}");
}

#[test]
fn names_of_transformers_modules_become_those_that_mlx_lm_knows() {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("out");
    let quantization = Quantization::affine(4, 32).unwrap();
    let weights = Weights::Quantized(QuantizeOptions { quantization, recipe: None, layers: Vec::new() });
    let options = ConvertOptions { weights, ..ConvertOptions::default() };
    let before = checkpoint("hf_gemma3_multimodal_inner_keys");
    assert!(
        Checkpoint::open(&before)
            .unwrap()
            .headers()
            .keys()
            .any(|key| key.starts_with("model.language_model."))
    );
    convert(&before, None, &out, &options, go_on).unwrap();
    let converted = Checkpoint::open(&out).unwrap();
    assert!(converted.headers().keys().all(|key| key.starts_with("language_model.")));
    load(&out).unwrap();
}
