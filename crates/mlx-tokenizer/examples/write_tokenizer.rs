//! Writes the tokenizer of a GGUF file as the files of a checkpoint folder, which transformers and mlx-lm read.
//!
//! ```text
//! cargo run --release -p mlx-tokenizer --example write_tokenizer -- FILE.gguf FOLDER
//! ```

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

use mlx_tokenizer::Tokenizer;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args_os().skip(1);
    let (Some(model), Some(folder)) = (arguments.next(), arguments.next()) else {
        return Err("usage: write_tokenizer FILE.gguf FOLDER".into());
    };
    for (name, contents) in Tokenizer::open(model)?.files()? {
        let file = PathBuf::from(&folder).join(name);
        if let Some(parent) = file.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(file, contents)?;
    }
    Ok(())
}
