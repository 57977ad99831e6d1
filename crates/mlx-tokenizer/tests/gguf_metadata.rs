//! Tokenizers that are written to GGUF files and read from them again.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::path::Path;

use mlx_gguf::{Gguf, Value, Writer};
use mlx_tokenizer::Tokenizer;
use serde_json::{Value as Json, json};
use tempfile::TempDir;

fn folder(files: &[(&str, &Json)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, contents) in files {
        fs::write(folder.path().join(name), contents.to_string()).unwrap();
    }
    folder
}

fn metadata(folder: &Path, rows: usize) -> Result<Vec<(String, Value)>, String> {
    let tokenizer = Tokenizer::from_folder(folder).unwrap();
    let entries = tokenizer.gguf_metadata(folder, rows).map_err(|e| e.to_string());
    entries.map_err(|e| e.replace(&format!("{}: ", folder.join("tokenizer.json").display()), ""))
}

fn get<'a>(entries: &'a [(String, Value)], key: &str) -> Option<&'a Value> {
    entries.iter().find(|(name, _)| name == &format!("tokenizer.{key}")).map(|(_, value)| value)
}

/// The tokenizer of a file with these entries.
fn read_again(entries: &[(String, Value)]) -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.gguf");
    Writer::create(&path, entries, Vec::new()).unwrap().finish().unwrap();
    Tokenizer::from_gguf(&Gguf::open(&path).unwrap(), &path).unwrap()
}

const TEXTS: [&str; 9] = [
    "hello  world",
    " I'm <bos> here<end_of_turn>\n",
    "日本 naïve 🦙",
    "1234 5.5",
    "a\n\n\nb\t",
    "",
    " ",
    "he's\u{a0}the",
    "x   y ",
];

/// The files of a small tokenizer of another test.
fn files(name: &str) -> Vec<(String, Json)> {
    let fixture: Json = serde_json::from_str(include_str!("fixtures/tokenizers.json")).unwrap();
    let files = fixture["tokenizers"][name]["files"].as_object().unwrap();
    files.iter().map(|(file, contents)| (file.clone(), contents.clone())).collect()
}

fn folder_of(files: &[(String, Json)]) -> TempDir {
    folder(&files.iter().map(|(name, contents)| (&**name, contents)).collect::<Vec<_>>())
}

/// Writes a tokenizer, reads it again, and compares the two.
fn assert_reads_again(name: &str, folder: &Path, rows: usize) -> Vec<(String, Value)> {
    let tokenizer = Tokenizer::from_folder(folder).unwrap();
    let entries = metadata(folder, rows).unwrap_or_else(|e| panic!("{name}: {e}"));
    let again = read_again(&entries);
    for text in TEXTS {
        assert_eq!(again.encode(text).unwrap(), tokenizer.encode(text).unwrap(), "{name}: {text:?}");
    }
    for special in ["bos_token", "eos_token", "pad_token"] {
        assert_eq!(again.special_token(special), tokenizer.special_token(special), "{name}: {special}");
    }
    assert!(tokenizer.stop_tokens().iter().all(|id| again.stop_tokens().contains(id)), "{name}");
    entries
}

#[test]
fn tokenizers_on_bytes_are_read_again() {
    for name in ["byte_level", "byte_level_begins", "byte_level_add_bos", "byte_level_named"] {
        let folder = folder_of(&files(name));
        let entries = assert_reads_again(name, folder.path(), 300);
        assert_eq!(get(&entries, "ggml.model"), Some(&Value::Text("gpt2".to_owned())));
        assert_eq!(get(&entries, "ggml.pre"), Some(&Value::Text("gpt-2".to_owned())));
        assert_eq!(get(&entries, "ggml.add_bos_token"), Some(&Value::Bool(name == "byte_level_begins")));
        let Some(Value::Texts(merges)) = get(&entries, "ggml.merges") else { panic!("{entries:?}") };
        assert_eq!((merges.len(), merges.get(1)), (12, Some("Ġt h")));
        let Some(Value::Texts(tokens)) = get(&entries, "ggml.tokens") else { panic!("{entries:?}") };
        assert_eq!((tokens.len(), tokens.get(268), tokens.get(299)), (300, Some("<bos>"), Some("[PAD299]")));
        let Some(Value::Integers(kinds)) = get(&entries, "ggml.token_type") else { panic!("{entries:?}") };
        assert_eq!((kinds[0], kinds[268], kinds[299]), (1, 3, 5));
    }
}

/// The merges of SentencePiece: every pair of tokens that is a token, sorted by the token that it makes.
fn all_merges(tokenizer: &mut Json) {
    let vocabulary = tokenizer["model"]["vocab"].as_object().unwrap().clone();
    let mut merges = Vec::new();
    for (token, id) in vocabulary.iter().filter(|(token, _)| !token.starts_with('<')) {
        for (place, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(place);
            if vocabulary.contains_key(left) && vocabulary.contains_key(right) {
                merges.push((id.as_u64().unwrap(), left, right));
            }
        }
    }
    merges.sort_unstable();
    tokenizer["model"]["merges"] = merges.iter().map(|(_, left, right)| json!([left, right])).collect();
}

