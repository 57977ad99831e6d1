//! `tokenizer.json` files that make the tokenizers crate panic, hang or fill the memory: the error names the
//! part.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;

use mlx_tokenizer::{Tokenizer, TokenizerError};
use serde_json::{Value, json};
use tempfile::TempDir;

fn folder(json: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tokenizer.json"), json).unwrap();
    folder
}

/// A small tokenizer with this part.
fn with(part: &str, value: Value) -> String {
    let mut tokenizer = json!({
        "version": "1.0",
        "added_tokens": [{
            "id": 4, "content": "<end>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true,
        }],
        "model": { "type": "BPE", "vocab": { "a": 0, "b": 1, "ab": 2, "x": 3 }, "merges": [["a", "b"]] },
    });
    tokenizer[part] = value;
    tokenizer.to_string()
}

/// The error when the file is read, or otherwise the result of a round trip.
fn problem(json: &str) -> Option<String> {
    let tokenizer = match Tokenizer::from_folder(folder(json).path()) {
        Ok(tokenizer) => tokenizer,
        Err(TokenizerError::Invalid { problem, .. }) => return Some(problem),
        Err(e) => panic!("{e}"),
    };
    let text = "ab a\u{fdfa}b  <end> a\n\u{1F98A}e\u{301}ba ".repeat(3);
    match tokenizer.encode(&text).and_then(|_| tokenizer.decode(&[0, 1, 2, 3, 4, 2, 2, 0, 99])) {
        Ok(_) => None,
        Err(TokenizerError::Encode { problem } | TokenizerError::Decode { problem }) => Some(problem),
        Err(e) => panic!("{e}"),
    }
}

