//! Parts of a `tokenizer.json`: every type that the tokenizers crate knows, with unusual values.

use serde_json::{Value, json};

use super::json::Word;
use super::random::Random;
use super::values::{any_size, interesting_number, interesting_text};

/// Keys and values that may be inserted into a `tokenizer.json`.
pub(super) const WORDS: &[Word] = &[
    |r| ("normalizer".to_owned(), normalizer(r, 2)),
    |r| ("normalizer".to_owned(), normalizer(r, 2)),
    |r| ("pre_tokenizer".to_owned(), pre_tokenizer(r, 2)),
    |r| ("pre_tokenizer".to_owned(), pre_tokenizer(r, 2)),
    |r| ("post_processor".to_owned(), post_processor(r, 2)),
    |r| ("post_processor".to_owned(), post_processor(r, 2)),
    |r| ("decoder".to_owned(), decoder(r, 2)),
    |r| ("decoder".to_owned(), decoder(r, 2)),
    |r| ("added_tokens".to_owned(), json!([added_token(r), added_token(r)])),
    |r| ("model".to_owned(), model(r)),
    |r| {
        let length = interesting_number(r);
        let strategy = r.one(&["LongestFirst", "OnlyFirst", "OnlySecond"]);
        (
            "truncation".to_owned(),
            json!({ "direction": "Right", "max_length": length, "strategy": strategy, "stride": any_size(r) }),
        )
    },
    |r| {
        let strategy =
            if r.once_in(2) { json!("BatchLongest") } else { json!({ "Fixed": any_size(r) % 1000 }) };
        let multiple = interesting_number(r);
        let padding = json!({ "strategy": strategy, "direction": "Left", "pad_to_multiple_of": multiple, "pad_id": 0, "pad_type_id": 0, "pad_token": interesting_text(r) });
        ("padding".to_owned(), padding)
    },
];

fn pattern(random: &mut Random) -> Value {
    let regexes = [
        "",
        "a",
        "\\s+",
        "(a|a)*b",
        "(?i:'s|'t)| ?\\p{L}+",
        "(?=a)",
        "^",
        "$",
        ".",
        "(",
        "\\p{N}{1,3}",
        "(a*)*c",
        "(?<!x)y",
    ];
    if random.once_in(2) {
        json!({ "String": interesting_text(random) })
    } else {
        json!({ "Regex": random.one(&regexes) })
    }
}

fn several(random: &mut Random, depth: usize, one: fn(&mut Random, usize) -> Value) -> Value {
    let count = random.below(if depth == 0 { 1 } else { 4 });
    Value::Array((0..count).map(|_| one(random, depth.saturating_sub(1))).collect())
}

