//! The model compared with itself: changes that must not change its logits. The parity cases compare the logits with those
//! of other programs. The tests of `mlx-generate`'s session cover the border of LongRoPE.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use approx::{assert_relative_eq, relative_ne};
use common::{long_rope, model, model_with, plain, read, tokens, with};
use mlx_causal_lm::{CausalLm, LoadError, LoadOptions, Logits, LongRopeMode};
use mlx_checkpoint::{Checkpoint, CheckpointError};
use mlx_kvcache::{CacheOptions, LayerKind, LayerSpec, ModelCache, Quantization};
use mlx_phi3::{ARCHITECTURE, Phi3};
use mlx_rs::ops::concatenate;
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::{Array, Dtype};
use mlx_testing::checkpoints::{folder, tensors};
use mlx_testing::{RandomParameters, checkpoints, tensor};
use serde_json::{Value, json};

#[track_caller]
fn assert_close(case: &str, found: &Array, expected: &Array) {
    let (found, expected) = (tensor(found).named(case), tensor(expected));
    assert_relative_eq!(found, expected, epsilon = 1e-4, max_relative = 1e-4);
}

fn differ(found: &Array, expected: &Array) -> bool {
    relative_ne!(tensor(found), tensor(expected), epsilon = 2e-2, max_relative = 2e-2)
}

fn new_cache(model: &Phi3) -> ModelCache {
    model.new_cache(&CacheOptions::default()).unwrap()
}

fn all_logits(model: &mut Phi3, tokens: &Array) -> Array {
    let mut cache = new_cache(model);
    model.forward(tokens, &mut cache, Logits::All).unwrap()
}

/// Configs with different forward passes.
fn variants() -> Vec<(&'static str, Value)> {
    let linear = json!({ "type": "linear", "factor": 2.0 });
    vec![
        ("plain", plain()),
        ("linear", with(plain(), &[("rope_scaling", linear)])),
        ("partial", with(plain(), &[("partial_rotary_factor", json!(0.5))])),
        ("interleaved", with(plain(), &[("rope_traditional", json!(true))])),
        ("window", with(plain(), &[("sliding_window", json!(5))])),
        ("tied", with(plain(), &[("tie_word_embeddings", json!(true))])),
        ("heads", with(plain(), &[("head_dim", json!(16)), ("num_key_value_heads", json!(1))])),
        ("long", long_rope()),
        ("long with a window", with(long_rope(), &[("sliding_window", json!(5))])),
    ]
}

#[test]
fn logits_do_not_depend_on_how_the_tokens_are_cut_into_calls() {
    for (name, config) in variants() {
        let mut model = model(&config);
        let tokens = tokens(2, 12);
        let whole = all_logits(&mut model, &tokens);
        assert_eq!(whole.shape(), [2, 12, 96]);
        for calls in [vec![1; 12], vec![5, 7], vec![11, 1], vec![2, 9, 1]] {
            let mut cache = new_cache(&model);
            // With the length stated in advance, every call rotates as for the whole sequence.
            cache.expect(12);
            let mut pieces = Vec::new();
            let mut start = 0;
            for &call in &calls {
                let piece = tokens.try_index((.., start..start + call)).unwrap();
                pieces.push(model.forward(&piece, &mut cache, Logits::All).unwrap());
                start += call;
            }
            assert_close(&format!("{name}, {calls:?}"), &concatenate(&pieces, 1).unwrap(), &whole);
            assert_eq!(cache.offset(), 12);
        }
    }
}

#[test]
fn every_setting_of_the_config_changes_the_logits() {
    let plain_logits = all_logits(&mut model(&plain()), &tokens(1, 12));
    for (name, config) in variants().into_iter().skip(1) {
        let mut model = model(&config);
        assert!(differ(&all_logits(&mut model, &tokens(1, 12)), &plain_logits), "{name}");
    }
}

