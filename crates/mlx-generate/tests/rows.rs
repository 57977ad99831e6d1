//! Sessions of several rows: the logits of each row are those that it would have alone, while other rows come and go.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use common::{model, text};
use mlx_causal_lm::{CausalLm, Logits};
use mlx_generate::{Batch, GenerateError, GenerateOptions, KvQuantization, Session, StepOptions};
use mlx_kvcache::{CacheError, CacheOptions, Quantization};
use mlx_phi3::Phi3;
use mlx_rs::Array;
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_testing::{Tolerance, compare};

/// Plain, with a window that all rows leave behind, over LongRoPE's border at different times, and both.
const KINDS: [(Option<i32>, Option<i32>); 4] =
    [(None, None), (Some(6), None), (None, Some(16)), (Some(6), Some(16))];

fn new_session(model: &Phi3) -> Session {
    Session::new(model.new_cache(&CacheOptions::default()).unwrap())
}

fn row(tokens: &[u32]) -> Array {
    Array::from_slice(tokens, &[1, tokens.len() as i32])
}

/// A session that has read these tokens, with one more to come.
fn session_of(model: &mut Phi3, tokens: &[u32]) -> Session {
    let mut session = new_session(model);
    if !tokens.is_empty() {
        let options = StepOptions { logits: Logits::None, more: 1, ..StepOptions::default() };
        session.step(model, &row(tokens), options).unwrap();
    }
    session
}

/// The logits after the last token, from a fresh cache.
fn alone(model: &mut Phi3, tokens: &[u32]) -> Array {
    let mut cache = model.new_cache(&CacheOptions::default()).unwrap();
    model.forward(&row(tokens), &mut cache, Logits::Last).unwrap()
}

/// Gives each row one more token, and compares the logits with those of a row that is alone.
fn step(model: &mut Phi3, session: &mut Session, rows: &mut [Vec<u32>], number: u32, what: &str) {
    let next: Vec<u32> = (0..rows.len() as u32).map(|row| (number * 31 + row * 7) % 96).collect();
    let tokens = Array::from_slice(&next, &[next.len() as i32, 1]);
    let logits =
        session.step(model, &tokens, StepOptions { chunk: Some(5), ..StepOptions::default() }).unwrap();
    for (index, (row, next)) in rows.iter_mut().zip(next).enumerate() {
        row.push(next);
        let index = index as i32;
        let found = logits.try_index((index..index + 1, .., ..)).unwrap();
        let near = Tolerance::Close { rtol: 1e-4, atol: 1e-4 };
        let result = compare(&found, &alone(model, row), near).unwrap();
        assert!(result.is_equal(), "{what}, row {index} of {} tokens: {result}", row.len());
    }
    let longest = rows.iter().map(Vec::len).max().unwrap();
    assert_eq!((session.rows(), session.offset() as usize), (rows.len(), longest), "{what}");
}

/// The tokens of the session are those of each row, on the right.
fn assert_tokens(session: &Session, rows: &[Vec<u32>]) {
    let tokens = session.tokens().unwrap().unwrap();
    assert_eq!(tokens.shape(), [rows.len() as i32, session.offset()]);
    let tokens = tokens.as_slice::<u32>();
    for (row, line) in rows.iter().zip(tokens.chunks(session.offset() as usize)) {
        let (padding, found) = line.split_at(line.len() - row.len());
        assert!(padding.iter().all(|&id| id == 0) && found == row, "{row:?} {line:?}");
    }
}

