//! Tokenizers from GGUF files: the tokens of 500 texts as the model's own `tokenizer.json` gives them, and as llama.cpp does.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use mlx_gguf::{Gguf, Value, Writer};
use mlx_tokenizer::{
    Around, ChatOptions, ChatTemplate, EncodeOptions, Message, Tokenizer, TokenizerParts, WORD_SPLITS,
    Written,
};
use proptest::prelude::*;
use tempfile::TempDir;

const VOCABULARIES: [&str; 3] = ["llama", "gemma", "bytes"];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf").join(name)
}

fn open(name: &str) -> Tokenizer {
    Tokenizer::open(fixture(&format!("{name}.gguf"))).unwrap()
}

fn corpus() -> Vec<String> {
    let texts: Vec<String> = serde_json::from_slice(&fs::read(fixture("corpus.json")).unwrap()).unwrap();
    assert_eq!(texts.len(), 500);
    texts
}

fn plain() -> EncodeOptions {
    EncodeOptions { around: Around::Nothing, ..EncodeOptions::default() }
}

/// The metadata of a vocabulary.
fn metadata(name: &str) -> BTreeMap<String, Value> {
    let file = Gguf::open(fixture(&format!("{name}.gguf"))).unwrap();
    file.metadata().iter().map(|(key, value)| (key.to_owned(), value.clone())).collect()
}

/// A file with this metadata.
fn written(metadata: &BTreeMap<String, Value>) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vocabulary.gguf");
    let metadata: Vec<_> = metadata.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
    Writer::create(&path, &metadata, Vec::new()).unwrap().finish().unwrap();
    (folder, path)
}

#[test]
fn tokens_are_those_of_the_models_own_tokenizer_json() {
    for name in VOCABULARIES {
        let json = fs::read(fixture(&format!("{name}.json"))).unwrap();
        let reference = tokenizers::Tokenizer::from_bytes(&json).unwrap();
        let ours = open(name);
        for text in corpus() {
            let expected = reference.encode_fast(text.as_str(), true).unwrap();
            let begins = text.starts_with("<s>");
            let around = if begins && name != "bytes" { 1 } else { 0 };
            assert_eq!(ours.encode(&text).unwrap(), expected.get_ids()[around..], "{name}: {text:?}");
        }
    }
}

#[test]
fn special_tokens_can_be_encoded_as_text_and_decoded_as_the_folder_does() {
    for name in VOCABULARIES {
        let json = fs::read(fixture(&format!("{name}.json"))).unwrap();
        let folder = Tokenizer::from_json(&json, &TokenizerParts::default()).unwrap();
        let ours = open(name);
        for text in corpus() {
            let as_text = EncodeOptions { around: Around::Nothing, written: Written::Text };
            let ids = ours.encode_with(&text, as_text).unwrap();
            assert_eq!(ids, folder.encode_with(&text, as_text).unwrap(), "{name}: {text:?}");
            let decoded = ours.decode(&ids).unwrap();
            assert_eq!(decoded, folder.decode(&ids).unwrap(), "{name}: {text:?}");
            // In the others `▁` is a space, and Llama's vocabulary puts a space behind tokens of the user.
            if name == "bytes" || name == "gemma" && !text.contains('▁') {
                assert_eq!(decoded, text, "{name}");
            }
        }
        ours.shared_tokens(&folder).unwrap();
    }
}

/// The texts whose tokens differ from those of llama.cpp.
fn differing(tokenizer: &Tokenizer, sums: &str) -> Vec<String> {
    let sum = |text: &str| {
        let ids = tokenizer.encode_with(text, plain()).unwrap();
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        format!("{:04x}", crc32fast::hash(&bytes) & 0xffff)
    };
    let texts = corpus();
    assert_eq!(sums.len(), 4 * texts.len());
    let each = texts.into_iter().enumerate();
    each.filter(|(place, text)| sum(text) != sums[4 * place..][..4]).map(|(_, text)| text).collect()
}

fn llama_cpp() -> BTreeMap<String, BTreeMap<String, String>> {
    serde_json::from_slice(&fs::read(fixture("llama_cpp.json")).unwrap()).unwrap()
}

