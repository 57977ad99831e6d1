//! A logits processor of one's own: it makes the model answer with one of three words.
//!
//! `cargo run -p mlx-models --features architectures,generate,tokenizer --example logits_hook -- path/to/checkpoint`
#![allow(clippy::print_stdout, reason = "an example shows its results")]

use std::env;
use std::error::Error;

use mlx_models::CacheOptions;
use mlx_models::generate::{GenerateOptions, LogitsProcessor, ProcessorError, Session, TokenSet, generate};
use mlx_models::tokenizer::{Around, EncodeOptions, Tokenizer};

/// A small model that writes stories for children.
const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../mlx-models-cli/demo/lille-130m");

/// The space belongs to the word: tokens usually begin with it.
const WORDS: [&str; 3] = [" castle", " river", " mountain"];

/// Allows only tokens that continue one of the choices, and ends the sequence behind a complete one.
#[derive(Debug, Clone)]
struct OneOf {
    /// The tokens of each choice. No choice may begin with another one.
    choices: Vec<Vec<u32>>,
    /// What has been generated.
    taken: Vec<u32>,
}

impl LogitsProcessor for OneOf {
    fn allowed(&mut self) -> Result<Option<TokenSet>, ProcessorError> {
        let next = |choice: &Vec<u32>| choice.strip_prefix(&*self.taken)?.first().copied();
        Ok(Some(self.choices.iter().filter_map(next).collect()))
    }

    fn accept(&mut self, token: u32) -> Result<(), ProcessorError> {
        self.taken.push(token);
        Ok(())
    }

    // Speculative decoding takes tokens back.
    fn rollback(&mut self, tokens: usize) -> Result<(), ProcessorError> {
        self.taken.truncate(self.taken.len().saturating_sub(tokens));
        Ok(())
    }

    fn is_complete(&self) -> bool {
        self.choices.contains(&self.taken)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let folder = env::args().nth(1).unwrap_or_else(|| DEMO.to_owned());
    let mut model = mlx_models::load(&folder)?;
    let tokenizer = Tokenizer::from_folder(&folder)?;

    // The words continue a text, so they get no special tokens.
    let plain = EncodeOptions { around: Around::Nothing, ..EncodeOptions::default() };
    let encoded = WORDS.iter().map(|word| tokenizer.encode_with(word, plain));
    let one_of = OneOf { choices: encoded.collect::<Result<_, _>>()?, taken: Vec::new() };

    for prompt in ["The fox wanted to swim in the", "The goat climbed up the", "The king lived in a"] {
        // Each sequence works on a clone of the processors.
        let processors: Vec<Box<dyn LogitsProcessor>> = vec![Box::new(one_of.clone())];
        let options = GenerateOptions { processors, ..GenerateOptions::new(tokenizer.stop_tokens()) };
        let mut session = Session::new(model.new_cache(&CacheOptions::default())?);
        let tokens = generate(&mut *model, &mut session, &tokenizer.encode(prompt)?, options)?;
        let ids: Vec<u32> = tokens.map(|token| Ok(token?.id)).collect::<Result<_, Box<dyn Error>>>()?;
        println!("{prompt}:{}", tokenizer.decode(&ids)?);
    }
    Ok(())
}
