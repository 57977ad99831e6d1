//! GGUF files as models: their configs, weights and logits are those of the checkpoints that llama.cpp converts.
#![cfg(feature = "architectures")]
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use approx::relative_eq;
use mlx_models::{CacheOptions, CausalLm, Checkpoint, ConvertOptions, FloatDtype, Logits, convert, load};
use mlx_rs::{Array, Dtype};
use mlx_testing::checkpoints::whole_message;
use mlx_testing::with_cpu;
use serde_json::Value;

/// The tokens of the fixtures, as in `make_gguf_model_fixtures.py`.
const TOKENS: [u32; 8] = [1, 17, 5, 30, 2, 2, 9, 23];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf")
}

/// The names of the fixtures.
fn names() -> Vec<String> {
    let entries = fs::read_dir(fixtures()).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.filter(|path| path.extension().is_some_and(|extension| extension == "gguf"));
    let mut names: Vec<String> =
        files.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect();
    names.sort();
    assert!(names.len() >= 14, "{names:?}");
    names
}

fn file(name: &str) -> PathBuf {
    fixtures().join(format!("{name}.gguf"))
}

/// The numbers of a tensor, as in `make_gguf_model_fixtures.py`.
fn weight(key: &str, elements: usize) -> Vec<f32> {
    let hash =
        key.bytes().fold(0x811C_9DC5_u32, |state, byte| (state ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let number = |index: u32| {
        let mixed = index.wrapping_mul(7919).wrapping_add(hash).wrapping_mul(2_654_435_761) >> 16;
        match key.contains("norm") {
            true => 0.5 + (mixed % 64) as f32 / 128.0,
            false => ((mixed % 255) as f32 - 127.0) / 256.0,
        }
    };
    (0..elements as u32).map(number).collect()
}

/// Whether a value of a config says the same as the expected one. Numbers of files are float32. A config may say more.
fn same(found: Option<&Value>, expected: &Value) -> bool {
    match (found, expected) {
        (None | Some(Value::Null), Value::Null) => true,
        // What configs leave out is off.
        (None, Value::Bool(false)) => true,
        (Some(found), Value::Number(expected)) => {
            let number = |value: Option<f64>| value.unwrap_or(f64::NAN);
            relative_eq!(number(found.as_f64()), number(expected.as_f64()), max_relative = 1e-7)
        }
        (Some(Value::Object(found)), Value::Object(expected)) => {
            expected.iter().all(|(key, value)| same(found.get(key), value))
        }
        (Some(Value::Array(found)), Value::Array(expected)) => {
            let pairs = || found.iter().zip(expected);
            found.len() == expected.len() && pairs().all(|(found, expected)| same(Some(found), expected))
        }
        (found, expected) => found == Some(expected),
    }
}

#[test]
fn a_file_has_the_config_of_the_checkpoint() {
    for name in names() {
        let text = fs::read_to_string(fixtures().join(format!("{name}.json"))).unwrap();
        let mut expected: serde_json::Map<String, Value> = serde_json::from_str(&text).unwrap();
        if name == "gemma2" {
            // The layers follow from the architecture.
            expected.insert(
                "layer_types".into(),
                serde_json::json!(["sliding_attention", "full_attention", "sliding_attention"]),
            );
        }
        let found: Value = Checkpoint::open(file(&name)).unwrap().config().unwrap();
        for (key, expected) in &expected {
            assert!(
                same(found.get(key), expected),
                "{name}: {key} is {:?}, {expected} is needed",
                found.get(key)
            );
        }
    }
}

fn go_on(_: mlx_models::Progress<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn logits(model: &mut dyn CausalLm) -> Vec<f32> {
    let tokens = Array::from_slice(&TOKENS, &[1, TOKENS.len() as i32]);
    let mut cache = model.new_cache(&CacheOptions::default()).unwrap();
    let logits = model.forward(&tokens, &mut cache, Logits::All).unwrap();
    logits.as_dtype(Dtype::Float32).unwrap().reshape(&[-1]).unwrap().as_slice::<f32>().to_vec()
}

/// llama.cpp computed them with float32 weights.
#[test]
fn weights_are_those_of_the_checkpoint_and_logits_those_of_llama_cpp() {
    with_cpu("llama.cpp computed on the CPU", || {
        for name in names() {
            let scratch = tempfile::tempdir().unwrap();
            let out = scratch.path().join("out");
            let options = ConvertOptions { dtype: Some(FloatDtype::Float32), ..ConvertOptions::default() };
            convert(file(&name), None, &out, &options, go_on).unwrap();
            let tensors = Array::load_safetensors(out.join("model.safetensors")).unwrap();
            for (key, tensor) in &tensors {
                assert_eq!(tensor.dtype(), Dtype::Float32);
                assert_eq!(tensor.as_slice::<f32>(), weight(key, tensor.size()), "{name}: {key}");
            }
            let found = logits(&mut *load(&out).unwrap());
            let expected = fs::read(fixtures().join(format!("{name}.f32"))).unwrap();
            let expected = expected.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes));
            assert_eq!(found.len(), expected.len());
            for (index, (found, expected)) in found.into_iter().zip(expected).enumerate() {
                // llama.cpp looks up Gemma's GELU in a table of float16 numbers.
                let epsilon = if name.starts_with("gemma") { 5e-3 } else { 1e-5 };
                let is_near = relative_eq!(found, expected, epsilon = epsilon, max_relative = epsilon);
                assert!(is_near, "{name}: logit {index} is {found}, {expected} is needed");
            }
        }
    });
}

/// A file whose matrices are all float32 is a float32 model; others are bfloat16.
#[test]
fn a_loaded_model_has_the_weights_too() {
    with_cpu("llama.cpp computed on the CPU", || {
        for name in names() {
            let model = load(file(&name)).unwrap();
            let dtype = if name == "llama_bias" { Dtype::Float32 } else { Dtype::Bfloat16 };
            let parameters: BTreeMap<_, _> = model.parameters().flatten().into_iter().collect();
            for (key, array) in parameters {
                assert_eq!(array.dtype(), dtype, "{name}: {key}");
                let found = array.as_dtype(Dtype::Float32).unwrap();
                assert_eq!(found.as_slice::<f32>(), weight(&key, found.size()), "{name}: {key}");
            }
        }
    });
}

/// The files differ from a fixture in one number each: bytes after a key and the number of its type.
#[test]
fn errors_name_the_file_and_what_it_calls_its_tensors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v.gguf");
    let error_with = |key: &str, number: [u8; 4]| {
        let mut bytes = fs::read(file("llama")).unwrap();
        let place = bytes.windows(key.len()).position(|part| part == key.as_bytes()).unwrap() + key.len() + 4;
        bytes[place..place + 4].copy_from_slice(&number);
        fs::write(&path, bytes).unwrap();
        whole_message(&load(&path).err().unwrap())
    };
    let text = error_with("llama.attention.layer_norm_rms_epsilon", 0_f32.to_le_bytes());
    let expected = "v.gguf: the config of llama that its metadata gives: rms_norm_eps is 0.0, and must be";
    assert!(text.contains(expected), "{text}");
    let text = error_with("llama.block_count", 3_u32.to_le_bytes());
    assert!(text.contains("v.gguf are not those of the model that its metadata describes:"), "{text}");
    let expected = "\n  blk.2.attn_q.weight, which is model.layers.2.self_attn.q_proj.weight: missing";
    assert!(text.contains(expected), "{text}");
}
