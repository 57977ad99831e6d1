//! A conversation: a chat template makes each prompt, and the session keeps what the model has read of it.
//!
//! `cargo run -p mlx-models --features architectures,generate,tokenizer --example chat -- path/to/checkpoint`
#![allow(clippy::print_stdout, reason = "an example shows its results")]

use std::env;
use std::error::Error;

use mlx_models::generate::{GenerateOptions, Session, generate};
use mlx_models::tokenizer::{ChatOptions, ChatTemplate, Message, Tokenizer};
use mlx_models::{CacheOptions, text};

/// A small model that writes stories for children. It was trained on no conversations and has no chat template.
const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../mlx-models-cli/demo/lille-130m");

/// A template for models without one: it writes the messages one after another.
const PLAIN: &str = "{% for message in messages %}{{ message.content }}{% endfor %}";

fn main() -> Result<(), Box<dyn Error>> {
    let folder = env::args().nth(1).unwrap_or_else(|| DEMO.to_owned());
    let mut model = mlx_models::load(&folder)?;
    let tokenizer = Tokenizer::from_folder(&folder)?;
    let mut session = Session::new(model.new_cache(&CacheOptions::default())?);

    // Without an option the template of the model is used. A system message would be the first one:
    // `Message::system("Answer briefly.")`.
    let template = match tokenizer.chat_templates().next() {
        Some(_) => ChatTemplate::Default,
        None => ChatTemplate::Text(PLAIN.to_owned()),
    };
    let chat = ChatOptions { template, ..ChatOptions::default() };

    let mut messages = Vec::new();
    for question in ["Once upon a time there was a little fox.", " One day she met a bear."] {
        messages.push(Message::user(question));

        // The template is applied to the whole conversation each time, since it may write earlier messages differently.
        let prompt = tokenizer.chat(&messages, &chat)?;

        // The session keeps the tokens that it has in common with the new prompt. Only the rest is read.
        let (_, rest) = session.turn_to(&*model, &prompt.tokens)?;
        println!("user: {}", question.trim());
        println!("({} of {} tokens are read)", rest.len(), prompt.tokens.len());

        let options = GenerateOptions { max_tokens: 30, ..GenerateOptions::new(tokenizer.stop_tokens()) };
        let tokens = generate(&mut *model, &mut session, rest, options)?;
        let pieces = text::with_text(tokens, &tokenizer).map(|piece| Ok::<_, text::TextError>(piece?.text));
        let answer: String = pieces.collect::<Result<_, _>>()?;
        println!("model: {}", answer.trim());
        messages.push(Message::assistant(&answer));
    }
    Ok(())
}
