//! The norms give the same bits as mlx-lm, whose results `xtask/python/make_norm_fixtures.py` recorded.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::HashMap;
use std::path::Path;

use approx::assert_relative_eq;
use mlx_norms::{ClipResidual, OffsetRmsNorm, RmsNorm, clip_residual, offset_rms_norm, rms_norm};
use mlx_rs::module::Module;
use mlx_rs::{Array, Dtype};
use mlx_testing::{on_recording_device, tensor};

/// As in the script.
const EPS: f32 = 1e-6;

/// The recorded cases of one function, by name: two inputs and mlx-lm's output.
fn cases(file: &str) -> Vec<(String, [Array; 3])> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(file);
    let mut cases: HashMap<String, [Option<Array>; 3]> = HashMap::new();
    for (key, array) in Array::load_safetensors(path).unwrap() {
        let (case, tensor) = key.rsplit_once('.').unwrap();
        let place = match tensor {
            "x" => 0,
            "weight" | "y" => 1,
            "expected" => 2,
            other => panic!("{other} in {file}"),
        };
        cases.entry(case.to_owned()).or_default()[place] = Some(array);
    }
    let mut cases: Vec<_> =
        cases.into_iter().map(|(name, tensors)| (name, tensors.map(Option::unwrap))).collect();
    cases.sort_by(|(a, _), (b, _)| a.cmp(b));
    cases
}

/// The bits were recorded on the CPU of x86-64 Linux. Other devices add in another order, and their results may
/// differ by a few units in the last place.
#[track_caller]
fn check(case: &str, found: &Array, expected: &Array) {
    let unit = match expected.dtype() {
        Dtype::Bfloat16 => 2.0_f64.powi(-8),
        Dtype::Float16 => 2.0_f64.powi(-11),
        _ => 2.0_f64.powi(-22),
    };
    let (found, expected) = (tensor(found).named(case), tensor(expected));
    if on_recording_device() {
        assert_eq!(found, expected);
    } else {
        assert_relative_eq!(found, expected, epsilon = unit, max_relative = 4.0 * unit);
    }
}

#[test]
fn rms_norm_is_mlx_lms() {
    mlx_testing::stock_mlx();
    let cases = cases("rms_norm.safetensors");
    assert_eq!(cases.len(), 4 * 6);
    for (name, [x, weight, expected]) in &cases {
        check(name, &rms_norm(x, weight, EPS).unwrap(), expected);
        check(name, &RmsNorm::new(weight.clone(), EPS).forward(x).unwrap(), expected);
    }
}

#[test]
fn offset_rms_norm_is_mlx_lms() {
    mlx_testing::stock_mlx();
    let cases = cases("offset_rms_norm.safetensors");
    assert_eq!(cases.len(), 4 * 6);
    for (name, [x, weight, expected]) in &cases {
        check(name, &offset_rms_norm(x, weight, EPS).unwrap(), expected);
        let mut norm = OffsetRmsNorm::new(weight.clone(), EPS);
        for _ in 0..2 {
            check(name, &norm.forward(x).unwrap(), expected);
        }
    }
}

#[test]
fn clip_residual_is_mlx_lms() {
    let cases = cases("clip_residual.safetensors");
    assert_eq!(cases.len(), 3 * 6);
    for (name, [x, y, expected]) in &cases {
        check(name, &clip_residual(x, y).unwrap(), expected);
        check(name, &ClipResidual.forward((x, y)).unwrap(), expected);
    }
}
