//! A chat template, with one conversation.

#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use mlx_tokenizer::{ChatOptions, ChatTemplate, Message, Tokenizer};

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crates/mlx-models-cli/demo/phi3");
    Tokenizer::from_folder(demo).unwrap()
});

fuzz_target!(|text: &str| {
    let messages = [Message::system("Be short."), Message::user("Hello"), Message::assistant("Hi")];
    let template = ChatTemplate::Text(text.to_owned());
    let _ = TOKENIZER.chat_text(&messages, &ChatOptions { template, ..ChatOptions::default() });
});
