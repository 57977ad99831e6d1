//! Trains a LoRA adapter on one sentence, saves it, and loads the model with it.
//!
//! `cargo run --release -p mlx-models --features architectures,generate,tokenizer --example lora`
#![allow(clippy::print_stdout, reason = "an example shows its results")]

use std::error::Error;

use mlx_models::generate::{GenerateOptions, Session, generate};
use mlx_models::tokenizer::Tokenizer;
use mlx_models::{
    AdapterConfig, AdapterKind, Adapters, CacheOptions, CausalLm, Checkpoint, LoadOptions, Logits,
};
use mlx_rs::Array;
use mlx_rs::error::Exception;
use mlx_rs::nn::value_and_grad;
use mlx_rs::ops::indexing::{TryIndexOp, take_along_axis};
use mlx_rs::optimizers::{AdamW, Optimizer};

/// A small model that writes stories for children.
const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../mlx-models-cli/demo/lille-130m");
const SENTENCE: &str = "Once upon a time there was a little dragon who counted the stars.";

fn main() -> Result<(), Box<dyn Error>> {
    let tokenizer = Tokenizer::from_folder(DEMO)?;
    let ids = tokenizer.encode(SENTENCE)?;
    let tokens = Array::from_slice(&ids, &[1, ids.len() as i32]); // [B, L]

    // Every linear layer of every block gets an adapter. `keys` would name some, such as `attention.qkv_proj`.
    let config = AdapterConfig {
        kind: AdapterKind::Lora,
        rank: 8,
        scale: 20.0,
        dropout: 0.0,
        num_layers: -1,
        keys: None,
    };
    let checkpoint = Checkpoint::open(DEMO)?.with_adapters(Adapters::fresh(config.clone(), 1)?);
    let mut model = mlx_models::load_checkpoint(&checkpoint, &LoadOptions::default())?;

    // Freezes the model's own parameters, so that only the adapters are trained.
    model.freeze_parameters(false);
    let mut step = value_and_grad(loss);
    let mut optimizer = AdamW::new(0.0005);
    for number in 0..=20 {
        let (loss, gradients) = step(&mut model, &tokens)?;
        optimizer.update(&mut model, &gradients)?;
        if number % 5 == 0 {
            println!("step {number}: loss {:.3}", loss.try_item_cast::<f32>()?);
        }
    }

    // A folder that mlx-lm can load, too.
    let folder = tempfile::tempdir()?;
    Adapters::save(folder.path(), &config, model.trainable_parameters().flatten())?;
    let adapters = Some(folder.path().to_path_buf());
    let options = LoadOptions { adapters, ..LoadOptions::default() };
    let mut model = mlx_models::load_with(DEMO, &options)?;

    let mut session = Session::new(model.new_cache(&CacheOptions::default())?);
    let options =
        GenerateOptions { max_tokens: ids.len() - 6, ..GenerateOptions::new(tokenizer.stop_tokens()) };
    let tokens = generate(&mut *model, &mut session, &ids[..6], options)?;
    let text = tokens.map(|token| Ok(token?.id)).collect::<Result<Vec<u32>, Box<dyn Error>>>()?;
    println!("{}", tokenizer.decode(&[&ids[..6], &text].concat())?);
    Ok(())
}

/// The mean cross-entropy of each next token, in nats.
fn loss(model: &mut Box<dyn CausalLm>, tokens: &Array) -> Result<Array, Exception> {
    let cache = model.new_cache(&CacheOptions::default());
    let mut cache = cache.map_err(|e| Exception::custom(e.to_string()))?;
    let logits = model.forward(&tokens.try_index((.., ..-1))?, &mut cache, Logits::All)?; // [B, L - 1, V]
    let next = tokens.try_index((.., 1..))?.expand_dims(-1)?; // [B, L - 1, 1]
    let chosen = take_along_axis(&logits, &next, -1)?.squeeze_axes(&[-1])?; // [B, L - 1]
    logits.logsumexp_axis(-1, false)?.subtract(chosen)?.mean(None)
}