#[test]
fn tokens_are_those_of_llama_cpp_but_for_known_differences() {
    let sums = llama_cpp();
    assert_eq!(differing(&open("llama"), &sums["llama"]["default"]), [""; 0]);
    // llama.cpp does not join two `▁` that a text has to the token of two spaces.
    for text in differing(&open("gemma"), &sums["gemma"]["default"]) {
        assert!(text.contains('▁'), "{text:?}");
    }
    let names: BTreeSet<&str> = WORD_SPLITS.iter().flat_map(|split| split.names).copied().collect();
    assert_eq!(sums["bytes"].keys().map(String::as_str).collect::<BTreeSet<_>>(), names);
    for (pre, sums) in &sums["bytes"] {
        let mut metadata = metadata("bytes");
        metadata.insert("tokenizer.ggml.pre".to_owned(), Value::Text(pre.clone()));
        let (_folder, path) = written(&metadata);
        let differing = differing(&Tokenizer::open(path).unwrap(), sums);
        match pre.as_str() {
            // Qwen composes characters, and llama.cpp does not.
            "qwen2" => {
                assert_eq!(differing.len(), 38);
                let composes =
                    |c: char| !c.is_ascii() && !c.is_alphanumeric() || c > '\u{1100}' || c == '\u{212b}';
                assert!(differing.iter().all(|text| text.contains(composes)), "{differing:?}");
            }
            // The words that are tokens, but which no pairs lead to.
            "smaug-bpe" => {
                assert_eq!(differing.len(), 7);
                assert!(differing.iter().all(|text| text.contains("Hello") || text.contains("Ångström")));
            }
            _ => assert_eq!(differing, [""; 0], "{pre}"),
        }
    }
}

#[test]
fn a_file_has_special_tokens_stop_tokens_and_a_template() {
    let tokenizer = open("llama");
    for (name, token) in [("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")] {
        assert_eq!(tokenizer.special_token(name), Some(token));
    }
    assert_eq!(tokenizer.special_token("pad_token"), None);
    let ends = ["</s>", "<end_of_turn>", "<|end|>"].map(|token| tokenizer.token_id(token).unwrap());
    assert_eq!(tokenizer.stop_tokens(), ends);

    let prompt = tokenizer.chat(&[Message::user("Hi")], &ChatOptions::default()).unwrap();
    assert_eq!(prompt.text, "<|user|>Hi<|end|>");
    let id = |token| tokenizer.token_id(token).unwrap();
    assert_eq!([prompt.tokens[0], *prompt.tokens.last().unwrap()], [id("<|user|>"), id("<|end|>")]);
    assert_eq!(tokenizer.special_content(id("<|user|>")).as_deref(), Some("<|user|>"));
    // The converter marks this token as special, and Gemma does not.
    assert_eq!(tokenizer.special_content(id("<unused0>")), None);
    // A token that only fills the vocabulary up is none.
    let ids = tokenizer.shared_tokens(&tokenizer).unwrap();
    let last = *ids.ids().last().unwrap();
    assert_eq!(tokenizer.token_id("[PAD]"), Some(last));
    assert_eq!(tokenizer.token_id(&format!("[PAD{}]", last + 1)), None);
}

#[test]
fn keys_add_tokens_around_a_text() {
    let mut keys = metadata("bytes");
    let ids = |keys: &BTreeMap<String, Value>| {
        let (_folder, path) = written(keys);
        let tokenizer = Tokenizer::open(path).unwrap();
        let around = tokenizer.encode("x").unwrap();
        let token = |id: &u32| tokenizer.special_content(*id).unwrap_or_else(|| "x".to_owned());
        around.iter().map(token).collect::<Vec<_>>()
    };
    assert_eq!(ids(&keys), ["<|begin_of_text|>", "x"]);
    keys.insert("tokenizer.ggml.add_eos_token".to_owned(), Value::Bool(true));
    assert_eq!(ids(&keys), ["<|begin_of_text|>", "x", "<|im_end|>"]);
    // Without the key, the way of cutting decides: Llama 3 begins with a token, Qwen does not.
    keys.remove("tokenizer.ggml.add_bos_token");
    assert_eq!(ids(&keys), ["<|begin_of_text|>", "x", "<|im_end|>"]);
    keys.insert("tokenizer.ggml.pre".to_owned(), Value::Text("qwen2".to_owned()));
    assert_eq!(ids(&keys), ["x", "<|im_end|>"]);
}