fn replace(pattern: &str, content: &str) -> Value {
    json!({ "type": "Replace", "pattern": { "String": pattern }, "content": content })
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table of cases")]
fn a_part_that_is_wrong_is_named() {
    let template = |single: Value| {
        json!({
            "type": "TemplateProcessing", "single": single, "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }],
            "special_tokens": { "<end>": { "id": "<end>", "ids": [4], "tokens": ["<end>"] } },
        })
    };
    let with_ids = |kind: &str, count: usize| {
        json!({
            "type": kind, "single": [{ "SpecialToken": { "id": "<end>", "type_id": 0 } }], "pair": [],
            "special_tokens": { "<end>": { "id": "<end>", "ids": vec![4; count], "tokens": vec!["<end>"; count] } },
        })
    };
    let byte_level = || json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
    let sequence = |id: &str| json!([{ "Sequence": { "id": id, "type_id": 0 } }]);
    let token = |id: &str| json!([{ "SpecialToken": { "id": id, "type_id": 0 } }]);
    let precompiled = |map: &str| json!({ "type": "Precompiled", "precompiled_charsmap": map });
    let many = |component: Value| vec![component; 300];
    for (part, value, said) in [
        ("normalizer", precompiled("AAAA"), "normalizer: precompiled_charsmap: it is too short"),
        ("normalizer", precompiled("AAA"), "normalizer: precompiled_charsmap is not base64"),
        ("normalizer", precompiled("AAAAAA=="), "normalizer: precompiled_charsmap: its array is empty"),
        ("normalizer", precompiled("BAAAAAAAAAA="), "its array points outside of itself"),
        ("normalizer", precompiled("////fw=="), "its array is cut off"),
        ("normalizer", precompiled(""), "too short"),
        ("normalizer", json!({ "type": "Precompiled", "precompiled_charsmap": null }), "must be a text"),
        ("normalizer", replace("", "x"), "normalizer: the pattern is empty"),
        ("normalizer", replace(&"x".repeat(70_000), "x"), "normalizer: the pattern has 70000 bytes"),
        (
            "normalizer",
            json!({ "type": "Sequence", "normalizers": [{ "type": "NFC" }, replace("", "x")] }),
            "normalizer.normalizers[1]: the pattern is empty",
        ),
        ("normalizer", replace("a", &"b".repeat(1000)), "content has 1000 bytes"),
        ("normalizer", json!({ "type": "Prepend", "prepend": "b".repeat(1000) }), "prepend has 1000 bytes"),
        (
            "normalizer",
            json!({ "type": "Sequence", "normalizers": many(json!({ "type": "NFC" })) }),
            "more than 256",
        ),
        (
            "normalizer",
            json!({ "type": "Sequence", "normalizers": 5 }),
            "normalizer.normalizers: it must be a list",
        ),
        ("normalizer", json!([1]), "normalizer: it must be an object"),
        ("normalizer", json!({ "type": 5 }), "normalizer: its type is 5"),
        ("normalizer", json!({ "type": "Nothing" }), "did not match"),
        (
            "normalizer",
            json!({ "type": "Replace", "pattern": { "Regex": "(" }, "content": "" }),
            "normalizer: the pattern \"(\" is not a regular expression",
        ),
        ("pre_tokenizer", json!({ "type": "FixedLength", "length": 0 }), "pre_tokenizer: length is 0"),
        (
            "pre_tokenizer",
            json!({ "type": "Split", "pattern": { "String": "" }, "behavior": "Isolated", "invert": false }),
            "pre_tokenizer: the pattern is empty",
        ),
        ("post_processor", template(sequence("B")), "post_processor: single[0] is the sequence \"B\""),
        ("post_processor", template(token("<no>")), "post_processor: single[0] is the token \"<no>\""),
        ("post_processor", template(json!(vec![sequence("A")[0].clone(); 50])), "contains the text 50 times"),
        ("post_processor", template(json!(vec![token("<end>")[0].clone(); 500])), "has 500 pieces"),
        ("post_processor", template(json!([5])), "single[0] must be"),
        ("decoder", replace("", "x"), "decoder: the pattern is empty"),
        (
            "decoder",
            json!({ "type": "Sequence", "decoders": [{ "type": "Fuse" }, replace("", "x")] }),
            "decoder.decoders[1]: the pattern is empty",
        ),
        (
            "post_processor",
            json!({ "type": "Sequence", "processors": [template(sequence("A")), template(sequence("A"))] }),
            "post_processor: there are 2 TemplateProcessing",
        ),
        (
            "post_processor",
            json!({ "type": "Sequence", "processors": [
                { "type": "Sequence", "processors": [template(sequence("A"))] },
                { "type": "Sequence", "processors": [{ "type": "Sequence", "processors": [template(sequence("A"))] }] },
            ] }),
            "post_processor: there are 2 TemplateProcessing",
        ),
        ("post_processor", with_ids("TemplateProcessing", 300), "single[0]: \"<end>\" stands for 300 ids"),
        // The crate does not look at the type.
        ("post_processor", with_ids("ByteLevel", 300), "single[0]: \"<end>\" stands for 300 ids"),
        (
            "pre_tokenizer",
            json!({ "type": "Sequence", "pretokenizers": vec![byte_level(); 3] }),
            "occur 3 times",
        ),
        (
            "pre_tokenizer",
            json!({ "type": "Sequence", "pretokenizers": [
                { "type": "Sequence", "pretokenizers": vec![byte_level(); 2] },
                { "type": "Sequence", "pretokenizers": [{ "type": "Sequence", "pretokenizers": [byte_level()] }] },
            ] }),
            "ByteLevel and Metaspace occur 3 times",
        ),
        (
            "pre_tokenizer",
            json!({ "type": "Sequence", "pretokenizers": many(json!({ "type": "Metaspace", "replacement": "\u{2581}" }))[..40] }),
            "pre_tokenizer: it has 40 parts",
        ),
        ("normalizer", json!({ "type": "Prepend", "prepend": "" }), "normalizer: prepend is empty"),
        (
            "model",
            json!({
                "type": "BPE", "vocab": { "a": 0, "b": 1, "ab": 2 }, "merges": [["a", "b"]],
                "continuing_subword_prefix": "xx",
            }),
            "model.merges[0]: its second part must begin",
        ),
        ("decoder", json!(5), "decoder: it must be an object"),
        ("model", Value::Null, "model: it is missing"),
        ("model", json!({ "type": "BPE", "vocab": { "a": 0 }, "merges": [["a", "q"]] }), "out of vocabulary"),
    ] {
        let json = with(part, value);
        let found = problem(&json).unwrap_or_else(|| panic!("{json} is accepted"));
        assert!(found.contains(said), "{json}: {found}");
    }
}

#[test]
fn a_file_that_is_cut_anywhere_is_an_error() {
    let json = with(
        "decoder",
        json!({ "type": "Sequence", "decoders": [replace("a", "b"), { "type": "ByteFallback" }, { "type": "Fuse" }] }),
    );
    for end in 0..json.len() {
        let error = Tokenizer::from_folder(folder(&json[..end]).path()).unwrap_err().to_string();
        assert!(error.contains("tokenizer.json") && !error.contains("panics"), "{end}: {error}");
    }
}

#[test]
fn replacements_that_follow_each_other_are_stopped() {
    let ten = "aaaaaaaaaa";
    let chain = vec![replace("a", ten); 12];
    let json = with("normalizer", json!({ "type": "Sequence", "normalizers": chain }));
    let found = problem(&json).unwrap();
    assert!(found.contains("the normalizer would make more than 16 MiB"), "{found}");
    let chain = vec![replace("a", ten); 12];
    let json = with("decoder", json!({ "type": "Sequence", "decoders": chain }));
    let found = problem(&json).unwrap();
    assert!(found.contains("bytes from one token"), "{found}");
    let mut chain = vec![json!({ "type": "Fuse" })];
    chain.extend(vec![replace("a", ten); 12]);
    let json = with("decoder", json!({ "type": "Sequence", "decoders": chain }));
    let found = problem(&json).unwrap();
    assert!(found.contains("the decoder would make more than 268435456 bytes"), "{found}");
    // A token that is held back until the end.
    let mut chain = vec![json!({ "type": "BPEDecoder", "suffix": "</w>" })];
    chain.extend(vec![replace("a", ten); 8]);
    let json = with("decoder", json!({ "type": "Sequence", "decoders": chain }));
    let tokenizer = Tokenizer::from_folder(folder(&json).path()).unwrap();
    let found = tokenizer.decode(&[0]).unwrap_err().to_string();
    assert!(found.contains("bytes from one token"), "{found}");
    let spaces = json!({ "type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "", "cleanup": true });
    let mut chain = vec![json!({ "type": "Fuse" })];
    chain.extend(vec![spaces; 40]);
    let json = with("decoder", json!({ "type": "Sequence", "decoders": chain }));
    let found = problem(&json).unwrap();
    assert!(found.contains("the decoder would make more than 268435456 bytes"), "{found}");
    // A single long text, with a real normalizer.
    let json = with(
        "normalizer",
        json!({ "type": "Sequence", "normalizers": [{ "type": "NFKD" }, replace(" ", "▁")] }),
    );
    let tokenizer = Tokenizer::from_folder(folder(&json).path()).unwrap();
    tokenizer.encode(&"a b ".repeat(600_000)).unwrap();
    // Patterns that find nothing are allowed.
    let chain = vec![replace("q", ten); 12];
    let json = with("normalizer", json!({ "type": "Sequence", "normalizers": chain }));
    assert_eq!(problem(&json), None);
}

/// The length of a very long token's text is known before the text is made.
#[test]
fn long_tokens_are_not_made_longer() {
    let long = "a".repeat(4 << 20);
    let json = |content: &str| {
        let mut json: Value = serde_json::from_str(&with("decoder", replace("a", content))).unwrap();
        json["model"] = json!({ "type": "BPE", "vocab": { &*long: 0 }, "merges": [] });
        json.to_string()
    };
    let decode = |json: &str| Tokenizer::from_folder(folder(json).path()).unwrap().decode(&[0]);
    let found = decode(&json(&"b".repeat(256))).unwrap_err().to_string();
    assert!(found.contains("would make 1073741824 bytes from one token"), "{found}");
    assert_eq!(decode(&json("b")).unwrap(), "b".repeat(4 << 20));
}

#[test]
fn a_decoder_that_strips_a_whole_text_is_accepted() {
    let strip = json!({ "type": "Strip", "content": "a", "start": 5, "stop": 5 });
    let json = with("decoder", json!({ "type": "Sequence", "decoders": [{ "type": "Fuse" }, strip] }));
    assert_eq!(problem(&json), None);
}

/// A pattern that backtracks over a long text ends: after its limit, the rest counts as not found.
#[test]
fn patterns_with_much_backtracking_end() {
    let pattern = json!({ "Regex": "(a|a|ab)*(?=c)$" });
    let split = json!({ "type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": false });
    let tokenizer = Tokenizer::from_folder(folder(&with("pre_tokenizer", split)).path()).unwrap();
    assert!(!tokenizer.encode(&"a".repeat(2000)).unwrap().is_empty());
}

#[test]
fn only_regular_files_are_read() {
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"] {
        let folder = folder(&with("decoder", Value::Null));
        let path = folder.path().join(name);
        let _ = fs::remove_file(&path);
        std::os::unix::fs::symlink("nowhere", &path).unwrap();
        let error = Tokenizer::from_folder(folder.path()).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("link to nowhere"), "{error}");
        fs::remove_file(&path).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        let error = Tokenizer::from_folder(folder.path()).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("a named pipe"), "{error}");
    }
}

