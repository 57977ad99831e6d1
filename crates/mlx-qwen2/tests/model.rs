//! The model compared with itself: changes that must not change its logits. The parity cases compare the logits with those
//! of other programs.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use approx::{assert_relative_eq, assert_relative_ne};
use mlx_causal_lm::{CausalLm, LoadError};
use mlx_checkpoint::CheckpointError;
use mlx_kvcache::{LayerKind, LayerSpec};
use mlx_qwen2::{ARCHITECTURE, Qwen2};
use mlx_rs::module::ModuleParameters;
use mlx_rs::{Array, Dtype};
use mlx_testing::checkpoints::{Tensors, tensors, without_tensors};
use mlx_testing::models::all_logits;
use mlx_testing::{RandomParameters, checkpoints, models, tensor};
use serde_json::{Value, json};

/// Three layers without a window.
fn config() -> Value {
    json!({
        "model_type": "qwen2", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 128, "rope_theta": 1_000_000.0, "tie_word_embeddings": false,
        "use_sliding_window": false, "sliding_window": 5, "max_window_layers": 1,
    })
}

fn with(changes: Value) -> Value {
    let mut config = config();
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    config
}

/// Layers 1 and 2 have a window of 5 tokens, heads are wider than the stream, and all rotate by YaRN.
fn windows() -> Value {
    let yarn = json!({ "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8 });
    with(json!({ "use_sliding_window": true, "head_dim": 12, "rope_scaling": yarn }))
}

/// All layers have a window of 5 tokens.
fn all_windows() -> Value {
    with(json!({ "use_sliding_window": true, "max_window_layers": 0 }))
}

fn load(config: &Value, tensors: Tensors) -> Result<Box<dyn CausalLm>, LoadError> {
    checkpoints::load(&ARCHITECTURE, config, tensors)
}

fn model_of(config: &Value, source: &mut RandomParameters) -> Qwen2 {
    let config = Qwen2::config(&without_tensors(config)).unwrap();
    Qwen2::new(&config, source)
}

fn random(config: &Value) -> Qwen2 {
    model_of(config, &mut RandomParameters::new(4, Dtype::Float32))
}

/// `[2, 18]`, two different rows, three windows long.
fn tokens() -> Array {
    Array::from_slice(&(0..36_u32).map(|i| i * i * 7 % 61).collect::<Vec<_>>(), &[2, 18])
}

#[track_caller]
fn assert_same(found: &Array, expected: &Array) {
    assert_eq!(tensor(found), tensor(expected));
}

/// Without windows, with windows in some layers, and in all.
#[test]
fn logits_do_not_depend_on_how_the_tokens_are_cut_into_calls() {
    let splits = [vec![1; 18], vec![4, 14], vec![5, 13], vec![6, 1, 1, 10], vec![2, 9, 7], vec![17, 1]];
    for config in [config(), windows(), all_windows()] {
        models::splits_do_not_matter(&mut random(&config), &tokens(), &splits);
    }
}

#[test]
fn a_row_of_a_batch_has_the_logits_that_it_has_alone() {
    for config in [config(), windows(), all_windows()] {
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
fn tokens_can_be_trimmed_after_the_window_is_full() {
    models::tokens_can_be_taken_back(&mut random(&all_windows()), &tokens(), 3);
}

#[test]
fn wrong_calls_are_errors() {
    models::wrong_calls_are_errors(&mut random(&config()), &tokens());
}

/// With this seed no step of the optimizer is too long. With some other seeds one is, and the loss rises once.
#[test]
fn every_parameter_learns() {
    let mut other = windows();
    other["tie_word_embeddings"] = json!(true);
    for config in [config(), other] {
        let mut model = model_of(&config, &mut RandomParameters::new(1, Dtype::Float32));
        models::it_learns(&mut model, &tokens());
    }
}

#[test]
fn each_layer_has_the_cache_of_its_kind() {
    let spec = |kind, size| LayerSpec { kind, heads: 2, key_dim: size, value_dim: size };
    let sliding = |size| spec(LayerKind::Sliding { window: 5 }, size);
    assert_eq!(random(&config()).info().layers, [spec(LayerKind::Full, 8); 3]);
    assert_eq!(random(&windows()).info().layers, [spec(LayerKind::Full, 12), sliding(12), sliding(12)]);
    assert_eq!(random(&all_windows()).info().layers, [sliding(8); 3]);
}

/// A window as long as the sequence changes nothing; a shorter window does.
#[test]
fn a_window_as_long_as_the_sequence_sees_everything() {
    let answer = |changes: Value| tensor(&all_logits(&mut random(&with(changes)), &tokens()));
    let windowed = |window: i32| answer(json!({ "use_sliding_window": true, "sliding_window": window }));
    let [long, short, full] = [windowed(18), windowed(5), answer(json!({}))];
    assert_relative_eq!(long, full, epsilon = 1e-5, max_relative = 1e-5);
    assert_relative_ne!(short, full, epsilon = 2e-5, max_relative = 2e-5);
}

/// The rotation turns the bias of keys differently at each position, so that the softmax does not cancel it.
#[test]
fn the_biases_of_queries_keys_and_values_matter() {
    let mut model = random(&config());
    let expected = tensor(&all_logits(&mut model, &tokens()));
    for part in ["q_proj", "k_proj", "v_proj"] {
        let mut without = tensors(&model);
        for (key, bias) in &mut without {
            if key.ends_with(&format!("{part}.bias")) {
                *bias = Array::zeros::<f32>(bias.shape()).unwrap();
            }
        }
        let found = tensor(&all_logits(&mut *load(&config(), without).unwrap(), &tokens()));
        assert_relative_ne!(found, expected, epsilon = 1e-4, max_relative = 1e-4);
    }
}

#[test]
fn parameters_are_the_tensors_of_a_checkpoint() {
    let tied = with(json!({ "tie_word_embeddings": true }));
    for (config, count) in [(config(), 3 + 3 * 12), (tied, 2 + 3 * 12)] {
        let mut source = RandomParameters::new(4, Dtype::Float32);
        let mut model = model_of(&config, &mut source);
        let mut names: Vec<String> = tensors(&model).into_iter().map(|(key, _)| key).collect();
        names.sort();
        source.taken.sort();
        assert_eq!(names, source.taken);
        assert_eq!(names.len(), count);
        let parameters = model.parameters().flatten();
        assert_eq!(parameters["model.layers.2.self_attn.q_proj.weight"].shape(), [32, 32]);
        assert_eq!(parameters["model.layers.2.self_attn.k_proj.weight"].shape(), [16, 32]);
        assert_eq!(parameters["model.layers.2.self_attn.k_proj.bias"].shape(), [16]);

        let mut loaded = load(&config, tensors(&model)).unwrap();
        assert_eq!(loaded.info(), model.info());
        assert_same(&all_logits(&mut *loaded, &tokens()), &all_logits(&mut model, &tokens()));
    }
}

#[test]
fn every_tensor_that_is_not_right_is_listed() {
    let mut wrong = tensors(&random(&config()));
    wrong.push(("model.layers.0.self_attn.o_proj.bias".to_owned(), Array::zeros::<f32>(&[32]).unwrap()));
    wrong.push(("model.layers.0.self_attn.rotary_emb.scale".to_owned(), Array::from_f32(1.0)));
    wrong.retain(|(key, _)| key != "model.layers.1.self_attn.q_proj.bias");
    for (key, array) in &mut wrong {
        if key == "model.layers.2.self_attn.k_proj.bias" {
            *array = Array::zeros::<f32>(&[32]).unwrap();
        }
    }
    let error = load(&config(), wrong).unwrap_err();
    let LoadError::Checkpoint(CheckpointError::Tensors { problems, .. }) = &error else { panic!("{error}") };
    let problems: Vec<String> = problems.iter().map(|problem| problem.to_string()).collect();
    assert_eq!(
        problems,
        [
            "model.layers.0.self_attn.o_proj.bias: unexpected, the model has no such parameter",
            "model.layers.0.self_attn.rotary_emb.scale: unexpected, the model has no such parameter",
            "model.layers.1.self_attn.q_proj.bias: missing, [32] is needed",
            "model.layers.2.self_attn.k_proj.bias: shape [32], [16] is needed",
        ]
    );
}

/// Some released checkpoints of tied models hold the embedding table twice.
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