#[test]
fn tokenizers_of_sentence_piece_have_scores_in_place_of_merges() {
    for (name, has_prefix) in [("sentence_piece", false), ("sentence_piece_strip", true)] {
        let mut files = files(name);
        let tokenizer = &mut files.iter_mut().find(|(file, _)| file == "tokenizer.json").unwrap().1;
        all_merges(tokenizer);
        // Files do not say that a token takes the white space around it.
        for added in tokenizer["added_tokens"].as_array_mut().unwrap() {
            (added["lstrip"], added["rstrip"]) = (json!(false), json!(false));
        }
        let vocabulary = tokenizer["model"]["vocab"].clone();
        let folder = folder_of(&files);
        let entries = assert_reads_again(name, folder.path(), 310);
        assert_eq!(get(&entries, "ggml.model"), Some(&Value::Text("llama".to_owned())));
        assert_eq!(get(&entries, "ggml.add_space_prefix"), Some(&Value::Bool(has_prefix)));
        assert_eq!(get(&entries, "ggml.merges"), None);
        let Some(Value::Floats(scores)) = get(&entries, "ggml.scores") else { panic!("{entries:?}") };
        let Some(Value::Integers(kinds)) = get(&entries, "ggml.token_type") else { panic!("{entries:?}") };
        let id = |token: &str| vocabulary[token].as_u64().unwrap() as usize;
        let first = kinds.iter().position(|&kind| kind == 1).unwrap();
        assert_eq!((scores[first], kinds[id("<0x0A>")], scores[id("<0x0A>")]), (0.0, 6, 0.0));
        assert_eq!(scores[id("▁the")], first as f32 - id("▁the") as f32);
        assert_eq!((kinds[2], scores[2]), (3, -1000.0));
    }
}

#[test]
fn merges_that_are_late_get_the_lowest_scores() {
    let mut files = files("sentence_piece");
    let tokenizer = &mut files.iter_mut().find(|(file, _)| file == "tokenizer.json").unwrap().1;
    all_merges(tokenizer);
    let vocabulary = tokenizer["model"]["vocab"].clone();
    let merges = tokenizer["model"]["merges"].as_array_mut().unwrap();
    let is_first = |merge: &Json| *merge == json!(["▁", "t"]);
    let late = merges.iter().position(is_first).map(|at| merges.remove(at)).unwrap();
    merges.push(late);
    let folder = folder_of(&files);
    let entries = assert_reads_again("late", folder.path(), 310);
    let Some(Value::Floats(scores)) = get(&entries, "ggml.scores") else { panic!("{entries:?}") };
    assert_eq!(scores[vocabulary["▁t"].as_u64().unwrap() as usize], -310.0);
}

#[test]
fn what_llama_cpp_cannot_do_is_said() {
    let error = |name: &str, rows: usize, change: fn(&mut Json)| {
        let mut files = files(name);
        change(&mut files.iter_mut().find(|(file, _)| file == "tokenizer.json").unwrap().1);
        metadata(folder_of(&files).path(), rows).unwrap_err()
    };
    assert_eq!(
        error("sentence_piece", 310, |_| ()),
        "llama.cpp would join \"▁t\" and \"he\", which are none of its merges"
    );
    assert_eq!(error("metaspace", 20, |_| ()), "llama.cpp has no tokenizer like the model \"Unigram\"");
    let unknown = |tokenizer: &mut Json| {
        tokenizer["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "x+"}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        ]});
    };
    let found = error("byte_level", 300, unknown);
    assert!(
        found.starts_with(
            "a GGUF file names how a text is cut into words, and of the known names (llama-bpe, "
        ),
        "{found}"
    );
    assert!(found.contains("\"x+\""), "{found}");
    let lower = |tokenizer: &mut Json| tokenizer["normalizer"] = json!({"type": "Lowercase"});
    assert_eq!(error("byte_level", 300, lower), "llama.cpp cannot change a text by {\"type\":\"Lowercase\"}");
    assert_eq!(
        error("byte_level", 256, |_| ()),
        "the token \"Ġt\" has the id 256, and the embedding 256 rows"
    );
    let split = |tokenizer: &mut Json| {
        all_merges(tokenizer);
        let merges = tokenizer["model"]["merges"].as_array_mut().unwrap();
        let at = merges.iter().position(|merge| merge[0] == "▁t" && merge[1] == "he").unwrap();
        let merge = merges.remove(at);
        merges.push(merge);
    };
    assert_eq!(
        error("sentence_piece", 310, split),
        "its merges make \"▁the\" at several places, and llama.cpp cannot do this"
    );
}
