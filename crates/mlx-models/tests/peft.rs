//! Adapters of PEFT give the logits that they have in PEFT, beside the weights and fused into them.
//!
//! The cases are those of `xtask/python/make_peft_cases.py`.
#![cfg(feature = "architectures")]
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use approx::{assert_relative_eq, assert_relative_ne};
use mlx_models::{
    CheckpointError, ConvertOptions, FuseOptions, LoadError, LoadOptions, Quantization, QuantizeOptions,
    Weights, convert, fuse, load, load_with,
};
use mlx_rs::Array;
use mlx_testing::models::all_logits;
use mlx_testing::tensor;
use serde_json::{Value, json};
use tempfile::TempDir;

const CASES: [&str; 6] = [
    "peft_dora_phi3",
    "peft_dora_qwen3",
    "peft_lora_olmo3_saved",
    "peft_lora_phi3",
    "peft_lora_qwen3_one_layer",
    "peft_rslora_qwen3",
];

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../xtask/cases").join(name)
}

fn with_adapters(folder: &Path, adapters: &Path) -> Result<Box<dyn mlx_models::CausalLm>, LoadError> {
    load_with(folder, &LoadOptions { adapters: Some(adapters.to_path_buf()), ..LoadOptions::default() })
}

/// As close as float32 values of two programs that add in another order.
#[track_caller]
fn assert_close(name: &str, found: &Array, expected: &Array) {
    assert_relative_eq!(tensor(found).named(name), tensor(expected), epsilon = 2e-4, max_relative = 2e-4);
}

#[test]
fn the_logits_are_those_of_peft() {
    for name in CASES {
        let folder = case(name);
        let reference = Array::load_safetensors(folder.join("reference.safetensors")).unwrap();
        let mut adapted = with_adapters(&folder, &folder.join("adapters")).unwrap();
        assert_close(name, &all_logits(&mut *adapted, &reference["tokens"]), &reference["logits"]);

        let scratch = tempfile::tempdir().unwrap();
        let out = scratch.path().join("fused");
        fuse(&folder, folder.join("adapters"), &out, &FuseOptions::default()).unwrap();
        let mut fused = load(&out).unwrap();
        assert_close(name, &all_logits(&mut *fused, &reference["tokens"]), &reference["logits"]);
    }
}

/// The weights after PEFT's `merge_and_unload`.
#[test]
fn the_fused_weights_are_those_of_peft() {
    for name in CASES {
        let folder = case(name);
        if !folder.join("fused").is_dir() {
            continue;
        }
        let scratch = tempfile::tempdir().unwrap();
        let out = scratch.path().join("fused");
        fuse(&folder, folder.join("adapters"), &out, &FuseOptions::default()).unwrap();
        let read = |folder: &Path| Array::load_safetensors(folder.join("model.safetensors")).unwrap();
        let (found, expected) = (read(&out), read(&folder.join("fused")));
        assert_eq!(found.len(), expected.len(), "{name}");
        for (key, expected) in &expected {
            let found = tensor(&found[key]).named(format!("{name}: {key}"));
            assert_relative_eq!(found, tensor(expected), epsilon = 1e-6, max_relative = 1e-5);
        }
    }
}

