//! Loads a model and prints its text while it is generated.
//!
//! `cargo run -p mlx-models --features architectures,generate,tokenizer --example stream -- path/to/checkpoint "Once upon a time"`
#![allow(clippy::print_stdout, reason = "an example shows its results")]

use std::env;
use std::error::Error;
use std::io::{self, Write};

use mlx_models::generate::{GenerateOptions, Session, generate};
use mlx_models::tokenizer::Tokenizer;
use mlx_models::{CacheOptions, text};

/// A small model that writes stories for children.
const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../mlx-models-cli/demo/lille-130m");

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let folder = arguments.next().unwrap_or_else(|| DEMO.to_owned());
    let prompt = arguments.next().unwrap_or_else(|| "Once upon a time".to_owned());

    // A folder with config.json, model.safetensors (or several files) and tokenizer.json.
    let mut model = mlx_models::load(&folder)?;
    let tokenizer = Tokenizer::from_folder(&folder)?;

    // A session is a cache with the tokens that it has read. Keep it to continue the text later.
    let mut session = Session::new(model.new_cache(&CacheOptions::default())?);

    // The model ends its text with a stop token, here after at most 200 tokens.
    let options = GenerateOptions { max_tokens: 200, ..GenerateOptions::new(tokenizer.stop_tokens()) };
    let tokens = generate(&mut *model, &mut session, &tokenizer.encode(&prompt)?, options)?;

    // Ids become text in whole characters, which may end before a string of your choice.
    let mut text = text::with_text(tokens, &tokenizer).stop_at(["The end"])?;
    print!("{prompt}");
    for piece in &mut text {
        print!("{}", piece?.text);
        io::stdout().flush()?;
    }
    println!();
    if let Some(reason) = text.finish_reason() {
        println!("ended by: {reason:?}");
    }
    Ok(())
}
