//! Compares masks with those of mlx-lm, which `xtask/python/make_mask_fixtures.py` recorded.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use mlx_attn_masks::CausalMask;
use mlx_rs::Dtype;
use serde_json::Value;

fn number(value: &Value) -> i32 {
    i32::try_from(value.as_i64().unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<i32> {
    value.as_array().unwrap().iter().map(number).collect()
}

#[test]
fn every_mask_is_mlx_lms() {
    let fixture: Value = serde_json::from_str(include_str!("fixtures/causal_masks.json")).unwrap();
    let cases = fixture["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 6 * 7 * 5);
    for case in cases {
        let padding = |side: &str| case[side].is_array().then(|| numbers(&case[side]));
        let (left, right) = (padding("left"), padding("right"));
        let window = (!case["window"].is_null()).then(|| number(&case["window"]));
        let mut mask =
            CausalMask::new(number(&case["queries"])).offset(number(&case["offset"])).window(window);
        if let Some(left) = &left {
            mask = mask.left_padding(left);
        }
        if let Some(right) = &right {
            mask = mask.right_padding(right);
        }

        let found = mask.to_array().unwrap();
        assert_eq!(
            (found.dtype(), found.shape()),
            (Dtype::Bool, numbers(&case["shape"]).as_slice()),
            "{case}"
        );
        let rows = case["visible"].as_array().unwrap();
        let expected: Vec<bool> =
            rows.iter().flat_map(|row| row.as_str().unwrap().chars().map(|c| c == '1')).collect();
        assert_eq!(found.as_slice::<bool>(), expected, "{case}");
    }
}
