//! The model compared with itself: changes that must not change its logits. The parity cases compare the logits with those
//! of other programs.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use approx::{assert_relative_eq, assert_relative_ne};
use mlx_causal_lm::CausalLm;
use mlx_checkpoint::{AdapterConfig, AdapterKind, Adapters, Checkpoint};
use mlx_decoder::KeyLayout;
use mlx_kvcache::{LayerKind, LayerSpec};
use mlx_ministral3::{ARCHITECTURE, Ministral3, OwnKeys};
use mlx_rs::Array;
use mlx_rs::module::ModuleParameters;
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_testing::checkpoints::{Tensors, folder, load, tensors};
use mlx_testing::decoder::{self, tokens};
use mlx_testing::foreign::{self, Program, halves, quantized_by};
use mlx_testing::models::all_logits;
use mlx_testing::tensor;
use serde_json::{Value, json};

/// Three layers, heads wider than the stream, and an original context length of 4 tokens, so that the factor of queries
/// changes four times in 18 tokens.
fn config() -> Value {
    json!({
        "model_type": "ministral3", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12, "vocab_size": 64,
        "rms_norm_eps": 1e-5, "max_position_embeddings": 128, "tie_word_embeddings": false,
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 100.0, "factor": 8.0, "original_max_position_embeddings": 4,
            "beta_fast": 4.0, "beta_slow": 0.25, "mscale": 1.0, "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.5,
        },
    })
}

fn with(changes: Value) -> Value {
    decoder::with(config(), &changes)
}

/// All layers have a window of 5 tokens.
fn windows() -> Value {
    with(json!({ "sliding_window": 5 }))
}

/// Layer 1 has a window of 5 tokens, and rotations are not scaled.
fn one_window() -> Value {
    let types = ["full_attention", "sliding_attention", "full_attention"];
    with(json!({
        "sliding_window": 5, "layer_types": types, "rope_parameters": {
            "rope_theta": 100.0, "original_max_position_embeddings": 4, "llama_4_scaling_beta": 0.5,
        },
    }))
}

/// The config of a model with a vision part, whose language model is this.
fn multimodal(text: Value) -> Value {
    json!({ "model_type": "mistral3", "text_config": text, "vision_config": { "hidden_size": 4 } })
}

/// This factor of queries.
fn with_beta(mut config: Value, beta: f64) -> Value {
    config["rope_parameters"]["llama_4_scaling_beta"] = json!(beta);
    config
}

fn random(config: &Value) -> Ministral3 {
    decoder::random(config)
}

mlx_testing::decoder_tests! {
    keys: OwnKeys,
    architecture: ARCHITECTURE,
    configs: [config(), windows(), one_window()],
    learns: [(config(), 1), (decoder::with(windows(), &json!({ "tie_word_embeddings": true })), 1)],
}

#[test]
fn each_layer_has_the_cache_of_its_kind() {
    let spec = |kind| LayerSpec { kind, heads: 2, key_dim: 12, value_dim: 12 };
    let (full, sliding) = (spec(LayerKind::Full), spec(LayerKind::Sliding { window: 5 }));
    assert_eq!(random(&config()).info().layers, [full; 3]);
    assert_eq!(random(&windows()).info().layers, [sliding; 3]);
    assert_eq!(random(&one_window()).info().layers, [full, sliding, full]);
}

/// The logits of some tokens.
fn part(logits: &Array, from: i32, to: i32) -> mlx_testing::Tensor {
    tensor(&logits.try_index((.., from..to, ..)).unwrap())
}

/// A factor of queries changes what is beyond the original context length, and nothing before.
#[test]
fn queries_grow_beyond_the_original_length() {
    let logits = |beta| all_logits(&mut random(&with_beta(config(), beta)), &tokens());
    let [scaled, unscaled] = [0.5, 0.0].map(logits);
    assert_eq!(part(&scaled, 0, 4), part(&unscaled, 0, 4));
    for token in 4..18 {
        let [a, b] = [&scaled, &unscaled].map(|logits| part(logits, token, token + 1));
        assert_relative_ne!(a, b, epsilon = 1e-4, max_relative = 1e-4);
    }
}

/// In a single layer, the factor of a position has the effect of the same factor of the weight of queries.
#[test]
fn the_factor_is_one_of_queries() {
    let one_layer = |beta| with_beta(with(json!({ "num_hidden_layers": 1 })), beta);
    let logits =
        |beta, tensors| all_logits(&mut *load(&ARCHITECTURE, &one_layer(beta), tensors).unwrap(), &tokens());
    let weights = tensors(&random(&one_layer(0.5)));
    let factor = 1.0 + 0.5 * 2_f32.ln(); // tokens 4 to 7 are in the second 4 tokens
    let mut larger: Tensors = weights.clone();
    for (_, array) in larger.iter_mut().filter(|(key, _)| key.contains("q_proj")) {
        *array = array.multiply(Array::from_f32(factor)).unwrap();
    }
    let [scaled, larger] = [logits(0.5, weights), logits(0.0, larger)].map(|logits| part(&logits, 4, 8));
    assert_relative_eq!(larger, scaled, epsilon = 1e-5, max_relative = 1e-5);
}

