//! Turns of a conversation: a session keeps what it can, and its logits are those of a new session.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use common::{model, text};
use mlx_causal_lm::{CausalLm, Logits};
use mlx_generate::{GenerateError, KvQuantization, Reuse, Session};
use mlx_kvcache::{CacheFileError, CacheOptions, Quantization};
use mlx_phi3::Phi3;
use mlx_rs::Array;
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_testing::{Tolerance, compare};

fn row(tokens: &[u32]) -> Array {
    Array::from_slice(tokens, &[1, tokens.len() as i32])
}

fn read(model: &mut Phi3, session: &mut Session, tokens: &[u32]) -> Array {
    session.read(model, &row(tokens), Logits::Last).unwrap()
}

/// The logits after the last token, from a fresh cache.
fn anew(model: &mut Phi3, tokens: &[u32]) -> Array {
    let mut cache = model.new_cache(&CacheOptions::default()).unwrap();
    model.forward(&row(tokens), &mut cache, Logits::Last).unwrap()
}

#[track_caller]
fn assert_close(found: &Array, expected: &Array) {
    let result = compare(found, expected, Tolerance::Close { rtol: 1e-4, atol: 1e-4 }).unwrap();
    assert!(result.is_equal(), "{result}");
}

/// Reads `first`, goes to `second`, checks the logits, and returns what the session kept and how many tokens were left.
fn turn(model: &mut Phi3, options: &CacheOptions, first: &[u32], second: &[u32]) -> (Reuse, usize) {
    let mut session = Session::new(model.new_cache(options).unwrap());
    // One by one: after a call with many tokens a ring holds more of them for a while.
    first.chunks(1).for_each(|token| drop(read(model, &mut session, token)));
    let (reuse, rest) = session.turn_to(model, second).unwrap();
    let left = rest.len();
    let found = read(model, &mut session, rest);
    assert_close(&found, &anew(model, second));
    assert_eq!(session.ids().unwrap(), second);
    (reuse, left)
}

#[test]
fn a_conversation_that_goes_on_reads_only_what_is_new() {
    for window in [None, Some(6)] {
        let answer = turn(&mut model(window, None), &CacheOptions::default(), &text(20), &text(27));
        assert_eq!(answer, (Reuse::Continued, 7));
    }
}

#[test]
fn an_edited_turn_keeps_the_tokens_before_the_edit_if_the_cache_can_trim() {
    let mut edited = text(24);
    edited[17] = 95;
    // 20 tokens were read, 17 of them are common, and 7 are left to read.
    let full = turn(&mut model(None, None), &CacheOptions::default(), &text(20), &edited);
    assert_eq!(full, (Reuse::Rewound { tokens: 3 }, 7));

    let mut windowed = model(Some(6), None);
    let rewind = |rewind| CacheOptions { rewind, ..CacheOptions::default() };
    assert_eq!(turn(&mut windowed, &rewind(3), &text(20), &edited), (Reuse::Rewound { tokens: 3 }, 7));
    // The ring has 7 places, for a window of 6 and the next token: it can take two tokens back, not three.
    let again = turn(&mut windowed, &rewind(1), &text(20), &edited);
    assert_eq!(again, (Reuse::ReadAgain { tokens: 17 }, 7));
}

#[test]
fn one_token_is_always_left_to_read() {
    // The same text once more, its beginning, and another text.
    let mut model = model(None, None);
    let options = CacheOptions::default();
    assert_eq!(turn(&mut model, &options, &text(9), &text(9)), (Reuse::Rewound { tokens: 1 }, 1));
    assert_eq!(turn(&mut model, &options, &text(9), &text(4)), (Reuse::Rewound { tokens: 6 }, 1));
    let other: Vec<u32> = text(9).iter().map(|id| 95 - id).collect();
    assert_eq!(turn(&mut model, &options, &text(9), &other), (Reuse::Rewound { tokens: 9 }, 9));

    let mut session = Session::new(model.new_cache(&options).unwrap());
    let error = session.turn_to(&model, &[]).unwrap_err();
    assert!(matches!(error, GenerateError::EmptyPrompt), "{error}");
}

#[test]
fn a_text_on_the_other_side_of_long_ropes_border_is_read_again() {
    let mut model = model(None, Some(16));
    let options = CacheOptions::default();
    let again = |tokens| Reuse::ReadAgain { tokens };
    assert_eq!(turn(&mut model, &options, &text(12), &text(15)), (Reuse::Continued, 3));
    assert_eq!(turn(&mut model, &options, &text(12), &text(20)), (again(12), 8));
    assert_eq!(turn(&mut model, &options, &text(20), &text(12)), (again(11), 1));
    assert_eq!(turn(&mut model, &options, &text(20), &text(25)), (Reuse::Continued, 5));
}

