//! Eight prompts at once: each step reads the weights once and gives every row a token.
//!
//! `cargo run -p mlx-models --features architectures,generate,tokenizer --example batch -- path/to/checkpoint`
#![allow(clippy::print_stdout, reason = "an example shows its results")]

use std::collections::BTreeMap;
use std::env;
use std::error::Error;

use mlx_models::CacheOptions;
use mlx_models::generate::{Batch, GenerateOptions};
use mlx_models::text::TextBatch;
use mlx_models::tokenizer::Tokenizer;

/// A small model that writes stories for children.
const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../mlx-models-cli/demo/lille-130m");

const PROMPTS: [&str; 8] = [
    "Once upon a time",
    "In a little cottage by the sea",
    "Long ago, in a hollow tree",
    "One sunny morning",
    "Ada wanted to play",
    "The fox and the rabbit",
    "At the edge of the forest",
    "That night",
];

fn main() -> Result<(), Box<dyn Error>> {
    let folder = env::args().nth(1).unwrap_or_else(|| DEMO.to_owned());
    let mut model = mlx_models::load(&folder)?;
    let tokenizer = Tokenizer::from_folder(&folder)?;

    // Rows have different lengths and options. They come and go at any time: `add` and `remove` may be called between
    // any two steps.
    let mut batch = TextBatch::new(Batch::new(CacheOptions::default()), &tokenizer);
    let mut texts = BTreeMap::new();
    for (index, prompt) in PROMPTS.into_iter().enumerate() {
        let options =
            GenerateOptions { max_tokens: 10 + 2 * index, ..GenerateOptions::new(tokenizer.stop_tokens()) };
        let row = batch.add(&mut *model, &tokenizer.encode(prompt)?, options)?;
        texts.insert(row, prompt.to_owned());
    }

    let mut steps = 0;
    while !batch.is_empty() {
        for answer in batch.step(&mut *model)? {
            if let Some(text) = texts.get_mut(&answer.row) {
                text.push_str(&answer.piece.text);
            }
        }
        steps += 1;
    }

    for text in texts.into_values() {
        println!("{}", text.replace('\n', " "));
    }
    println!("{steps} steps");
    Ok(())
}
