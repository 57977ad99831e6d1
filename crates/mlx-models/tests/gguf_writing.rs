//! GGUF files that are written say of a model what the files of llama.cpp's converter say.
#![cfg(feature = "architectures")]
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use approx::{assert_abs_diff_eq, assert_relative_eq};
use mlx_gguf::{Gguf, NewTensor, TensorType, Value, Writer};
use mlx_models::{
    Architectures, CacheOptions, Checkpoint, FileKind, GgufLayers, GgufOptions, LoadOptions, Logits,
    WrittenGguf, load,
};
use mlx_quantization::QuantizedView;
use mlx_rs::module::ModuleParameters;
use mlx_rs::{Array, Dtype};
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

/// The logits of a few tokens.
fn logits(checkpoint: &Checkpoint) -> Vec<f32> {
    let architectures = Architectures::default();
    let mut model = architectures.load_checkpoint(checkpoint, &LoadOptions::default()).unwrap();
    let mut cache = model.new_cache(&CacheOptions::default()).unwrap();
    let tokens = Array::from_slice(&[1_u32, 17, 5, 30, 2, 9], &[1, 6]);
    let logits = model.forward(&tokens, &mut cache, Logits::All).unwrap();
    logits.as_dtype(Dtype::Float32).unwrap().reshape(&[-1]).unwrap().as_slice::<f32>().to_vec()
}

/// The bits of all parameters in bfloat16. Layers in blocks are dequantized.
fn weights(checkpoint: &Checkpoint) -> BTreeMap<String, Vec<f32>> {
    let model = Architectures::default().load_checkpoint(checkpoint, &LoadOptions::default()).unwrap();
    let parameters = model.parameters().flatten();
    let whole = |key: &str, array: &Array| {
        let layer = key.strip_suffix(".weight").unwrap_or(key);
        let Some(quantization) = checkpoint.quantization_of(layer) else { return array.clone() };
        let scales = parameters[&*format!("{layer}.scales")];
        let view = QuantizedView { packed: array, scales, biases: None, quantization };
        mlx_quantization::dequantize(view).unwrap()
    };
    let numbers = |(key, array): (&Rc<str>, &&Array)| {
        let array = whole(key, array);
        assert_eq!(array.dtype(), Dtype::Bfloat16, "{key}");
        (key.to_string(), array.as_dtype(Dtype::Float32).unwrap().as_slice::<f32>().to_vec())
    };
    parameters.iter().filter(|(key, _)| !key.ends_with(".scales")).map(numbers).collect()
}

/// Writes a Llama of one layer, 256 features and matrices of this type. Queries, keys and values are one tensor, or three.
fn write_llama(path: &Path, kind: TensorType, is_one: bool) {
    let text = |value: &str| Value::Text(value.to_owned());
    let size = |(key, size): (&str, i128)| (format!("llama.{key}"), Value::Integer(size));
    let sizes = [
        ("block_count", 1),
        ("context_length", 128),
        ("embedding_length", 256),
        ("feed_forward_length", 512),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
    ];
    let mut metadata = vec![("general.architecture".to_owned(), text("llama"))];
    metadata.extend(sizes.map(size));
    metadata.push(("llama.attention.layer_norm_rms_epsilon".to_owned(), Value::Float(1e-6)));
    let projections: &[(&str, usize)] = match is_one {
        true => &[("blk.0.attn_qkv.weight", 512)],
        false => &[("blk.0.attn_q.weight", 256), ("blk.0.attn_k.weight", 128), ("blk.0.attn_v.weight", 128)],
    };
    let rows =
        [("blk.0.attn_output.weight", 256), ("blk.0.ffn_gate.weight", 512), ("blk.0.ffn_up.weight", 512)];
    let matrices = projections.iter().copied().chain(rows).chain([("token_embd.weight", 40)]);
    let mut tensors: Vec<_> = matrices.map(|(name, rows)| (name, kind, vec![rows, 256])).collect();
    tensors.push(("blk.0.ffn_down.weight", kind, vec![256, 512]));
    let norms = ["blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight"];
    tensors.extend(norms.map(|name| (name, TensorType::F32, vec![256])));
    let new = |(name, kind, shape): &(&str, TensorType, Vec<usize>)| NewTensor {
        name: (*name).to_owned(),
        kind: *kind,
        shape: shape.clone(),
    };
    let mut writer = Writer::create(path, &metadata, tensors.iter().map(new).collect()).unwrap();
    let mut state = 1_u32;
    for (_, _, shape) in &tensors {
        let next = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) as f32 / 32768.0 - 1.0
        };
        writer.append(&(0..shape.iter().product()).map(next).collect::<Vec<f32>>()).unwrap();
    }
    writer.finish().unwrap();
}

