//! Random models `BPE` in a `tokenizer.json`, against the `tokenizers` crate.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use mlx_tokenizer::{Tokenizer, TokenizerParts};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// A `tokenizer.json` whose model has these pairs, the tokens that they make, and some bytes.
fn tokenizer_json(pairs: &[(String, String)], settings: [bool; 5], as_lines: bool) -> Value {
    let [unknown, fuse_unk, byte_fallback, ignore_merges, all_bytes] = settings;
    let mut tokens: Vec<String> = vec!["<unk>".to_owned(), "a".to_owned(), "b".to_owned(), "ab".to_owned()];
    let bytes = (0..=255_u8).filter(|byte| all_bytes || byte % 3 == 0);
    tokens.extend(bytes.map(|byte| format!("<0x{byte:02X}>")));
    for (left, right) in pairs {
        tokens.extend([left.clone(), right.clone(), format!("{left}{right}")]);
    }
    let mut vocab = Map::new();
    for token in tokens {
        let id = vocab.len();
        vocab.entry(token).or_insert_with(|| id.into());
    }
    let merges = pairs.iter().map(|(left, right)| match as_lines {
        true => json!(format!("{left} {right}")),
        false => json!([left, right]),
    });
    let merges: Vec<Value> = merges.collect();
    json!({
        "version": "1.0",
        "model": {
            "type": "BPE", "unk_token": unknown.then_some("<unk>"), "fuse_unk": fuse_unk, "byte_fallback": byte_fallback,
            "ignore_merges": ignore_merges, "vocab": vocab, "merges": merges,
        },
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn tokens_are_those_of_the_tokenizers_crate(
        pairs in proptest::collection::vec(("[ab]{1,3}|a{1,9}|é", "[ab]{1,3}|a{1,9}"), 1..30),
        settings in any::<[bool; 5]>(),
        as_lines in any::<bool>(),
        texts in proptest::collection::vec("[ab]{0,20}|a{20,90}|[abcé\\u{1f600}]{0,40}", 20),
    ) {
        let json = tokenizer_json(&pairs, settings, as_lines).to_string();
        let reference = tokenizers::Tokenizer::from_bytes(&json).unwrap();
        let ours = Tokenizer::from_json(json.as_bytes(), &TokenizerParts::default()).unwrap();
        for text in texts {
            let expected = reference.encode_fast(text.as_str(), false).unwrap();
            prop_assert_eq!(ours.encode(&text).unwrap(), expected.get_ids(), "{}", text);
        }
    }
}
