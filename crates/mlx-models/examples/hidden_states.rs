//! Reads the features of a model's last layer, and compares sentences by them.
//!
//! `cargo run -p mlx-models --features architectures,generate,tokenizer --example hidden_states -- path/to/checkpoint`
#![allow(clippy::print_stdout, reason = "an example shows its results")]

use std::env;
use std::error::Error;

use mlx_models::generate::Session;
use mlx_models::tokenizer::Tokenizer;
use mlx_models::{CacheOptions, CausalLm};
use mlx_rs::{Array, Dtype};

/// A small model that writes stories for children.
const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../mlx-models-cli/demo/lille-130m");

const SENTENCES: [&str; 3] = [
    "The little fox was happy and laughed.",
    "The little rabbit was happy and laughed.",
    "The water fell like silver over the cliff.",
];

fn main() -> Result<(), Box<dyn Error>> {
    let folder = env::args().nth(1).unwrap_or_else(|| DEMO.to_owned());
    let mut model = mlx_models::load(&folder)?;
    let tokenizer = Tokenizer::from_folder(&folder)?;

    let mut vectors = Vec::new();
    for sentence in SENTENCES {
        vectors.push(vector(&mut *model, &tokenizer.encode(sentence)?)?);
    }
    for (a, first) in vectors.iter().enumerate() {
        for (b, second) in vectors.iter().enumerate().skip(a) {
            let cosine = first.multiply(second)?.sum(None)?.try_item_exact::<f32>()?;
            println!("{a} and {b}: {cosine:.3}");
        }
    }
    Ok(())
}

/// The mean of a sentence's features, float32 `[D]`, of length 1.
fn vector(model: &mut dyn CausalLm, tokens: &[u32]) -> Result<Array, Box<dyn Error>> {
    // A session of its own, so that the sentence is read from position 0.
    let mut session = Session::new(model.new_cache(&CacheOptions::default())?);
    let tokens = Array::from_slice(tokens, &[1, tokens.len() as i32]); // [B, L]

    // What the head would turn into logits. A model for embeddings was trained to make these features comparable; a plain
    // language model was not, so expect less of it.
    let hidden = session.hidden_states(model, &tokens)?.last; // [B, L, D]; `.layers` has those of all layers
    let mean = hidden.as_dtype(Dtype::Float32)?.mean_axes(&[0, 1], false)?; // [D]
    let length = mean.square()?.sum(None)?.sqrt()?;
    Ok(mean.divide(&length)?)
}
