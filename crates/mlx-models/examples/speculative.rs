//! Speculative decoding: a small model drafts tokens, and the large model checks several of them in one call. The text stays
//! the same.
//!
//! `cargo run -p mlx-models --features architectures,generate,tokenizer --example speculative -- path/to/large path/to/small`
#![allow(clippy::print_stdout, reason = "an example shows its results")]

use std::env;
use std::error::Error;

use mlx_models::CacheOptions;
use mlx_models::generate::{
    DraftModel, GenerateOptions, PromptLookup, Session, Speculation, generate, generate_speculative,
};
use mlx_models::tokenizer::Tokenizer;

/// Two models with the same tokens. An id must mean the same token in both; `Tokenizer::shared_tokens` checks it.
const LARGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../mlx-models-cli/demo/phi3");
const SMALL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../mlx-models-cli/demo/lille-130m");

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let large = arguments.next().unwrap_or_else(|| LARGE.to_owned());
    let small = arguments.next().unwrap_or_else(|| SMALL.to_owned());
    let mut model = mlx_models::load(&large)?;
    let mut small = mlx_models::load(&small)?;
    let tokenizer = Tokenizer::from_folder(&large)?;
    let prompt = tokenizer.encode("Once upon a time")?;
    let options = GenerateOptions { max_tokens: 60, ..GenerateOptions::new(tokenizer.stop_tokens()) };

    let mut session = Session::new(model.new_cache(&CacheOptions::default())?);
    let tokens = generate(&mut *model, &mut session, &prompt, options.clone())?;
    let plain: Vec<u32> = tokens.map(|token| Ok(token?.id)).collect::<Result<_, Box<dyn Error>>>()?;
    println!("plain: {}", tokenizer.decode(&plain)?);

    // The small model drafts up to 4 tokens at a time.
    let mut session = Session::new(model.new_cache(&CacheOptions::default())?);
    let mut draft = DraftModel::new(&mut *small, &options)?;
    let speculation = Speculation { draft: &mut draft, most: 4 };
    let stream = generate_speculative(&mut *model, &mut session, &prompt, options.clone(), speculation)?;
    let tokens = stream.collect::<Result<Vec<_>, _>>()?;
    let ids: Vec<u32> = tokens.iter().map(|token| token.id).collect();
    let drafted = tokens.iter().filter(|token| token.drafted).count();
    println!("with a draft model: {}", tokenizer.decode(&ids)?);
    println!("{drafted} of {} tokens were drafted", tokens.len());

    // Without a second model: what followed the same words earlier in the text. It helps where the answer repeats its
    // prompt, so here the model writes its text a second time.
    let twice = [prompt.as_slice(), &plain, &prompt].concat();
    let mut session = Session::new(model.new_cache(&CacheOptions::default())?);
    let speculation = Speculation { draft: &mut PromptLookup::default(), most: 8 };
    let stream = generate_speculative(&mut *model, &mut session, &twice, options, speculation)?;
    let tokens = stream.collect::<Result<Vec<_>, _>>()?;
    let drafted = tokens.iter().filter(|token| token.drafted).count();
    println!("by looking back: {drafted} of {} tokens were drafted", tokens.len());
    Ok(())
}
