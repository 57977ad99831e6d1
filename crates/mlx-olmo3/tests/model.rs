//! The model compared with itself: changes that must not change its logits. The parity cases compare the logits with those
//! of other programs.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use approx::assert_relative_eq;
use mlx_causal_lm::{CausalLm, LoadError};
use mlx_checkpoint::CheckpointError;
use mlx_kvcache::{LayerKind, LayerSpec};
use mlx_olmo3::{ARCHITECTURE, Olmo3};
use mlx_rs::module::ModuleParameters;
use mlx_rs::{Array, Dtype};
use mlx_testing::checkpoints::{Tensors, tensors, without_tensors};
use mlx_testing::models::all_logits;
use mlx_testing::{RandomParameters, checkpoints, models, tensor};
use serde_json::{Value, json};

/// Layers 0, 1 and 2 have a window of 5 tokens, layer 3 is full and rotates by YaRN.
fn config() -> Value {
    json!({
        "model_type": "olmo3", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 128, "sliding_window": 5, "rope_theta": 500000.0,
        "rope_scaling": { "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16 },
    })
}

fn with(changes: Value) -> Value {
    let mut config = config();
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    config
}

fn load(config: &Value, tensors: Tensors) -> Result<Box<dyn CausalLm>, LoadError> {
    checkpoints::load(&ARCHITECTURE, config, tensors)
}

fn model_of(config: &Value, source: &mut RandomParameters) -> Olmo3 {
    let config = Olmo3::config(&without_tensors(config)).unwrap();
    Olmo3::new(&config, source)
}

fn model() -> Olmo3 {
    model_of(&config(), &mut RandomParameters::new(4, Dtype::Float32))
}

/// `[2, 18]`, two different rows, three windows long.
fn tokens() -> Array {
    Array::from_slice(&(0..36_u32).map(|i| i * i * 7 % 61).collect::<Vec<_>>(), &[2, 18])
}

#[track_caller]
fn assert_same(found: &Array, expected: &Array) {
    assert_eq!(tensor(found), tensor(expected));
}

/// With layers of both kinds, and of one kind only.
#[test]
fn logits_do_not_depend_on_how_the_tokens_are_cut_into_calls() {
    let splits = [vec![1; 18], vec![4, 14], vec![5, 13], vec![6, 1, 1, 10], vec![2, 9, 7], vec![17, 1]];
    for config in [
        config(),
        with(json!({ "layer_types": vec!["sliding_attention"; 4] })),
        with(json!({ "layer_types": vec!["full_attention"; 4], "sliding_window": null })),
    ] {
        let mut model = model_of(&config, &mut RandomParameters::new(4, Dtype::Float32));
        models::splits_do_not_matter(&mut model, &tokens(), &splits);
    }
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
fn tokens_can_be_trimmed_after_the_window_is_full() {
    models::tokens_can_be_taken_back(&mut model(), &tokens(), 3);
}

#[test]
fn wrong_calls_are_errors() {
    models::wrong_calls_are_errors(&mut model(), &tokens());
}

#[test]
fn every_parameter_learns() {
    models::it_learns(&mut model(), &tokens());
    let config = with(json!({ "tie_word_embeddings": true, "attention_bias": true }));
    models::it_learns(&mut model_of(&config, &mut RandomParameters::new(5, Dtype::Float32)), &tokens());
}

#[test]
fn each_layer_has_the_cache_of_its_kind() {
    let spec = |kind| LayerSpec { kind, heads: 2, key_dim: 8, value_dim: 8 };
    let (sliding, full) = (spec(LayerKind::Sliding { window: 5 }), spec(LayerKind::Full));
    assert_eq!(model().info().layers, [sliding, sliding, sliding, full]);
}

/// A window as long as the sequence changes nothing.
#[test]
fn a_window_as_long_as_the_sequence_sees_everything() {
    let plain = json!({ "rope_scaling": null, "sliding_window": 18 });
    let answer = |kind: &str| {
        let mut config = with(plain.clone());
        config["layer_types"] = json!(vec![kind; 4]);
        all_logits(&mut model_of(&config, &mut RandomParameters::new(4, Dtype::Float32)), &tokens())
    };
    let [found, expected] = ["sliding_attention", "full_attention"].map(|kind| tensor(&answer(kind)));
    assert_relative_eq!(found, expected, epsilon = 1e-5, max_relative = 1e-5);
}

#[test]
fn heads_are_derived_where_the_config_does_not_say_them() {
    let mut short = with(json!({ "head_dim": null, "num_key_value_heads": null }));
    assert_eq!(
        model_of(&short, &mut RandomParameters::new(4, Dtype::Float32)).info().layers[0],
        LayerSpec { kind: LayerKind::Sliding { window: 5 }, heads: 4, key_dim: 8, value_dim: 8 }
    );
    short["head_dim"] = json!(12);
    let wide = model_of(&short, &mut RandomParameters::new(4, Dtype::Float32));
    assert_eq!(wide.info().layers[0].key_dim, 12);
    let parameters = wide.parameters().flatten();
    assert_eq!(parameters["model.layers.0.self_attn.q_norm.weight"].shape(), [48]);
}

#[test]
fn parameters_are_the_tensors_of_a_checkpoint() {
    let bias = with(json!({ "attention_bias": true, "tie_word_embeddings": true }));
    for (config, count) in [(config(), 3 + 4 * 11), (bias, 2 + 4 * 15)] {
        let mut source = RandomParameters::new(4, Dtype::Float32);
        let mut model = model_of(&config, &mut source);
        let mut names: Vec<String> = tensors(&model).into_iter().map(|(key, _)| key).collect();
        names.sort();
        source.taken.sort();
        assert_eq!(names, source.taken);
        assert_eq!(names.len(), count);
        assert!(names.contains(&"model.layers.3.post_feedforward_layernorm.weight".to_owned()));

        let mut loaded = load(&config, tensors(&model)).unwrap();
        assert_eq!(loaded.info(), model.info());
        assert_same(&all_logits(&mut *loaded, &tokens()), &all_logits(&mut model, &tokens()));
    }
}

#[test]
fn every_tensor_that_is_not_right_is_listed() {
    let mut wrong = tensors(&model());
    wrong.push(("model.layers.0.self_attn.q_proj.bias".to_owned(), Array::zeros::<f32>(&[32]).unwrap()));
    wrong.push(("model.layers.0.self_attn.rotary_emb.scale".to_owned(), Array::from_f32(1.0)));
    wrong.retain(|(key, _)| key != "lm_head.weight");
    for (key, array) in &mut wrong {
        if key == "model.layers.2.self_attn.k_norm.weight" {
            *array = Array::zeros::<f32>(&[8]).unwrap();
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
            "model.layers.0.self_attn.rotary_emb.scale: unexpected, the model has no such parameter",
            "model.layers.2.self_attn.k_norm.weight: shape [8], [16] is needed",
        ]
    );
}

#[test]
fn a_head_in_the_checkpoint_is_used() {
    let model = model_of(
        &with(json!({ "tie_word_embeddings": true })),
        &mut RandomParameters::new(4, Dtype::Float32),
    );
    let keys = ["model.embed_tokens.weight", "lm_head.weight"];
    checkpoints::a_head_in_the_checkpoint_is_used(
        &ARCHITECTURE,
        &config(),
        &tensors(&model),
        keys,
        &tokens(),
    );
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
    let (tensors, module) = (tensors(&model()), "model.layers.0.self_attn");
    checkpoints::leftover_frequencies_are_ignored(&ARCHITECTURE, &config(), &tensors, module);
}
