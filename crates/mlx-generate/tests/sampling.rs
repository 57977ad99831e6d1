//! The same bits and the same tokens as mlx-lm, on what `xtask/python/make_sampling_fixtures.py` recorded, and
//! probabilities beside those that float64 gives.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::HashMap;
use std::path::Path;

use approx::abs_diff_eq;
use mlx_generate::{History, Penalizer, Penalties, Penalty, Sampler, Sampling, Xtc};
use mlx_rs::random::{RandomState, categorical};
use mlx_rs::{Array, Dtype};
use mlx_testing::{assert_same_on_cpu, tensor, with_cpu};
use proptest::prelude::*;
use serde_json::Value;

const VOCAB_SIZE: i32 = 97;

struct Fixture {
    about: Value,
    tensors: HashMap<String, Array>,
}

impl Fixture {
    fn read() -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let about = std::fs::read_to_string(folder.join("sampling.json")).unwrap();
        let tensors = Array::load_safetensors(folder.join("sampling.safetensors")).unwrap();
        Self { about: serde_json::from_str(&about).unwrap(), tensors }
    }

    fn cases(&self, kind: &str) -> impl Iterator<Item = (&String, &Value)> {
        self.about[kind].as_object().unwrap().iter()
    }

    fn list(&self, key: &str) -> &[Value] {
        self.about[key].as_array().unwrap()
    }

    fn dtypes(&self) -> impl Iterator<Item = &str> {
        self.list("dtypes").iter().map(|dtype| dtype.as_str().unwrap())
    }

    fn seeds(&self) -> impl Iterator<Item = u64> {
        self.list("seeds").iter().map(|seed| seed.as_u64().unwrap())
    }

    fn draws(&self) -> usize {
        self.about["draws"].as_u64().unwrap() as usize
    }

    fn tensor(&self, dtype: &str, name: &str) -> &Array {
        &self.tensors[&format!("{dtype}.{name}")]
    }
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap_or(&Vec::new()).iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// The arguments of `make_sampler`.
fn sampling(arguments: &Value, seed: u64) -> Sampling {
    let number = |key: &str, default: f64| arguments[key].as_f64().unwrap_or(default);
    let count = |key: &str, default: u64| arguments[key].as_u64().unwrap_or(default) as usize;
    Sampling {
        temperature: number("temp", 0.0),
        top_p: number("top_p", 0.0),
        min_p: number("min_p", 0.0),
        min_tokens_to_keep: count("min_tokens_to_keep", 1),
        top_k: count("top_k", 0),
        xtc: Xtc {
            probability: number("xtc_probability", 0.0),
            threshold: number("xtc_threshold", 0.1),
            special_tokens: ids(&arguments["xtc_special_tokens"]),
        },
        seed,
    }
}

/// The arguments of `make_logits_processors`.
fn penalties(arguments: &Value) -> Penalties {
    let penalty = |kind: &str| Penalty {
        penalty: arguments[format!("{kind}_penalty")].as_f64().unwrap_or(0.0),
        context_size: arguments[format!("{kind}_context_size")].as_u64().unwrap_or(20) as usize,
    };
    let bias = arguments["logit_bias"].as_array().unwrap();
    Penalties {
        logit_bias: bias.iter().map(|b| (b[0].as_u64().unwrap() as u32, b[1].as_f64().unwrap())).collect(),
        repetition: penalty("repetition"),
        presence: penalty("presence"),
        frequency: penalty("frequency"),
        dry: None,
    }
}

fn penalizer(arguments: &Value) -> Penalizer {
    Penalizer::new(penalties(arguments), VOCAB_SIZE).unwrap()
}

#[track_caller]
fn check(case: &str, found: &Array, expected: &Array) {
    assert_same_on_cpu(tensor(found).named(case), tensor(expected));
}

#[test]
#[cfg_attr(
    not(all(target_os = "linux", target_arch = "x86_64")),
    ignore = "the last bit decides, on another device"
)]
fn filters_leave_what_mlx_lms_leave() {
    with_cpu("the last bit decides which token is drawn", || {
        let fixture = Fixture::read();
        let seed = fixture.seeds().next().unwrap();
        for (name, arguments) in fixture.cases("samplers") {
            let mut sampler = Sampler::new(sampling(arguments, seed)).unwrap();
            for dtype in fixture.dtypes() {
                let logprobs = fixture.tensor(dtype, "logprobs");
                let Some(expected) = fixture.tensors.get(&format!("{dtype}.sampler_{name}.left")) else {
                    assert_eq!(name, "greedy");
                    continue;
                };
                let found = sampler.filter(logprobs).unwrap();
                check(&format!("{name} {dtype}"), &found, expected);
                sampler = Sampler::new(sampling(arguments, seed)).unwrap();
            }
        }
    });
}

