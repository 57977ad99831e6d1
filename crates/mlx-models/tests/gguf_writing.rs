//! GGUF files that are written say of a model what the files of llama.cpp's converter say.
#![cfg(feature = "architectures")]
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use approx::assert_relative_eq;
use mlx_gguf::{Gguf, TensorType};
use mlx_models::{
    Architectures, Checkpoint, FileKind, GgufLayers, GgufOptions, LoadOptions, WrittenGguf, load,
};
use mlx_rs::module::ModuleParameters;
use mlx_testing::with_cpu;

fn fixtures() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf");
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files: Vec<_> = files.filter(|path| path.extension().is_some_and(|of| of == "gguf")).collect();
    assert!(files.len() >= 14, "{files:?}");
    files
}

/// Writes the model of a file again, without its tokenizer.
fn write(from: &Path, out: &Path, kind: FileKind) -> Result<WrittenGguf, String> {
    let architectures = Architectures::default();
    let checkpoint = Checkpoint::open_with(from, GgufLayers::Dequantized).unwrap();
    let lazily = LoadOptions { lazy: true, ..LoadOptions::default() };
    let model = architectures.load_checkpoint(&checkpoint, &lazily).unwrap();
    let parameters = model.parameters().flatten();
    let parameters = parameters.into_iter().map(|(key, array)| (key.to_string(), array.clone())).collect();
    let is_same = |meant: Checkpoint| {
        let meant = architectures.load_checkpoint(&meant, &lazily);
        meant.is_ok_and(|meant| meant.info().config_digest == model.info().config_digest)
    };
    let options = GgufOptions { kind, name: None, tokenizer: Vec::new() };
    let written = checkpoint.write_gguf(out, parameters, &options, is_same, |_| ControlFlow::Continue(()));
    written.map_err(|e| e.to_string())
}

/// Entries of llama.cpp's converter that say what llama.cpp takes anyway, or what the shapes say.
const NEEDLESS: &[&str] = &["vocab_size", "rope.dimension_count", "attention.sliding_window_pattern"];

#[test]
fn a_file_of_llama_cpp_is_written_again() {
    with_cpu("files are compared byte by byte", || {
        let folder = tempfile::tempdir().unwrap();
        for from in fixtures() {
            let name = from.file_stem().unwrap().to_str().unwrap();
            let out = folder.path().join(format!("{name}.gguf"));
            write(&from, &out, FileKind::BF16).unwrap_or_else(|e| panic!("{name}: {e}"));
            let (expected, found) = (Gguf::open(&from).unwrap(), Gguf::open(&out).unwrap());
            load(&out).unwrap();
            // The language model of Mistral 3 is a Llama, and is written as one.
            if name == "mistral3" {
                continue;
            }
            let config = found.model().unwrap().config;
            for (key, value) in with_dtype(&expected).as_object().unwrap() {
                assert_eq!(config.get(key), Some(value), "{name}: {key}");
            }
            let architecture = expected.metadata().text("general.architecture").unwrap().unwrap();
            for (key, value) in expected.metadata().iter() {
                let of_architecture = key.strip_prefix(architecture).and_then(|key| key.strip_prefix('.'));
                match found.metadata().get(key) {
                    Some(found) if of_architecture.is_some() => assert_eq!(found, value, "{name}: {key}"),
                    None => assert!(
                        of_architecture.is_none_or(|key| NEEDLESS.contains(&key)),
                        "{name}: {key} is missing"
                    ),
                    _ => {}
                }
            }
            for tensor in expected.tensors() {
                let written = found.tensor(&tensor.info.name);
                let written = written.unwrap_or_else(|| panic!("{name}: {} is missing", tensor.info.name));
                assert_eq!(written.info.shape, tensor.info.shape, "{name}: {}", tensor.info.name);
                let kind = if tensor.info.shape.len() > 1 { TensorType::BF16 } else { TensorType::F32 };
                assert_eq!(written.info.kind, kind, "{name}: {}", tensor.info.name);
                let (written, expected) =
                    (found.numbers(written).unwrap(), expected.numbers(tensor).unwrap());
                // The converter computes factors of rotations in float32.
                let error = if tensor.info.name.starts_with("rope_") { 1e-6 } else { 0.0 };
                assert_relative_eq!(&written[..], &expected[..], epsilon = 0.0, max_relative = error);
            }
            assert_eq!(found.tensors().count(), expected.tensors().count(), "{name}");
        }
    });
}

/// The config of a file, in the dtype of one with BF16 matrices.
fn with_dtype(file: &Gguf) -> serde_json::Value {
    let mut config = file.model().unwrap().config;
    config["torch_dtype"] = "bfloat16".into();
    config
}

#[test]
fn rows_without_whole_blocks_get_other_types_and_the_head_more_bits() {
    with_cpu("files are compared byte by byte", || {
        let folder = tempfile::tempdir().unwrap();
        let from = fixtures().into_iter().find(|path| path.ends_with("llama.gguf")).unwrap();
        for kind in [FileKind::F16, FileKind::Q8_0, FileKind::Q4_0, FileKind::Q4_K_M] {
            let out = folder.path().join(kind.name());
            let written = write(&from, &out, kind).unwrap();
            let types: Vec<TensorType> = written.types.iter().map(|(kind, _)| *kind).collect();
            // Rows of these tensors are shorter than 256.
            assert!(!types.contains(&TensorType::Q4_K) && !types.contains(&TensorType::Q6_K), "{types:?}");
            assert!(types.contains(&TensorType::F32), "{types:?}");
            let tensors = Gguf::open(&out).unwrap();
            assert_eq!(tensors.metadata().integer("general.file_type").unwrap(), Some(kind.number().into()));
            load(&out).unwrap();
        }
        let error = write(&from, &folder.path().join("F16"), FileKind::F16).unwrap_err();
        assert!(error.ends_with("exists already; name a file that does not"), "{error}");
    });
}
