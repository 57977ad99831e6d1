//! Chooses tokens in different ways: the most probable one, at random with a seed, with penalties and biases.
//!
//! `cargo run -p mlx-models --features architectures,generate,tokenizer --example sampling -- path/to/checkpoint`
#![allow(clippy::print_stdout, reason = "an example shows its results")]

use std::env;
use std::error::Error;

use mlx_models::generate::{GenerateOptions, Penalties, Penalty, Sampling, Session, generate};
use mlx_models::tokenizer::Tokenizer;
use mlx_models::{CacheOptions, CausalLm, text};

/// A small model that writes stories for children.
const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../mlx-models-cli/demo/lille-130m");
const PROMPT: &str = "Once upon a time there was a little";

fn main() -> Result<(), Box<dyn Error>> {
    let folder = env::args().nth(1).unwrap_or_else(|| DEMO.to_owned());
    let mut model = mlx_models::load(&folder)?;
    let tokenizer = Tokenizer::from_folder(&folder)?;
    let base = GenerateOptions { max_tokens: 24, ..GenerateOptions::new(tokenizer.stop_tokens()) };

    // The default takes the most probable token each time.
    println!("greedy: {}", story(&mut *model, &tokenizer, base.clone())?);

    // A temperature above 0 draws tokens at random. The filters leave out improbable ones. The same seed draws the same
    // tokens again.
    for (name, seed) in [("seed 7", 7), ("seed 7 again", 7), ("seed 8", 8)] {
        let sampling = Sampling { temperature: 1.0, top_p: 0.95, min_p: 0.02, seed, ..Sampling::default() };
        let options = GenerateOptions { sampling, ..base.clone() };
        println!("{name}: {}", story(&mut *model, &tokenizer, options)?);
    }

    // Penalties change the logits before a token is drawn: here, what occurred in the last 64 tokens becomes less probable.
    let repetition = Penalty { penalty: 1.5, context_size: 64 };
    let penalties = Penalties { repetition, ..Penalties::default() };
    let options = GenerateOptions { penalties, ..base.clone() };
    println!("without repetition: {}", story(&mut *model, &tokenizer, options)?);

    // A bias of minus infinity forbids a token: the one that the model prefers as the next one.
    let favourite = first_token(&mut *model, &tokenizer, base.clone())?;
    let penalties = Penalties { logit_bias: vec![(favourite, f64::NEG_INFINITY)], ..Penalties::default() };
    let options = GenerateOptions { penalties, ..base };
    let name = tokenizer.decode(&[favourite])?;
    println!("without {:?}: {}", name.trim(), story(&mut *model, &tokenizer, options)?);
    Ok(())
}

/// What these options make of the prompt.
fn story(
    model: &mut dyn CausalLm,
    tokenizer: &Tokenizer,
    options: GenerateOptions,
) -> Result<String, Box<dyn Error>> {
    let mut session = Session::new(model.new_cache(&CacheOptions::default())?);
    let tokens = generate(model, &mut session, &tokenizer.encode(PROMPT)?, options)?;
    let pieces = text::with_text(tokens, tokenizer).map(|piece| Ok(piece?.text));
    pieces.collect()
}

/// The first token that these options choose.
fn first_token(
    model: &mut dyn CausalLm,
    tokenizer: &Tokenizer,
    options: GenerateOptions,
) -> Result<u32, Box<dyn Error>> {
    let mut session = Session::new(model.new_cache(&CacheOptions::default())?);
    let mut tokens = generate(model, &mut session, &tokenizer.encode(PROMPT)?, options)?;
    let first = tokens.next().ok_or("at least one token is generated")??;
    Ok(first.id)
}
