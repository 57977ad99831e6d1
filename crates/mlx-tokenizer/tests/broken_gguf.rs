//! GGUF files whose vocabulary contradicts itself, is not known, or is made to take long: the error names the key.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use mlx_gguf::{Value, Writer};
use mlx_tokenizer::{Tokenizer, TokenizerError};

type Keys = Vec<(String, Value)>;

fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

fn texts(texts: &[&str]) -> Value {
    Value::Texts(texts.iter().collect())
}

/// A vocabulary of bytes.
fn byte_pairs() -> Keys {
    keys(&[
        ("ggml.model", text("gpt2")),
        ("ggml.pre", text("gpt-2")),
        ("ggml.tokens", texts(&["a", "b", "ab", "<end>"])),
        ("ggml.token_type", Value::Integers(vec![1, 1, 1, 3])),
        ("ggml.merges", texts(&["a b"])),
        ("ggml.eos_token_id", Value::Integer(3)),
    ])
}

/// A vocabulary of SentencePiece.
fn sentence_piece() -> Keys {
    keys(&[
        ("ggml.model", text("llama")),
        ("ggml.tokens", texts(&["<unk>", "<s>", "</s>", "▁", "a", "▁a"])),
        ("ggml.token_type", Value::Integers(vec![2, 3, 3, 1, 1, 1])),
        ("ggml.scores", Value::Floats(vec![0.0, 0.0, 0.0, -2.0, -1.0, -3.0])),
    ])
}

fn keys(keys: &[(&str, Value)]) -> Keys {
    keys.iter().map(|(key, value)| (format!("tokenizer.{key}"), value.clone())).collect()
}

/// The tokenizer of a file, or what is wrong with the file.
fn open(keys: &Keys) -> Result<Tokenizer, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vocabulary.gguf");
    Writer::create(&path, keys, Vec::new()).unwrap().finish().unwrap();
    match Tokenizer::open(&path) {
        Ok(tokenizer) => Ok(tokenizer),
        Err(TokenizerError::Invalid { file, problem }) => {
            assert_eq!(file, path);
            Err(problem)
        }
        Err(e) => panic!("{e}"),
    }
}

fn with(mut keys: Keys, key: &str, value: Option<Value>) -> Keys {
    let key = format!("tokenizer.{key}");
    keys.retain(|(other, _)| *other != key);
    keys.extend(value.map(|value| (key, value)));
    keys
}