#[test]
#[cfg_attr(
    not(all(target_os = "linux", target_arch = "x86_64")),
    ignore = "the last bit decides, on another device"
)]
fn tokens_are_those_that_mlx_lm_draws() {
    with_cpu("the last bit decides which token is drawn", || {
        let fixture = Fixture::read();
        for (name, arguments) in fixture.cases("samplers") {
            for dtype in fixture.dtypes() {
                let logprobs = fixture.tensor(dtype, "logprobs");
                let mut found = Vec::new();
                for seed in fixture.seeds() {
                    let mut sampler = Sampler::new(sampling(arguments, seed)).unwrap();
                    for _ in 0..fixture.draws() {
                        found.extend_from_slice(sampler.sample(logprobs).unwrap().as_slice::<u32>());
                    }
                }
                let expected = fixture.tensor(dtype, &format!("sampler_{name}.tokens"));
                assert_eq!(found, expected.as_slice::<u32>(), "{name} {dtype}");
            }
        }
    });
}

#[test]
fn penalties_change_logits_as_mlx_lms_do() {
    let fixture = Fixture::read();
    for (name, case) in fixture.cases("processors") {
        let penalizer = penalizer(&case["arguments"]);
        let tokens = ids(&case["history"]);
        let (last, before) = tokens.split_last().unwrap();
        let mut known = History::new(&tokens);
        let mut on_device = History::new(before);
        on_device.push(&Array::from_slice(&[*last], &[1])).unwrap();
        for dtype in fixture.dtypes() {
            let logits = fixture.tensor(dtype, "logits");
            let expected = fixture.tensor(dtype, &format!("processor_{name}.logits"));
            for history in [&mut known, &mut on_device] {
                check(&format!("{name} {dtype}"), &penalizer.apply(history, logits).unwrap(), expected);
            }
        }
    }
}

#[test]
#[cfg_attr(
    not(all(target_os = "linux", target_arch = "x86_64")),
    ignore = "the last bit decides, on another device"
)]
fn a_loop_of_penalties_and_draws_is_mlx_lms() {
    with_cpu("the last bit decides which token is drawn", || {
        let fixture = Fixture::read();
        for (name, case) in fixture.cases("loops") {
            let arguments = &fixture.about["samplers"][case["sampler"].as_str().unwrap()];
            let processor = &fixture.about["processors"][case["processor"].as_str().unwrap()];
            for dtype in fixture.dtypes() {
                let logits = fixture.tensor(dtype, "logits");
                let mut found = Vec::new();
                for seed in fixture.seeds() {
                    let mut sampler = Sampler::new(sampling(arguments, seed)).unwrap();
                    let penalizer = penalizer(&processor["arguments"]);
                    let mut history = History::new(&ids(&processor["history"]));
                    for _ in 0..fixture.draws() {
                        let logits = penalizer.apply(&mut history, logits).unwrap();
                        let logprobs = logits.subtract(logits.logsumexp_axis(-1, true).unwrap()).unwrap();
                        let token = sampler.sample(&logprobs).unwrap();
                        history.push(&token).unwrap();
                        found.push(token.item_exact::<u32>());
                    }
                }
                let expected = fixture.tensor(dtype, &format!("loop_{name}.tokens"));
                assert_eq!(found, expected.as_slice::<u32>(), "{name} {dtype}");
            }
        }
    });
}

fn logprobs(probabilities: &[f64]) -> Array {
    let sum: f64 = probabilities.iter().sum();
    let logprobs: Vec<f32> = probabilities.iter().map(|p| (p / sum).ln() as f32).collect();
    Array::from_slice(&logprobs, &[1, logprobs.len() as i32])
}

