//! Compares streams of ids with the whole text, for every kind of decoder and random ids.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeMap;
use std::fs;
use std::sync::LazyLock;

use mlx_tokenizer::Tokenizer;
use proptest::prelude::*;
use serde_json::{Value, json};

/// A tokenizer of ours and the same one of the `tokenizers` crate.
struct Pair {
    name: String,
    ours: Tokenizer,
    theirs: tokenizers::Tokenizer,
    /// Whether bytes have their own tokens; then the two differ for broken characters.
    bytes: bool,
}

impl Pair {
    fn new(name: &str, files: &BTreeMap<String, Value>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (file, contents) in files {
            fs::write(folder.path().join(file), contents.to_string()).unwrap();
        }
        let theirs = tokenizers::Tokenizer::from_file(folder.path().join("tokenizer.json")).unwrap();
        let bytes = files["tokenizer.json"]["decoder"].to_string().contains("ByteFallback");
        Self { name: name.to_owned(), ours: Tokenizer::from_folder(folder.path()).unwrap(), theirs, bytes }
    }

    fn stream(&self, ids: &[u32]) -> Vec<String> {
        let mut stream = self.ours.stream();
        let mut pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
        pieces.push(stream.finish().unwrap());
        pieces
    }
}

const REPLACEMENT: &str = "\u{FFFD}";

/// Tokens that have a meaning for some decoder.
const TOKENS: [&str; 24] = [
    "▁a", "a", "b▁", "▁", "▁▁", " ", "", "##b", "##", "a</w>", "</w>", "|", ".", "n't", " '", "日", "<pad>",
    "Ġ", "<0xF0>", "<0x9F>", "<0xA6>", "<0x8A>", "<0x41>", "<0xZZ>",
];

