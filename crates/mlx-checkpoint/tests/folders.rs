//! Checkpoint folders, good and bad.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;
use std::sync::Arc;

use mlx_checkpoint::{Checkpoint, CheckpointError, TensorDtype, TensorInfo, TensorProblem, TensorSource};
use mlx_gguf::{NewTensor, TensorType, Value, Writer};
use mlx_layers::{Linear, ParameterSource, Parameters, Quantization};
use mlx_rs::module::Module;
use mlx_rs::{Array, Dtype};
use mlx_testing::checkpoints::whole_message;
use tempfile::TempDir;

fn ones(shape: &[i32]) -> Array {
    Array::ones::<f32>(shape).unwrap()
}

fn folder(config: &str, files: &[(&str, &[(&str, Array)])]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), config).unwrap();
    for (name, tensors) in files {
        let tensors: HashMap<_, _> = tensors.iter().map(|(key, array)| ((*key).to_owned(), array)).collect();
        Array::save_safetensors(tensors, None, folder.path().join(name)).unwrap();
    }
    folder
}

const PLAIN: &str = r#"{"model_type": "test"}"#;

fn open_error(folder: &Path) -> CheckpointError {
    Checkpoint::open(folder).unwrap_err()
}

#[test]
fn one_file_is_read() {
    let folder =
        folder(PLAIN, &[("model.safetensors", &[("a.weight", ones(&[4, 8])), ("b.weight", ones(&[8]))])]);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.model_type(), "test");
    assert_eq!(checkpoint.parameter_count(["a.weight", "b.weight"]), 40);
    assert_eq!(checkpoint.size_on_disk().unwrap(), fs::metadata(&checkpoint.files()[0]).unwrap().len());
    assert_eq!(checkpoint.headers()["a.weight"].shape, [4, 8]);
    let mut tensors = checkpoint.tensors().unwrap();
    assert_eq!(tensors.parameter("a.weight", &[4, 8]).shape(), [4, 8]);
    assert_eq!(tensors.parameter("b.weight", &[8]).shape(), [8]);
    tensors.finish(|_| false).unwrap();
}

#[test]
fn shards_are_read_with_and_without_an_index() {
    let shards: &[(&str, &[(&str, Array)])] = &[
        ("model-00001-of-00002.safetensors", &[("a", ones(&[2]))]),
        ("model-00002-of-00002.safetensors", &[("b", ones(&[3]))]),
        ("adapters.safetensors", &[("c", ones(&[3]))]),
    ];
    let folder = folder(PLAIN, shards);
    let keys = || Checkpoint::open(folder.path()).unwrap().headers().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(), ["a", "b"]);

    let index = r#"{"weight_map": {"a": "model-00001-of-00002.safetensors"}}"#;
    fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    assert_eq!(keys(), ["a"]);
}

#[test]
fn no_folder() {
    let error = open_error(Path::new("/no/such/folder"));
    assert!(matches!(error, CheckpointError::NoFolder { .. }));
    assert!(error.to_string().contains("/no/such/folder is not a folder"));
}

#[test]
fn no_config() {
    let error = open_error(tempfile::tempdir().unwrap().path());
    assert!(matches!(error, CheckpointError::NoConfig { .. }));
    assert!(error.to_string().contains("config.json"));
}

#[test]
fn broken_json() {
    for config in ["", "{", "{\"model_type\": \"x\",}"] {
        let error = open_error(folder(config, &[]).path());
        assert!(matches!(error, CheckpointError::Json { .. }), "{config}");
        assert!(error.to_string().contains("config.json"));
    }
}

/// Python writes and reads numbers that are not JSON (`NaN`, `Infinity`). No number of a model is one of them.
#[test]
fn nan_and_infinity_are_not_json() {
    for number in ["NaN", "Infinity", "-Infinity", "1e999"] {
        let config = format!("{{\n  \"model_type\": \"x\",\n  \"rope_theta\": {number}\n}}");
        let CheckpointError::Json { file, source } = open_error(folder(&config, &[]).path()) else {
            panic!("{number}")
        };
        assert!(file.ends_with("config.json") && source.line() == 3, "{number}: {source}");
    }
}

