//! The model compared with itself: changes that must not change its logits. The parity cases compare the logits with those
//! of other programs.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use approx::{assert_relative_eq, assert_relative_ne};
use mlx_causal_lm::{CausalLm, LoadError};
use mlx_checkpoint::CheckpointError;
use mlx_granite::{ARCHITECTURE, Granite};
use mlx_kvcache::{LayerKind, LayerSpec};
use mlx_rs::module::ModuleParameters;
use mlx_rs::{Array, Dtype};
use mlx_testing::checkpoints::{Tensors, tensors, without_tensors};
use mlx_testing::models::all_logits;
use mlx_testing::{RandomParameters, checkpoints, models, tensor};
use serde_json::{Value, json};

/// Three layers, and factors that are all different.
fn config() -> Value {
    json!({
        "model_type": "granite", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 128, "rope_theta": 10_000.0, "tie_word_embeddings": false,
        "embedding_multiplier": 3.0, "attention_multiplier": 0.125, "residual_multiplier": 0.5,
        "logits_scaling": 2.0,
    })
}

fn with(changes: Value) -> Value {
    let mut config = config();
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    config
}

/// Biases everywhere, a tied head, and heads of their own size.
fn other() -> Value {
    with(json!({ "attention_bias": true, "mlp_bias": true, "tie_word_embeddings": true, "head_dim": 12 }))
}

fn load(config: &Value, tensors: Tensors) -> Result<Box<dyn CausalLm>, LoadError> {
    checkpoints::load(&ARCHITECTURE, config, tensors)
}

fn model_of(config: &Value, source: &mut RandomParameters) -> Granite {
    let config = Granite::config(&without_tensors(config)).unwrap();
    Granite::new(&config, source)
}

fn random(config: &Value) -> Granite {
    model_of(config, &mut RandomParameters::new(4, Dtype::Float32))
}

/// `[2, 18]`, two different rows.
fn tokens() -> Array {
    Array::from_slice(&(0..36_u32).map(|i| i * i * 7 % 61).collect::<Vec<_>>(), &[2, 18])
}

#[track_caller]
fn assert_same(found: &Array, expected: &Array) {
    assert_eq!(tensor(found), tensor(expected));
}

#[test]
fn logits_do_not_depend_on_how_the_tokens_are_cut_into_calls() {
    let splits = [vec![1; 18], vec![4, 14], vec![6, 1, 1, 10], vec![2, 9, 7], vec![17, 1]];
    for config in [config(), other()] {
        models::splits_do_not_matter(&mut random(&config), &tokens(), &splits);
    }
}

#[test]
fn a_row_of_a_batch_has_the_logits_that_it_has_alone() {
    for config in [config(), other()] {
        models::batches_do_not_matter(&mut random(&config), &tokens());
    }
}

#[test]
fn a_token_does_not_change_the_logits_before_it() {
    models::the_future_is_not_seen(&mut random(&config()), &tokens());
}

#[test]
fn only_the_logits_that_are_asked_for_are_computed() {
    models::logits_come_as_asked_for(&mut random(&config()), &tokens());
}

#[test]
fn tokens_can_be_taken_back() {
    models::tokens_can_be_taken_back(&mut random(&config()), &tokens(), 3);
}

#[test]
fn wrong_calls_are_errors() {
    models::wrong_calls_are_errors(&mut random(&config()), &tokens());
}

#[test]
fn every_parameter_learns() {
    for config in [config(), other()] {
        let mut model = model_of(&config, &mut RandomParameters::new(1, Dtype::Float32));
        models::it_learns(&mut model, &tokens());
    }
}

#[test]
fn all_layers_have_a_full_cache() {
    let full = LayerSpec { kind: LayerKind::Full, heads: 2, key_dim: 8, value_dim: 8 };
    assert_eq!(random(&config()).info().layers, [full; 3]);
}

/// A tensor multiplied by a number.
fn scaled(tensors: &mut Tensors, part: &str, factor: f32) {
    for (key, array) in tensors.iter_mut().filter(|(key, _)| key.contains(part)) {
        *array = array.multiply(Array::from_f32(factor)).unwrap();
        assert!(key.ends_with(".weight"));
    }
}

