//! Reads and uses a tokenizer folder.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;

use mlx_tokenizer::{Tokenizer, TokenizerError};
use tempfile::TempDir;

/// Every byte is a token (its id is its place in GPT-2's byte alphabet), then `he`, then the end token.
fn byte_level() -> String {
    let mut bytes: Vec<u32> = (33..=126).chain(161..=172).chain(174..=255).collect();
    let mut alphabet: Vec<char> = bytes.iter().map(|&b| char::from_u32(b).unwrap()).collect();
    for byte in 0..256 {
        if !bytes.contains(&byte) {
            bytes.push(byte);
            alphabet.push(char::from_u32(256 + alphabet.len() as u32 - 188).unwrap());
        }
    }
    let mut vocab = serde_json::Map::new();
    for (id, symbol) in alphabet.iter().enumerate() {
        vocab.insert(symbol.to_string(), id.into());
    }
    vocab.insert("he".to_owned(), 256.into());
    serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [{
            "id": 257, "content": "<|end|>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true,
        }],
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        "post_processor": null,
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": vocab, "merges": [["h", "e"]],
        },
    })
    .to_string()
}

/// File names and contents.
type Files<'a> = &'a [(&'a str, &'a str)];

fn folder(files: Files<'_>) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, contents) in files {
        fs::write(folder.path().join(name), contents).unwrap();
    }
    folder
}

fn tokenizer() -> Tokenizer {
    Tokenizer::from_folder(folder(&[("tokenizer.json", &byte_level())]).path()).unwrap()
}

#[test]
fn text_goes_to_ids_and_back() {
    let tokenizer = tokenizer();
    let ids = tokenizer.encode("he said: naïve 🦊").unwrap();
    assert_eq!(ids[0], 256);
    assert_eq!(tokenizer.decode(&ids).unwrap(), "he said: naïve 🦊");
}

#[test]
fn special_tokens_are_read_and_not_printed() {
    let tokenizer = tokenizer();
    assert_eq!(tokenizer.encode("<|end|>").unwrap(), [257]);
    assert_eq!(tokenizer.decode(&[256, 257]).unwrap(), "he");
}

#[test]
fn a_stream_never_gives_half_a_character() {
    let tokenizer = tokenizer();
    let text = "he — naïve 🦊🦊 ende, a longer text with many tokens; 日本語のテキスト.";
    let mut stream = tokenizer.stream();
    let mut streamed = String::new();
    for id in tokenizer.encode(text).unwrap() {
        let piece = stream.push(id).unwrap();
        assert!(!piece.contains('\u{FFFD}'), "{piece:?}");
        streamed += &piece;
    }
    assert_eq!(streamed, text);
    assert_eq!(stream.finish().unwrap(), "");
}

/// The form of Llama's and Gemma's tokenizers: `▁` for a space, and a token for each byte of characters
/// that are not in the vocabulary. Their decoder looks at runs of bytes: one incomplete character at the end of a run turns the
/// whole run into replacement characters.
fn byte_fallback() -> String {
    let mut vocab = serde_json::Map::new();
    vocab.insert("<unk>".to_owned(), 0.into());
    for byte in 0..256 {
        vocab.insert(format!("<0x{byte:02X}>"), (1 + byte).into());
    }
    for (i, letter) in ["▁", "a", "b", "c"].into_iter().enumerate() {
        vocab.insert(letter.to_owned(), (257 + i).into());
    }
    serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": { "type": "Replace", "pattern": { "String": " " }, "content": "▁" },
        "pre_tokenizer": null, "post_processor": null,
        "decoder": { "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
            { "type": "ByteFallback" }, { "type": "Fuse" },
            { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
        ] },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": vocab, "merges": [],
        },
    })
    .to_string()
}