/// A model with a vision part has other names for its layers, and adapters of the vision part are ignored. The expected
/// logits come from the same adapters in mlx-lm's format, which other tests compare with mlx-lm.
#[test]
fn adapters_of_a_model_with_a_vision_part() {
    let noise = |shape: &[i32], seed: u64| {
        let key = mlx_rs::random::key(seed).unwrap();
        mlx_rs::random::normal::<f32>(shape, 0.0, 0.3, &key).unwrap()
    };
    let layers: Vec<String> = (0..2).map(|i| format!("layers.{i}.self_attn.q_proj")).collect();
    for (name, prefix) in [
        ("hf_gemma3_multimodal", "language_model.model"),
        ("hf_gemma3_multimodal_inner_keys", "model.language_model"),
    ] {
        let folder = case(name);
        let header = Array::load_safetensors(folder.join("model.safetensors")).unwrap();
        let [outputs, inputs] = *header[&format!("{prefix}.{}.weight", layers[0])].shape() else { panic!() };
        let parts = |i: usize| (noise(&[4, inputs], i as u64), noise(&[outputs, 4], 10 + i as u64));

        let ours = tempfile::tempdir().unwrap();
        let tensors = layers.iter().enumerate().flat_map(|(i, layer)| {
            let (a, b) = parts(i);
            let key = |leaf: &str| format!("{prefix}.{layer}.{leaf}");
            [(key("lora_a"), a.t()), (key("lora_b"), b.t())]
        });
        let tensors: Vec<_> = tensors.collect();
        Array::save_safetensors(tensors, None, ours.path().join("adapters.safetensors")).unwrap();
        let tokens = Array::from_slice(&[3_u32, 1, 4, 1, 5, 9, 2, 6], &[1, 8]);
        // Further layers of the case have no adapter in either format.
        let config = json!({ "num_layers": -1, "lora_parameters": { "rank": 4, "scale": 2.0,
            "keys": layers.iter().map(|layer| format!("{prefix}.{layer}")).collect::<Vec<_>>() } });
        fs::write(ours.path().join("adapter_config.json"), config.to_string()).unwrap();
        let expected = all_logits(&mut *with_adapters(&folder, ours.path()).unwrap(), &tokens);
        let plain = all_logits(&mut *load(&folder).unwrap(), &tokens);
        assert_relative_ne!(tensor(&expected), tensor(&plain), epsilon = 4e-4, max_relative = 4e-4);

        // The names of transformers from 4.52 on, those before, and those of the text model.
        for path in ["model.language_model", "language_model.model", "model"] {
            let theirs = tempfile::tempdir().unwrap();
            let config = json!({ "peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"],
                "layers_to_transform": [0, 1] });
            fs::write(theirs.path().join("adapter_config.json"), config.to_string()).unwrap();
            let mut tensors = Vec::new();
            for (i, layer) in layers.iter().enumerate() {
                let (a, b) = parts(i);
                tensors.push((format!("base_model.model.{path}.{layer}.lora_A.weight"), a));
                tensors.push((format!("base_model.model.{path}.{layer}.lora_B.weight"), b));
            }
            if path != "model" {
                let vision = if path.starts_with("model") { "model.vision_tower" } else { "vision_tower" };
                let layer = format!("base_model.model.{vision}.encoder.layers.0.self_attn.q_proj");
                tensors.push((format!("{layer}.lora_A.weight"), noise(&[4, 8], 30)));
                tensors.push((format!("{layer}.lora_B.weight"), noise(&[8, 4], 31)));
            }
            let file = theirs.path().join("adapter_model.safetensors");
            Array::save_safetensors(tensors, None, file).unwrap();
            let found = all_logits(&mut *with_adapters(&folder, theirs.path()).unwrap(), &tokens);
            assert_close(&format!("{name}, {path}"), &found, &expected);
        }
    }
}

/// Adapters on a quantized model give the same logits as on its dequantized weights.
#[test]
fn adapters_over_quantized_weights() {
    let into = |from: &Path, out: &Path, weights: Weights| {
        let options = ConvertOptions { weights, ..ConvertOptions::default() };
        convert(from, None, out, &options, |_| ControlFlow::Continue(())).unwrap();
    };
    let eight_bits = || {
        let quantization = Quantization::affine(8, 32).unwrap();
        Weights::Quantized(QuantizeOptions { quantization, recipe: None, layers: Vec::new() })
    };
    for name in ["peft_lora_phi3", "peft_dora_phi3", "peft_dora_qwen3"] {
        let (folder, scratch) = (case(name), tempfile::tempdir().unwrap());
        let adapters = folder.join("adapters");
        let place = |name: &str| scratch.path().join(name);
        into(&folder, &place("quantized"), eight_bits());
        into(&place("quantized"), &place("rounded"), Weights::Dequantized);
        fuse(place("quantized"), &adapters, place("fused"), &FuseOptions { dequantize: true }).unwrap();
        let tokens = &Array::load_safetensors(folder.join("reference.safetensors")).unwrap()["tokens"];
        let logits = |mut model: Box<dyn mlx_models::CausalLm>| all_logits(&mut *model, tokens);
        let expected = logits(with_adapters(&place("rounded"), &adapters).unwrap());
        assert_close(name, &logits(with_adapters(&place("quantized"), &adapters).unwrap()), &expected);
        assert_close(name, &logits(load(place("fused")).unwrap()), &expected);
    }
    let (folder, scratch) = (case("peft_lora_olmo3_saved"), tempfile::tempdir().unwrap());
    into(&folder, &scratch.path().join("quantized"), eight_bits());
    let error = with_adapters(&scratch.path().join("quantized"), &folder.join("adapters")).unwrap_err();
    let expected = "lm_head.weight: the checkpoint's weight is quantized, and cannot be replaced by this one";
    assert!(error.to_string().contains(expected), "{error}");
}

