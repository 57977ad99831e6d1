//! Rotations compared with transformers, and with mlx-lm where the parity cases do not cover a function.
//!
//! The parity cases `rope_*` show for every variant that the bits equal those of mlx-lm.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::{Path, PathBuf};

use approx::{abs_diff_eq, relative_eq};
use mlx_rope::{Rope, RopeKeys, RopeLayout, RopeOffset, RopeScaling, initialize_rope};
use mlx_rs::Array;
use mlx_testing::{assert_as_recorded, on_cpu, tensor};
use serde::Deserialize;
use serde_json::{Value, json};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

#[derive(Deserialize)]
struct Transformers {
    entries: Vec<Entry>,
}

/// A result of transformers' `ROPE_INIT_FUNCTIONS`.
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

/// The entries for which we follow another source; `docs/differences.md` gives the reasons.
const DIFFERENT: &[&str] = &[
    // As in DeepSeek's own code.
    "yarn, mscale alone",
    "yarn, mscale_all_dim alone",
    "yarn, mscale_all_dim null",
    "yarn, mscale_all_dim zero",
    // Errors here.
    "yarn, factor null",
    "proportional, no whole number",
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
            let factor = |rope: Rope| f64::from(rope.attention_factor(1));
            let is_same = |rope| abs_diff_eq!(factor(rope), entry.attention_factor, epsilon = 1e-3);
            assert!(!rope.is_ok_and(is_same), "{name}");
            continue;
        }
        let rope = rope.unwrap();

        let length = entry.seq_len.unwrap_or(1);
        let found = rope.frequencies(length).unwrap();
        assert_eq!(found.len(), entry.inv_freq.len(), "{name}");
        for (&found, &expected) in found.iter().zip(&entry.inv_freq) {
            // A GPU's powers are less exact.
            let allowed = if on_cpu() { 1e-6 } else { 1e-5 };
            let is_close = relative_eq!(f64::from(found), expected, max_relative = allowed);
            assert!(is_close, "{name}: {found} {expected}");
        }
        let (found, expected) = (f64::from(rope.attention_factor(length)), entry.attention_factor);
        assert!(abs_diff_eq!(found, expected, epsilon = 1e-6), "{name}: {found} {expected}");
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
        assert_as_recorded(tensor(&found).named(i), tensor(&tensors[&format!("y.{i}")]));
    }
}