/// The same language model with the names of each layout, beside tensors of a vision part.
#[test]
fn the_language_model_of_a_model_with_a_vision_part() {
    let text = tensors(&random(&config()));
    let expected = tensor(&all_logits(&mut random(&config()), &tokens()));
    let named = |model: &str, head: &str, vision: &str| -> Tensors {
        let name = |key: &str| match key.strip_prefix("model.") {
            Some(rest) => format!("{model}.{rest}"),
            None => format!("{head}{key}"),
        };
        let language = text.iter().map(|(key, array)| (name(key), array.clone()));
        let others = ["vision_tower.ln_pre.weight", "multi_modal_projector.norm.weight"];
        let others = others.map(|key| (format!("{vision}{key}"), Array::from_f32(1.0)));
        language.chain(others).collect()
    };
    let config = multimodal(config());
    for (tensors, layout) in [
        (named("language_model.model", "language_model.", ""), KeyLayout::LanguageModel),
        (named("model.language_model", "", "model."), KeyLayout::Inner),
    ] {
        let saved = folder(&config, tensors.clone());
        let checkpoint = Checkpoint::open(saved.path()).unwrap();
        assert_eq!(Ministral3::config(&checkpoint).unwrap().keys, layout);
        let mut model = load(&ARCHITECTURE, &config, tensors).unwrap();
        assert_eq!(model.info().model_type, "mistral3");
        assert_eq!(tensor(&all_logits(&mut *model, &tokens())), expected);
    }
}

/// mlx-lm renames the layers of a checkpoint with the names of transformers' modules before it trains adapters.
#[test]
fn adapters_of_mlx_lm_fit_both_layouts() {
    let adapter = |leaf: &str, shape: &[i32]| {
        let key = format!("language_model.model.layers.2.self_attn.q_proj.{leaf}");
        (key, Array::ones::<f32>(shape).unwrap().multiply(Array::from_f32(0.25)).unwrap())
    };
    let inputs = config()["hidden_size"].as_i64().unwrap() as i32;
    let outputs = random(&config()).info().query_heads * 12;
    let adapters = [adapter("lora_a", &[inputs, 1]), adapter("lora_b", &[1, outputs])];
    let rule = AdapterConfig {
        kind: AdapterKind::Lora,
        num_layers: 1,
        rank: 1,
        scale: 2.0,
        dropout: 0.0,
        keys: Some(vec!["self_attn.q_proj".to_owned()]),
    };
    let saved = tempfile::tempdir().unwrap();
    Adapters::save(saved.path(), &rule, adapters.iter().map(|(key, array)| (key, array))).unwrap();

    let tied = with(json!({ "tie_word_embeddings": true }));
    let text = tensors(&random(&tied));
    let logits = |model: &str, adapted: bool| {
        let rename = |key: &str| key.replacen("model.", &format!("{model}."), 1);
        let renamed = text.iter().map(|(key, array)| (rename(key), array.clone())).collect();
        let saved_model = folder(&multimodal(tied.clone()), renamed);
        let mut checkpoint = Checkpoint::open(saved_model.path()).unwrap();
        if adapted {
            checkpoint = checkpoint.with_adapters(Adapters::open(saved.path()).unwrap());
        }
        tensor(&all_logits(&mut Ministral3::load(&checkpoint).unwrap(), &tokens()))
    };
    let adapted = logits("language_model.model", true);
    assert_relative_ne!(adapted, logits("language_model.model", false), epsilon = 1e-4, max_relative = 1e-4);
    assert_eq!(logits("model.language_model", true), adapted);
}

/// The form of the released instruction models: FP8 with one scale for each matrix, and scales of activations beside it.
#[test]
fn weights_in_fp8_are_read_as_bfloat16() {
    let whole = Program::Fp8([1 << 20, 1 << 20]);
    let (mut stored, twin) = quantized_by(whole, tensors(&random(&config())));
    let layers: Vec<String> =
        stored.iter().filter_map(|t| t.key.strip_suffix(".weight_scale_inv")).map(str::to_owned).collect();
    for tensor in &mut stored {
        if tensor.key.ends_with("_scale_inv") {
            tensor.shape = vec![];
        }
    }
    assert_eq!(layers.len(), 3 * 7);
    stored.extend(layers.iter().map(|layer| halves(format!("{layer}.activation_scale"), &[], [0.5])));
    stored.iter_mut().for_each(|tensor| tensor.key = format!("language_model.{}", tensor.key));
    let mut config = multimodal(config());
    config["dtype"] = json!("bfloat16");
    let expected = load(&ARCHITECTURE, &config, with_prefix("language_model.", &twin)).unwrap();
    config["quantization_config"] = json!({
        "activation_scheme": "static", "dequantize": false, "quant_method": "fp8", "weight_block_size": null,
        "modules_to_not_convert": ["model.vision_tower", "model.multi_modal_projector", "lm_head"],
    });
    let folder = foreign::folder(&config, &stored);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let (found, mut expected) = (Ministral3::load(&checkpoint), expected);
    let found = all_logits(&mut found.unwrap(), &tokens());
    assert_eq!(tensor(&found), tensor(&all_logits(&mut *expected, &tokens())));
}

fn with_prefix(prefix: &str, tensors: &Tensors) -> Tensors {
    tensors.iter().map(|(key, array)| (format!("{prefix}{key}"), array.clone())).collect()
}

#[test]
fn the_parameters_of_a_block() {
    let model = random(&config());
    let parameters = model.parameters().flatten();
    assert_eq!(parameters.len(), 3 + 3 * 9);
    assert_eq!(parameters["model.layers.2.self_attn.q_proj.weight"].shape(), [48, 32]);
    assert_eq!(parameters["model.layers.2.self_attn.k_proj.weight"].shape(), [24, 32]);
}