#[test]
fn rows_join_leave_and_cross_borders_by_their_own_lengths() {
    for (window, border) in KINDS {
        let mut model = model(window, border);
        let what = format!("window {window:?}, border {border:?}");
        let mut rows: Vec<Vec<u32>> = [9, 0, 14, 4].map(text).to_vec();
        let mut session = session_of(&mut model, &rows[0]);
        for tokens in &rows[1..] {
            let other = session_of(&mut model, tokens);
            session.join(&mut model, other).unwrap();
        }
        for number in 0..4 {
            step(&mut model, &mut session, &mut rows, number, &what);
        }
        assert_tokens(&session, &rows);

        // Two rows leave, the longest among them, and the others change places. Then two join, as one session.
        session.keep_rows(&[3, 0]).unwrap();
        rows = vec![rows[3].clone(), rows[0].clone()];
        step(&mut model, &mut session, &mut rows, 4, &what);
        let mut others = session_of(&mut model, &text(15));
        let other = session_of(&mut model, &text(2));
        others.join(&mut model, other).unwrap();
        session.join(&mut model, others).unwrap();
        rows.extend([text(15), text(2)]);
        for number in 5..9 {
            step(&mut model, &mut session, &mut rows, number, &what);
        }
        assert_tokens(&session, &rows);

        // One row alone is a session like any other: it can go back.
        session.keep_rows(&[1]).unwrap();
        rows = vec![rows[1].clone()];
        assert_eq!(session.ids().unwrap(), rows[0]);
        session.trim(4).unwrap();
        let kept = rows[0].len() - 4;
        rows[0].truncate(kept);
        for number in 9..12 {
            step(&mut model, &mut session, &mut rows, number, &what);
        }
    }
}

#[test]
fn tokens_can_be_removed_from_all_rows() {
    for (window, border) in KINDS {
        let mut model = model(window, border);
        let mut rows = vec![text(15), text(12), text(4)];
        let mut session = session_of(&mut model, &rows[0]);
        for tokens in &rows[1..] {
            let other = session_of(&mut model, tokens);
            session.join(&mut model, other).unwrap();
        }
        for number in 0..4 {
            step(&mut model, &mut session, &mut rows, number, "before");
        }
        // Over the border, where there is one, and out of what a window holds.
        assert_eq!(session.trim(5).unwrap(), 5);
        rows.iter_mut().for_each(|row| row.truncate(row.len() - 5));
        for number in 4..8 {
            step(&mut model, &mut session, &mut rows, number, &format!("{window:?} {border:?}"));
        }
        assert_tokens(&session, &rows);
        // As many as the shortest row has.
        assert_eq!(session.trim(100).unwrap(), 7);
    }
}

#[test]
fn a_row_is_a_session_of_its_own() {
    for (window, border) in KINDS {
        let mut model = model(window, border);
        let mut rows = vec![text(13), text(5)];
        let mut session = session_of(&mut model, &rows[0]);
        let other = session_of(&mut model, &rows[1]);
        session.join(&mut model, other).unwrap();
        step(&mut model, &mut session, &mut rows, 1, "joined");
        for (index, row) in rows.iter().enumerate() {
            let mut taken = session.row(index).unwrap();
            let mut own = vec![row.clone()];
            assert_eq!(taken.ids().unwrap(), own[0]);
            for number in 2..8 {
                step(&mut model, &mut taken, &mut own, number, "taken out");
            }
        }
        // And the session goes on.
        step(&mut model, &mut session, &mut rows, 2, "after");
    }
}

/// A call that fails may leave some layers with the tokens and others without.
#[test]
fn rows_go_on_after_a_call_that_failed() {
    let mut model = model(Some(6), Some(16));
    let mut rows = vec![text(13), text(5)];
    let mut session = session_of(&mut model, &rows[0]);
    let other = session_of(&mut model, &rows[1]);
    session.join(&mut model, other).unwrap();
    step(&mut model, &mut session, &mut rows, 1, "before");
    // Three rows, where there are two.
    let wrong = Array::from_slice(&[1_u32, 2, 3], &[3, 1]);
    session.step(&mut model, &wrong, StepOptions::default()).unwrap_err();
    // A row joins before anything was read again, and one leaves.
    let other = session_of(&mut model, &text(9));
    session.join(&mut model, other).unwrap();
    rows.push(text(9));
    session.step(&mut model, &wrong.reshape(&[3]).unwrap(), StepOptions::default()).unwrap_err();
    session.keep_rows(&[0, 2]).unwrap();
    rows.remove(1);
    for number in 2..6 {
        step(&mut model, &mut session, &mut rows, number, "after");
    }
    assert_tokens(&session, &rows);
}