/// Each factor of the config has the effect of the same factor of weights.
#[test]
fn factors_are_factors_of_weights() {
    let weights = || tensors(&random(&config()));
    let logits =
        |config: &Value, tensors| tensor(&all_logits(&mut *load(config, tensors).unwrap(), &tokens()));
    let expected = logits(&config(), weights());
    for (key, value, part, factor) in [
        ("embedding_multiplier", 1.0, "embed_tokens", 3.0),
        ("attention_multiplier", 0.25, "q_proj", 0.5),
        ("logits_scaling", 1.0, "lm_head", 0.5),
    ] {
        let other = with(json!({ key: value }));
        assert_relative_ne!(logits(&other, weights()), expected, epsilon = 1e-3, max_relative = 1e-3);
        let mut changed = weights();
        scaled(&mut changed, part, factor);
        assert_relative_eq!(logits(&other, changed), expected, epsilon = 1e-5, max_relative = 1e-5);
    }
    let other = with(json!({ "residual_multiplier": 1.0 }));
    assert_relative_ne!(logits(&other, weights()), expected, epsilon = 1e-3, max_relative = 1e-3);
    let mut changed = weights();
    scaled(&mut changed, "o_proj", 0.5);
    scaled(&mut changed, "down_proj", 0.5);
    assert_relative_eq!(logits(&other, changed), expected, epsilon = 1e-5, max_relative = 1e-5);
}

#[test]
fn parameters_are_the_tensors_of_a_checkpoint() {
    for (config, count) in [(config(), 3 + 3 * 9), (other(), 2 + 3 * 16)] {
        let mut source = RandomParameters::new(4, Dtype::Float32);
        let mut model = model_of(&config, &mut source);
        let mut names: Vec<String> = tensors(&model).into_iter().map(|(key, _)| key).collect();
        names.sort();
        source.taken.sort();
        assert_eq!(names, source.taken);
        assert_eq!(names.len(), count);
        let parameters = model.parameters().flatten();
        assert_eq!(parameters["model.layers.2.mlp.down_proj.weight"].shape(), [32, 48]);

        let mut loaded = load(&config, tensors(&model)).unwrap();
        assert_eq!(loaded.info(), model.info());
        assert_same(&all_logits(&mut *loaded, &tokens()), &all_logits(&mut model, &tokens()));
    }
}

#[test]
fn every_tensor_that_is_not_right_is_listed() {
    let mut wrong = tensors(&random(&config()));
    wrong.push(("model.layers.0.self_attn.q_proj.bias".to_owned(), Array::zeros::<f32>(&[32]).unwrap()));
    wrong.retain(|(key, _)| key != "lm_head.weight");
    for (key, array) in &mut wrong {
        if key == "model.layers.2.self_attn.k_proj.weight" {
            *array = Array::zeros::<f32>(&[32, 32]).unwrap();
        }
    }
    let error = load(&config(), wrong).unwrap_err();
    let LoadError::Checkpoint(CheckpointError::Tensors { problems, .. }) = &error else { panic!("{error}") };
    let problems: Vec<String> = problems.iter().map(|problem| problem.to_string()).collect();
    assert_eq!(
        problems,
        [
            "lm_head.weight: missing, [64, 32] is needed",
            "model.layers.0.self_attn.q_proj.bias: unexpected, the model has no such parameter",
            "model.layers.2.self_attn.k_proj.weight: shape [32, 32], [16, 32] is needed",
        ]
    );
}

#[test]
fn a_head_in_the_checkpoint_is_used() {
    let tied = tensors(&random(&with(json!({ "tie_word_embeddings": true }))));
    let keys = ["model.embed_tokens.weight", "lm_head.weight"];
    checkpoints::a_head_in_the_checkpoint_is_used(&ARCHITECTURE, &config(), &tied, keys, &tokens());
}

#[test]
fn the_dtype_is_that_of_the_weights() {
    for dtype in [Dtype::Bfloat16, Dtype::Float16] {
        let mut model = model_of(&config(), &mut RandomParameters::new(4, dtype));
        assert_eq!(model.info().dtype, dtype);
        assert_eq!(all_logits(&mut model, &tokens()).dtype(), dtype);
    }
}

#[test]
fn leftover_frequencies_are_ignored() {
    let (tensors, module) = (tensors(&random(&config())), "model.layers.0.self_attn");
    checkpoints::leftover_frequencies_are_ignored(&ARCHITECTURE, &config(), &tensors, module);
}