/// The draw is one of `categorical` from the logarithm of `probabilities`, with the next key.
#[test]
fn tokens_are_drawn_by_the_probabilities() {
    let fixture = Fixture::read();
    let logprobs = fixture.tensor("f32", "logprobs");
    for (name, arguments) in fixture.cases("samplers") {
        let sampling = sampling(arguments, 11);
        if sampling.temperature == 0.0 {
            continue;
        }
        let mut sampler = Sampler::new(sampling.clone()).unwrap();
        let mut random = RandomState::with_seed(sampling.seed).unwrap();
        for draw in 0..20 {
            if sampling.xtc.probability > 0.0 {
                random.next_key().unwrap();
            }
            let key = random.next_key().unwrap();
            let probabilities = sampler.clone().probabilities(logprobs).unwrap();
            let expected = categorical(probabilities.log().unwrap(), -1, None, &key).unwrap();
            let found = sampler.sample(logprobs).unwrap();
            assert_eq!(found.as_slice::<u32>(), expected.as_slice::<u32>(), "{name} {draw}");
        }
    }
}

#[test]
fn greedy_takes_the_most_probable_whatever_the_filters() {
    let rows = Array::from_slice(&[0.2_f32, 0.5, 0.3, 0.6, 0.1, 0.3], &[2, 3]).log().unwrap();
    let xtc = Xtc { probability: 1.0, threshold: 0.1, special_tokens: Vec::new() };
    let mut sampler = Sampler::new(Sampling { xtc, ..Sampling::default() }).unwrap();
    assert_eq!(sampler.sample(&rows).unwrap().as_slice::<u32>(), [1, 0]);
    let probabilities = sampler.probabilities(&rows).unwrap();
    assert_eq!(probabilities.shape(), [2, 3]);
    assert_eq!(probabilities.as_slice::<f32>(), [0.0, 1.0, 0.0, 1.0, 0.0, 0.0]);
}

#[test]
fn the_same_seed_draws_the_same_tokens_and_another_draws_others() {
    let uniform = logprobs(&[1.0; 100]);
    let draw = |seed| {
        let mut sampler = Sampler::new(Sampling { temperature: 1.0, seed, ..Sampling::default() }).unwrap();
        (0..20).map(|_| sampler.sample(&uniform).unwrap().item_exact::<u32>()).collect::<Vec<_>>()
    };
    assert_eq!(draw(7), draw(7));
    assert_ne!(draw(7), draw(8));
}

#[test]
fn the_coldest_temperatures_take_the_most_probable() {
    for dtype in [Dtype::Float32, Dtype::Float16, Dtype::Bfloat16] {
        for temperature in [1e-3, 1e-5, 1e-30, 1e-300, f64::from_bits(1)] {
            let mut sampler = Sampler::new(Sampling { temperature, ..Sampling::default() }).unwrap();
            let row = logprobs(&[0.02, 0.1, 0.0, 0.6, 0.28]).as_dtype(dtype).unwrap();
            let probabilities = sampler.probabilities(&row).unwrap();
            assert_eq!(probabilities.as_slice::<f32>(), [0.0, 0.0, 0.0, 1.0, 0.0], "{dtype:?} {temperature}");
            let token = sampler.sample(&row).unwrap().item_exact::<u32>();
            assert_eq!(token, 3, "{dtype:?} {temperature}");
        }
    }
}

#[test]
fn options_at_the_edges_of_their_ranges() {
    let row = logprobs(&[0.1, 0.2, 0.3, 0.4]);
    let kept = |sampling: Sampling| -> Vec<usize> {
        let mut sampler = Sampler::new(Sampling { temperature: 1.0, ..sampling }).unwrap();
        let probabilities = sampler.probabilities(&row).unwrap();
        (0..4).filter(|&i| probabilities.as_slice::<f32>()[i] > 0.0).collect()
    };
    for top_p in [0.0, 1.0] {
        assert_eq!(kept(Sampling { top_p, ..Sampling::default() }), [0, 1, 2, 3]);
    }
    assert_eq!(kept(Sampling { top_p: f64::from_bits(1), ..Sampling::default() }), [3]);
    assert_eq!(kept(Sampling { min_p: 1.0, ..Sampling::default() }), [3]);
    for min_tokens_to_keep in [4, 5, usize::MAX] {
        let sampling = Sampling { min_p: 1.0, min_tokens_to_keep, ..Sampling::default() };
        assert_eq!(kept(sampling), [0, 1, 2, 3]);
    }
    for top_k in [4, 5, usize::MAX] {
        assert_eq!(kept(Sampling { top_k, ..Sampling::default() }), [0, 1, 2, 3]);
    }
    let xtc = |special_tokens: &[u32]| Xtc {
        probability: 1.0,
        threshold: 0.25,
        special_tokens: special_tokens.to_vec(),
    };
    assert_eq!(kept(Sampling { xtc: xtc(&[]), ..Sampling::default() }), [0, 1, 2]);
    assert_eq!(kept(Sampling { xtc: xtc(&[3, 4, u32::MAX]), ..Sampling::default() }), [0, 1, 2, 3]);
}