#[test]
fn a_row_of_a_batch_has_the_logits_that_it_has_alone() {
    for (name, config) in variants() {
        let mut model = model(&config);
        let batch = all_logits(&mut model, &tokens(2, 12));
        for row in 0..2 {
            let alone = all_logits(&mut model, &tokens(2, 12).try_index((row..row + 1, ..)).unwrap());
            let expected = batch.try_index((row..row + 1, .., ..)).unwrap();
            assert_close(name, &alone, &expected);
        }
    }
}

/// The rows have 12 and 7 tokens, on both sides of the border, and each rotates by its own length.
#[test]
fn a_padded_row_of_a_batch_has_the_logits_that_it_has_alone() {
    for cuts in [vec![12], vec![9, 3], vec![4, 8]] {
        let mut model = model(&long_rope());
        let (long, short) = (tokens(1, 12), tokens(1, 7));
        let padding = Array::zeros::<u32>(&[1, 5]).unwrap();
        let padded = concatenate(&[&padding, &short], 1).unwrap();
        let batch = concatenate(&[&long, &padded], 0).unwrap();
        let options = CacheOptions { left_padding: vec![0, 5], ..CacheOptions::default() };
        let mut cache = model.new_cache(&options).unwrap();
        cache.expect(12);
        let mut start = 0;
        let mut last = None;
        for cut in cuts {
            let piece = batch.try_index((.., start..start + cut)).unwrap();
            last = Some(model.forward(&piece, &mut cache, Logits::Last).unwrap());
            start += cut;
        }
        let last = last.unwrap();
        for (row, alone) in [(0, long), (1, short)] {
            let expected = all_logits(&mut model, &alone).try_index((.., -1.., ..)).unwrap();
            assert_close(&format!("row {row}"), &last.try_index((row..row + 1, .., ..)).unwrap(), &expected);
        }
    }
}

#[test]
fn a_token_does_not_change_the_logits_before_it() {
    let mut model = model(&plain());
    let mut ids: Vec<u32> = (0..12).collect();
    let first = all_logits(&mut model, &Array::from_slice(&ids, &[1, 12]));
    ids[7] = 90;
    let second = all_logits(&mut model, &Array::from_slice(&ids, &[1, 12]));
    let before = |logits: &Array| logits.try_index((.., ..7, ..)).unwrap();
    let after = |logits: &Array| logits.try_index((.., 7.., ..)).unwrap();
    assert_eq!(tensor(&before(&first)), tensor(&before(&second)));
    assert!(differ(&after(&first), &after(&second)));
}

/// A query attends to its own token and the 4 before it. Through 2 layers, token 0 has an effect up to token 8.
#[test]
fn a_window_counts_the_query_itself() {
    let mut model = model(&with(plain(), &[("sliding_window", json!(5))]));
    let mut ids: Vec<u32> = (0..12).collect();
    let first = all_logits(&mut model, &Array::from_slice(&ids, &[1, 12]));
    ids[0] = 90;
    let second = all_logits(&mut model, &Array::from_slice(&ids, &[1, 12]));
    let at = |logits: &Array, position: i32| logits.try_index((.., position..position + 1, ..)).unwrap();
    for position in 9..12 {
        assert_eq!(tensor(&at(&first, position)), tensor(&at(&second, position)), "{position}");
    }
    assert_ne!(tensor(&at(&first, 8)), tensor(&at(&second, 8)));
}

#[test]
fn a_window_as_long_as_the_text_changes_nothing() {
    let full = all_logits(&mut model(&plain()), &tokens(1, 12));
    for window in [12, 64, 262_144] {
        let mut model = model(&with(plain(), &[("sliding_window", json!(window))]));
        assert_close(&format!("a window of {window}"), &all_logits(&mut model, &tokens(1, 12)), &full);
    }
}

