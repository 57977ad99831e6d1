//! The factor of queries, compared with its formula in float64, and its keys in configs.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use approx::assert_relative_eq;
use mlx_rope::{QueryScale, Rope, RopeKeys, RopeLayout};
use mlx_rs::ops::concatenate;
use mlx_rs::{Array, Dtype};
use mlx_testing::tensor;

const BETA: f64 = 0.1;
const ORIGINAL: i32 = 4;

fn scale() -> QueryScale {
    QueryScale::new(BETA, ORIGINAL).unwrap()
}

/// `[rows, 2, length, 2]`, all ones.
fn ones(rows: i32, length: i32) -> Array {
    Array::ones::<f32>(&[rows, 2, length, 2]).unwrap()
}

/// The formula, and 1 for padding.
fn factor(position: i32) -> f64 {
    let periods = (f64::from(position) / f64::from(ORIGINAL)).floor().max(0.0);
    1.0 + BETA * (1.0 + periods).ln()
}

/// `[rows, 2, length, 2]`, with the factor of the position that each token has.
fn expected(offsets: &[i32], length: i32) -> Array {
    let row =
        |&offset: &i32| (0..2).flat_map(move |_| (offset..offset + length).flat_map(|p| [factor(p); 2]));
    let values: Vec<f32> = offsets.iter().flat_map(row).map(|value| value as f32).collect();
    Array::from_slice(&values, &[offsets.len() as i32, 2, length, 2])
}

#[test]
fn the_factor_grows_after_each_original_length() {
    for (offset, length) in [(0, 4), (0, 13), (3, 2), (4, 4), (7, 1), (8, 1), (1_000_000, 9)] {
        let scaled = scale().scale(&ones(1, length), offset).unwrap();
        let close = tensor(&expected(&[offset], length));
        assert_relative_eq!(tensor(&scaled), close, epsilon = 0.0, max_relative = 2e-7);
    }
}

#[test]
fn each_row_has_its_own_positions_and_padding_has_the_factor_1() {
    for offsets in [[0, 9, 3], [-6, 0, 40], [5, 5, 5]] {
        let scaled = scale().scale(&ones(3, 7), &offsets[..]).unwrap();
        let close = tensor(&expected(&offsets, 7));
        assert_relative_eq!(tensor(&scaled), close, epsilon = 0.0, max_relative = 2e-7);
    }
}

#[test]
fn nothing_changes_within_the_original_length() {
    let queries = Array::from_slice(&[0.3_f32, -7.5, 1e-30, 4e30], &[1, 1, 2, 2]);
    let none = QueryScale::new(0.0, 1).unwrap();
    for (scale, offset) in [(scale(), 0), (scale(), 2), (scale(), -9), (none, 500)] {
        assert_eq!(tensor(&scale.scale(&queries, offset).unwrap()), tensor(&queries));
    }
}

#[test]
fn the_factor_does_not_depend_on_how_tokens_are_cut_into_calls() {
    let parts =
        [(0, 5), (5, 1), (6, 9)].map(|(offset, length)| scale().scale(&ones(2, length), offset).unwrap());
    let whole = scale().scale(&ones(2, 15), 0).unwrap();
    assert_eq!(tensor(&concatenate(&parts, 2).unwrap()), tensor(&whole));
}

/// The factor is rounded before the product: 1 + 0.1 ln 2 is 1.069315, and 1.0703125 in bfloat16. Without the rounding, 3
/// times the factor would be 3.203125.
#[test]
fn the_factor_has_the_dtype_of_the_queries() {
    let queries = ones(1, 1).as_dtype(Dtype::Bfloat16).unwrap().multiply(Array::from_int(3)).unwrap();
    let queries = queries.as_dtype(Dtype::Bfloat16).unwrap();
    let scaled = scale().scale(&queries, 4).unwrap();
    assert_eq!(scaled.dtype(), Dtype::Bfloat16);
    let values = tensor(&scaled.as_dtype(Dtype::Float32).unwrap());
    assert_eq!(values, tensor(&Array::full::<f32>(&[1, 2, 1, 2], Array::from_f32(3.218_75)).unwrap()));
}

