//! Every config gives a model or an error: no panic, no unbounded memory, no endless loop.
#![cfg(feature = "architectures")]
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::path::Path;

use mlx_models::{LoadOptions, load_with};
use mlx_testing::checkpoints::whole_message;
use serde_json::{Value, json};

/// Loads a folder with the tensors of a case and another config.
fn load(case: &str, config: &str, adapters: Option<&str>) -> Option<String> {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../xtask/cases");
    let folder = tempfile::tempdir().unwrap();
    let copy = |from: &Path, name: &str| {
        if from.join(name).is_file() {
            fs::copy(from.join(name), folder.path().join(name)).unwrap();
        }
    };
    copy(&cases.join(case), "model.safetensors");
    let mut options = LoadOptions::default();
    match adapters {
        None => fs::write(folder.path().join("config.json"), config).unwrap(),
        Some(tensors) => {
            copy(&cases.join(case), "config.json");
            copy(&cases.join(case).join("adapters"), tensors);
            fs::write(folder.path().join("adapter_config.json"), config).unwrap();
            options.adapters = Some(folder.path().to_path_buf());
        }
    }
    load_with(folder.path(), &options).err().map(|error| whole_message(&error))
}

/// The paths of all values in a config.
fn paths(value: &Value, path: &str, found: &mut Vec<String>) {
    let mut below = |key: &str, value: &Value| {
        let path = format!("{path}/{key}");
        found.push(path.clone());
        paths(value, &path, found);
    };
    match value {
        Value::Object(entries) => entries.iter().for_each(|(key, value)| below(key, value)),
        Value::Array(items) => items.iter().take(1).for_each(|value| below("0", value)),
        _ => {}
    }
}

/// The test replaces each value of a config by each of these values.
fn with_every_value_replaced(text: &str) -> Vec<String> {
    let config: Value = serde_json::from_str(text).unwrap();
    let mut all = Vec::new();
    paths(&config, "", &mut all);
    let deep = (0..100).fold(json!(1), |inner, _| json!([inner]));
    let mut replaced = Vec::new();
    for path in all {
        for value in [
            json!(0),
            json!(-1),
            json!(1),
            json!(1_000_000_000),
            json!(1_u64 << 31),
            json!(1_u64 << 40),
            json!(i64::MIN),
            json!(u64::MAX),
            json!(1.5),
            json!(1e-320),
            json!(1e308),
            json!(true),
            json!("x"),
            json!("x".repeat(100_000)),
            json!(null),
            json!([]),
            json!([1, -1]),
            json!({}),
            json!({ "a": 1 }),
            deep.clone(),
        ] {
            let mut config = config.clone();
            *config.pointer_mut(&path).unwrap() = value;
            replaced.push(config.to_string());
        }
        // Numbers that float64 does not hold.
        let mut config = config.clone();
        *config.pointer_mut(&path).unwrap() = json!("HERE");
        for number in ["1e400", "-1e400", "123456789012345678901234567890"] {
            replaced.push(config.to_string().replace("\"HERE\"", number));
        }
    }
    replaced
}

fn read(file: &str) -> String {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../xtask/cases");
    fs::read_to_string(cases.join(file)).unwrap()
}

#[test]
fn configs() {
    for case in [
        "hf_gemma3_linear8_v4",
        "hf_gemma3_multimodal",
        "hf_olmo3_yarn",
        "hf_phi3_longrope_short",
        "hf_qwen3_layer_types_yarn",
        "lille_q8",
    ] {
        let text = read(&format!("{case}/config.json"));
        let mut refused = 0;
        for config in with_every_value_replaced(&text) {
            let said = load(case, &config, None);
            refused += usize::from(said.is_some());
            assert!(said.is_none_or(|text| text.len() < 8_000), "{case}: {config}");
        }
        assert!(refused > 100, "{case}: {refused}");
        assert_eq!(load(case, &text, None), None, "{case}");
    }
}

#[test]
fn configs_of_adapters() {
    for (case, tensors) in [
        ("lora_f32", "adapters.safetensors"),
        ("dora_f32", "adapters.safetensors"),
        ("peft_dora_qwen3", "adapter_model.safetensors"),
        ("peft_rslora_qwen3", "adapter_model.safetensors"),
    ] {
        let text = read(&format!("{case}/adapters/adapter_config.json"));
        for config in with_every_value_replaced(&text) {
            let said = load(case, &config, Some(tensors));
            assert!(said.is_none_or(|text| text.len() < 8_000), "{case}: {config}");
        }
        assert_eq!(load(case, &text, Some(tensors)), None, "{case}");
    }
}