/// A copy of a case's adapters with an edited config.
fn edited(name: &str, edit: impl FnOnce(&mut Value)) -> TempDir {
    let (from, folder) = (case(name).join("adapters"), tempfile::tempdir().unwrap());
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::copy(from.join(file), folder.path().join(file)).unwrap();
    }
    let file = folder.path().join("adapter_config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    edit(&mut config);
    fs::write(&file, config.to_string()).unwrap();
    folder
}

/// A copy of a case's adapters with renamed tensors, without those that `rename` drops.
fn renamed(name: &str, rename: impl Fn(&str) -> Option<String>) -> TempDir {
    let folder = edited(name, |_| {});
    let file = folder.path().join("adapter_model.safetensors");
    let tensors = Array::load_safetensors(&file).unwrap();
    let tensors: Vec<_> = tensors
        .into_iter()
        .filter_map(|(key, array)| {
            // In memory, since the file is written anew.
            array.eval().unwrap();
            Some((rename(&key)?, array))
        })
        .collect();
    Array::save_safetensors(tensors, None, &file).unwrap();
    folder
}

#[test]
fn other_names_of_the_same_layers_give_the_same_logits() {
    let rename = |from: &'static str, to: &'static str| {
        renamed("peft_dora_qwen3", move |key| Some(key.replace(from, to)))
    };
    for adapters in [
        // As models with a vision part have them, in the two orders of transformers.
        rename("base_model.model.model.", "base_model.model.model.language_model."),
        rename("base_model.model.model.", "base_model.model.language_model.model."),
        // As PEFT wrote it for some time.
        rename("lora_magnitude_vector", "lora_magnitude_vector.weight"),
    ] {
        let folder = case("peft_dora_qwen3");
        let reference = Array::load_safetensors(folder.join("reference.safetensors")).unwrap();
        let mut adapted = with_adapters(&folder, adapters.path()).unwrap();
        assert_close("renamed", &all_logits(&mut *adapted, &reference["tokens"]), &reference["logits"]);
    }
}

#[test]
fn what_is_not_supported_is_named() {
    let set = |key: &'static str, value: Value| edited("peft_lora_phi3", move |config| config[key] = value);
    for (adapters, needle) in [
        (set("peft_type", json!("LOHA")), "peft_type is \"LOHA\", and only LORA is supported; merge"),
        (set("peft_type", json!(7)), "peft_type"),
        (set("r", json!(0)), "r is 0, and a rank must be positive"),
        (set("r", json!(2.5)), "adapter_config.json: r"),
        (set("r", json!(1_i64 << 40)), "adapter_config.json: r"),
        (set("lora_alpha", json!(1e300)), "lora_alpha is 1"),
        (set("bias", json!("some")), "bias is \"some\", and must be none, all or lora_only"),
        (set("lora_bias", json!(true)), "lora_bias is true, and such adapters are not supported"),
        (set("layer_replication", json!([[0, 1]])), "layer_replication is [[0,1]]"),
        (set("trainable_token_indices", json!([3])), "trainable_token_indices is [3]"),
        (set("init_lora_weights", json!("pissa")), "path_initial_model_for_weight_conversion"),
        (set("alpha_pattern", json!({ "(?=q)": 3 })), "alpha_pattern has a pattern that cannot be read"),
        (set("rank_pattern", json!({ "o_proj": -1 })), "rank_pattern is -1, and a rank must be positive"),
        (
            set("rank_pattern", json!({ "o_proj": 3 })),
            "o_proj.lora_A.weight: shape [4, 32], [3, 32] is needed",
        ),
        (set("use_dora", json!(true)), "qkv_proj.lora_magnitude_vector: missing, [64] is needed"),
        (
            set("target_modules", json!(["o_proj"])),
            "qkv_proj.lora_A.weight: adapter_config.json gives this layer no adapter",
        ),
        (set("target_modules", json!(".*o_proj")), "adapter_config.json gives this layer no adapter"),
        (
            set("layers_to_transform", json!([0])),
            "layers.1.self_attn.o_proj.lora_B.weight: adapter_config.json gives",
        ),
        (
            renamed("peft_lora_phi3", |key| {
                (!key.contains("1.mlp.down_proj.lora_B")).then(|| key.to_owned())
            }),
            "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight: missing, [32, 4] is needed",
        ),
        (
            renamed("peft_lora_phi3", |key| Some(key.replace("layers.1", "layers.7"))),
            "layers.7.mlp.down_proj.lora_A.weight: the model has no such layer",
        ),
        (
            renamed("peft_lora_phi3", |key| {
                Some(key.replace("o_proj.lora_A.weight", "o_proj.lora_A.default.weight"))
            }),
            "o_proj.lora_A.default.weight: unexpected",
        ),
    ] {
        let error = with_adapters(&case("peft_lora_phi3"), adapters.path()).unwrap_err().to_string();
        assert!(error.contains(needle), "{needle}: {error}");
    }
}