#[test]
fn rows_that_are_read_together_can_be_taken_apart() {
    let mut model = model(None, Some(16));
    let mut session = new_session(&model);
    let tokens = Array::from_slice(&[text(12), text(24)[12..].to_vec()].concat(), &[2, 12]);
    session.read(&mut model, &tokens, Logits::None).unwrap();
    let other = session_of(&mut model, &text(3));
    session.join(&mut model, other).unwrap();
    let mut rows = vec![text(12), text(24)[12..].to_vec(), text(3)];
    for number in 0..6 {
        step(&mut model, &mut session, &mut rows, number, "joined");
    }
}

#[test]
fn what_cannot_be_joined_is_refused() {
    let mut model = model(None, None);
    let mut session = session_of(&mut model, &text(5));
    // A cache with unknown tokens.
    let cache = session_of(&mut model, &text(4)).into_cache();
    let error = session.join(&mut model, Session::new(cache)).unwrap_err();
    assert!(matches!(error, GenerateError::UnknownTokens { tokens: 4 }), "{error}");
    // Padding of the caller's own.
    let options = CacheOptions { left_padding: vec![0, 1], ..CacheOptions::default() };
    let padded = Session::new(model.new_cache(&options).unwrap());
    let error = session.join(&mut model, padded).unwrap_err();
    assert!(matches!(error, GenerateError::Rows { rows: 2 }), "{error}");
    // Another kind of cache.
    let limit = Some(mlx_kvcache::Limit { max_size: 9, keep: 2 });
    let mut limited =
        Session::new(model.new_cache(&CacheOptions { limit, ..CacheOptions::default() }).unwrap());
    limited.read(&mut model, &row(&text(3)), Logits::None).unwrap();
    let error = session.join(&mut model, limited).unwrap_err();
    assert!(matches!(error, GenerateError::Cache(CacheError::Merge { .. })), "{error}");
    // Rows that are not there.
    for rows in [&[][..], &[1], &[0, 1]] {
        let error = session.keep_rows(rows).unwrap_err();
        assert!(matches!(error, GenerateError::Cache(CacheError::Rows { .. })), "{error}");
    }
    // The session is as it was.
    step(&mut model, &mut session, &mut [text(5)], 1, "after");
    // What needs one row says so.
    let other = session_of(&mut model, &text(2));
    session.join(&mut model, other).unwrap();
    let error = session.ids().unwrap_err();
    assert_eq!(error.to_string(), "this needs a session of one row, and there are 2");
}

/// A row that is long enough to be quantized and one that is not become one batch, whichever comes first.
#[test]
fn rows_on_both_sides_of_the_length_of_quantization_join() {
    let mut model = model(None, None);
    let quantization = Quantization::affine(8, 32).unwrap();
    for lengths in [[12, 3], [3, 12]] {
        let mut rows = lengths.map(text).to_vec();
        let [mut session, other] = lengths.map(|length| {
            let mut session = new_session(&model);
            session.quantize_from(&model, KvQuantization { quantization, from: 8 }).unwrap();
            session.step(&mut model, &row(&text(length)), StepOptions::default()).unwrap();
            session
        });
        session.join(&mut model, other).unwrap();
        assert!(session.cache().layers().iter().all(|layer| layer.quantization() == Some(quantization)));
        let near = Tolerance::Close { rtol: 0.05, atol: 0.05 };
        let next = Array::from_slice(&[5_u32, 6], &[2, 1]);
        let logits = session.step(&mut model, &next, StepOptions::default()).unwrap();
        for (index, (row, next)) in (0..).zip(rows.iter_mut().zip([5, 6])) {
            row.push(next);
            let found = logits.try_index((index..index + 1, .., ..)).unwrap();
            let result = compare(&found, &alone(&mut model, row), near).unwrap();
            assert!(result.is_equal(), "{lengths:?}, row {index}: {result}");
        }
    }
}

/// The first row of a batch has to be able to join others, too.
#[test]
fn a_batch_refuses_a_cache_whose_tokens_are_not_known() {
    let mut model = model(None, None);
    let session = Session::new(session_of(&mut model, &text(4)).into_cache());
    let mut batch = Batch::new(CacheOptions::default());
    let error = batch.add_session(&mut model, session, &[1], GenerateOptions::new(&[])).unwrap_err();
    assert!(matches!(error, GenerateError::UnknownTokens { tokens: 4 }), "{error}");
    batch.add(&mut model, &[1, 2], GenerateOptions::new(&[])).unwrap();
}