#[test]
fn a_saved_session_goes_on_and_goes_back() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("session.safetensors");
    for (window, border) in [(None, None), (Some(6), None), (None, Some(16))] {
        let mut model = model(window, border);
        let options = CacheOptions { rewind: 2, ..CacheOptions::default() };
        let mut session = Session::new(model.new_cache(&options).unwrap());
        read(&mut model, &mut session, &text(15));
        session.save(&model, &file).unwrap();

        let mut loaded = Session::load(&model, &file, &options).unwrap();
        assert_eq!(loaded.ids().unwrap(), text(15));
        let mut edited = text(20);
        edited[14] = 95;
        let (_, rest) = loaded.turn_to(&model, &edited).unwrap();
        let found = read(&mut model, &mut loaded, rest);
        assert_close(&found, &anew(&mut model, &edited));
    }
    let error = Session::load(&model(None, None), folder.path().join("none"), &CacheOptions::default());
    assert!(matches!(error, Err(GenerateError::CacheFile(CacheFileError::Io { .. }))), "{error:?}");
}

#[test]
fn keys_and_values_are_quantized_from_the_chosen_length_on() {
    let quantization = Quantization::affine(8, 32).unwrap();
    for window in [None, Some(6)] {
        let mut model = model(window, None);
        let options = CacheOptions::default();
        let from = KvQuantization { quantization, from: 10 };
        let mut session = Session::new(model.new_cache(&options).unwrap());
        session.quantize_from(&model, from).unwrap();
        let mut plain = Session::new(model.new_cache(&options).unwrap());
        let mut bytes = 0;
        for (position, token) in text(14).iter().enumerate() {
            let (found, exact) =
                (read(&mut model, &mut session, &[*token]), read(&mut model, &mut plain, &[*token]));
            // The call that reaches the length is still exact; the next one reads quantized values.
            if position < 10 {
                assert!(compare(&found, &exact, Tolerance::Exact).unwrap().is_equal());
                bytes = session.cache().nbytes();
            } else {
                assert!(!compare(&found, &exact, Tolerance::Exact).unwrap().is_equal());
                let near = Tolerance::Close { rtol: 5e-2, atol: 5e-2 };
                assert!(compare(&found, &exact, near).unwrap().is_equal());
            }
        }
        assert!(session.cache().nbytes() < bytes.max(plain.cache().nbytes()) / 2);
        // As if the cache had been quantized when it had ten tokens.
        let mut by_hand = model.new_cache(&options).unwrap();
        model.forward(&row(&text(10)), &mut by_hand, Logits::None).unwrap();
        by_hand.quantize(quantization).unwrap();
        let expected = model.forward(&row(&text(14)[10..]), &mut by_hand, Logits::Last).unwrap();
        let mut session = Session::new(model.new_cache(&options).unwrap());
        session.quantize_from(&model, from).unwrap();
        read(&mut model, &mut session, &text(10));
        assert_close(&read(&mut model, &mut session, &text(14)[10..]), &expected);
    }
    // Groups of 64 do not fit heads of 32 features, and the error comes at once.
    let model = model(None, None);
    let mut session = Session::new(model.new_cache(&CacheOptions::default()).unwrap());
    let quantization = Quantization::affine(8, 64).unwrap();
    let error = session.quantize_from(&model, KvQuantization { quantization, from: 10 }).unwrap_err();
    assert!(error.to_string().contains("64"), "{error}");
}

#[test]
fn batches_and_unknown_tokens_are_refused() {
    let mut model = model(None, None);
    let mut batch = Session::new(model.new_cache(&CacheOptions::default()).unwrap());
    let tokens = Array::from_slice(&text(8), &[2, 4]);
    batch.read(&mut model, &tokens, Logits::None).unwrap();
    let error = batch.turn_to(&model, &text(9)).unwrap_err();
    assert_eq!(error.to_string(), "this needs a session of one row, and there are 2");
    assert!(batch.save(&model, "/nowhere").is_err());

    let mut cache = model.new_cache(&CacheOptions::default()).unwrap();
    model.forward(&tokens.try_index((0..1, ..)).unwrap(), &mut cache, Logits::None).unwrap();
    let mut session = Session::new(cache);
    let error = session.turn_to(&model, &text(9)).unwrap_err();
    assert!(matches!(error, GenerateError::UnknownTokens { tokens: 4 }), "{error}");
}