/// A folder that changes nothing is not what anybody meant.
#[test]
fn adapters_of_no_layer_are_an_error() {
    for (targets, said) in [
        (json!(["query", "value"]), "target_modules names query, value"),
        (json!([]), "target_modules names none"),
        (json!(null), "target_modules names none"),
        (json!(".*query"), "target_modules is ^(?:.*query)$"),
    ] {
        let adapters = renamed("peft_lora_phi3", |_| None);
        let config = json!({ "peft_type": "LORA", "r": 2, "target_modules": targets }).to_string();
        fs::write(adapters.path().join("adapter_config.json"), config).unwrap();
        let error = with_adapters(&case("peft_lora_phi3"), adapters.path()).unwrap_err().to_string();
        let expected = format!("adapter_config.json: no layer of the model has an adapter: {said}");
        assert!(error.contains(&expected), "{error}");
    }
}

#[test]
fn a_layer_with_two_names_is_one_problem() {
    let adapters = edited("peft_lora_phi3", |_| {});
    let file = adapters.path().join("adapter_model.safetensors");
    let tensors = Array::load_safetensors(&file).unwrap();
    let tensors: Vec<_> = tensors
        .into_iter()
        .flat_map(|(key, array)| {
            array.eval().unwrap();
            let other = key.replace("model.model.layers.1.mlp", "model.language_model.model.layers.1.mlp");
            [(key, array.clone()), (other, array)]
        })
        .collect::<std::collections::BTreeMap<_, _>>()
        .into_iter()
        .collect();
    Array::save_safetensors(tensors, None, &file).unwrap();
    let error = with_adapters(&case("peft_lora_phi3"), adapters.path()).unwrap_err().to_string();
    assert!(error.contains("is another name of the same layer"), "{error}");
    assert!(!error.contains("the model has no such layer"), "{error}");
}

#[test]
fn pickled_adapters_are_not_read() {
    let adapters = edited("peft_lora_phi3", |_| {});
    let file = adapters.path().join("adapter_model.safetensors");
    fs::rename(&file, adapters.path().join("adapter_model.bin")).unwrap();
    let error = with_adapters(&case("peft_lora_phi3"), adapters.path()).unwrap_err();
    assert!(error.to_string().contains("load them with PEFT and save them again"), "{error}");
    fs::remove_file(adapters.path().join("adapter_model.bin")).unwrap();
    let error = with_adapters(&case("peft_lora_phi3"), adapters.path()).unwrap_err();
    assert!(matches!(error, LoadError::Checkpoint(CheckpointError::NoAdapters { .. })), "{error}");
}

/// PEFT leaves a head that is tied to an embedding as it is, and here both are one table.
#[test]
fn an_embedding_that_is_the_head_too_cannot_have_an_adapter() {
    let folder = tempfile::tempdir().unwrap();
    let from = case("peft_lora_olmo3_saved");
    let mut config: Value =
        serde_json::from_str(&fs::read_to_string(from.join("config.json")).unwrap()).unwrap();
    config["tie_word_embeddings"] = json!(true);
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let mut tensors = Array::load_safetensors(from.join("model.safetensors")).unwrap();
    tensors.remove("lm_head.weight").unwrap();
    Array::save_safetensors(tensors, None, folder.path().join("model.safetensors")).unwrap();
    let error = with_adapters(folder.path(), &from.join("adapters")).unwrap_err().to_string();
    assert!(error.contains("model.embed_tokens: the model's head is this table, too"), "{error}");
    let expected = "base_model.model.lm_head.weight: the checkpoint has no lm_head.weight that it could replace; the \
                    model's head is its embedding table; merge the adapters into the model with PEFT";
    assert!(error.contains(expected), "{error}");

    let adapters = renamed("peft_lora_olmo3_saved", |key| {
        let layer = "base_model.model.model.layers.0.self_attn.q_proj.";
        Some(
            key.strip_prefix(layer).map_or(key.to_owned(), |leaf| format!("base_model.model.lm_head.{leaf}")),
        )
    });
    let error = with_adapters(folder.path(), adapters.path()).unwrap_err().to_string();
    let expected = "base_model.model.lm_head.lora_A.weight: the model's head is its embedding table; merge";
    assert!(error.contains(expected), "{error}");
}
