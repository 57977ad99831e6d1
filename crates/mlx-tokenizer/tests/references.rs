//! Small tokenizers of each kind, compared with transformers' encoding and decoding and mlx-lm's streaming.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeMap;
use std::fs;

use mlx_tokenizer::{Around, EncodeOptions, Tokenizer, Written};
use serde::Deserialize;
use serde_json::Value;

/// The output of `make_chat_fixtures.py`.
#[derive(Deserialize)]
struct Fixture {
    tokenizers: BTreeMap<String, Case>,
}

#[derive(Deserialize)]
struct Case {
    files: BTreeMap<String, Value>,
    texts: Vec<Text>,
    decoded: Vec<Decoded>,
}

#[derive(Deserialize)]
struct Text {
    text: String,
    /// By the rule of mlx-lm's `stream_generate`.
    ids: Vec<u32>,
    without: Vec<u32>,
    as_text: Vec<u32>,
}

#[derive(Deserialize)]
struct Decoded {
    ids: Vec<u32>,
    text: String,
    mlx_lm: Option<String>,
}

fn cases() -> Vec<(String, Case, Tokenizer)> {
    let fixture: Fixture = serde_json::from_str(include_str!("fixtures/tokenizers.json")).unwrap();
    let cases = fixture.tokenizers.into_iter().map(|(name, case)| {
        let folder = tempfile::tempdir().unwrap();
        for (file, contents) in &case.files {
            fs::write(folder.path().join(file), contents.to_string()).unwrap();
        }
        let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
        (name, case, tokenizer)
    });
    cases.collect()
}

#[test]
fn texts_have_the_ids_that_transformers_gives_them() {
    for (name, case, tokenizer) in cases() {
        for Text { text, ids, without, as_text } in &case.texts {
            assert_eq!(tokenizer.encode(text).unwrap(), *ids, "{name}: {text:?}");
            let with = |written| {
                let options = EncodeOptions { around: Around::Nothing, written };
                tokenizer.encode_with(text, options).unwrap()
            };
            assert_eq!(with(Written::SpecialTokens), *without, "{name}: {text:?}");
            assert_eq!(with(Written::Text), *as_text, "{name}: {text:?}");
        }
    }
}

#[test]
fn a_text_that_only_spells_the_first_token_gets_one() {
    let cases = cases();
    let (_, _, tokenizer) = cases.iter().find(|(name, ..)| name == "byte_level_begins").unwrap();
    let bos = tokenizer.token_id("<bos>").unwrap();
    let ids = |text, options| tokenizer.encode_with(text, options).unwrap();
    let as_text = EncodeOptions { written: Written::Text, ..Default::default() };
    assert_eq!(ids("<bos>he", EncodeOptions::default()).iter().filter(|&&id| id == bos).count(), 1);
    let spelled = ids("<bos>he", as_text);
    assert_eq!(spelled.iter().filter(|&&id| id == bos).count(), 1);
    assert!(spelled.len() > 5, "{spelled:?}");
}

/// transformers replaces characters before invalid bytes. Here they are as mlx-lm streams them.
#[test]
fn ids_have_the_text_that_the_references_give_them() {
    let mut with_broken_bytes = 0;
    for (name, case, tokenizer) in cases() {
        for Decoded { ids, text, mlx_lm } in &case.decoded {
            let ours = tokenizer.decode(ids).unwrap();
            match mlx_lm {
                Some(mlx_lm) => {
                    assert_eq!(ours, *mlx_lm, "{name}: {ids:?}");
                    with_broken_bytes += usize::from(mlx_lm.contains('\u{FFFD}'));
                    if !text.contains('\u{FFFD}') {
                        assert_eq!(ours, *text, "{name}: {ids:?}");
                    }
                }
                // The other tokenizer with a token for each byte.
                None if name.starts_with("sentence_piece") && text.contains('\u{FFFD}') => {}
                None => assert_eq!(ours, *text, "{name}: {ids:?}"),
            }
        }
    }
    assert!(with_broken_bytes > 4);
}

#[test]
fn a_stop_token_is_added_by_its_text_or_its_id() {
    let cases = cases();
    let mut tokenizer = cases.iter().find(|(name, ..)| name == "sentence_piece").unwrap().2.clone();
    assert_eq!(tokenizer.stop_tokens(), [1]);
    tokenizer.add_stop_token("<end_of_turn>").unwrap();
    tokenizer.add_stop_token("0").unwrap();
    tokenizer.add_stop_token("0").unwrap();
    assert_eq!(tokenizer.stop_tokens(), [0, 1, tokenizer.token_id("<end_of_turn>").unwrap()]);
    for unknown in ["<nothing>", "100000", "-1"] {
        let error = tokenizer.add_stop_token(unknown).unwrap_err();
        assert!(error.to_string().contains(unknown), "{error}");
    }
}
