//! Perplexity, compared with a float64 computation from the logits of one pass.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::ops::ControlFlow;

use approx::assert_abs_diff_eq;
use common::{model, text};
use mlx_causal_lm::{CausalLm, Logits};
use mlx_generate::{GenerateError, PerplexityOptions, perplexity};
use mlx_kvcache::CacheOptions;
use mlx_phi3::Phi3;
use mlx_rs::Array;

/// `-ln p` of every token but the first, in float64.
fn oracle(model: &mut Phi3, piece: &[u32]) -> Vec<f64> {
    let mut cache = model.new_cache(&CacheOptions::default()).unwrap();
    let tokens = Array::from_slice(&piece[..piece.len() - 1], &[1, piece.len() as i32 - 1]);
    let logits = model.forward(&tokens, &mut cache, Logits::All).unwrap();
    let rows = logits.as_slice::<f32>().chunks(96);
    rows.zip(&piece[1..])
        .map(|(row, &next)| {
            let sum: f64 = row.iter().map(|&logit| f64::from(logit).exp()).sum();
            sum.ln() - f64::from(row[next as usize])
        })
        .collect()
}

#[test]
fn every_piece_is_predicted_from_its_own_beginning() {
    for (window, border) in [(None, None), (Some(6), None), (None, Some(16))] {
        let mut model = model(window, border);
        let text = text(50);
        for (piece, with_rest) in [(50, true), (64, false), (20, true), (20, false), (49, true), (10, true)] {
            let mut nll = Vec::new();
            for part in text.chunks(piece.min(50)).filter(|part| part.len() > 1) {
                if with_rest || part.len() == piece.min(50) {
                    nll.extend(oracle(&mut model, part));
                }
            }
            let options = PerplexityOptions { piece, with_rest, ..PerplexityOptions::default() };
            let found = perplexity(&mut model, &text, options, |_, _| ControlFlow::Continue(())).unwrap();
            let count = nll.len() as f64;
            let mean = nll.iter().sum::<f64>() / count;
            let variance = nll.iter().map(|nll| (nll - mean).powi(2)).sum::<f64>() / (count - 1.0);
            assert_eq!(found.tokens, nll.len());
            assert_abs_diff_eq!(found.mean_nll, mean, epsilon = 1e-5);
            assert_abs_diff_eq!(found.perplexity(), mean.exp(), epsilon = 1e-4 * mean.exp());
            assert_abs_diff_eq!(found.standard_error, (variance / count).sqrt(), epsilon = 1e-5);
        }
    }
}

/// Each token of the text is scored once, behind the token that every piece begins with and at least `context` others.
#[test]
fn pieces_begin_with_a_token_and_overlap() {
    const BOS: u32 = 5;
    for (window, border) in [(None, None), (Some(6), None), (None, Some(16))] {
        let mut model = model(window, border);
        let text = text(50);
        for (piece, context, begin, with_rest) in [
            (64, 0, Some(BOS), true),
            (20, 0, Some(BOS), true),
            (20, 0, Some(BOS), false),
            (20, 7, Some(BOS), true),
            (20, 7, None, true),
            (20, 18, Some(BOS), true),
            (10, 1, None, false),
        ] {
            let room = piece - usize::from(begin.is_some());
            let mut nll = Vec::new();
            // The last token that was scored, and so the end of a piece.
            let mut done = 0;
            while done < text.len() {
                let start = done.saturating_sub(context);
                let end = text.len().min(start + room);
                if end - start == room || start == 0 || with_rest {
                    let part: Vec<u32> = begin.iter().chain(&text[start..end]).copied().collect();
                    let scored = if done == 0 && begin.is_none() { end - 1 } else { end - done };
                    let of_part = oracle(&mut model, &part);
                    nll.extend(&of_part[of_part.len() - scored..]);
                }
                done = end;
            }
            let options = PerplexityOptions { piece, begin, context, with_rest };
            let found = perplexity(&mut model, &text, options, |_, _| ControlFlow::Continue(())).unwrap();
            let mean = nll.iter().sum::<f64>() / nll.len() as f64;
            assert_eq!(found.tokens, nll.len(), "{options:?}");
            assert_abs_diff_eq!(found.mean_nll, mean, epsilon = 1e-5);
            if with_rest {
                assert_eq!(found.tokens, 50 - usize::from(begin.is_none()), "{options:?}");
            }
        }
    }
}

#[test]
fn a_context_that_fills_a_piece_is_refused() {
    let mut model = model(None, None);
    for (context, begin) in [(20, None), (19, Some(1))] {
        let options = PerplexityOptions { piece: 20, context, begin, with_rest: true };
        let error = perplexity(&mut model, &text(50), options, |_, _| ControlFlow::Continue(())).unwrap_err();
        assert!(matches!(error, GenerateError::Option { option: "context", .. }), "{error}");
    }
    let options = PerplexityOptions { begin: Some(96), ..PerplexityOptions::default() };
    let error = perplexity(&mut model, &text(50), options, |_, _| ControlFlow::Continue(())).unwrap_err();
    assert!(matches!(error, GenerateError::OutsideVocabulary { id: 96, .. }), "{error}");
}

#[test]
fn texts_without_a_token_to_score_are_refused() {
    let mut model = model(None, None);
    let mut of = |text: &[u32], piece| {
        let options = PerplexityOptions { piece, ..PerplexityOptions::default() };
        perplexity(&mut model, text, options, |_, _| ControlFlow::Continue(()))
    };
    for (text, piece) in [(text(0), 512), (text(1), 512), (text(9), 1), (text(9), 0)] {
        assert!(matches!(of(&text, piece), Err(GenerateError::TooFewTokens { .. })));
    }
    let error = of(&[3, 96], 512).unwrap_err();
    assert!(matches!(error, GenerateError::OutsideVocabulary { id: 96, position: 1, .. }), "{error}");
}

#[test]
fn progress_counts_to_the_end_and_may_stop() {
    let mut model = model(None, None);
    let mut heard = Vec::new();
    let options = PerplexityOptions { piece: 20, ..PerplexityOptions::default() };
    perplexity(&mut model, &text(50), options, |read, total| {
        heard.push((read, total));
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(heard.first(), Some(&(0, 50)));
    assert_eq!(heard.last(), Some(&(50, 50)));
    assert!(heard.is_sorted());
    let stopped = perplexity(&mut model, &text(50), options, |read, _| {
        if read > 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(stopped, Err(GenerateError::Cancelled)));
}
