//! Compares the meaning of ids in two tokenizers.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeMap;
use std::fs;

use mlx_tokenizer::Tokenizer;

/// A tokenizer with these tokens and special tokens.
fn tokenizer(vocab: &[(&str, u32)], special: &[(&str, u32)]) -> Tokenizer {
    let vocab: BTreeMap<_, _> = vocab.iter().copied().collect();
    let added: Vec<_> = special
        .iter()
        .map(|(content, id)| {
            serde_json::json!({
                "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true,
            })
        })
        .collect();
    let tokenizer = serde_json::json!({
        "version": "1.0", "added_tokens": added, "decoder": { "type": "Fuse" },
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "a" },
    });
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    Tokenizer::from_folder(folder.path()).unwrap()
}

const LETTERS: [(&str, u32); 3] = [("a", 0), ("b", 1), ("c", 2)];

#[test]
fn the_same_tokenizer_shares_all_ids() {
    let one = tokenizer(&LETTERS, &[("<end>", 3)]);
    let shared = one.shared_tokens(&one.clone()).unwrap();
    assert_eq!(shared.ids(), [0, 1, 2, 3]);
    assert_eq!(shared.all_below(), Some(4));
    assert!(shared.ours_only().is_empty() && shared.theirs_only().is_empty());
}

#[test]
fn ids_that_one_side_has_are_listed() {
    let text = tokenizer(&LETTERS, &[("<end>", 3)]);
    let images = tokenizer(&LETTERS, &[("<end>", 3), ("<image>", 4), ("<sound>", 5)]);
    let shared = text.shared_tokens(&images).unwrap();
    assert_eq!(
        (shared.all_below(), shared.ours_only(), shared.theirs_only()),
        (Some(4), &[][..], &[4, 5][..])
    );
    assert!(shared.contains(3) && !shared.contains(4));
    let shared = images.shared_tokens(&text).unwrap();
    assert_eq!((shared.ours_only(), shared.theirs_only()), (&[4, 5][..], &[][..]));
}

#[test]
fn gaps_are_seen() {
    let one = tokenizer(&[("a", 0), ("b", 1), ("c", 2), ("d", 4)], &[]);
    let other = tokenizer(&[("a", 0), ("c", 2), ("d", 4)], &[]);
    let shared = one.shared_tokens(&other).unwrap();
    assert_eq!((shared.ids(), shared.all_below()), (&[0, 2, 4][..], None));
    assert_eq!(shared.ours_only(), [1]);
}

#[test]
fn the_first_id_that_means_something_else_is_named() {
    let one = tokenizer(&LETTERS, &[("<end>", 3)]);
    let other = tokenizer(&[("a", 0), ("c", 1), ("b", 2)], &[("<end>", 3)]);
    let error = one.shared_tokens(&other).unwrap_err();
    assert_eq!((error.id, &*error.ours, &*error.theirs, error.conflicts), (1, "b", "c", 2));
    let said = r#"token 1 is "b" in one tokenizer and "c" in the other (2 ids differ)"#;
    assert_eq!(error.to_string(), said);
}
