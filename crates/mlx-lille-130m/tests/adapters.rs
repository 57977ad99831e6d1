//! Adapters are trained: only they have gradients, steps of an optimizer lower the loss, and trained adapters are saved and
//! loaded.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::{Path, PathBuf};

use mlx_causal_lm::{CausalLm, Logits};
use mlx_checkpoint::{AdapterConfig, AdapterKind, Adapters, Checkpoint};
use mlx_kvcache::CacheOptions;
use mlx_lille_130m::{Config, Lille130m};
use mlx_rs::error::{Exception, Result};
use mlx_rs::module::{ModuleParameters, ModuleParametersExt};
use mlx_rs::nn::value_and_grad;
use mlx_rs::ops::indexing::{TryIndexOp, take_along_axis};
use mlx_rs::optimizers::{AdamW, Optimizer};
use mlx_rs::{Array, Dtype};
use mlx_testing::{RandomParameters, tensor};

const CONFIG: &str = r#"{
    "model_type": "lille-130m", "block_size": 64, "layer_norm_eps": 1e-5, "n_embd": 64, "n_head": 4,
    "n_kv_heads": 2, "n_layer": 2, "rope_theta": 10000.0, "vocab_size": 96
}"#;

/// Writes a checkpoint of random weights in bfloat16.
fn write_base(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("config.json"), CONFIG).unwrap();
    let tensors = folder.join("model.safetensors");
    Array::save_safetensors([("x", Array::from_f32(0.0))], None, &tensors).unwrap();
    let config = Config::from_checkpoint(&Checkpoint::open(folder).unwrap()).unwrap();
    let model = Lille130m::new(&config, &mut RandomParameters::new(4, Dtype::Bfloat16));
    model.save_safetensors(&tensors).unwrap();
}

/// The mean loss of predicting the next token, in nats.
fn loss(model: &mut Lille130m, tokens: &Array) -> Result<Array> {
    let cache = model.new_cache(&CacheOptions::default());
    let mut cache = cache.map_err(|e| Exception::custom(e.to_string()))?;
    let logits = model.forward(&tokens.try_index((.., ..-1))?, &mut cache, Logits::All)?;
    let logits = logits.as_dtype(Dtype::Float32)?;
    let next = tokens.try_index((.., 1..))?.expand_dims(-1)?;
    let chosen = take_along_axis(&logits, &next, -1)?.squeeze_axes(&[-1])?;
    logits.logsumexp_axis(-1, false)?.subtract(chosen)?.mean(None)
}

fn names<'a>(keys: impl Iterator<Item = &'a std::rc::Rc<str>>) -> Vec<String> {
    let mut names: Vec<String> = keys.map(ToString::to_string).collect();
    names.sort();
    names
}

/// The files stay below `target`, with our logits. `cargo xtask fixtures --verify-ours` compares these with mlx-lm's.
#[test]
fn adapters_alone_are_trained_saved_and_loaded() {
    let root = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("adapters");
    let base = root.join("base");
    write_base(&base);
    let tokens = Array::from_slice(&(0..26_u32).map(|i| i * i * 7 % 96).collect::<Vec<_>>(), &[2, 13]);

    for (name, kind, keys) in [
        ("lora", AdapterKind::Lora, None),
        ("dora", AdapterKind::Dora, Some(vec!["attention.qkv_proj", "transformer.tok_embeddings"])),
    ] {
        let keys = keys.map(|keys| keys.into_iter().map(str::to_owned).collect());
        let config = AdapterConfig { kind, rank: 4, scale: 2.0, dropout: 0.0, num_layers: 1, keys };
        let fresh = Adapters::fresh(config.clone(), 9).unwrap();
        let mut model = Lille130m::load(&Checkpoint::open(&base).unwrap().with_adapters(fresh)).unwrap();
        model.freeze_parameters(false);
        let before: Vec<(String, Array)> = model
            .parameters()
            .flatten()
            .into_iter()
            .map(|(key, array)| (key.to_string(), array.clone()))
            .collect();

        let mut step = value_and_grad(loss);
        let (first, gradients) = step(&mut model, &tokens).unwrap();
        let trainable = names(model.trainable_parameters().flatten().keys());
        assert_eq!(names(gradients.keys()), trainable);
        assert!(
            trainable
                .iter()
                .all(|key| key.ends_with(".lora_a") || key.ends_with(".lora_b") || key.ends_with(".m"))
        );
        assert!(!trainable.iter().any(|key| key.contains("layers.0.")), "{trainable:?}");

        let mut optimizer = AdamW::new(0.01);
        for _ in 0..8 {
            let (_, gradients) = step(&mut model, &tokens).unwrap();
            for (key, gradient) in &gradients {
                let size = gradient.as_dtype(Dtype::Float32).unwrap().abs().unwrap().sum(None).unwrap();
                assert!(size.item_exact::<f32>().is_finite(), "{key}");
            }
            optimizer.update(&mut model, &gradients).unwrap();
            model.eval().unwrap();
        }
        let (first, last) =
            (first.item_exact::<f32>(), loss(&mut model, &tokens).unwrap().item_exact::<f32>());
        assert!(last < 0.8 * first, "{name}: {first} {last}");

        let after = model.parameters().flatten();
        for (key, old) in &before {
            let moved = tensor(after[key.as_str()]) != tensor(old);
            assert_eq!(moved, trainable.contains(key), "{key}");
        }

        let folder = root.join(name);
        Adapters::save(&folder, &config, model.trainable_parameters().flatten()).unwrap();
        let adapters = Adapters::open(&folder).unwrap();
        let mut loaded = Lille130m::load(&Checkpoint::open(&base).unwrap().with_adapters(adapters)).unwrap();
        assert_eq!(loaded.info().dtype, model.info().dtype);
        assert!(loss(&mut loaded, &tokens).unwrap().item_exact::<f32>() == last, "{name}");
        let mut cache = loaded.new_cache(&CacheOptions::default()).unwrap();
        let logits = loaded.forward(&tokens, &mut cache, Logits::All).unwrap();
        assert_eq!(logits.dtype(), loaded.info().dtype, "{name}");
        let answers = [("tokens", &tokens.as_dtype(Dtype::Int32).unwrap()), ("logits", &logits)];
        Array::save_safetensors(answers, None, root.join(format!("{name}.logits.safetensors"))).unwrap();
    }
}
