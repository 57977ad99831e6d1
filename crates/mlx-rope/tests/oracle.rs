//! Every variant compared with the formulas of its paper in float64, pair by pair, and the properties of rotations.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::f64::consts::PI;

use approx::{abs_diff_eq, assert_abs_diff_eq, assert_relative_eq, relative_eq};
use mlx_rope::{LongRopeMode, Rope, RopeLayout, RopeScaling, initialize_rope};
use mlx_rs::ops::concatenate;
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::{Array, Dtype};
use mlx_testing::{assert_same_on_cpu, model_rounding, on_cpu, tensor};
use proptest::prelude::*;

const DIMS: usize = 16;
const BASE: f64 = 10_000.0;
const LONGEST: i32 = 256;
const ORIGINAL: i32 = 64;

fn scaling(json: &str) -> RopeScaling {
    serde_json::from_str(json).unwrap()
}

/// The frequency of a pair in a sequence of `n` tokens.
type Frequency = fn(usize, f64) -> f64;

/// Every kind, with the frequencies and the attention factor of its paper.
#[allow(clippy::too_many_lines, reason = "one formula for each kind")]
fn kinds() -> Vec<(RopeScaling, Frequency, f64)> {
    fn plain(pair: usize) -> f64 {
        BASE.powf(-2.0 * pair as f64 / DIMS as f64)
    }
    fn linear(pair: usize, _: f64) -> f64 {
        // Position interpolation (2306.15595), equation 3: f(x, m / s).
        plain(pair) / 8.0
    }
    fn dynamic(pair: usize, n: f64) -> f64 {
        let (factor, trained, d) = (4.0, f64::from(LONGEST), DIMS as f64);
        let base = BASE * (factor * n.max(trained) / trained - (factor - 1.0)).powf(d / (d - 2.0));
        base.powf(-2.0 * pair as f64 / d)
    }
    fn llama3(pair: usize, _: f64) -> f64 {
        // The Llama 3 herd of models (2407.21783), as its released code defines the blend.
        let (frequency, original) = (plain(pair), f64::from(ORIGINAL));
        let turns = original * frequency / (2.0 * PI);
        let smooth = ((turns - 1.0) / (4.0 - 1.0)).clamp(0.0, 1.0);
        (1.0 - smooth) * frequency / 8.0 + smooth * frequency
    }
    fn yarn(pair: usize, _: f64) -> f64 {
        // YaRN (2309.00071), section 3.2: theta' = (1 - gamma) theta / s + gamma theta. The paper's gamma is a ramp over
        // the turns. In the authors' code it is a ramp over the pairs, between those that make beta_slow and beta_fast
        // turns within the original length, rounded outwards.
        let d = DIMS as f64;
        let pair_that_turns =
            |turns: f64| d * (f64::from(ORIGINAL) / (2.0 * PI * turns)).ln() / (2.0 * BASE.ln());
        let (low, high) = (pair_that_turns(8.0).floor().max(0.0), pair_that_turns(1.0).ceil().min(d - 1.0));
        let gamma = 1.0 - ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
        (1.0 - gamma) * plain(pair) / 4.0 + gamma * plain(pair)
    }
    fn long_rope(pair: usize, n: f64) -> f64 {
        let factor = if n > f64::from(ORIGINAL) { 1.0 + 0.5 * pair as f64 } else { 1.0 + 0.1 * pair as f64 };
        plain(pair) / factor
    }
    fn long_rope_long(pair: usize, _: f64) -> f64 {
        long_rope(pair, f64::INFINITY)
    }
    fn proportional(pair: usize, _: f64) -> f64 {
        if pair < 4 { plain(pair) / 2.0 } else { 0.0 }
    }
    let long = r#"{"type": "su", "original_max_position_embeddings": 64,
        "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
        "long_factor": [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5]}"#;
    let long_factor = (1.0 + 4_f64.ln() / 64_f64.ln()).sqrt();
    vec![
        (RopeScaling::Default, |pair, _| plain(pair), 1.0),
        (scaling(r#"{"type": "linear", "factor": 8}"#), linear, 1.0),
        (scaling(r#"{"type": "dynamic", "factor": 4}"#), dynamic, 1.0),
        (
            scaling(r#"{"rope_type": "llama3", "factor": 8, "original_max_position_embeddings": 64}"#),
            llama3,
            1.0,
        ),
        (
            scaling(
                r#"{"type": "yarn", "factor": 4, "beta_fast": 8, "original_max_position_embeddings": 64}"#,
            ),
            yarn,
            0.1 * 4_f64.ln() + 1.0, // equation 22
        ),
        (scaling(long), long_rope, long_factor),
        (scaling(long).with_long_rope_mode(LongRopeMode::MlxLm), long_rope_long, long_factor),
        (
            scaling(r#"{"rope_type": "proportional", "partial_rotary_factor": 0.5, "factor": 2}"#),
            proportional,
            1.0,
        ),
        (scaling(r#"{"type": "mrope", "mrope_section": [2, 3, 3]}"#), |pair, _| plain(pair), 1.0),
    ]
}

fn build(scaling: &RopeScaling, layout: RopeLayout) -> Rope {
    initialize_rope(DIMS as i32, BASE, layout, scaling, Some(LONGEST)).unwrap()
}

fn input(rows: i32, length: i32, head_dim: i32) -> Array {
    let count = rows * 2 * length * head_dim;
    let values: Vec<f32> = (0..count).map(|i| ((i * 29 % 83) as f32 - 41.0) / 23.0).collect();
    Array::from_slice(&values, &[rows, 2, length, head_dim])
}

#[test]
fn frequencies_are_those_of_the_papers() {
    for (scaling, frequency, attention_factor) in kinds() {
        let rope = build(&scaling, RopeLayout::Halves);
        for length in [1, ORIGINAL, ORIGINAL + 1, LONGEST, 3 * LONGEST] {
            let found = rope.frequencies(length).unwrap();
            assert_eq!(found.len(), DIMS / 2);
            for (pair, &found) in found.iter().enumerate() {
                let expected = frequency(pair, f64::from(length));
                let is_close = relative_eq!(f64::from(found), expected, max_relative = 1e-5);
                assert!(is_close, "{scaling:?} {length} {pair}: {found} {expected}");
            }
            assert_abs_diff_eq!(f64::from(rope.attention_factor(length)), attention_factor, epsilon = 1e-6);
        }
    }
}

#[test]
fn rotated_features_are_those_of_the_papers() {
    let (length, head_dim) = (3, DIMS + 4);
    let x = input(1, length, head_dim as i32);
    for (scaling, frequency, attention_factor) in kinds() {
        for layout in [RopeLayout::Interleaved, RopeLayout::Halves] {
            for offset in [0, 5, ORIGINAL - 2, 900] {
                let y = build(&scaling, layout).rotate(&x, offset).unwrap();
                let rows = x.as_slice::<f32>().chunks(head_dim).zip(y.as_slice::<f32>().chunks(head_dim));
                for (row, (before, after)) in rows.enumerate() {
                    let position = f64::from(offset) + (row % length as usize) as f64;
                    let mut expected: Vec<f64> = before.iter().map(|&value| f64::from(value)).collect();
                    for pair in 0..DIMS / 2 {
                        let (a, b) = match layout {
                            RopeLayout::Interleaved => (2 * pair, 2 * pair + 1),
                            RopeLayout::Halves => (pair, pair + DIMS / 2),
                        };
                        let angle = position * frequency(pair, f64::from(offset + length));
                        let (u, v) = (f64::from(before[a]), f64::from(before[b]));
                        expected[a] = attention_factor * (u * angle.cos() - v * angle.sin());
                        expected[b] = attention_factor * (u * angle.sin() + v * angle.cos());
                    }
                    // The error of a float32 angle and of its factors is up to half a unit in the last place.
                    let allowed = 1e-5 + position * 4.0 * f64::from(f32::EPSILON);
                    // Metal has fast sines for this, whose error is larger.
                    let allowed = if on_cpu() { allowed } else { allowed + model_rounding(Dtype::Float32) };
                    for (&expected, &found) in expected.iter().zip(after) {
                        let is_close = abs_diff_eq!(f64::from(found), expected, epsilon = allowed);
                        assert!(is_close, "{scaling:?} {layout:?} {position}: {found} {expected}");
                    }
                }
            }
        }
    }
}

/// `fast::rope` once rotated only the first row of a batch of single tokens.
#[test]
fn a_single_token_is_rotated_in_every_row() {
    let token = input(1, 1, DIMS as i32);
    let batch = concatenate(&[&token, &token, &token], 0).unwrap();
    for (scaling, ..) in kinds() {
        let rope = build(&scaling, RopeLayout::Halves);
        let alone = rope.rotate(&token, 7).unwrap();
        let rows = rope.rotate(&batch, 7).unwrap();
        for row in 0..3 {
            let found = rows.try_index((row..row + 1, .., .., ..)).unwrap();
            assert_same_on_cpu(tensor(&found).named(format!("{scaling:?} {row}")), tensor(&alone));
        }
    }
}

/// Also where one row is beyond a border and the others are not.
#[test]
fn rows_with_offsets_of_their_own_are_rotated_as_alone() {
    let x = input(3, 2, DIMS as i32);
    for (scaling, ..) in kinds() {
        for offsets in [[0, 9, 3], [70, 9, 700], [62, 63, 64]] {
            let rope = build(&scaling, RopeLayout::Interleaved);
            let together = rope.rotate(&x, &offsets[..]).unwrap();
            for (row, offset) in (0..).zip(offsets) {
                let of_row = |x: &Array| x.try_index((row..row + 1, .., .., ..)).unwrap();
                let alone = rope.rotate(&of_row(&x), offset).unwrap();
                let found = tensor(&of_row(&together)).named(format!("{scaling:?} {offset}"));
                assert_same_on_cpu(found, tensor(&alone));
            }
        }
    }
}

#[test]
fn half_precision_stays_half() {
    for (scaling, ..) in kinds() {
        for dtype in [Dtype::Float16, Dtype::Bfloat16] {
            for head_dim in [DIMS, DIMS + 2] {
                let x = input(1, 2, head_dim as i32).as_dtype(dtype).unwrap();
                let rope = build(&scaling, RopeLayout::Halves);
                let found = rope.rotate(&x, 3).unwrap();
                assert_eq!(found.dtype(), dtype);
                let found = tensor(&found.as_dtype(Dtype::Float32).unwrap());
                let whole = tensor(&rope.rotate(&x.as_dtype(Dtype::Float32).unwrap(), 3).unwrap());
                let rounding = model_rounding(dtype);
                assert_relative_eq!(
                    found.named(format!("{scaling:?} {dtype:?}")),
                    whole,
                    epsilon = rounding,
                    max_relative = rounding
                );
            }
        }
    }
}

#[test]
fn only_the_call_that_leaves_the_original_length_crosses_the_border() {
    let kinds = kinds();
    let (long_rope, ..) = &kinds[5];
    let rope = build(long_rope, RopeLayout::Halves);
    for (offset, length, crosses) in [
        (0, 64, false),
        (0, 65, false), // nothing is cached yet
        (63, 1, false),
        (64, 1, true),
        (1, 64, true),
        (65, 1, false),
        (64, i32::MAX, true),
    ] {
        assert_eq!(rope.crosses_border(offset, length), crosses, "{offset} {length}");
    }
    let (mlx_lm, ..) = &kinds[6];
    assert!(!build(mlx_lm, RopeLayout::Halves).crosses_border(64, 1));
    assert!(!build(&RopeScaling::Default, RopeLayout::Halves).crosses_border(64, 1));
}

/// A prompt beyond the original length, in pieces of which most are below it.
#[test]
fn a_long_sequence_can_be_read_in_pieces() {
    let x = input(1, 80, DIMS as i32);
    for (scaling, ..) in kinds() {
        let rope = build(&scaling, RopeLayout::Halves);
        let whole = rope.rotate(&x, 0).unwrap();
        let fixed = rope.for_length(80);
        let pieces = [(0, 32), (32, 64), (64, 79), (79, 80)].map(|(from, to)| {
            let piece = x.try_index((.., .., from..to, ..)).unwrap();
            assert!(!fixed.crosses_border(from, to - from));
            let rotated = fixed.rotate(&piece, from).unwrap();
            // The same rotation from the number of following tokens, with one offset and with one for each row.
            let ahead = rope.followed_by(80 - to);
            for found in [ahead.rotate(&piece, from), ahead.rotate(&piece, &[from][..])] {
                assert_same_on_cpu(tensor(&found.unwrap()), tensor(&rotated));
            }
            rotated
        });
        let found = tensor(&concatenate(&pieces, 2).unwrap()).named(format!("{scaling:?}"));
        assert_relative_eq!(found, tensor(&whole), epsilon = 1e-5, max_relative = 1e-5);
    }
    let (long_rope, ..) = &kinds()[5];
    let rope = build(long_rope, RopeLayout::Halves);
    assert!(rope.rotates_alike(64, 1) && rope.rotates_alike(65, 900) && !rope.rotates_alike(60, 65));
}

fn any_kind() -> impl Strategy<Value = (Rope, f64)> {
    (0..kinds().len(), any::<bool>()).prop_map(|(kind, interleaved)| {
        let (scaling, _, attention_factor) = kinds().swap_remove(kind);
        let layout = if interleaved { RopeLayout::Interleaved } else { RopeLayout::Halves };
        (build(&scaling, layout), attention_factor)
    })
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|&value| f64::from(value) * f64::from(value)).sum::<f64>().sqrt()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn a_rotation_keeps_norms((rope, factor) in any_kind(), offset in 0..2000, length in 1..5) {
        let x = input(1, length, DIMS as i32);
        let y = rope.rotate(&x, offset).unwrap();
        for (x, y) in x.as_slice::<f32>().chunks(DIMS).zip(y.as_slice::<f32>().chunks(DIMS)) {
            prop_assert!(abs_diff_eq!(norm(y), factor * norm(x), epsilon = 1e-4 * norm(x)));
        }
    }

    #[test]
    fn the_inverse_undoes_a_rotation((rope, _) in any_kind(), offset in 0..2000, length in 1..5) {
        let x = input(2, length, DIMS as i32 + 2);
        let back = rope.rotate_back(&rope.rotate(&x, offset).unwrap(), offset).unwrap();
        let (back, x) = (tensor(&back), tensor(&x));
        prop_assert!(relative_eq!(back, x, epsilon = 1e-5, max_relative = 1e-5), "{:?}", back);
    }

    /// Both tokens are in one sequence, because some kinds depend on its length.
    #[test]
    fn scores_depend_on_the_distance_only((rope, _) in any_kind(), near in 0..20, distance in 0..20, shift in 0..20) {
        let score = |query: i32, key: i32| {
            let turn = |seed: i32, position: i32| {
                let row = input(1, 40, DIMS as i32).try_index((.., ..1, seed..seed + 1, ..)).unwrap();
                let turned = rope.rotate(&row, position).unwrap();
                turned.as_slice::<f32>().iter().map(|&value| f64::from(value)).collect::<Vec<_>>()
            };
            turn(3, query).iter().zip(turn(17, key)).map(|(a, b)| a * b).sum::<f64>()
        };
        let (first, second) = (score(near + distance, near), score(near + distance + shift, near + shift));
        prop_assert!(abs_diff_eq!(first, second, epsilon = 1e-3), "{} {}", first, second);
    }

    /// Below the border, because a longer sequence is rotated by other angles.
    #[test]
    fn splitting_a_call_changes_nothing((rope, _) in any_kind(), offset in 0..50, at in 1..10) {
        let x = input(2, 10, DIMS as i32);
        let whole = rope.rotate(&x, offset).unwrap();
        let part = |from: i32, to: i32| rope.rotate(&x.try_index((.., .., from..to, ..)).unwrap(), offset + from).unwrap();
        let parts = if at == 10 { vec![part(0, 10)] } else { vec![part(0, at), part(at, 10)] };
        let (found, whole) = (tensor(&concatenate(&parts, 2).unwrap()), tensor(&whole));
        prop_assert!(relative_eq!(found, whole, epsilon = 1e-5, max_relative = 1e-5), "{:?}", found);
    }
}
