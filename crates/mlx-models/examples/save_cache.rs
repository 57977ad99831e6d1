//! Saves the cache of a long prompt to a file, and continues from the file without reading the prompt again.
//!
//! `cargo run -p mlx-models --features architectures,generate,tokenizer --example save_cache -- path/to/checkpoint`
#![allow(clippy::print_stdout, reason = "an example shows its results")]

use std::env;
use std::error::Error;

use mlx_models::generate::{GenerateOptions, Session, generate};
use mlx_models::tokenizer::Tokenizer;
use mlx_models::{CacheOptions, CausalLm, text};

/// A small model that writes stories for children.
const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../mlx-models-cli/demo/gemma3");

const BEGINNING: &str = "In a little cottage by the sea lived a brave girl named Zoe. More than anything, she loved to sing \
                         songs. One sunny morning, the sky was blue and the birds were singing.";

fn main() -> Result<(), Box<dyn Error>> {
    let folder = env::args().nth(1).unwrap_or_else(|| DEMO.to_owned());
    let mut model = mlx_models::load(&folder)?;
    let tokenizer = Tokenizer::from_folder(&folder)?;
    let options = CacheOptions::default();

    // Read the prompt once. The closure is told the progress, and may stop the reading.
    let mut session = Session::new(model.new_cache(&options)?);
    let prompt = tokenizer.encode(BEGINNING)?;
    let progress = |read: usize, total: usize| {
        println!("read {read} of {total} tokens");
        std::ops::ControlFlow::Continue(())
    };
    session.read_all(&mut *model, &prompt, 16, progress)?;

    // The file names the model that made it, so that no other model can be given it by mistake. mlx-lm reads such files,
    // and its files can be read here.
    let file = env::temp_dir().join(format!("mlx-models-example-{}.safetensors", std::process::id()));
    session.save(&*model, &file)?;
    println!("saved {} bytes", std::fs::metadata(&file)?.len());

    // Later, perhaps in another process: the same model, and a new session from the file.
    let mut loaded = Session::load(&*model, &file, &options)?;
    println!("loaded a session of {} tokens", loaded.offset());
    std::fs::remove_file(&file)?;

    for (name, session) in [("kept", &mut session), ("loaded", &mut loaded)] {
        println!("{name}: {}", continued(&mut *model, session, &tokenizer)?);
    }
    Ok(())
}

/// How the text goes on.
fn continued(
    model: &mut dyn CausalLm,
    session: &mut Session,
    tokenizer: &Tokenizer,
) -> Result<String, Box<dyn Error>> {
    let options = GenerateOptions { max_tokens: 24, ..GenerateOptions::new(tokenizer.stop_tokens()) };
    let tokens = generate(model, session, &tokenizer.encode(" A butterfly")?, options)?;
    text::with_text(tokens, tokenizer).map(|piece| Ok(piece?.text)).collect()
}