#[test]
fn a_rotation_scales_queries_only_if_the_model_does() {
    let rope = Rope::new(2, 100.0, RopeLayout::Halves).unwrap();
    let same = rope.scale_queries(&ones(1, 1), 4).unwrap();
    assert_eq!(tensor(&same), tensor(&ones(1, 1)));
    assert!(!format!("{rope:?}").contains("query_scale"));

    let scaling = rope.with_query_scale(Some(scale()));
    assert!(format!("{scaling:?}").contains("query_scale"));
    for rope in [scaling.for_length(99), scaling.followed_by(3), scaling] {
        let scaled = rope.scale_queries(&ones(1, 1), 4).unwrap();
        assert_eq!(tensor(&scaled), tensor(&scale().scale(&ones(1, 1), 4).unwrap()));
    }
}

#[test]
fn wrong_shapes_and_numbers_are_errors() {
    let flat = Array::ones::<f32>(&[2, 2]).unwrap();
    assert!(scale().scale(&flat, 0).unwrap_err().what().contains("[2, 2]"));
    let error = scale().scale(&ones(2, 1), &[1, 2, 3][..]).unwrap_err();
    assert!(error.what().contains("3 offsets for a batch of 2 rows"), "{}", error.what());
    for (beta, original, needle) in [
        (-0.1, 4, "llama_4_scaling_beta is -0.1, and must be a finite number from 0 on"),
        (f64::NAN, 4, "llama_4_scaling_beta is NaN"),
        (1e300, 4, "llama_4_scaling_beta"),
        (0.1, 0, "original_max_position_embeddings is 0"),
    ] {
        let error = QueryScale::new(beta, original).unwrap_err().to_string();
        assert!(error.contains(needle), "{error}");
    }
}

fn keys(text: &str) -> RopeKeys {
    serde_json::from_str(text).unwrap()
}

#[test]
fn configs_have_the_factor_beside_the_rotation() {
    let new = r#"{"max_position_embeddings": 64, "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 16,
        "original_max_position_embeddings": 4, "max_position_embeddings": 64, "llama_4_scaling_beta": 0.1}}"#;
    let old = r#"{"rope_theta": 1e6, "original_max_position_embeddings": 4, "rope_scaling": {"type": "yarn",
        "factor": 16, "llama_4_scaling_beta": 0.1}}"#;
    let plain = r#"{"rope_parameters": {"rope_theta": 1e6, "original_max_position_embeddings": 4,
        "llama_4_scaling_beta": 0.1}}"#;
    // As the config of a GGUF file without YaRN.
    let named = r#"{"rope_parameters": {"rope_type": "default", "rope_theta": 1e6,
        "original_max_position_embeddings": 4, "llama_4_scaling_beta": 0.1}}"#;
    for text in [new, old, plain, named] {
        let keys = keys(text);
        assert_eq!(keys.query_scale().unwrap(), Some(scale()), "{text}");
        assert!(keys.uniform(None).is_ok() && keys.ignored().is_empty(), "{text}");
        assert!(keys.context_length(64).is_ok());
    }
    assert_eq!(keys(r#"{"rope_parameters": {"rope_theta": 1e6}}"#).query_scale().unwrap(), None);
}

#[test]
fn a_config_that_contradicts_itself_or_lacks_a_key_is_an_error() {
    for (text, needle) in [
        (
            r#"{"rope_parameters": {"rope_theta": 1e6, "llama_4_scaling_beta": 0.1}}"#,
            "original_max_position_embeddings is missing, and llama_4_scaling_beta needs it",
        ),
        (
            r#"{"rope_parameters": {"original_max_position_embeddings": 1.5, "llama_4_scaling_beta": 0.1}}"#,
            "original_max_position_embeddings is 1.5",
        ),
        (
            r#"{"rope_parameters": {"original_max_position_embeddings": 4, "llama_4_scaling_beta": 0.1},
                "rope_scaling": {"llama_4_scaling_beta": 0.2}}"#,
            "contradicts itself about llama_4_scaling_beta",
        ),
        (
            r#"{"original_max_position_embeddings": 8,
                "rope_parameters": {"original_max_position_embeddings": 4, "llama_4_scaling_beta": 0.1}}"#,
            "contradicts itself about original_max_position_embeddings",
        ),
    ] {
        let error = keys(text).query_scale().unwrap_err().to_string();
        assert!(error.contains(needle), "{error}");
    }
    let text = r#"{"max_position_embeddings": 64, "rope_parameters": {"rope_theta": 100, "max_position_embeddings": 32}}"#;
    let error = keys(text).uniform(None).unwrap_err().to_string();
    assert!(error.contains("contradicts itself about max_position_embeddings"), "{error}");
}