#[test]
fn layers_in_the_blocks_of_a_file_have_its_numbers_in_the_order_of_the_checkpoint() {
    if !mlx_sys::cpu_kernels::is_enabled() {
        return; // layers do not stay in blocks
    }
    with_cpu("the kernels compute on the CPU", || {
        use TensorType::{Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0};
        let folder = tempfile::tempdir().unwrap();
        let (three, one) = (folder.path().join("three"), folder.path().join("one"));
        for kind in [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K] {
            for (path, is_one) in [(&three, false), (&one, true)] {
                write_llama(path, kind, is_one);
                let open = |layers| Checkpoint::open_with(path, layers).unwrap();
                let kept = open(GgufLayers::Kept);
                for part in ["q", "k", "v"] {
                    let layer = format!("model.layers.0.self_attn.{part}_proj");
                    let quantization = kept.quantization_of(&layer).unwrap();
                    assert_eq!(quantization.mode().name(), kind.to_string());
                }
                assert!(weights(&kept) == weights(&open(GgufLayers::Dequantized)), "{kind} {path:?}");
            }
            let all = |path| weights(&Checkpoint::open_with(path, GgufLayers::Kept).unwrap());
            assert!(all(&one) == all(&three), "{kind}");
        }
    });
}

#[test]
fn layers_in_the_blocks_of_a_file_compute_with_its_numbers() {
    with_cpu("the kernels compute on the CPU", || {
        let folder = tempfile::tempdir().unwrap();
        let mut some_have = false;
        for from in fixtures() {
            let name = from.file_stem().unwrap().to_str().unwrap();
            for kind in [FileKind::Q8_0, FileKind::Q4_0, FileKind::Q4_K_M] {
                let out = folder.path().join(format!("{name}-{}", kind.name()));
                let types = write(&from, &out, kind).unwrap().types;
                let has_blocks = types.iter().any(|(kind, _)| kind.block_elements() > 1);
                some_have |= has_blocks;
                let kept = Checkpoint::open_with(&out, GgufLayers::Kept).unwrap();
                let in_blocks = |checkpoint: &Checkpoint| {
                    let layers = checkpoint.headers().keys().filter_map(|key| key.strip_suffix(".scales"));
                    let mut layers = layers.filter_map(|layer| checkpoint.quantization_of(layer));
                    layers.any(|of| of.mode().name().starts_with('Q')) // as block formats are named
                };
                let expected = has_blocks && mlx_sys::cpu_kernels::is_enabled();
                assert_eq!(in_blocks(&kept), expected, "{name} {kind:?}");
                // The same numbers in a format of MLX. Both round to bfloat16, in other places.
                let affine = Checkpoint::open_with(&out, GgufLayers::Mlx).unwrap();
                let (of_blocks, of_affine) = (logits(&kept), logits(&affine));
                let largest = of_affine.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
                assert_abs_diff_eq!(&of_blocks[..], &of_affine[..], epsilon = 0.1 * largest);
                if expected {
                    let whole = Checkpoint::open_with(&out, GgufLayers::Dequantized).unwrap();
                    assert!(weights(&kept) == weights(&whole), "{name} {kind:?}");
                }
            }
        }
        assert!(some_have);
    });
}