static PAIRS: LazyLock<Vec<Pair>> = LazyLock::new(|| {
    let fixture: Value = serde_json::from_str(include_str!("fixtures/tokenizers.json")).unwrap();
    let fixture: BTreeMap<String, Value> = serde_json::from_value(fixture["tokenizers"].clone()).unwrap();
    let mut pairs: Vec<Pair> = fixture
        .iter()
        .filter(|(name, _)| *name != "byte_level_named")
        .map(|(name, case)| Pair::new(name, &serde_json::from_value(case["files"].clone()).unwrap()))
        .collect();

    let vocab: BTreeMap<&str, usize> = TOKENS.into_iter().zip(0..).collect();
    let space =
        |scheme| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": true});
    let replace = json!({"type": "Replace", "pattern": {"Regex": "a+ *"}, "content": "x"});
    let fallback = json!({"type": "ByteFallback"});
    let fuse = json!({"type": "Fuse"});
    let level =
        json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    let strip = |start, stop| json!({"type": "Strip", "content": "▁", "start": start, "stop": stop});
    let piece = |cleanup| json!({"type": "WordPiece", "prefix": "##", "cleanup": cleanup});
    let ctc = json!({"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": true});
    let suffix = json!({"type": "BPEDecoder", "suffix": "</w>"});
    let sequence = |decoders: &[&Value]| json!({"type": "Sequence", "decoders": decoders});
    let decoders = [
        Value::Null,
        fuse.clone(),
        space("always"),
        space("never"),
        piece(true),
        piece(false),
        ctc.clone(),
        suffix.clone(),
        replace.clone(),
        strip(2, 0),
        level.clone(),
        fallback.clone(),
        sequence(&[]),
        sequence(&[&fallback, &space("always")]),
        sequence(&[&fuse, &space("always")]),
        sequence(&[&fuse, &space("first"), &fuse]),
        sequence(&[&replace, &fallback, &fuse, &strip(3, 0)]),
        sequence(&[&fuse, &strip(1, 0), &replace]),
        sequence(&[&level, &piece(true)]),
        // In the other order, the crate panics if only repeated or empty tokens are left.
        sequence(&[&suffix, &ctc, &space("always")]),
        sequence(&[&suffix, &sequence(&[&piece(true), &fuse]), &strip(1, 0)]),
    ];
    for decoder in decoders {
        let tokenizer = json!({
            "version": "1.0", "added_tokens": [], "decoder": decoder,
            "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "a" },
        });
        let name = decoder.to_string();
        pairs.push(Pair::new(&name, &[("tokenizer.json".to_owned(), tokenizer)].into()));
    }
    pairs
});

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Random ids: special tokens, ids without a token, broken characters.
    #[test]
    fn the_pieces_are_the_text_of_the_tokenizers_crate(
        seeds in prop::collection::vec(any::<u32>(), 0..60),
    ) {
        for pair in PAIRS.iter() {
            let size = pair.theirs.get_vocab_size(true) as u32 + 2;
            let ids: Vec<u32> = seeds.iter().map(|seed| seed % size).collect();
            let text = pair.stream(&ids).concat();
            prop_assert_eq!(&text, &pair.ours.decode(&ids).unwrap());
            // The crate panics for one kind of decoder if there are no tokens.
            let theirs = if ids.iter().all(|&id| id >= size - 2) { String::new() } else {
                pair.theirs.decode(&ids, true).unwrap()
            };
            if !(pair.bytes && theirs.contains('\u{FFFD}')) {
                prop_assert_eq!(text, theirs, "{}: {:?}", &pair.name, &ids);
            }
        }
    }

    /// At most the beginning of one character is held back.
    #[test]
    fn text_comes_as_soon_as_it_is_certain(seeds in prop::collection::vec(any::<u32>(), 1..40)) {
        for pair in PAIRS.iter().filter(|pair| pair.name.starts_with("byte_level") || pair.name.starts_with("sentence")) {
            let size = pair.theirs.get_vocab_size(true) as u32;
            let ids: Vec<u32> = seeds.iter().map(|seed| seed % size).collect();
            let mut stream = pair.ours.stream();
            let mut told = String::new();
            for end in 1..=ids.len() {
                told += &stream.push(ids[end - 1]).unwrap();
                let text = pair.ours.decode(&ids[..end]).unwrap();
                let rest = text.strip_prefix(&told).unwrap();
                prop_assert!(rest.is_empty() || rest == REPLACEMENT, "{}: {:?} waits", &pair.name, rest);
            }
        }
    }

    /// Bytes that do not form characters, compared with a decoder of all bytes at once.
    #[test]
    fn runs_of_bytes_are_as_pythons_replace(
        bytes in prop::collection::vec(
            prop_oneof![Just(0xF0_u8), Just(0x9F), Just(0xA6), Just(0x8A), Just(0xE2), Just(0x96), Just(0x41), any::<u8>()],
            0..24,
        ),
    ) {
        for pair in PAIRS.iter().filter(|pair| pair.name == "sentence_piece") {
            let id = |byte: &u8| pair.theirs.token_to_id(&format!("<0x{byte:02X}>")).unwrap();
            let ids: Vec<u32> = bytes.iter().map(id).collect();
            prop_assert_eq!(pair.stream(&ids).concat(), String::from_utf8_lossy(&bytes));
        }
    }

    /// No piece has half a character if the text has none.
    #[test]
    fn whole_texts_come_in_whole_characters(text in "[a-z ▁日本é🦊'.\n]{0,40}") {
        for pair in PAIRS.iter().filter(|pair| pair.name == "byte_level" || pair.name == "sentence_piece") {
            let ids = pair.ours.encode(&text).unwrap();
            let pieces = pair.stream(&ids);
            prop_assert!(pieces.iter().all(|piece| !piece.contains(char::REPLACEMENT_CHARACTER)));
            let expected = if pair.name == "byte_level" { text.clone() } else { text.replace('▁', " ") };
            prop_assert_eq!(pieces.concat(), expected);
        }
    }
}

/// The crate's own stream, which ours replaces, fails in this case.
#[test]
fn a_byte_after_a_character_takes_nothing_back() {
    let pair = PAIRS.iter().find(|pair| pair.name == "sentence_piece").unwrap();
    let ids: Vec<u32> =
        ["<0x41>", "<0x42>", "<0xFF>", "a"].map(|token| pair.theirs.token_to_id(token).unwrap()).into();
    let mut theirs = pair.theirs.decode_stream(true);
    let theirs: Result<Vec<_>, _> = ids.iter().map(|&id| theirs.step(id)).collect();
    assert!(theirs.is_err());
    assert_eq!(pair.stream(&ids), ["A", "B", "\u{FFFD}", "a", ""]);
}