#[test]
fn options_out_of_their_ranges_are_named() {
    let xtc = |probability, threshold| Sampling {
        xtc: Xtc { probability, threshold, ..Xtc::default() },
        ..Sampling::default()
    };
    let default = Sampling::default;
    let cases = [
        (Sampling { temperature: -0.1, ..default() }, "temperature is -0.1, and must be a number from 0 on"),
        (
            Sampling { temperature: f64::INFINITY, ..default() },
            "temperature is inf, and must be a number from 0 on",
        ),
        (
            Sampling { temperature: f64::NAN, ..default() },
            "temperature is NaN, and must be a number from 0 on",
        ),
        (Sampling { top_p: 1.5, ..default() }, "top_p is 1.5, and must be a number from 0 to 1"),
        (Sampling { min_p: -1.0, ..default() }, "min_p is -1, and must be a number from 0 to 1"),
        (Sampling { min_tokens_to_keep: 0, ..default() }, "min_tokens_to_keep is 0, and must be 1 or more"),
        (xtc(2.0, 0.1), "xtc probability is 2, and must be a number from 0 to 1"),
        (xtc(0.5, 0.6), "xtc threshold is 0.6, and must be a number from 0 to 0.5"),
    ];
    for (sampling, message) in cases {
        assert_eq!(Sampler::new(sampling).unwrap_err().to_string(), message);
    }
}

#[test]
fn penalties_out_of_their_ranges_are_named() {
    let default = Penalties::default;
    let cases = [
        (
            Penalties { logit_bias: vec![(97, 1.0)], ..default() },
            "the token id of a logit bias is 97, and must be below 97",
        ),
        (
            Penalties { logit_bias: vec![(9, f64::INFINITY)], ..default() },
            "a logit bias is inf, and must be a finite number, or minus infinity",
        ),
        (
            Penalties { repetition: Penalty::new(-1.0), ..default() },
            "repetition penalty is -1, and must be a number from 0 on",
        ),
        (
            Penalties { presence: Penalty::new(f64::NAN), ..default() },
            "presence penalty is NaN, and must be a finite number",
        ),
        (
            Penalties { frequency: Penalty::new(f64::INFINITY), ..default() },
            "frequency penalty is inf, and must be a finite number",
        ),
    ];
    for (penalties, message) in cases {
        assert_eq!(Penalizer::new(penalties, VOCAB_SIZE).unwrap_err().to_string(), message);
    }
}

#[test]
fn two_biases_of_one_token_are_added() {
    let logits = Array::from_slice(&[1.0_f32, 2.0, 3.0], &[1, 3]);
    let logit_bias = vec![(1, 0.5), (2, f64::NEG_INFINITY), (1, 1.5)];
    let penalizer = Penalizer::new(Penalties { logit_bias, ..Penalties::default() }, 3).unwrap();
    let found = penalizer.apply(&mut History::default(), &logits).unwrap();
    assert_eq!(found.as_slice::<f32>(), [1.0, 4.0, f32::NEG_INFINITY]);
}

#[test]
fn a_history_has_its_tokens_in_order() {
    let mut history = History::new(&[1, 2]);
    assert_eq!(history.recent(1).unwrap().unwrap().as_slice::<u32>(), [2]);
    for token in [3, 4] {
        history.push(&Array::from_slice(&[token], &[1])).unwrap();
    }
    assert_eq!(history.len(), 4);
    for (count, expected) in
        [(1, &[4][..]), (2, &[3, 4]), (3, &[2, 3, 4]), (9, &[1, 2, 3, 4]), (0, &[1, 2, 3, 4])]
    {
        assert_eq!(history.recent(count).unwrap().unwrap().as_slice::<u32>(), expected);
    }
    assert_eq!(history.ids().unwrap(), [1, 2, 3, 4]);
    assert!(History::default().is_empty());
    assert!(History::default().recent(5).unwrap().is_none());
}

/// What is left of `weights` where `keep` says so, as probabilities at this temperature.
fn oracle(weights: &[f64], temperature: f64, keep: impl Fn(usize) -> bool) -> Vec<f64> {
    let most = weights.iter().copied().fold(0.0, f64::max);
    let left: Vec<f64> = weights
        .iter()
        .enumerate()
        .map(|(i, weight)| if keep(i) { (weight / most).powf(1.0 / temperature) } else { 0.0 })
        .collect();
    let sum: f64 = left.iter().sum();
    left.iter().map(|weight| weight / sum).collect()
}