#[test]
fn a_file_becomes_a_folder_with_the_same_tokens() {
    let named = "{{ messages[0].content }} with tools";
    for name in VOCABULARIES {
        let mut keys = metadata(name);
        keys.insert("tokenizer.chat_template.tool_use".to_owned(), Value::Text(named.to_owned()));
        let (_file, path) = written(&keys);
        let tokenizer = Tokenizer::open(path).unwrap();
        let folder = tempfile::tempdir().unwrap();
        for (name, contents) in tokenizer.files().unwrap() {
            let file = folder.path().join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, contents).unwrap();
        }
        let read = Tokenizer::open(folder.path()).unwrap();
        let reference = tokenizers::Tokenizer::from_file(folder.path().join("tokenizer.json")).unwrap();
        for text in corpus() {
            let ids = tokenizer.encode_with(&text, plain()).unwrap();
            assert_eq!(read.encode_with(&text, plain()).unwrap(), ids, "{name}: {text:?}");
            assert_eq!(
                reference.encode_fast(text.as_str(), false).unwrap().get_ids(),
                ids,
                "{name}: {text:?}"
            );
            assert_eq!(read.decode(&ids).unwrap(), tokenizer.decode(&ids).unwrap(), "{name}: {text:?}");
        }
        assert_eq!(read.stop_tokens(), tokenizer.stop_tokens());
        for special in ["bos_token", "eos_token", "unk_token", "pad_token"] {
            assert_eq!(read.special_token(special), tokenizer.special_token(special));
        }
        let options =
            ChatOptions { template: ChatTemplate::Named("tool_use".to_owned()), ..ChatOptions::default() };
        for options in [ChatOptions::default(), options] {
            let chat = |of: &Tokenizer| of.chat(&[Message::user("Hi")], &options).unwrap().text;
            assert_eq!(chat(&read), chat(&tokenizer));
        }
        // The pairs that are made of scores are those of the model's own file.
        let json =
            |file: &Path| -> serde_json::Value { serde_json::from_slice(&fs::read(file).unwrap()).unwrap() };
        let (made, own) =
            (json(&folder.path().join("tokenizer.json")), json(&fixture(&format!("{name}.json"))));
        for key in ["model", "normalizer", "decoder", "pre_tokenizer"] {
            assert_eq!(made[key], own[key], "{name}: {key}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// A random vocabulary of SentencePiece, with equal scores, against the `tokenizers` crate with a list of pairs.
    #[test]
    fn scores_join_as_a_list_of_pairs_does(
        pieces in proptest::collection::hash_set("[ab▁]{2,5}|(ab){1,4}|a{2,9}", 1..40),
        scores in proptest::collection::vec(-3_i8..3, 60),
        space in any::<bool>(),
        texts in proptest::collection::vec("[ab ]{0,30}|a{1,60}|[abc\u{e9} ]{0,20}", 20),
    ) {
        let bytes = (0..=255_u8).map(|byte| (format!("<0x{byte:02X}>"), 6));
        let letters = ["a", "b", "▁"].map(|letter| (letter.to_owned(), 1));
        let mut pieces: Vec<String> = pieces.into_iter().collect();
        pieces.sort();
        let first = [("<unk>".to_owned(), 2)];
        let pieces = pieces.into_iter().map(|piece| (piece, 1));
        let tokens: Vec<(String, i64)> = first.into_iter().chain(bytes).chain(letters).chain(pieces).collect();
        let scores = (0..tokens.len()).map(|id| f32::from(scores[id % scores.len()])).collect();
        let keys = [
            ("model", Value::Text("llama".to_owned())),
            ("tokens", Value::Texts(tokens.iter().map(|(token, _)| token).collect())),
            ("token_type", Value::Integers(tokens.iter().map(|(_, kind)| *kind).collect())),
            ("scores", Value::Floats(scores)),
            ("add_space_prefix", Value::Bool(space)),
        ];
        let (_folder, path) = written(&keys.map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)).into());
        let tokenizer = Tokenizer::open(path).unwrap();
        let (_, json) = tokenizer.files().unwrap().swap_remove(0);
        let reference = tokenizers::Tokenizer::from_bytes(json).unwrap();
        for text in texts {
            let expected = reference.encode_fast(text.as_str(), false).unwrap();
            prop_assert_eq!(tokenizer.encode_with(&text, plain()).unwrap(), expected.get_ids(), "{}", text);
        }
    }
}
