//! Perplexity beside a float64 computation from the logits of one pass.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::ops::ControlFlow;

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
fn every_piece_is_foretold_from_its_own_beginning() {
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
            let options = PerplexityOptions { piece, with_rest };
            let found = perplexity(&mut model, &text, options, |_, _| ControlFlow::Continue(())).unwrap();
            let count = nll.len() as f64;
            let mean = nll.iter().sum::<f64>() / count;
            let variance = nll.iter().map(|nll| (nll - mean).powi(2)).sum::<f64>() / (count - 1.0);
            assert_eq!(found.tokens, nll.len());
            assert!((found.mean_nll - mean).abs() < 1e-5, "{} {mean}", found.mean_nll);
            assert!((found.perplexity() - mean.exp()).abs() < 1e-4 * mean.exp());
            assert!((found.standard_error - (variance / count).sqrt()).abs() < 1e-5);
        }
    }
}

#[test]
fn texts_without_a_token_to_foretell_are_refused() {
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
    let options = PerplexityOptions { piece: 20, with_rest: true };
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