fn check_probabilities(
    sampling: Sampling,
    weights: &[f64],
    keep: impl Fn(usize) -> bool,
) -> Result<(), TestCaseError> {
    let expected = oracle(weights, sampling.temperature, keep);
    let found = Sampler::new(sampling.clone()).unwrap().probabilities(&logprobs(weights)).unwrap();
    for (i, (&found, expected)) in found.as_slice::<f32>().iter().zip(expected).enumerate() {
        let found = f64::from(found);
        prop_assert_eq!(found == 0.0, expected == 0.0, "{} of {:?}: {} {}", i, &sampling, found, expected);
        let tolerance = 1e-4 * expected + 1e-9;
        prop_assert!(
            abs_diff_eq!(found, expected, epsilon = tolerance),
            "{} of {:?}: {} {}",
            i,
            &sampling,
            found,
            expected
        );
    }
    Ok(())
}

/// Weights of 2 to 40 tokens, no two nearer than rounding could confuse: a permutation of powers.
fn weights() -> impl Strategy<Value = Vec<f64>> {
    (2_usize..40, 0.7_f64..0.97).prop_flat_map(|(count, ratio)| {
        Just((0..count).map(|i| ratio.powi(i as i32)).collect::<Vec<_>>()).prop_shuffle()
    })
}

/// How many are larger.
fn rank(weights: &[f64], token: usize) -> usize {
    weights.iter().filter(|&&weight| weight > weights[token]).count()
}

proptest! {
    #[test]
    fn top_p_keeps_the_fewest_tokens_that_reach_it(weights in weights(), top_p in 0.01_f64..0.99, temperature in 0.3_f64..2.0) {
        let total: f64 = weights.iter().sum();
        let above = |token: usize| weights.iter().filter(|&&w| w > weights[token]).sum::<f64>() / total;
        // At the very border rounding decides.
        prop_assume!((0..weights.len()).all(|token| (above(token) - top_p).abs() > 1e-5));
        let sampling = Sampling { temperature, top_p, ..Sampling::default() };
        check_probabilities(sampling, &weights, |token| above(token) < top_p)?;
    }

    #[test]
    fn min_p_keeps_tokens_near_the_most_probable_one(
        weights in weights(),
        min_p in 0.001_f64..1.0,
        keep in 1_usize..50,
        temperature in 0.3_f64..2.0,
    ) {
        let most = weights.iter().copied().fold(0.0, f64::max);
        prop_assume!(weights.iter().all(|weight| (weight / most / min_p - 1.0).abs() > 1e-5));
        let sampling = Sampling { temperature, min_p, min_tokens_to_keep: keep, ..Sampling::default() };
        check_probabilities(sampling, &weights, |token| {
            weights[token] >= min_p * most || rank(&weights, token) < keep
        })?;
    }

    #[test]
    fn top_k_keeps_k_tokens(weights in weights(), top_k in 1_usize..50, temperature in 0.3_f64..2.0) {
        let sampling = Sampling { temperature, top_k, ..Sampling::default() };
        check_probabilities(sampling, &weights, |token| rank(&weights, token) < top_k)?;
    }

    #[test]
    fn xtc_keeps_the_least_probable_of_the_probable_tokens(
        weights in weights(),
        threshold in 0.0_f64..0.5,
        applies: bool,
        special in 0_u32..40,
    ) {
        let total: f64 = weights.iter().sum();
        prop_assume!(weights.iter().all(|weight| (weight / total - threshold).abs() > 1e-5));
        let probable: Vec<f64> = weights.iter().copied().filter(|weight| weight / total > threshold).collect();
        let least = probable.iter().copied().fold(f64::INFINITY, f64::min);
        // The random number is at least 0 and below 1.
        let probability = if applies { 1.0 } else { f64::MIN_POSITIVE };
        let xtc = Xtc { probability, threshold, special_tokens: vec![special] };
        let sampling = Sampling { temperature: 1.0, xtc, seed: 3, ..Sampling::default() };
        check_probabilities(sampling, &weights, |token| {
            !applies || token == special as usize || weights[token] <= least
        })?;
    }

    #[test]
    fn temperature_is_a_power(weights in weights(), temperature in 0.2_f64..3.0) {
        let sampling = Sampling { temperature, ..Sampling::default() };
        check_probabilities(sampling, &weights, |_| true)?;
    }
}