#[test]
fn the_vocabularies_are_right_before_they_are_broken() {
    assert_eq!(open(&byte_pairs()).unwrap().encode("ab<end>").unwrap(), [2, 3]);
    assert_eq!(open(&sentence_piece()).unwrap().encode("a a").unwrap(), [1, 5, 5]);
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table of cases")]
fn a_key_that_is_wrong_is_named() {
    let cases: Vec<(Keys, &str, Option<Value>, &str)> = vec![
        (byte_pairs(), "ggml.model", None, "tokenizer.ggml.model is missing"),
        (
            byte_pairs(),
            "ggml.model",
            Some(text("bert")),
            r#"model is "bert", which is not supported; known are llama, gpt2"#,
        ),
        (
            byte_pairs(),
            "ggml.model",
            Some(Value::Integer(1)),
            "metadata tokenizer.ggml.model is 1, and must be a text",
        ),
        (
            byte_pairs(),
            "ggml.pre",
            Some(text("viking")),
            r#"tokenizer.ggml.pre is "viking", which is not supported; known are llama-bpe, "#,
        ),
        (byte_pairs(), "ggml.tokens", None, "tokenizer.ggml.tokens is missing"),
        (byte_pairs(), "ggml.tokens", Some(texts(&[])), "tokenizer.ggml.tokens is empty"),
        (
            byte_pairs(),
            "ggml.tokens",
            Some(text("a")),
            "tokenizer.ggml.tokens is \"a\", and must be a list of texts",
        ),
        (
            byte_pairs(),
            "ggml.tokens",
            Some(texts(&["a", "b", "ab", "a"])),
            r#"tokenizer.ggml.tokens: "a" occurs twice, at 0 and at 3"#,
        ),
        (
            byte_pairs(),
            "ggml.tokens",
            Some(texts(&["a", "b", "ab", &"x".repeat(70_000)])),
            "tokenizer.ggml.tokens[3] has 70000 bytes",
        ),
        (
            byte_pairs(),
            "ggml.tokens",
            Some(texts(&["a", "b", "ab", ""])),
            "tokenizer.ggml.eos_token_id is 3, a token without a text",
        ),
        (
            byte_pairs(),
            "ggml.token_type",
            Some(Value::Integers(vec![1])),
            "tokenizer.ggml.token_type has 1 elements, and there are 4 tokens",
        ),
        (byte_pairs(), "ggml.merges", None, "tokenizer.ggml.merges is missing"),
        (
            byte_pairs(),
            "ggml.merges",
            Some(texts(&["a b", "ab"])),
            r#"merges[1] is "ab": it must be two tokens with a space between"#,
        ),
        (byte_pairs(), "ggml.merges", Some(texts(&["a c"])), r#"merges[0] is "a c": "c" is no token"#),
        (
            byte_pairs(),
            "ggml.merges",
            Some(texts(&["b a"])),
            r#"merges[0] is "b a": its parts together are no token"#,
        ),
        (byte_pairs(), "ggml.merges", Some(texts(&[" "])), r#"merges[0] is " ": it must be two tokens"#),
        (byte_pairs(), "ggml.merges", Some(texts(&["", "é"])), r#"merges[0] is "": it must be two tokens"#),
        (
            byte_pairs(),
            "ggml.eos_token_id",
            Some(Value::Integer(4)),
            "tokenizer.ggml.eos_token_id is 4, and there are only 4 tokens",
        ),
        (byte_pairs(), "ggml.eot_token_id", Some(Value::Integer(-1)), "tokenizer.ggml.eot_token_id is -1"),
        (
            byte_pairs(),
            "ggml.add_bos_token",
            Some(Value::Integer(1)),
            "tokenizer.ggml.add_bos_token is 1, and must be true or false",
        ),
        (byte_pairs(), "chat_template", Some(Value::Integer(1)), "metadata tokenizer.chat_template is 1"),
        (sentence_piece(), "ggml.scores", None, "tokenizer.ggml.scores is missing"),
        (
            sentence_piece(),
            "ggml.scores",
            Some(Value::Floats(vec![0.0; 5])),
            "tokenizer.ggml.scores has 5 elements, and there are 6 tokens",
        ),
        (
            sentence_piece(),
            "ggml.scores",
            Some(Value::Floats(vec![f32::NAN; 6])),
            "tokenizer.ggml.scores[0] is not a number",
        ),
        (
            sentence_piece(),
            "ggml.unknown_token_id",
            Some(Value::Integer(99)),
            "tokenizer.ggml.unknown_token_id is 99",
        ),
    ];
    for (keys, key, value, expected) in cases {
        let problem = open(&with(keys, key, value)).unwrap_err();
        assert!(problem.contains(expected), "{key}: {problem}");
    }
}

#[test]
fn a_file_that_is_no_gguf_file_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, "{}").unwrap();
    let error = Tokenizer::open(&path).unwrap_err();
    assert!(error.to_string().contains("not a GGUF file"), "{error}");
    assert!(matches!(error, TokenizerError::Gguf(_)));
}

#[test]
fn a_template_whose_name_leads_out_of_the_folder_is_not_written() {
    let keys = with(byte_pairs(), "chat_template.../../x", Some(text("hi")));
    let error = open(&keys).unwrap().files().unwrap_err();
    assert!(error.to_string().contains("a name that cannot be a file name"), "{error}");
}

#[test]
fn long_texts_of_one_letter_take_no_longer_than_others() {
    // Each pair of neighbours can be joined, to ever longer tokens.
    let runs: Vec<String> = (1..=400).map(|count| "a".repeat(count)).collect();
    let count = runs.len();
    let tokens: Vec<&str> = runs.iter().map(String::as_str).chain(["▁"]).collect();
    let scores = (0..=count).map(|score| score as f32).collect();
    let keys = with(sentence_piece(), "ggml.tokens", Some(texts(&tokens)));
    let keys = with(keys, "ggml.scores", Some(Value::Floats(scores)));
    let keys = with(with(keys, "ggml.token_type", None), "ggml.add_space_prefix", Some(Value::Bool(false)));
    let ids = open(&keys).unwrap().encode(&"a".repeat(400_000)).unwrap();
    assert_eq!(ids.iter().map(|id| id + 1).sum::<u32>(), 400_000);
}
