//! Stop strings in a stream beside a search in the whole text.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use mlx_tokenizer::{StopStrings, TokenizerError};
use proptest::prelude::*;

/// The text before the stop string that is complete first, and that string: of several, the longest.
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
                // No more is held back than may be the beginning.
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