#[test]
fn runs_of_bytes_are_streamed_whole() {
    let folder = folder(&[("tokenizer.json", &byte_fallback())]);
    let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
    for text in
        ["a🦊🦊b", "日本語日本語日b", "a b c", "é", "ab 日 c 🦊 é日本語a", "日本語のテキスト 日本語 a"]
    {
        let mut stream = tokenizer.stream();
        let mut streamed = String::new();
        for id in tokenizer.encode(text).unwrap() {
            let piece = stream.push(id).unwrap();
            assert!(!piece.contains('\u{FFFD}'), "{text}: {piece:?}");
            streamed += &piece;
        }
        streamed += &stream.finish().unwrap();
        assert_eq!(streamed, text);
    }
}

#[test]
fn incomplete_characters_come_out_at_the_end() {
    let tokenizer = tokenizer();
    let fox = tokenizer.encode("🦊").unwrap();
    assert_eq!(fox.len(), 4);
    // Many broken characters, then text, then the beginning of a character.
    let ids: Vec<u32> = [fox[1]; 40]
        .into_iter()
        .chain(tokenizer.encode(" ok").unwrap())
        .chain(fox[..2].iter().copied())
        .collect();
    let mut stream = tokenizer.stream();
    let mut streamed: String = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    assert!(streamed.ends_with(" ok"));
    streamed += &stream.finish().unwrap();
    assert_eq!(streamed, tokenizer.decode(&ids).unwrap());
}

#[test]
fn stop_tokens_come_from_every_config() {
    let tokenizer_json = byte_level();
    let configs: &[(Files<'_>, &[u32])] = &[
        (&[], &[]),
        (&[("generation_config.json", r#"{"eos_token_id": [5, 3]}"#)], &[3, 5]),
        (&[("config.json", r#"{"eos_token_id": 7}"#)], &[7]),
        (&[("tokenizer_config.json", r#"{"eos_token": "<|end|>"}"#)], &[257]),
        (
            &[
                ("tokenizer_config.json", r#"{"eos_token": {"content": "<|end|>", "lstrip": false}}"#),
                ("config.json", r#"{"eos_token_id": null}"#),
                ("generation_config.json", r#"{"eos_token_id": 257}"#),
            ],
            &[257],
        ),
    ];
    for (files, expected) in configs {
        let folder = folder(files);
        fs::write(folder.path().join("tokenizer.json"), &tokenizer_json).unwrap();
        assert_eq!(Tokenizer::from_folder(folder.path()).unwrap().stop_tokens(), *expected, "{files:?}");
    }
}

#[test]
fn a_folder_without_a_tokenizer_says_so() {
    let error = Tokenizer::from_folder(folder(&[]).path()).unwrap_err();
    assert!(matches!(error, TokenizerError::NoTokenizer { .. }));
    assert!(error.to_string().contains("tokenizer.json"));
}

#[test]
fn files_that_cannot_be_understood_are_named() {
    let tokenizer_json = byte_level();
    let empty = folder(&[("tokenizer.json", &tokenizer_json), ("generation_config.json", "")]);
    let error = Tokenizer::from_folder(empty.path()).unwrap_err().to_string();
    assert!(error.contains("generation_config.json") && error.contains(": not valid JSON: EOF"), "{error}");
    for (name, contents) in [
        ("tokenizer.json", "{}"),
        ("tokenizer.json", "not json"),
        ("config.json", r#"{"eos_token_id": "two"}"#),
        ("config.json", r#"{"eos_token_id": [1, -1]}"#),
        ("config.json", "[]"),
        ("generation_config.json", "{"),
        ("tokenizer_config.json", r#"{"eos_token": 3}"#),
    ] {
        let folder = folder(&[("tokenizer.json", &tokenizer_json), (name, contents)]);
        let error = Tokenizer::from_folder(folder.path()).unwrap_err();
        assert!(matches!(error, TokenizerError::Invalid { .. }), "{name} {contents}");
        assert!(error.to_string().contains(name), "{error}");
    }
}