fn normalizer(random: &mut Random, depth: usize) -> Value {
    match random.below(13) {
        0 => json!({ "type": "Sequence", "normalizers": several(random, depth, normalizer) }),
        1 => {
            json!({ "type": random.one(&["NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Nmt", "ByteLevel"]) })
        }
        2 => json!({ "type": "Strip", "strip_left": true, "strip_right": random.once_in(2) }),
        3 => {
            json!({ "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true })
        }
        4 => json!({ "type": "Prepend", "prepend": interesting_text(random) }),
        5 => {
            json!({ "type": "Precompiled", "precompiled_charsmap": random.one(&["", "AAAA", "AAAAAAAA", "/////w==", "tAIAAIAAAAAAAAA="]) })
        }
        6 => {
            // A chain of these makes a text longer and longer.
            let replace = json!({ "type": "Replace", "pattern": { "String": random.one(&["a", "aa", ""]) }, "content": "aaaaaaaaaa" });
            json!({ "type": "Sequence", "normalizers": vec![replace; random.one(&[1, 3, 12, 300])] })
        }
        _ => json!({ "type": "Replace", "pattern": pattern(random), "content": interesting_text(random) }),
    }
}

fn pre_tokenizer(random: &mut Random, depth: usize) -> Value {
    let behavior = random.one(&["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"]);
    match random.below(11) {
        0 => json!({ "type": "Sequence", "pretokenizers": several(random, depth, pre_tokenizer) }),
        1 => {
            json!({ "type": random.one(&["Whitespace", "WhitespaceSplit", "BertPreTokenizer", "UnicodeScripts"]) })
        }
        2 => {
            json!({ "type": "ByteLevel", "add_prefix_space": random.once_in(2), "trim_offsets": true, "use_regex": random.once_in(2) })
        }
        3 => {
            json!({ "type": "Metaspace", "replacement": random.one(&["▁", "a", "", "ab"]), "prepend_scheme": random.one(&["always", "never", "first"]), "split": true })
        }
        4 => json!({ "type": "CharDelimiterSplit", "delimiter": random.one(&["a", " ", "", "ab"]) }),
        5 => json!({ "type": "Punctuation", "behavior": behavior }),
        6 => json!({ "type": "Digits", "individual_digits": random.once_in(2) }),
        7 => json!({ "type": "FixedLength", "length": random.one(&[0, 1, 3, usize::MAX]) }),
        _ => {
            json!({ "type": "Split", "pattern": pattern(random), "behavior": behavior, "invert": random.once_in(2) })
        }
    }
}

fn post_processor(random: &mut Random, depth: usize) -> Value {
    let pair = |random: &mut Random| json!([interesting_text(random), interesting_number(random)]);
    match random.below(6) {
        0 => json!({ "type": "Sequence", "processors": several(random, depth, post_processor) }),
        1 => {
            json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": random.once_in(2), "use_regex": true })
        }
        2 => json!({ "type": "BertProcessing", "sep": pair(random), "cls": pair(random) }),
        3 => {
            json!({ "type": "RobertaProcessing", "sep": pair(random), "cls": pair(random), "trim_offsets": true, "add_prefix_space": random.once_in(2) })
        }
        _ => {
            let piece = |random: &mut Random| match random.below(3) {
                0 => json!({ "Sequence": { "id": random.one(&["A", "B"]), "type_id": 0 } }),
                1 => {
                    json!({ "SpecialToken": { "id": "<|endoftext|>", "type_id": interesting_number(random) } })
                }
                _ => json!({ "SpecialToken": { "id": interesting_text(random), "type_id": 0 } }),
            };
            let template =
                |random: &mut Random| Value::Array((0..random.below(4)).map(|_| piece(random)).collect());
            let ids = json!([interesting_number(random)]);
            let token = json!({ "id": "<|endoftext|>", "ids": ids, "tokens": ["<|endoftext|>"] });
            json!({ "type": "TemplateProcessing", "single": template(random), "pair": template(random), "special_tokens": { "<|endoftext|>": token } })
        }
    }
}

fn decoder(random: &mut Random, depth: usize) -> Value {
    match random.below(10) {
        0 => json!({ "type": "Sequence", "decoders": several(random, depth, decoder) }),
        1 => {
            json!({ "type": random.one(&["ByteLevel", "ByteFallback", "Fuse"]), "add_prefix_space": true, "trim_offsets": true, "use_regex": true })
        }
        2 => {
            json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": random.once_in(2) })
        }
        3 => json!({ "type": "WordPiece", "prefix": interesting_text(random), "cleanup": random.once_in(2) }),
        4 => {
            json!({ "type": "CTC", "pad_token": interesting_text(random), "word_delimiter_token": interesting_text(random), "cleanup": true })
        }
        5 => json!({ "type": "BPEDecoder", "suffix": interesting_text(random) }),
        6 => {
            json!({ "type": "Strip", "content": random.one(&["a", " ", "", "ab"]), "start": any_size(random), "stop": any_size(random) })
        }
        _ => json!({ "type": "Replace", "pattern": pattern(random), "content": interesting_text(random) }),
    }
}

fn added_token(random: &mut Random) -> Value {
    json!({
        "id": interesting_number(random), "content": interesting_text(random), "single_word": random.once_in(2),
        "lstrip": random.once_in(2), "rstrip": random.once_in(2), "normalized": random.once_in(2), "special": random.once_in(2),
    })
}

fn model(random: &mut Random) -> Value {
    match random.below(5) {
        0 => {
            json!({ "type": "WordLevel", "vocab": { "a": 0, "b": interesting_number(random) }, "unk_token": interesting_text(random) })
        }
        1 => json!({
            "type": "WordPiece", "vocab": { "a": 0, "##a": 1, "[UNK]": 2 }, "unk_token": random.one(&["[UNK]", "a", ""]),
            "continuing_subword_prefix": random.one(&["##", ""]), "max_input_chars_per_word": any_size(random),
        }),
        2 => {
            json!({ "type": "Unigram", "unk_id": interesting_number(random), "vocab": [["a", -1.0], [interesting_text(random), interesting_number(random)]], "byte_fallback": random.once_in(2) })
        }
        3 => {
            json!({ "type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0], ["e", -2.0], ["▁", -3.0]], "byte_fallback": random.once_in(2) })
        }
        _ => json!({
            "type": "BPE", "dropout": random.one(&[None, Some(0.5), Some(2.0)]), "unk_token": random.one(&[None, Some("a"), Some("absent")]),
            "continuing_subword_prefix": random.one(&[None, Some(""), Some("##")]), "end_of_word_suffix": random.one(&[None, Some("</w>")]),
            "fuse_unk": random.once_in(2), "byte_fallback": random.once_in(2), "ignore_merges": random.once_in(2),
            "vocab": { "a": 0, "b": 1, "ab": 2, "O": 3, "n": 4, "c": 5, "e": 6, "Ġ": 7, "On": interesting_number(random) },
            "merges": random.one(&[json!([["a", "b"]]), json!(["a b"]), json!([["O", "n"]]), json!([["a", "z"]]), json!(["a"])]),
        }),
    }
}