#[test]
fn tokenizers_of_other_libraries_are_named() {
    for (files, said) in [
        (&["tokenizer.model"][..], "can make it from tokenizer.model"),
        (&["vocab.json", "merges.txt"][..], "can make it from vocab.json and merges.txt"),
        (&["qwen.tiktoken"][..], "can make it from qwen.tiktoken"),
        (&["vocab.txt"][..], "can make it from vocab.txt"),
        (&["vocab.json"][..], "needs it to encode text"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            fs::write(folder.path().join(file), "x").unwrap();
        }
        let error = Tokenizer::from_folder(folder.path()).unwrap_err();
        assert!(matches!(error, TokenizerError::NoTokenizer { .. }));
        let error = error.to_string();
        assert!(error.contains(said), "{error}");
        assert_eq!(error.contains("save_pretrained"), files != ["vocab.json"], "{error}");
    }
}

#[test]
fn a_folder_of_templates_that_is_a_link_to_nowhere_is_an_error() {
    let folder = folder(&with("decoder", Value::Null));
    std::os::unix::fs::symlink("nowhere", folder.path().join("additional_chat_templates")).unwrap();
    let error = Tokenizer::from_folder(folder.path()).unwrap_err().to_string();
    assert!(error.contains("additional_chat_templates"), "{error}");
}
