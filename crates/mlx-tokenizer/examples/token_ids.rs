//! Prints the tokens of texts, to compare this tokenizer with others.
//!
//! ```text
//! cargo run --release -p mlx-tokenizer --example token_ids -- FOLDER|FILE.gguf TEXTS.json
//! ```
//!
//! `TEXTS.json` is a list of texts. Each becomes a line with a list of ids, without the special tokens that are put around a
//! text. The time that opening took goes to the standard error.

use std::error::Error;
use std::io::Write as _;
use std::time::Instant;
use std::{env, fs, io};

use mlx_tokenizer::{Around, EncodeOptions, Tokenizer};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args_os().skip(1);
    let (Some(model), Some(texts)) = (arguments.next(), arguments.next()) else {
        return Err("usage: token_ids FOLDER|FILE.gguf TEXTS.json".into());
    };
    let texts: Vec<String> = serde_json::from_slice(&fs::read(texts)?)?;
    let start = Instant::now();
    let tokenizer = Tokenizer::open(&model)?;
    let opened = start.elapsed();
    let start = Instant::now();
    let mut out = io::BufWriter::new(io::stdout().lock());
    let options = EncodeOptions { around: Around::Nothing, ..EncodeOptions::default() };
    for text in &texts {
        serde_json::to_writer(&mut out, &tokenizer.encode_with(text, options)?)?;
        writeln!(out)?;
    }
    let encoded = start.elapsed();
    writeln!(io::stderr(), "opened in {opened:?}, {} texts encoded in {encoded:?}", texts.len())?;
    Ok(())
}
