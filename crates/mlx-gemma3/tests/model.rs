//! The model compared with itself: changes that must not change its logits. The parity cases compare the logits with those
//! of other programs.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use mlx_causal_lm::{CausalLm, LoadError};
use mlx_checkpoint::{Checkpoint, CheckpointError};
use mlx_decoder::KeyLayout;
use mlx_gemma3::{ARCHITECTURE, Gemma3, OwnKeys};
use mlx_kvcache::{LayerKind, LayerSpec};
use mlx_rs::{Array, Dtype};
use mlx_testing::checkpoints::{Tensors, folder, tensors};
use mlx_testing::decoder::{self, tokens};
use mlx_testing::models::all_logits;
use mlx_testing::{RandomParameters, checkpoints, tensor};
use serde_json::{Value, json};

/// Layers 0, 1 and 3 have a window of 5 tokens, layer 2 is global.
fn config() -> Value {
    json!({
        "model_type": "gemma3_text", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 64,
        "max_position_embeddings": 128, "query_pre_attn_scalar": 12, "sliding_window": 5,
        "sliding_window_pattern": 3, "rope_scaling": { "rope_type": "linear", "factor": 8.0 },
        "final_logit_softcapping": 30.0,
    })
}

/// The same model as a part of a model with a vision part.
fn multimodal() -> Value {
    json!({ "model_type": "gemma3", "text_config": config(), "vision_config": {} })
}

fn load(config: &Value, tensors: Tensors) -> Result<Box<dyn CausalLm>, LoadError> {
    checkpoints::load(&ARCHITECTURE, config, tensors)
}

/// `held` is the key of a tensor in the checkpoint, which the config reads to find the layout and a head.
fn model_of(config: &Value, held: &str, source: &mut RandomParameters) -> Gemma3 {
    let folder = folder(config, vec![(held.to_owned(), Array::from_f32(0.0))]);
    let config = Gemma3::config(&Checkpoint::open(folder.path()).unwrap()).unwrap();
    Gemma3::new(&config, source)
}

fn model() -> Gemma3 {
    model_of(&config(), "x", &mut RandomParameters::new(4, Dtype::Float32))
}

/// The same model with a head of its own.
fn untied() -> Value {
    decoder::with(config(), &json!({ "tie_word_embeddings": false }))
}

mlx_testing::decoder_tests! {
    keys: OwnKeys,
    architecture: ARCHITECTURE,
    configs: [untied(), decoder::with(untied(), &json!({ "sliding_window_pattern": 1 }))],
    learns: [(config(), 4), (decoder::with(untied(), &json!({ "attention_bias": true })), 5)],
}

#[track_caller]
fn assert_same(found: &Array, expected: &Array) {
    assert_eq!(tensor(found), tensor(expected));
}

#[test]
fn each_layer_has_the_cache_of_its_kind() {
    let spec = |kind| LayerSpec { kind, heads: 2, key_dim: 8, value_dim: 8 };
    let (local, global) = (spec(LayerKind::Sliding { window: 5 }), spec(LayerKind::Full));
    assert_eq!(model().info().layers, [local, local, global, local]);
}

#[test]
fn parameters_have_the_names_of_each_layout() {
    for (config, held, layout, key) in [
        (config(), "x", KeyLayout::Text, "model.layers.2.self_attn.q_norm.weight"),
        (
            multimodal(),
            "language_model.lm_head.weight",
            KeyLayout::LanguageModel,
            "language_model.model.layers.2.mlp.up_proj.weight",
        ),
        (
            multimodal(),
            "model.language_model.norm.weight",
            KeyLayout::Inner,
            "model.language_model.layers.3.pre_feedforward_layernorm.weight",
        ),
    ] {
        let mut source = RandomParameters::new(4, Dtype::Float32);
        let model = model_of(&config, held, &mut source);
        let mut names: Vec<String> = tensors(&model).into_iter().map(|(key, _)| key).collect();
        names.sort();
        source.taken.sort();
        assert_eq!(names, source.taken, "{layout:?}");
        assert!(names.contains(&key.to_owned()), "{layout:?}");
        let head = names.iter().filter(|name| name.ends_with("lm_head.weight")).count();
        assert_eq!((names.len(), head), (2 + 4 * 13 + head, usize::from(layout == KeyLayout::LanguageModel)));

        let mut loaded = load(&config, tensors(&model)).unwrap();
        assert_eq!(loaded.info(), model.info());
        assert_same(&all_logits(&mut *loaded, &tokens()), &all_logits(&mut model.clone(), &tokens()));
    }
}

