//! The text of a stream of tokens, with the demo's tokenizer and given tokens.
#![cfg(all(feature = "generate", feature = "tokenizer"))]
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use mlx_models::generate::{FinishReason, GenerateError, Token, Tokens};
use mlx_models::text::{TextFinish, with_text};
use mlx_models::tokenizer::{Tokenizer, TokenizerError};

/// A stream of given tokens, and why it ends.
struct Known {
    ids: std::vec::IntoIter<u32>,
    finish: FinishReason,
}

impl Iterator for Known {
    type Item = Result<Token, GenerateError>;

    fn next(&mut self) -> Option<Self::Item> {
        let id = self.ids.next()?;
        Some(Ok(Token { id, logprob: -1.0, alternatives: Vec::new(), drafted: false }))
    }
}

impl Tokens for Known {
    fn finish_reason(&self) -> Option<FinishReason> {
        (self.ids.len() == 0).then_some(self.finish)
    }
}

fn tokenizer() -> Tokenizer {
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../mlx-models-cli/demo/lille-130m");
    Tokenizer::from_folder(demo).unwrap()
}

/// The whole text, the number of pieces with a token, and why the text ended.
fn written(ids: &[u32], finish: FinishReason, stop: &[&str]) -> (String, usize, Option<TextFinish>) {
    let tokenizer = tokenizer();
    let tokens = Known { ids: Vec::from(ids).into_iter(), finish };
    let mut text = with_text(tokens, &tokenizer).stop_at(stop.iter().copied()).unwrap();
    let pieces: Vec<_> = text.by_ref().map(Result::unwrap).collect();
    let with_token = pieces.iter().filter(|piece| piece.token.is_some()).count();
    (pieces.iter().map(|piece| &*piece.text).collect(), with_token, text.finish_reason().cloned())
}

#[test]
fn pieces_together_are_the_text() {
    let ids = tokenizer().encode("A fox — 🦊 — ran away. The end").unwrap();
    let all = |finish| Some(TextFinish::Tokens(finish));
    let max = FinishReason::MaxTokens;
    let (text, tokens, finish) = written(&ids, max, &[]);
    assert_eq!((&*text, tokens, finish), ("A fox — 🦊 — ran away. The end", ids.len(), all(max)));
    // What might have become a stop string comes at the end.
    let (text, _, finish) = written(&ids, max, &["endless"]);
    assert_eq!((&*text, finish), ("A fox — 🦊 — ran away. The end", all(max)));
}

#[test]
fn a_stop_string_ends_the_text_before_it() {
    let ids = tokenizer().encode("A fox ran away. The end. And more").unwrap();
    let (text, tokens, finish) = written(&ids, FinishReason::MaxTokens, &["e end", "more"]);
    assert_eq!((&*text, finish), ("A fox ran away. Th", Some(TextFinish::StopString("e end".to_owned()))));
    assert!(tokens < ids.len());
    let tokens = Known { ids: ids.into_iter(), finish: FinishReason::MaxTokens };
    let error = with_text(tokens, &tokenizer()).stop_at([""]).map(|_| ()).unwrap_err();
    assert!(matches!(error, TokenizerError::EmptyStopString), "{error}");
}

#[test]
fn a_stop_token_has_no_text() {
    let mut ids = tokenizer().encode("A fox").unwrap();
    ids.extend(tokenizer().encode("!").unwrap());
    let stop = FinishReason::StopToken;
    assert_eq!(written(&ids, stop, &[]).0, "A fox");
    assert_eq!(written(&ids, stop, &[]).2, Some(TextFinish::Tokens(stop)));
}

#[test]
fn half_a_character_at_the_end_is_a_replacement_character() {
    let ids = tokenizer().encode("A 🦊").unwrap();
    let (text, _, _) = written(&ids[..ids.len() - 1], FinishReason::MaxTokens, &[]);
    assert!(text.starts_with("A ") && text.ends_with('\u{fffd}'), "{text:?}");
}

/// The demo's `<|endoftext|>` has no text. A stop string that contains it stops there.
#[test]
fn a_stop_string_may_spell_special_tokens() {
    let tokenizer = tokenizer();
    let end = tokenizer.token_id("<|endoftext|>").unwrap();
    let mut ids = tokenizer.encode("A fox ran.\n").unwrap();
    ids.push(end);
    ids.extend(tokenizer.encode(" And more").unwrap());
    let max = FinishReason::MaxTokens;
    let stopped = |string: &str| Some(TextFinish::StopString(string.to_owned()));

    let (text, tokens, finish) = written(&ids, max, &["<|endoftext|>"]);
    assert_eq!((&*text, finish), ("A fox ran.\n", stopped("<|endoftext|>")));
    assert!(tokens < ids.len());
    let (text, _, finish) = written(&ids, max, &["\n<|endoftext|>"]);
    assert_eq!((&*text, finish), ("A fox ran.", stopped("\n<|endoftext|>")));
    let (text, _, finish) = written(&ids, max, &["<|endoftext|> And"]);
    assert_eq!((&*text, finish), ("A fox ran.\n", stopped("<|endoftext|> And")));
    // It is no part of other stop strings, nor of the text.
    let (text, _, finish) = written(&ids, max, &["\n And", "<|endoftext|>x"]);
    assert_eq!((&*text, finish), ("A fox ran.", stopped("\n And")));
    let (text, _, finish) = written(&ids, max, &["x<|endoftext|>"]);
    assert_eq!((&*text, finish), ("A fox ran.\n And more", Some(TextFinish::Tokens(max))));
}

#[test]
fn a_stop_token_that_a_stop_string_spells_is_that_stop_string() {
    let mut ids = tokenizer().encode("A fox\n").unwrap();
    ids.push(tokenizer().token_id("<|endoftext|>").unwrap());
    let stop = FinishReason::StopToken;
    let (text, _, finish) = written(&ids, stop, &["\n<|endoftext|>"]);
    let found = TextFinish::StopString("\n<|endoftext|>".to_owned());
    assert_eq!((&*text, finish), ("A fox", Some(found)));
    let (text, _, finish) = written(&ids, stop, &["x<|endoftext|>"]);
    assert_eq!((&*text, finish), ("A fox\n", Some(TextFinish::Tokens(stop))));
}
