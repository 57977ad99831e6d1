//! The model compared with itself: changes that must not change its logits. The parity cases compare the logits with those
//! of other programs.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use mlx_causal_lm::{CausalLm, LoadError, Logits};
use mlx_checkpoint::CheckpointError;
use mlx_kvcache::{CacheOptions, LayerKind, LayerSpec};
use mlx_lille_130m::{ARCHITECTURE, Config, Lille130m};
use mlx_rs::{Array, Dtype};
use mlx_testing::checkpoints::{Tensors, tensors, without_tensors};
use mlx_testing::models::all_logits;
use mlx_testing::{RandomParameters, checkpoints, models, tensor};
use serde_json::{Value, json};

fn small() -> Value {
    json!({
        "model_type": "lille-130m", "block_size": 64, "layer_norm_eps": 1e-5, "n_embd": 64, "n_head": 4,
        "n_kv_heads": 2, "n_layer": 2, "rope_theta": 10000.0, "vocab_size": 96,
    })
}

fn load(tensors: Tensors) -> Result<Box<dyn CausalLm>, LoadError> {
    checkpoints::load(&ARCHITECTURE, &small(), tensors)
}

fn config() -> Config {
    Config::from_checkpoint(&without_tensors(&small())).unwrap()
}

fn model() -> Lille130m {
    Lille130m::new(&config(), &mut RandomParameters::new(4, Dtype::Float32))
}

/// `[2, 12]`, two different rows.
fn tokens() -> Array {
    Array::from_slice(&(0..24_u32).map(|i| i * i * 7 % 96).collect::<Vec<_>>(), &[2, 12])
}

#[test]
fn logits_do_not_depend_on_how_the_tokens_are_cut_into_calls() {
    let splits = [vec![1; 12], vec![5, 7], vec![11, 1], vec![2, 9, 1]];
    models::splits_do_not_matter(&mut model(), &tokens(), &splits);
}

#[test]
fn a_row_of_a_batch_has_the_logits_that_it_has_alone() {
    models::batches_do_not_matter(&mut model(), &tokens());
}

#[test]
fn a_token_does_not_change_the_logits_before_it() {
    models::the_future_is_not_seen(&mut model(), &tokens());
}

#[test]
fn only_the_logits_that_are_asked_for_are_computed() {
    models::logits_come_as_asked_for(&mut model(), &tokens());
}

#[test]
fn trimmed_tokens_leave_no_trace() {
    models::tokens_can_be_taken_back(&mut model(), &tokens(), 3);
}

#[test]
fn wrong_calls_are_errors() {
    models::wrong_calls_are_errors(&mut model(), &tokens());
}

#[test]
fn every_parameter_learns() {
    models::it_learns(&mut model(), &tokens());
}

#[test]
fn parameters_are_the_tensors_of_a_checkpoint() {
    let mut source = RandomParameters::new(4, Dtype::Float32);
    let model = Lille130m::new(&config(), &mut source);
    let mut names: Vec<String> = tensors(&model).into_iter().map(|(key, _)| key).collect();
    names.sort();
    source.taken.sort();
    assert_eq!(names, source.taken);
    assert_eq!(names.len(), 2 + 2 * 7);
    assert!(names.contains(&"transformer.layers.1.attention.qkv_proj.weight".to_owned()));
}

#[test]
fn a_saved_model_loads_unchanged() {
    let mut model = model();
    let mut loaded = load(tensors(&model)).unwrap();
    let (found, expected) = (all_logits(&mut *loaded, &tokens()), all_logits(&mut model, &tokens()));
    assert_eq!(tensor(&found), tensor(&expected));
    assert_eq!(loaded.info(), model.info());
    let layer = LayerSpec { kind: LayerKind::Full, heads: 2, key_dim: 16, value_dim: 16 };
    assert_eq!(loaded.info().layers, [layer, layer]);
}

/// Norms in float32 make everything after the first of them float32.
#[test]
fn the_dtype_of_a_mixed_checkpoint_is_that_of_its_logits() {
    let mut source = RandomParameters::new(4, Dtype::Bfloat16);
    let mixed = tensors(&Lille130m::new(&config(), &mut source));
    assert_eq!(Lille130m::new(&config(), &mut source).info().dtype, Dtype::Bfloat16);
    let mixed = mixed.into_iter().map(|(key, array)| {
        let dtype = if key.ends_with("norm.weight") { Dtype::Float32 } else { Dtype::Bfloat16 };
        let array = array.as_dtype(dtype).unwrap();
        (key, array)
    });
    let mut model = load(mixed.collect()).unwrap();
    let mut cache = model.new_cache(&CacheOptions::default()).unwrap();
    let logits = model.forward(&tokens(), &mut cache, Logits::Last).unwrap();
    assert_eq!((logits.dtype(), model.info().dtype), (Dtype::Float32, Dtype::Float32));
    let bytes_per_token = cache.nbytes() / (2 * 256); // two rows, 256 places
    assert_eq!(bytes_per_token, model.info().cache_bytes_per_token());
}

#[test]
fn only_rotary_tables_are_ignored() {
    let mut with = tensors(&model());
    with.push(("transformer.layers.0.attention.rotary_emb.inv_freq".to_owned(), Array::from_f32(1.0)));
    assert!(load(with.clone()).is_ok());

    with.push(("transformer.layers.0.attention.bias".to_owned(), Array::from_f32(1.0)));
    with.retain(|(key, _)| key != "transformer.norm.weight");
    let error = load(with).unwrap_err();
    assert!(
        matches!(&error, LoadError::Checkpoint(CheckpointError::Tensors { problems, .. }) if problems.len() == 2)
    );
    let text = error.to_string();
    assert!(
        text.contains("attention.bias: unexpected") && text.contains("transformer.norm.weight: missing"),
        "{text}"
    );
}

#[test]
fn leftover_frequencies_are_ignored() {
    let (tensors, module) = (tensors(&model()), "transformer.layers.0.attention");
    checkpoints::leftover_frequencies_are_ignored(&ARCHITECTURE, &small(), &tensors, module);
}
