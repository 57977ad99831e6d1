//! Beside transformers, and beside what mlx-lm has and the parity cases cannot hold.
//!
//! Bit for bit equality with mlx-lm of every variant is in the parity cases `rope_*`.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::{Path, PathBuf};

use mlx_rope::{Rope, RopeKeys, RopeLayout, RopeOffset, RopeScaling, initialize_rope};
use mlx_rs::Array;
use mlx_testing::{Tolerance, compare};
use serde::Deserialize;
use serde_json::{Value, json};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

#[derive(Deserialize)]
struct Transformers {
    entries: Vec<Entry>,
}

/// What `ROPE_INIT_FUNCTIONS` answered.
#[derive(Deserialize)]
struct Entry {
    name: String,
    rope_parameters: Value,
    head_dim: i32,
    max_position_embeddings: i32,
    seq_len: Option<i32>,
    inv_freq: Vec<f64>,
    attention_factor: f64,
}

/// Where we follow another source, and which: `docs/differences.md` says why.
const DIFFERENT: &[&str] = &[
    "yarn, mscale alone",            // as DeepSeek's own code
    "yarn, mscale_all_dim alone",    // likewise
    "yarn, mscale_all_dim null",     // likewise
    "yarn, mscale_all_dim zero",     // likewise
    "yarn, factor null",             // an error
    "proportional, no whole number", // an error
];

#[test]
fn frequencies_and_attention_factors_are_those_of_transformers() {
    let text = std::fs::read_to_string(fixture("transformers.json")).unwrap();
    let Transformers { entries } = serde_json::from_str(&text).unwrap();
    let mut compared = 0;
    for entry in &entries {
        let name = &entry.name;
        let config = json!({ "rope_parameters": entry.rope_parameters,
            "max_position_embeddings": entry.max_position_embeddings });
        let keys: RopeKeys = serde_json::from_value(config).unwrap();
        let rope = keys.uniform(None).and_then(|settings| settings.rope(entry.head_dim, RopeLayout::Halves));
        if DIFFERENT.contains(&name.as_str()) {
            let differs =
                |rope: Rope| (f64::from(rope.attention_factor(1)) - entry.attention_factor).abs() > 1e-3;
            assert!(rope.map_or(true, differs), "{name}");
            continue;
        }
        let rope = rope.unwrap();

        let length = entry.seq_len.unwrap_or(1);
        let found = rope.frequencies(length).unwrap();
        assert_eq!(found.len(), entry.inv_freq.len(), "{name}");
        for (&found, &expected) in found.iter().zip(&entry.inv_freq) {
            assert!((f64::from(found) - expected).abs() <= 1e-6 * expected, "{name}: {found} {expected}");
        }
        let factor = f64::from(rope.attention_factor(length));
        assert!(
            (factor - entry.attention_factor).abs() < 1e-6,
            "{name}: {factor} {}",
            entry.attention_factor
        );
        compared += 1;
    }
    assert_eq!(compared, entries.len() - DIFFERENT.len());
}

/// The arguments of the rotation, in the file's metadata.
#[derive(Deserialize)]
struct Arguments {
    dims: i32,
    base: f64,
    scaling: RopeScaling,
}

#[derive(Deserialize)]
struct Call {
    offset: Offset,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Offset {
    One(i32),
    PerRow(Vec<i32>),
}

#[test]
fn the_inverse_of_yarn_is_that_of_mlx_lm() {
    let (tensors, metadata) =
        Array::load_safetensors_with_metadata(fixture("yarn_inverse.safetensors")).unwrap();
    let Arguments { dims, base, scaling } = serde_json::from_str(&metadata["rope"]).unwrap();
    let rope = initialize_rope(dims, base, RopeLayout::Interleaved, &scaling, None).unwrap();
    let calls: Vec<Call> = serde_json::from_str(&metadata["calls"]).unwrap();
    assert!(calls.len() > 10);
    for (i, call) in calls.iter().enumerate() {
        let offset = match &call.offset {
            Offset::One(offset) => RopeOffset::One(*offset),
            Offset::PerRow(offsets) => RopeOffset::PerRow(offsets),
        };
        let found = rope.rotate_back(&tensors[&format!("x.{i}")], offset).unwrap();
        let expected = &tensors[&format!("y.{i}")];
        let exact = cfg!(all(target_os = "linux", target_arch = "x86_64"));
        let tolerance = if exact { Tolerance::Exact } else { Tolerance::of(expected.dtype()) };
        let result = compare(&found, expected, tolerance).unwrap();
        assert!(result.is_equal(), "{i}: {result}");
    }
}