/// A checkpoint with a vision part gives the logits of its language model alone.
#[test]
fn only_vision_tensors_are_ignored() {
    let mut model = model();
    let expected = all_logits(&mut model, &tokens());
    let scalar = || Array::from_f32(1.0);
    for (prefix, vision) in [
        ("language_model.model.", ["vision_tower.a.weight", "multi_modal_projector.b"]),
        ("model.language_model.", ["model.vision_tower.a.weight", "model.multi_modal_projector.b"]),
    ] {
        let renamed = |(key, array): (String, Array)| {
            (format!("{prefix}{}", key.strip_prefix("model.").unwrap()), array)
        };
        let mut all: Vec<_> = tensors(&model).into_iter().map(renamed).collect();
        all.extend(vision.map(|key| (key.to_owned(), scalar())));
        assert_same(&all_logits(&mut *load(&multimodal(), all.clone()).unwrap(), &tokens()), &expected);

        all.push(("vision_towers.a".to_owned(), scalar()));
        all.retain(|(key, _)| !key.ends_with("layers.1.self_attn.k_norm.weight"));
        let error = load(&multimodal(), all).unwrap_err();
        let LoadError::Checkpoint(CheckpointError::Tensors { problems, .. }) = &error else {
            panic!("{error}")
        };
        let keys: Vec<&str> = problems.iter().map(|problem| problem.key()).collect();
        assert_eq!(keys, [&format!("{prefix}layers.1.self_attn.k_norm.weight"), "vision_towers.a"]);
    }
    // A key of another layout is one tensor that does not belong there, not another layout.
    for (prefix, stray) in [
        ("language_model.model.", "model.language_model.stray.weight"),
        ("model.language_model.", "language_model.model.stray.weight"),
    ] {
        let renamed = |(key, array): (String, Array)| (key.replacen("model.", prefix, 1), array);
        let mut all: Vec<_> = tensors(&model).into_iter().map(renamed).collect();
        all.push((stray.to_owned(), scalar()));
        let error = load(&multimodal(), all).unwrap_err().to_string();
        let problems: Vec<&str> = error.lines().skip(1).map(str::trim).collect();
        assert_eq!(problems, [format!("{stray}: unexpected, the model has no such parameter")]);
    }
    let mut text = tensors(&model);
    text.push(("vision_tower.a.weight".to_owned(), scalar()));
    assert!(load(&config(), text).unwrap_err().to_string().contains("vision_tower.a.weight: unexpected"));
}

#[test]
fn a_head_is_used_in_each_layout() {
    for (config, held, [table, head]) in [
        (config(), "x", ["model.embed_tokens.weight", "lm_head.weight"]),
        (multimodal(), "x", ["language_model.model.embed_tokens.weight", "language_model.lm_head.weight"]),
        (
            multimodal(),
            "model.language_model.norm.weight",
            ["model.language_model.embed_tokens.weight", "lm_head.weight"],
        ),
    ] {
        let tied = tensors(&model_of(&config, held, &mut RandomParameters::new(4, Dtype::Float32)));
        checkpoints::a_head_in_the_checkpoint_is_used(
            &ARCHITECTURE,
            &config,
            &tied,
            [table, head],
            &tokens(),
        );
    }
}
