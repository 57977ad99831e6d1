//! Compares stop strings in a stream with a search in the whole text.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use mlx_tokenizer::{StopStrings, TokenizerError};
use proptest::prelude::*;

/// The text before the stop string that is complete first, and that string; of several, the longest.
fn naive<'a>(text: &str, strings: &'a [String]) -> (String, Option<&'a str>) {
    for (end, _) in text.char_indices().skip(1).chain([(text.len(), ' ')]) {
        let ends = strings.iter().filter(|string| text[..end].ends_with(&***string));
        if let Some(string) = ends.max_by_key(|string| string.len()) {
            return (text[..end - string.len()].to_owned(), Some(string));
        }
    }
    (text.to_owned(), None)
}

/// The longest end of a text that is a beginning of a stop string, but not all of it.
fn may_begin(text: &str, strings: &[String]) -> usize {
    let begins = |start: usize| strings.iter().any(|string| string.starts_with(&text[start..]));
    text.char_indices()
        .map(|(start, _)| start)
        .find(|&start| begins(start))
        .map_or(0, |start| text.len() - start)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn pieces_end_where_the_whole_text_does(
        pieces in prop::collection::vec("[aabé日]{0,4}", 0..12),
        strings in prop::collection::vec("[aabé日]{1,5}", 0..4),
    ) {
        let (expected, found) = naive(&pieces.concat(), &strings);
        let mut stop = StopStrings::new(strings.clone()).unwrap();
        let mut told = String::new();
        let mut read = String::new();
        for piece in &pieces {
            read += piece;
            told += &stop.push(piece);
            if stop.found().is_none() {
                // Only a possible beginning of a stop string is held back.
                prop_assert_eq!(read.len() - told.len(), may_begin(&read, &strings));
            }
        }
        prop_assert_eq!(stop.found(), found);
        told += &stop.finish();
        prop_assert_eq!(told, expected);
    }
}

#[test]
fn after_a_stop_string_nothing_comes() {
    let mut stop = StopStrings::new(["END", "ND"]).unwrap();
    assert_eq!(stop.push("the E"), "the ");
    assert_eq!(stop.push("ND of"), "");
    assert_eq!(stop.found(), Some("END"));
    assert_eq!(stop.push("more"), "");
    assert_eq!(stop.finish(), "");
}

#[test]
fn an_empty_stop_string_is_refused() {
    let error = StopStrings::new(["a", ""]).unwrap_err();
    assert!(matches!(error, TokenizerError::EmptyStopString));
}

/// Text, or the content of a special token.
#[derive(Debug, Clone)]
enum Part {
    Text(String),
    Special(&'static str),
}

/// The end of the text, found by searching for each stop string separately, in the text with those special
/// tokens that the string contains.
fn naive_special(parts: &[Part], strings: &[String]) -> (String, Option<String>) {
    let visible = |parts: &[Part]| -> String {
        parts.iter().map(|part| if let Part::Text(text) = part { &**text } else { "" }).collect()
    };
    // Each character, and each special token, as a separate part.
    let single: Vec<Part> = parts
        .iter()
        .flat_map(|part| match part {
            Part::Text(text) => text.chars().map(|c| Part::Text(c.to_string())).collect(),
            special => vec![special.clone()],
        })
        .collect();
    for end in 1..=single.len() {
        let ends = strings.iter().filter_map(|string| {
            let seen = |part: &Part| match part {
                Part::Text(text) => text.clone(),
                Part::Special(content) if string.contains(content) => (*content).to_owned(),
                Part::Special(_) => String::new(),
            };
            let text: String = single[..end].iter().map(seen).collect();
            // It is complete with the last part, and not earlier.
            let complete = !seen(&single[end - 1]).is_empty() && text.ends_with(&**string);
            let start = (0..end)
                .rev()
                .find(|&start| single[start..end].iter().map(seen).collect::<String>().ends_with(&**string));
            complete.then_some((string.len(), start?, string))
        });
        if let Some((_, start, string)) = ends.max_by_key(|(length, ..)| *length) {
            return (visible(&single[..start]), Some(string.clone()));
        }
    }
    (visible(parts), None)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn stop_strings_may_spell_special_tokens(
        parts in prop::collection::vec(
            prop_oneof![
                "[ab日]{0,3}".prop_map(Part::Text),
                Just(Part::Special("<e>")),
                Just(Part::Special("<日>")),
            ],
            0..10,
        ),
        strings in prop::collection::btree_set(
            prop_oneof!["[ab日]{1,3}", "[ab]{0,2}<e>[ab]{0,2}", "<e><e>", "[ab]?<日>a?<e>", "<日>"],
            0..4,
        ),
    ) {
        let strings: Vec<String> = strings.into_iter().collect();
        let (expected, found) = naive_special(&parts, &strings);
        let mut stop = StopStrings::new(strings.clone()).unwrap();
        let mut told = String::new();
        for part in &parts {
            told += &match part {
                Part::Text(text) => stop.push(text),
                Part::Special(content) => stop.push_special(content),
            };
            prop_assert!(expected.starts_with(&told), "{told:?} is more than {expected:?}");
        }
        let name = stop.found().map(str::to_owned);
        told += &stop.finish();
        prop_assert_eq!((told, name), (expected, found));
    }
}

#[test]
fn a_special_token_stops_where_a_string_spells_it() {
    let mut stop = StopStrings::new(["\n<|im_end|>", "<eos>"]).unwrap();
    assert_eq!(stop.push("one\n"), "one");
    // Other special tokens are ignored, and end nothing.
    assert_eq!(stop.push_special("<pad>"), "");
    assert_eq!(stop.push("two\n"), "\ntwo");
    assert_eq!(stop.push_special("<|im_end|>"), "");
    assert_eq!(stop.found(), Some("\n<|im_end|>"));

    let mut stop = StopStrings::new(["\n<|im_end|>", "<eos>"]).unwrap();
    // Without the line break before it, it is ignored.
    assert_eq!(stop.push_special("<|im_end|>") + &stop.push("x") + &stop.push_special("<|im_end|>"), "x");
    assert_eq!(stop.push_special("<eos>"), "");
    assert_eq!((stop.found(), &*stop.clone().finish()), (Some("<eos>"), ""));
}