#[test]
fn only_the_logits_that_are_asked_for_are_computed() {
    for config in [plain(), with(plain(), &[("tie_word_embeddings", json!(true))])] {
        let mut model = model(&config);
        let all = all_logits(&mut model, &tokens(2, 12));
        let mut cache = new_cache(&model);
        let last = model.forward(&tokens(2, 12), &mut cache, Logits::Last).unwrap();
        assert_close("the last", &last, &all.try_index((.., -1.., ..)).unwrap());
        let mut cache = new_cache(&model);
        let none = model.forward(&tokens(2, 12), &mut cache, Logits::None).unwrap();
        assert_eq!(none.shape(), [2, 0, 96]);
        assert_eq!(cache.offset(), 12);
    }
}

#[test]
fn trimmed_tokens_leave_no_trace() {
    for (window, rewind) in [(Value::Null, 0), (json!(4), 3)] {
        let mut model = model(&with(plain(), &[("sliding_window", window)]));
        let whole = all_logits(&mut model, &tokens(2, 12));
        let options = CacheOptions { rewind, ..CacheOptions::default() };
        let mut cache = model.new_cache(&options).unwrap();
        model.forward(&tokens(2, 12).try_index((.., ..5)).unwrap(), &mut cache, Logits::None).unwrap();
        let other = Array::zeros::<u32>(&[2, 3]).unwrap();
        model.forward(&other, &mut cache, Logits::None).unwrap();
        assert_eq!(cache.trim(3).unwrap(), 3);
        let rest = tokens(2, 12).try_index((.., 5..)).unwrap();
        let rest = model.forward(&rest, &mut cache, Logits::All).unwrap();
        assert_close("the rest", &rest, &whole.try_index((.., 5.., ..)).unwrap());
    }
}

#[test]
fn a_quantized_cache_is_nearly_the_same() {
    let config = with(plain(), &[("head_dim", json!(32))]);
    let mut model = model(&config);
    let exact = all_logits(&mut model, &tokens(2, 12));
    let quantization = Some(Quantization::affine(8, 32).unwrap());
    let mut cache = model.new_cache(&CacheOptions { quantization, ..CacheOptions::default() }).unwrap();
    let found = model.forward(&tokens(2, 12), &mut cache, Logits::All).unwrap();
    assert_relative_eq!(tensor(&found), tensor(&exact), epsilon = 5e-2, max_relative = 5e-2);
}

#[test]
fn the_length_of_the_sequence_chooses_the_factors() {
    let long = model(&long_rope());
    for (a, b, alike) in [(1, 8, true), (8, 9, false), (9, 60, true), (60, 3, false)] {
        assert_eq!(long.rotates_alike(a, b), alike, "{a} {b}");
    }
    assert!(model(&plain()).rotates_alike(1, 60));

    // mlx-lm's rule has no border, and differs for short texts.
    let options = LoadOptions { long_rope: LongRopeMode::MlxLm, ..LoadOptions::default() };
    let mut always_long = model_with(&long_rope(), &options);
    assert!(always_long.rotates_alike(8, 9));
    let mut by_length = long;
    let logits = |model: &mut Phi3, length| all_logits(model, &tokens(1, length));
    assert_close("12 tokens", &logits(&mut always_long, 12), &logits(&mut by_length, 12));
    assert!(differ(&logits(&mut always_long, 8), &logits(&mut by_length, 8)));
}

#[test]
fn wrong_calls_are_errors() {
    let mut model = model(&plain());
    let flat = Array::from_slice(&[1_u32, 2], &[2]);
    let mut cache = new_cache(&model);
    let error = model.forward(&flat, &mut cache, Logits::All).unwrap_err();
    assert!(error.what().contains("[2]"), "{error}");
    let three = vec![model.info().layers[0]; 3];
    let mut cache = ModelCache::for_layers(&three, &CacheOptions::default()).unwrap();
    let error = model.forward(&tokens(1, 3), &mut cache, Logits::All).unwrap_err();
    assert!(error.what().contains("3 layers"), "{error}");
}

