//! Tokenizers that are made in memory: text, streams, stop strings and chat templates.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::borrow::Cow;
use std::error::Error;

use mlx_tokenizer::{
    Around, ChatOptions, EncodeOptions, Message, StopStrings, Tokenizer, TokenizerError, TokenizerParts,
    Vocabulary, Written,
};
use serde_json::json;

const TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}{{ message.role }} {{ message.content }}<turn>\
                        {% endfor %}{% if add_generation_prompt %}assistant{% endif %}";

/// Special tokens, then words with the space before them, then the bytes of a character.
const TOKENS: [&[u8]; 11] = [
    b"<s>",
    b"<end>",
    b"<turn>",
    b" user",
    b" assistant",
    b" the",
    b" fox",
    b" ran",
    b" ",
    b"\xf0\x9f",
    b"\xa6\x8a",
];

/// A word is one token, and an emoji is two.
#[derive(Debug)]
struct Words;

impl Vocabulary for Words {
    fn encode(&self, text: &str) -> Result<Vec<u32>, Box<dyn Error + Send + Sync>> {
        let mut ids = Vec::new();
        for word in text.split_whitespace() {
            match word {
                "🦊" => ids.extend([8, 9, 10]),
                word => ids.push(self.id(&format!(" {word}")).ok_or(format!("no token for {word:?}"))?),
            }
        }
        Ok(ids)
    }

    fn bytes(&self, id: u32) -> Option<Cow<'_, [u8]>> {
        TOKENS.get(id as usize).map(|bytes| Cow::Borrowed(*bytes))
    }

    fn size(&self) -> u32 {
        TOKENS.len() as u32
    }

    fn before_text(&self) -> &[u32] {
        &[0]
    }
}

fn parts() -> TokenizerParts {
    let named = [("bos_token", "<s>"), ("eos_token", "<end>")];
    TokenizerParts {
        special_tokens: named.map(|(name, token)| (name.to_owned(), token.to_owned())).into(),
        extra_special_tokens: vec!["<turn>".to_owned()],
        stop_tokens: vec!["<turn>".to_owned()],
        chat_template: Some(TEMPLATE.to_owned()),
    }
}

fn own() -> Tokenizer {
    Tokenizer::from_vocabulary(Words, &parts()).unwrap()
}

/// The same words as a tokenizer of the `tokenizers` crate, without the emoji.
fn word_level() -> Tokenizer {
    let words = ["<s>", "<end>", "<turn>", "user", "assistant", "the", "fox", "ran"];
    let vocab: serde_json::Map<String, serde_json::Value> =
        words.iter().zip(0..).map(|(word, id)| ((*word).to_owned(), json!(id))).collect();
    let json = json!({
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
        "pre_tokenizer": {"type": "WhitespaceSplit"},
    });
    // What `tokenizers::Tokenizer::to_string` writes is read again.
    let theirs = tokenizers::Tokenizer::from_bytes(json.to_string()).unwrap();
    Tokenizer::from_json(theirs.to_string(false).unwrap().as_bytes(), &parts()).unwrap()
}

#[test]
fn special_tokens_in_a_text_are_found_unless_they_count_as_text() {
    let tokenizer = own();
    assert_eq!(tokenizer.encode("the fox<turn> ran<end>").unwrap(), [0, 5, 6, 2, 7, 1]);
    assert_eq!(tokenizer.encode("<s>the").unwrap(), [0, 5]);
    let nothing = EncodeOptions { around: Around::Nothing, ..EncodeOptions::default() };
    assert_eq!(tokenizer.encode_with("the", nothing).unwrap(), [5]);
    let as_text = EncodeOptions { written: Written::Text, ..EncodeOptions::default() };
    let error = tokenizer.encode_with("the<end>", as_text).unwrap_err();
    assert_eq!(error.to_string(), "cannot encode the text: no token for \"the<end>\"");
    assert_eq!(word_level().encode("the fox <turn> ran<end>").unwrap(), [5, 6, 2, 7, 1]);
}

/// Each kind is looked for once over the whole text, also one that is not in it.
#[test]
fn a_text_of_many_special_tokens_takes_no_longer_than_its_length() {
    let count = 200_000;
    let ids = own().encode(&format!("the{}fox{}", "<end>".repeat(count), "<turn>".repeat(count))).unwrap();
    assert_eq!(ids[..3], [0, 5, 1]);
    assert_eq!(ids.len(), 3 + 2 * count);
    assert_eq!((ids[2 + count], ids[3 + count]), (6, 2));
}

/// Its names are those of chat templates, which may say that there is no such token.
#[test]
fn a_special_token_may_be_empty() {
    let special_tokens = [("eos_token".to_owned(), String::new())].into();
    let empty = TokenizerParts { special_tokens, ..TokenizerParts::default() };
    assert!(Tokenizer::from_vocabulary(Words, &empty).unwrap().stop_tokens().is_empty());
}

