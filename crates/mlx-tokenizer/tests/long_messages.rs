//! Very long texts of files or callers are shortened in error messages.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::path::Path;

use mlx_tokenizer::{ChatEnd, ChatOptions, ChatTemplate, Message, Tokenizer, TokenizerError};

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../mlx-models-cli/demo/phi3/tokenizer.json");
    fs::copy(demo, folder.path().join("tokenizer.json")).unwrap();
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

#[track_caller]
fn assert_short(error: &TokenizerError, part: &str) {
    let message = error.to_string();
    assert!(message.len() < 5000, "{} bytes: {}", message.len(), &message[..200]);
    assert!(message.contains(part), "{message}");
}

#[test]
fn long_texts_of_files_are_cut() {
    let long = "\u{e9}".repeat(100_000);
    let list = vec!["1023"; 50_000].join(",");
    for (file, text) in [
        ("tokenizer_config.json", format!("{{\"eos_token\": [{list}]}}")),
        ("special_tokens_map.json", format!("\"{long}\"")),
        ("special_tokens_map.json", format!("[[{list}]]")),
        ("generation_config.json", format!("{{\"eos_token_id\": [[{list}]]}}")),
        ("tokenizer.json", format!("{{\"added_tokens\": \"{long}\"}}")),
        ("tokenizer.json", format!("{{\"version\": \"{long}\", \"model\": 1}}")),
    ] {
        let folder = folder(&[(file, &text)]);
        assert_short(&Tokenizer::from_folder(folder.path()).unwrap_err(), file);
    }
}

#[test]
fn long_texts_of_templates_and_callers_are_cut() {
    let long = "\u{e9}".repeat(100_000);
    let folder = folder(&[("chat_template.jinja", "{{ messages[0].content }}")]);
    let mut tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
    assert_short(&tokenizer.add_stop_token(&long).unwrap_err(), "has no token");
    let chat = |template: ChatTemplate| {
        let options = ChatOptions { template, end: ChatEnd::Answer, ..ChatOptions::default() };
        tokenizer.chat(&[Message::user("Hello")], &options).unwrap_err()
    };
    assert_short(&chat(ChatTemplate::Named(long.clone())), "it has default");
    let refuses = format!("{{{{ raise_exception('{long}') }}}}");
    assert_short(&chat(ChatTemplate::Text(refuses)), "refuses the conversation");
    let wrong = format!("{{{{ '{long}' | {} }}}}", "x".repeat(100_000));
    assert_short(&chat(ChatTemplate::Text(wrong)), "cannot be used");
}