#[test]
fn parameters_are_the_tensors_of_a_checkpoint() {
    for (tied, count) in [(false, 3 + 2 * 6), (true, 2 + 2 * 6)] {
        let config = with(plain(), &[("tie_word_embeddings", json!(tied))]);
        let mut source = RandomParameters::new(4, Dtype::Float32);
        let model = Phi3::new(&read(&config, &LoadOptions::default()), &mut source);
        let mut names: Vec<String> = tensors(&model).into_iter().map(|(key, _)| key).collect();
        names.sort();
        source.taken.sort();
        assert_eq!(names, source.taken);
        assert_eq!(names.len(), count);
        assert_eq!(names.contains(&"lm_head.weight".to_owned()), !tied);
        assert!(names.contains(&"model.layers.1.mlp.gate_up_proj.weight".to_owned()));
    }
}

#[test]
fn a_saved_model_loads_unchanged() {
    for (name, config) in variants() {
        let mut model = model(&config);
        let folder = folder(&config, tensors(&model));
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let mut loaded = Phi3::load(&checkpoint, &LoadOptions::default()).unwrap();
        let (found, expected) =
            (all_logits(&mut loaded, &tokens(2, 12)), all_logits(&mut model, &tokens(2, 12)));
        assert_eq!(tensor(&found), tensor(&expected), "{name}");
        assert_eq!(loaded.info(), model.info());
    }
}

#[test]
fn the_facts_are_those_of_the_config() {
    let info = model(&with(plain(), &[("sliding_window", json!(7))])).info().clone();
    let layer = LayerSpec { kind: LayerKind::Sliding { window: 7 }, heads: 2, key_dim: 8, value_dim: 8 };
    assert_eq!(info.layers, [layer, layer]);
    assert_eq!((info.vocab_size, info.context_length, info.dtype), (96, 64, Dtype::Float32));
    assert_eq!(model(&plain()).info().layers[0].kind, LayerKind::Full);
}

#[test]
fn only_rotary_tables_are_ignored() {
    let mut with = tensors(&model(&plain()));
    let load = |tensors: &Vec<(String, Array)>| {
        let folder = folder(&plain(), tensors.clone());
        Phi3::load(&Checkpoint::open(folder.path()).unwrap(), &LoadOptions::default())
    };
    with.push(("model.layers.0.self_attn.rotary_emb.inv_freq".to_owned(), Array::from_f32(1.0)));
    assert!(load(&with).is_ok());

    with.push(("model.layers.0.self_attn.rotary_emb.scale".to_owned(), Array::from_f32(1.0)));
    with.push(("model.layers.0.self_attn.o_proj.bias".to_owned(), Array::from_f32(1.0)));
    with.retain(|(key, _)| key != "lm_head.weight");
    let error = load(&with).unwrap_err();
    assert!(
        matches!(&error, LoadError::Checkpoint(CheckpointError::Tensors { problems, .. }) if problems.len() == 3)
    );
    let text = error.to_string();
    for needle in ["o_proj.bias: unexpected", "rotary_emb.scale: unexpected", "lm_head.weight: missing"] {
        assert!(text.contains(needle), "{text}");
    }
}

#[test]
fn a_head_in_the_checkpoint_is_used() {
    let tied = tensors(&model(&with(plain(), &[("tie_word_embeddings", json!(true))])));
    let keys = ["model.embed_tokens.weight", "lm_head.weight"];
    checkpoints::a_head_in_the_checkpoint_is_used(&ARCHITECTURE, &plain(), &tied, keys, &tokens(2, 12));
}

#[test]
fn leftover_frequencies_are_ignored() {
    let (tensors, module) = (tensors(&model(&plain())), "model.layers.0.self_attn");
    checkpoints::leftover_frequencies_are_ignored(&ARCHITECTURE, &plain(), &tensors, module);
}