#[test]
fn a_text_is_streamed_in_whole_characters_and_without_special_tokens() {
    let tokenizer = own();
    let mut stream = tokenizer.stream();
    drop(tokenizer); // A stream shares its tokenizer.
    let ids = [0, 5, 8, 9, 10, 99, 7, 1, 9];
    let pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    assert_eq!(pieces, ["", " the", " ", "", "🦊", "", " ran", "", ""]);
    assert_eq!(stream.finish().unwrap(), "\u{fffd}");
    assert_eq!(own().decode(&ids[..8]).unwrap(), " the 🦊 ran");
    assert_eq!(word_level().decode(&[0, 5, 6, 7, 1]).unwrap(), "the fox ran");
}

#[test]
fn stop_strings_may_lie_across_tokens_and_spell_special_tokens() {
    let before = |tokenizer: &Tokenizer, string: &str, ids: &[u32]| {
        let (mut stop, mut stream) = (StopStrings::new([string]).unwrap(), tokenizer.stream());
        let text: String = ids.iter().map(|&id| stop.push_token(&mut stream, id).unwrap()).collect();
        (text, stop.found().map(str::to_owned))
    };
    let found = |text: &str, string: &str| (text.to_owned(), Some(string.to_owned()));
    for tokenizer in [own(), word_level()] {
        let start = if tokenizer.decode(&[5]).unwrap() == "the" { "the" } else { " the" };
        assert_eq!(before(&tokenizer, "x ran", &[5, 6, 7, 5]), found(&format!("{start} fo"), "x ran"));
        assert_eq!(before(&tokenizer, "<turn>", &[5, 2, 7]), found(start, "<turn>"));
        assert_eq!(before(&tokenizer, "x<turn>", &[5, 6, 2]), found(&format!("{start} fo"), "x<turn>"));
    }
}

#[test]
fn chat_templates_and_stop_tokens_are_those_of_the_parts() {
    let messages = [Message::user("the fox"), Message::assistant("ran"), Message::user("the")];
    for tokenizer in [own(), word_level()] {
        let prompt = tokenizer.chat(&messages, &ChatOptions::default()).unwrap();
        assert_eq!(prompt.text, "<s>user the fox<turn>assistant ran<turn>user the<turn>assistant");
        assert_eq!(prompt.tokens, [0, 3, 5, 6, 2, 4, 7, 2, 3, 5, 2, 4]);
        assert_eq!(tokenizer.stop_tokens(), [1, 2]);
        assert_eq!(tokenizer.special_token("bos_token"), Some("<s>"));
        assert_eq!(tokenizer.special_content(2).as_deref(), Some("<turn>"));
    }
    // A clone has its own stop tokens.
    let (original, mut clone) = (own(), own());
    clone.add_stop_token("7").unwrap();
    assert_eq!((original.stop_tokens(), clone.stop_tokens()), (&[1, 2][..], &[1, 2, 7][..]));
}

#[test]
fn ids_of_own_tokenizers_are_compared_with_others() {
    let mismatch = own().shared_tokens(&word_level()).unwrap_err();
    assert_eq!((mismatch.id, &*mismatch.ours, &*mismatch.theirs), (3, " user", "user"));
    let shared = own().shared_tokens(&own()).unwrap();
    assert_eq!((shared.all_below(), shared.ours_only()), (Some(11), &[][..]));
}

#[test]
fn parts_that_do_not_fit_are_errors() {
    let without = TokenizerParts { extra_special_tokens: vec!["<sep>".to_owned()], ..parts() };
    let json = json!({"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}).to_string();
    let no_parts = TokenizerParts::default();
    let special = TokenizerParts { extra_special_tokens: vec!["b".to_owned()], ..no_parts.clone() };
    let errors = [
        (Tokenizer::from_vocabulary(Words, &without), "no special token \"<sep>\""),
        (Tokenizer::from_json(json.as_bytes(), &special), "no special token \"b\""),
        (Tokenizer::from_json(b"{}", &no_parts), "model: it is missing"),
    ];
    for (result, problem) in errors {
        let error = result.unwrap_err();
        assert!(matches!(error, TokenizerError::Parts { .. }), "{error:?}");
        assert!(error.to_string().starts_with("no tokenizer can be made of these parts: "), "{error}");
        assert!(error.to_string().contains(problem), "{error}");
    }
    let unknown = TokenizerParts { stop_tokens: vec!["99".to_owned()], ..parts() };
    let error = Tokenizer::from_vocabulary(Words, &unknown).unwrap_err();
    assert!(matches!(error, TokenizerError::UnknownToken { .. }), "{error:?}");
    assert!(Tokenizer::from_json(json.as_bytes(), &no_parts).unwrap().stop_tokens().is_empty());
}