#[test]
fn a_config_that_is_not_text() {
    let folder = folder(PLAIN, &[]);
    fs::write(folder.path().join("config.json"), [0xff, 0xfe]).unwrap();
    assert!(matches!(open_error(folder.path()), CheckpointError::Io { .. }));
}

#[test]
fn no_model_type() {
    for config in ["{}", "[]", r#"{"model_type": 3}"#] {
        let error = open_error(folder(config, &[]).path());
        assert!(matches!(error, CheckpointError::NoModelType { .. }), "{config}");
    }
}

#[test]
fn a_quantization_that_is_not_supported() {
    let error = open_error(folder(r#"{"model_type": "x", "quantization": {"bits": 4}}"#, &[]).path());
    assert!(matches!(error, CheckpointError::Quantization { .. }));
}

#[test]
fn no_tensors() {
    let error = open_error(folder(PLAIN, &[]).path());
    assert!(matches!(error, CheckpointError::NoTensors { .. }));
    assert!(error.to_string().contains("model.safetensors"));
}

#[test]
fn an_index_without_a_weight_map() {
    for index in [
        "{}",
        r#"{"weight_map": {}}"#,
        r#"{"weight_map": {"a": 3}}"#,
        r#"{"weight_map": {"a": "a.bin"}}"#,
        r#"{"weight_map": {"a": "../model.safetensors"}}"#,
    ] {
        let folder = folder(PLAIN, &[]);
        fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
        assert!(matches!(open_error(folder.path()), CheckpointError::Index { .. }), "{index}");
    }
}

#[test]
fn an_index_that_names_a_missing_shard() {
    let folder = folder(PLAIN, &[]);
    let index = r#"{"weight_map": {"a.weight": "model-00007.safetensors"}}"#;
    fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    let error = open_error(folder.path());
    assert!(matches!(error, CheckpointError::NoShard { .. }));
    for needle in ["a.weight", "model-00007.safetensors"] {
        assert!(error.to_string().contains(needle), "{error}");
    }
}

#[test]
fn an_index_that_names_a_tensor_that_its_shard_lacks() {
    let folder = folder(PLAIN, &[("model-1.safetensors", &[("a", ones(&[2]))])]);
    let index = r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-1.safetensors"}}"#;
    fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    let error = open_error(folder.path());
    assert!(matches!(error, CheckpointError::NotInShard { ref key, .. } if key == "b"), "{error}");
}

#[test]
fn a_tensor_in_two_files() {
    let shards: &[(&str, &[(&str, Array)])] =
        &[("model-1.safetensors", &[("a", ones(&[2]))]), ("model-2.safetensors", &[("a", ones(&[2]))])];
    let error = open_error(folder(PLAIN, shards).path());
    assert!(matches!(error, CheckpointError::TensorTwice { ref key, .. } if key == "a"), "{error}");
}

/// A file of any shorter length, or with any wrong header, is an error that names the file.
#[test]
fn an_incomplete_file_is_named() {
    let folder = folder(PLAIN, &[("model.safetensors", &[("a.weight", ones(&[16, 8]))])]);
    let file = folder.path().join("model.safetensors");
    let whole = fs::read(&file).unwrap();
    let mut broken: Vec<Vec<u8>> =
        (0..whole.len()).step_by(13).map(|length| whole[..length].to_vec()).collect();
    broken.push([whole.clone(), vec![0]].concat());
    let header = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes(), &[0; 64]].concat();
    broken.push(header(r#"{"a":{"dtype":"F32","shape":[16],"data_offsets":[0,60]}}"#));
    broken.push(header(r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,64]}}"#));
    broken.push(header(r#"{"a":{"dtype":"F33","shape":[16],"data_offsets":[0,64]}}"#));
    broken.push(header("[]"));
    broken.push([&u64::MAX.to_le_bytes()[..], &[0; 64]].concat());
    for contents in broken {
        fs::write(&file, &contents).unwrap();
        let error = open_error(folder.path());
        assert!(matches!(error, CheckpointError::Safetensors { .. }), "{} bytes: {error}", contents.len());
        assert!(error.to_string().contains("model.safetensors"));
    }
}

/// A checkpoint folder in which some tensors have dtypes that MLX does not have. The bytes count up from 0.
fn strange() -> TempDir {
    let folder = folder(PLAIN, &[]);
    let header = br#"{
        "double":{"dtype":"F64","shape":[1],"data_offsets":[0,8]},
        "vision.tiny":{"dtype":"F4","shape":[4],"data_offsets":[8,10]},
        "vision.double":{"dtype":"F64","shape":[],"data_offsets":[10,18]},
        "half.weight":{"dtype":"BF16","shape":[2,3],"data_offsets":[18,30]}
    }"#;
    let data: Vec<u8> = (0..30).collect();
    let file = [&(header.len() as u64).to_le_bytes(), &header[..], &data].concat();
    fs::write(folder.path().join("model.safetensors"), file).unwrap();
    folder
}

/// MLX refuses a whole file because of one tensor of a dtype that it does not know. A model that ignores this tensor
/// loads nevertheless.
#[test]
fn tensors_of_dtypes_that_mlx_does_not_know_may_be_ignored() {
    let folder = strange();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let mut tensors = checkpoint.tensors().unwrap();
    let half = tensors.parameter("half.weight", &[2, 3]);
    tensors.finish(|key| key.starts_with("vision.") || key == "double").unwrap();
    let expected: Vec<u16> = (0..6).map(|i| u16::from_le_bytes([18 + 2 * i, 19 + 2 * i])).collect();
    assert_eq!((half.dtype(), half.shape()), (Dtype::Bfloat16, &[2, 3][..]));
    let bits = half.view_dtype(Dtype::Uint16).unwrap().flatten(None, None).unwrap();
    assert_eq!(bits.try_as_slice::<u16>().unwrap(), expected);
}

#[test]
fn tensors_of_dtypes_that_no_parameter_has_are_listed() {
    let folder = strange();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let mut tensors = checkpoint.tensors().unwrap();
    tensors.parameter("double", &[1]);
    tensors.parameter("vision.tiny", &[4]);
    tensors.parameter("half.weight", &[3, 2]);
    let error = tensors.finish(|_| false).unwrap_err().to_string();
    let problems: Vec<&str> = error.lines().skip(1).map(str::trim).collect();
    assert_eq!(
        problems,
        [
            "double: has dtype F64, and F32, F16 or BF16 is needed",
            "half.weight: shape [2, 3], [3, 2] is needed",
            "vision.double: unexpected, the model has no such parameter",
            "vision.tiny: has dtype F4, and F32, F16 or BF16 is needed",
        ]
    );
}

#[test]
fn every_wrong_tensor_is_listed() {
    let half = ones(&[3]).as_dtype(Dtype::Int32).unwrap();
    let tensors: &[(&str, Array)] = &[
        ("shape.weight", ones(&[4, 8])),
        ("dtype.weight", half),
        ("extra.weight", ones(&[1])),
        ("extra.rotary_emb.inv_freq", ones(&[1])),
    ];
    let folder = folder(PLAIN, &[("model.safetensors", tensors)]);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let mut tensors = checkpoint.tensors().unwrap();
    tensors.parameter("shape.weight", &[8, 4]);
    tensors.parameter("dtype.weight", &[3]);
    tensors.parameter("gone.weight", &[2, 2]);
    let error = tensors.finish(|_| false).unwrap_err();
    let CheckpointError::Tensors { problems, .. } = &error else { panic!("{error}") };
    let key = |text: &str| text.to_owned();
    assert_eq!(
        problems[..],
        [
            TensorProblem::Dtype {
                key: key("dtype.weight"),
                expected: "F32, F16 or BF16",
                found: key("I32")
            },
            TensorProblem::Unexpected { key: key("extra.weight") },
            TensorProblem::Missing { key: key("gone.weight"), shape: vec![2, 2] },
            TensorProblem::Shape { key: key("shape.weight"), expected: vec![8, 4], found: vec![4, 8] },
        ]
    );
    for problem in problems {
        assert!(error.to_string().contains(&problem.to_string()), "{error}");
    }
}

fn quantized(extra: &str) -> TempDir {
    let config = format!(r#"{{"model_type": "x", "quantization": {{"group_size": 32, "bits": 4{extra}}}}}"#);
    let (weight, scales, biases) = mlx_rs::ops::quantize(ones(&[8, 64]), 32, 4).unwrap();
    let tensors: &[(&str, Array)] = &[("a.weight", weight), ("a.scales", scales), ("a.biases", biases)];
    folder(&config, &[("model.safetensors", tensors)])
}

#[test]
fn a_quantized_layer_takes_all_of_its_tensors() {
    let folder = quantized("");
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.parameter_count(["a.weight", "a.scales", "a.biases"]), 8 * 64);
    assert_eq!(checkpoint.default_quantization(), Some(Quantization::affine(4, 32).unwrap()));
    let mut tensors = checkpoint.tensors().unwrap();
    let layer = Linear::new(Parameters::root(&mut tensors).at("a"), 64, 8);
    assert_eq!(layer.quantization(), Some(Quantization::affine(4, 32).unwrap()));
    tensors.finish(|_| false).unwrap();
}

#[test]
fn a_quantized_layer_of_another_size_is_listed() {
    let folder = quantized("");
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    for (inputs, outputs, wrong) in [(64, 16, 3), (128, 8, 3)] {
        let mut tensors = checkpoint.tensors().unwrap();
        Linear::new(Parameters::root(&mut tensors).at("a"), inputs, outputs);
        let error = tensors.finish(|_| false).unwrap_err();
        assert!(
            matches!(&error, CheckpointError::Tensors { problems, .. } if problems.len() == wrong),
            "{error}"
        );
    }
}

/// The error has one line for the layer instead of one for each of its tensors.
#[test]
fn groups_that_do_not_divide_a_layer_are_named() {
    let folder = quantized("");
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let mut tensors = checkpoint.tensors().unwrap();
    Linear::new(Parameters::root(&mut tensors).at("a"), 48, 8);
    let error = tensors.finish(|_| false).unwrap_err().to_string();
    let problems: Vec<&str> = error.lines().skip(1).map(str::trim).collect();
    let [problem] = problems[..] else { panic!("{error}") };
    assert!(
        problem.starts_with("a: its rows have 48 columns, which groups of 32 do not divide"),
        "{problem}"
    );
}

/// Layers whose tensors the model ignores are an exception.
#[test]
fn a_quantization_of_an_unknown_layer_is_listed() {
    let folder = quantized(r#", "b": false, "vision.c": {"group_size": 64, "bits": 8}"#);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let build = || {
        let mut tensors = checkpoint.tensors().unwrap();
        Linear::new(Parameters::root(&mut tensors).at("a"), 64, 8);
        tensors
    };
    let error = build().finish(|key| key.starts_with("vision.")).unwrap_err().to_string();
    let problems: Vec<&str> = error.lines().skip(1).map(str::trim).collect();
    assert_eq!(problems, ["b: the config's quantization names it, and the model has no such layer"]);
    let mut tensors = build();
    tensors.quantization("b", 64);
    assert!(tensors.finish(|key| key.starts_with("vision.")).is_ok());
}

#[test]
fn a_layer_that_the_config_does_not_quantize_must_not_be_quantized() {
    let folder = quantized(r#", "a": false"#);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let mut tensors = checkpoint.tensors().unwrap();
    Linear::new(Parameters::root(&mut tensors).at("a"), 64, 8);
    let error = tensors.finish(|_| false).unwrap_err().to_string();
    assert!(error.contains("a.weight: shape [8, 8], [8, 64] is needed"), "{error}");
    assert!(error.contains("a.scales: unexpected"), "{error}");
}

/// 500,000 unknown tensors once gave a message of 27 MB.
#[test]
fn long_lists_and_names_are_cut() {
    let names: Vec<String> = (0..100).map(|i| format!("extra{i:03}")).chain(["é".repeat(100_000)]).collect();
    let tensors: Vec<(&str, Array)> = names.iter().map(|name| (&**name, ones(&[1]))).collect();
    let folder = folder(PLAIN, &[("model.safetensors", &tensors)]);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let error = checkpoint.tensors().unwrap().finish(|_| false).unwrap_err();
    let CheckpointError::Tensors { problems, .. } = &error else { panic!("{error}") };
    assert_eq!(problems.len(), 101);
    let text = error.to_string();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 22);
    assert_eq!(lines[20], "  extra019: unexpected, the model has no such parameter");
    assert_eq!(lines[21], "  and 81 more");
    let long = problems.last().unwrap().to_string();
    assert!(long.len() < 400 && long.contains("... (199820 bytes) ...é"), "{long}");
}

/// Models in other formats: the error says what was found and what to do.
#[test]
#[allow(clippy::too_many_lines, reason = "one table of cases")]
fn models_in_other_formats_are_named() {
    let gguf = [b"GGUF".as_slice(), &[3, 0, 0, 0]].concat();
    let lora = br#"{"peft_type": "LORA", "base_model_name_or_path": "someone/base-7b"}"#;
    let mlx_lora = br#"{"fine_tune_type": "lora", "model": "someone/base-4bit"}"#;
    let config = PLAIN.as_bytes();
    for (files, needles) in [
        (
            vec![("adapter_config.json", lora.as_slice()), ("adapter_model.safetensors", b"")],
            vec!["it holds adapters, and no model", "someone/base-7b", "with --adapters"],
        ),
        (vec![("adapter_config.json", mlx_lora.as_slice())], vec!["which is someone/base-4bit"]),
        (
            vec![("adapter_config.json", b"{".as_slice())],
            vec!["load the model that they are for, with --adapters"],
        ),
        (
            vec![("model-q4_0.gguf", &gguf)],
            vec!["a folder with a GGUF file, and no checkpoint", "name the file: ", "/model-q4_0.gguf"],
        ),
        (
            vec![("model-q4_0.gguf", &gguf), ("model-q8_0.gguf", &gguf)],
            vec!["a folder with GGUF files, and no checkpoint", "name one of these files"],
        ),
        (vec![("config.json", config), ("a.gguf", &gguf)], vec!["name the file: ", "/a.gguf"]),
        (
            vec![("config.json", config), ("pytorch_model.bin", b"x")],
            vec!["its weights are PyTorch files", "load the model with transformers and save it again"],
        ),
        (
            vec![("config.json", config), ("pytorch_model-00001-of-00002.bin", b"x")],
            vec!["its weights are PyTorch files"],
        ),
        (
            vec![("params.json", b"{}".as_slice()), ("consolidated.00.pth", b"x")],
            vec!["its weights are PyTorch files"],
        ),
        (
            vec![("tokenizer.model", b"x".as_slice())],
            vec![
                "it holds a tokenizer, and no model",
                "name the folder that config.json and the weights are in",
            ],
        ),
        // None of these is a model in another format.
        (vec![("config.json", config), ("training_args.bin", b"x")], vec!["has no model.safetensors"]),
        (vec![("notes.txt", b"x".as_slice())], vec!["there is no", "config.json"]),
        (
            vec![("tokenizer.json", b"{}".as_slice()), ("model.safetensors", b"x")],
            vec!["there is no", "config.json"],
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in &files {
            fs::write(folder.path().join(name), content).unwrap();
        }
        let text = open_error(folder.path()).to_string();
        assert!(needles.iter().all(|needle| text.contains(needle)), "{needles:?}: {text}");
    }
    let folder = tempfile::tempdir().unwrap();
    for (name, content, needle) in [
        ("model.gguf", gguf.as_slice(), "the file ends at byte 8, inside of the number of tensors"),
        ("renamed", &gguf, "the file ends at byte 8, inside of the number of tensors"),
        ("other.gguf", b"PK", "not a GGUF file"),
        ("model.safetensors", b"x", "name the folder that it is in"),
        ("pytorch_model.bin", b"x", "it is a PyTorch file"),
        (
            "notes.txt",
            b"x",
            "is not a folder; a checkpoint is a folder with config.json and safetensors files, or a GGUF file",
        ),
    ] {
        let file = folder.path().join(name);
        fs::write(&file, content).unwrap();
        let text = open_error(&file).to_string();
        assert!(text.contains(needle), "{text}");
    }
}

#[test]
fn wrong_tensors_of_a_gguf_file_have_its_names() {
    let sizes = [
        ("block_count", 1),
        ("context_length", 128),
        ("embedding_length", 32),
        ("feed_forward_length", 64),
        ("attention.head_count", 4),
    ];
    let mut metadata = vec![("general.architecture".to_owned(), Value::Text("llama".to_owned()))];
    metadata.extend(sizes.map(|(key, size)| (format!("llama.{key}"), Value::Integer(size))));
    metadata.push(("llama.attention.layer_norm_rms_epsilon".to_owned(), Value::Float(1e-6)));
    let tensors = [("token_embd.weight", 40), ("blk.0.attn_q.weight", 32), ("blk.0.ffn_up.weight", 32)].map(
        |(name, rows)| NewTensor { name: name.to_owned(), kind: TensorType::Q8_0, shape: vec![rows, 32] },
    );
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v.gguf");
    let mut writer = Writer::create(&path, &metadata, tensors.to_vec()).unwrap();
    for tensor in &tensors {
        writer.append(&vec![1.0; tensor.elements()]).unwrap();
    }
    writer.finish().unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert!(checkpoint.is_gguf());
    let mut tensors = checkpoint.tensors().unwrap();
    let mut root = Parameters::root(&mut tensors);
    Linear::new(root.at("model.layers.0.mlp.up_proj"), 32, 64);
    Linear::new(root.at("model.layers.1.self_attn.q_proj"), 32, 32);
    let text = whole_message(&tensors.finish(|key| key.starts_with("model.embed")).unwrap_err());
    for needle in [
        "v.gguf are not those of the model that its metadata describes:",
        "\n  blk.0.attn_q.weight, which is model.layers.0.self_attn.q_proj.weight: unexpected",
        "\n  blk.0.ffn_up.weight, which is model.layers.0.mlp.up_proj.weight: shape [32, ",
        "\n  blk.1.attn_q.weight, which is model.layers.1.self_attn.q_proj.weight: missing",
    ] {
        assert!(text.contains(needle), "{needle}: {text}");
    }
    assert_eq!(text.lines().count(), 4, "each tensor of the file once: {text}");
}

/// The list of allowed values is kept in full, since it says what to write.
#[test]
fn an_unknown_field_is_named_with_the_known_ones() {
    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only their names are of use")]
    struct Strict {
        model_type: String,
        the_first_of_several_fields_with_long_names: Option<i32>,
        the_second_of_several_fields_with_long_names: Option<i32>,
        the_third_of_several_fields_with_long_names: Option<i32>,
        the_fourth_of_several_fields_with_long_names: Option<i32>,
        the_last_of_several_fields_with_long_names: Option<i32>,
    }
    let long = "x".repeat(100_000);
    for (field, shown) in
        [("fator", "unknown field `fator`, expected one of"), (&*long, "unknown field `xxxx")]
    {
        let config = format!(r#"{{"model_type": "test", "{field}": 1}}"#);
        let folder = folder(&config, &[("model.safetensors", &[("a", ones(&[2]))])]);
        let error = Checkpoint::open(folder.path()).unwrap().config::<Strict>().unwrap_err();
        let text = whole_message(&error);
        assert!(text.contains(shown), "{text}");
        for name in ["first", "second", "third", "fourth", "last"] {
            assert!(text.contains(&format!("`the_{name}_of_several_fields_with_long_names`")), "{text}");
        }
        assert!(text.len() < 1000, "{}", text.len());
    }
}

/// Named pipes would block forever, devices may never end, and a link that leads nowhere should lead to a file.
#[cfg(unix)]
#[test]
fn only_regular_files_are_read() {
    let whole = || {
        let folder = folder(PLAIN, &[("model.safetensors", &[("a", ones(&[2]))])]);
        let index = r#"{"weight_map": {"a": "model.safetensors"}}"#;
        fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
        folder
    };
    let cases = [
        ("config.json", vec![]),
        ("model.safetensors", vec![]),
        ("model.safetensors.index.json", vec!["model.safetensors"]),
        ("model-1.safetensors", vec!["model.safetensors", "model.safetensors.index.json"]),
    ];
    for (name, absent) in &cases {
        for (target, needle) in [
            ("pipe", "it is a named pipe, and must be a regular file"),
            ("/dev/zero", "it is a device, and must be a regular file"),
            ("gone", "it is a link to gone, and there is no such file"),
            (".", "it is a folder, and must be a regular file"),
        ] {
            let folder = whole();
            let file = folder.path().join(name);
            for name in absent.iter().chain([name]) {
                let _ = fs::remove_file(folder.path().join(name));
            }
            if target == "pipe" {
                assert!(std::process::Command::new("mkfifo").arg(&file).status().unwrap().success());
            } else {
                std::os::unix::fs::symlink(target, &file).unwrap();
            }
            let error = open_error(folder.path());
            let CheckpointError::Io { file: named, source } = &error else {
                panic!("{name} {target}: {error}")
            };
            assert_eq!(*named, file);
            assert_eq!(source.to_string(), needle, "{name}");
        }
    }
}

/// MLX opens files later, by their paths, when they may have changed.
#[cfg(unix)]
#[test]
fn a_file_that_became_a_pipe_is_not_opened() {
    let folder = folder(PLAIN, &[("model.safetensors", &[("a", ones(&[2]))])]);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let file = folder.path().join("model.safetensors");
    fs::remove_file(&file).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&file).status().unwrap().success());
    assert!(matches!(checkpoint.tensors().unwrap_err(), CheckpointError::Io { .. }));
}

#[test]
fn a_file_that_lost_its_header_is_not_loaded() {
    let folder = folder(PLAIN, &[("model.safetensors", &[("a", ones(&[2]))])]);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let file = folder.path().join("model.safetensors");
    fs::write(&file, "no tensors").unwrap();
    let error = checkpoint.tensors().unwrap_err();
    assert!(matches!(error, CheckpointError::Unreadable { .. }), "{error:?}");
    let shown = error.to_string();
    assert!(
        shown.starts_with(&format!("MLX cannot load {}: [load_safetensors] ", file.display())),
        "{shown}"
    );
    assert!(!shown.contains(" at "), "{shown}");
}

#[test]
fn files_and_numbers_that_are_too_large_are_errors() {
    // A config that is larger than any real config is not read.
    let folder = folder(PLAIN, &[("model.safetensors", &[("a", ones(&[2]))])]);
    let config = fs::File::create(folder.path().join("config.json")).unwrap();
    config.set_len(1 << 40).unwrap(); // a file with a hole, which takes no place
    let CheckpointError::Io { source, .. } = open_error(folder.path()) else { panic!() };
    assert!(source.to_string().starts_with("it has 1099511627776 bytes or more"), "{source}");

    fs::write(folder.path().join("config.json"), "[".repeat(1 << 20)).unwrap();
    assert!(matches!(open_error(folder.path()), CheckpointError::Json { .. }));
    fs::write(folder.path().join("config.json"), PLAIN).unwrap();

    let file = folder.path().join("model.safetensors");
    let header = |header: &str| {
        fs::write(&file, [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat()).unwrap();
        open_error(folder.path()).to_string()
    };
    for (text, needle) in [
        (
            r#"{"a": {"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 0]}}"#,
            "is not a whole safetensors file",
        ),
        (
            r#"{"a": {"dtype": "F32", "shape": [0, 4294967296], "data_offsets": [0, 0]}}"#,
            "is not a whole safetensors file",
        ),
        (r#"{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 0]}}"#, "cannot be read"),
        (
            r#"{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}"#,
            "is not a whole safetensors file",
        ),
        (
            r#"{"a": {"dtype": "F32", "shape": [1], "data_offsets": [18446744073709551612, 18446744073709551615]}}"#,
            "is not a whole safetensors file",
        ),
        (
            r#"{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}"#,
            "is not a whole safetensors file",
        ),
        (&format!(r#"{{"a": {}"#, "[".repeat(100_000)), "cannot be read"),
    ] {
        let found = header(text);
        assert!(found.contains(needle), "{text}: {found}");
    }
    for length in [100_000_001_u64, u64::MAX, 1 << 63] {
        fs::write(&file, [length.to_le_bytes().as_slice(), b"{}"].concat()).unwrap();
        assert!(open_error(folder.path()).to_string().contains("its header would have"));
    }
}

/// Once with a shard for each tensor, none of which exists; once with one shard for all tensors.
#[test]
fn an_index_of_a_million_tensors_is_read_in_time() {
    let folder = folder(PLAIN, &[("model-1.safetensors", &[("a", ones(&[2]))])]);
    let index = |shard: &dyn Fn(usize) -> String| {
        let entries: Vec<String> = (0..1_000_000).map(|i| format!("\"k{i}\":\"{}\"", shard(i))).collect();
        let text = format!("{{\"weight_map\":{{{}}}}}", entries.join(","));
        fs::write(folder.path().join("model.safetensors.index.json"), text).unwrap();
        open_error(folder.path())
    };
    let error = index(&|i| format!("model-{i}x.safetensors"));
    assert!(matches!(error, CheckpointError::NoShard { .. }), "{error}");
    let error = index(&|_| "model-1.safetensors".to_owned());
    assert!(matches!(error, CheckpointError::NotInShard { .. }), "{error}");
}

/// Makes `a` quantized in 8 bits, each number 1, and cannot make `b.weight`.
#[derive(Debug)]
struct Ones;

const EIGHT_BITS: Quantization = Quantization::AFFINE_8_64;

impl TensorSource for Ones {
    fn tensors(&self) -> BTreeMap<String, TensorInfo> {
        let floats = |shape| TensorInfo::made(TensorDtype::F32, shape);
        let weight = TensorInfo::made(TensorDtype::U32, vec![4, 16]);
        let tensors = [
            ("a.weight", weight),
            ("a.scales", floats(vec![4, 1])),
            ("a.biases", floats(vec![4, 1])),
            ("b.weight", floats(vec![2])),
        ];
        tensors.into_iter().map(|(key, info)| (key.to_owned(), info)).collect()
    }

    fn read(&self, key: &str) -> Result<Array, String> {
        match key {
            "a.weight" => Array::full::<u32>(&[4, 16], Array::from_slice(&[0x0101_0101_u32], &[1]))
                .map_err(|e| e.to_string()),
            "b.weight" => Err("it is torn".to_owned()),
            _ => Ok(ones(&[4, 1])),
        }
    }
}

#[test]
fn a_source_makes_tensors_of_those_in_files() {
    let config = r#"{"model_type": "test", "quantization_config": {"bits": 4, "group_size": 32}}"#;
    let folder =
        folder(config, &[("model.safetensors", &[("a.packed", ones(&[4, 8])), ("c.weight", ones(&[8]))])]);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let layers = BTreeMap::from([("a".to_owned(), EIGHT_BITS)]);
    let checkpoint = checkpoint.with_source(Arc::new(Ones), ["a.packed"], &layers);
    assert_eq!(
        checkpoint.headers().keys().collect::<Vec<_>>(),
        ["a.biases", "a.scales", "a.weight", "b.weight", "c.weight"]
    );
    assert_eq!(checkpoint.parameter_count(["a.weight", "a.scales", "c.weight"]), 4 * 64 + 8);
    let expected = serde_json::json!({
        "bits": 8, "group_size": 64, "mode": "affine", "a": { "bits": 8, "group_size": 64, "mode": "affine" }
    });
    let config: serde_json::Value = checkpoint.config().unwrap();
    assert_eq!(config, serde_json::json!({ "model_type": "test", "quantization": expected }));

    let mut tensors = checkpoint.tensors().unwrap();
    let mut layer = Linear::new(Parameters::root(&mut tensors).at("a"), 64, 4);
    assert_eq!(layer.quantization(), Some(EIGHT_BITS));
    assert_eq!(layer.forward(&ones(&[1, 64])).unwrap().as_slice::<f32>(), [128.0; 4]);
    assert_eq!(tensors.parameter("c.weight", &[8]).shape(), [8]);
    tensors.parameter("b.weight", &[2]);
    let CheckpointError::Tensors { problems, .. } = tensors.finish(|_| false).unwrap_err() else { panic!() };
    let (key, problem) = ("b.weight".to_owned(), "it is torn".to_owned());
    assert_eq!(problems, [TensorProblem::Refused { key, problem }]);
}
