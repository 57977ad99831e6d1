//! Batches: every row gets the tokens that it would get alone, whoever comes and goes.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::collections::BTreeMap;

use common::{model, text};
use mlx_causal_lm::CausalLm;
use mlx_generate::{Batch, FinishReason, GenerateError, GenerateOptions, RowId, Sampling, Session, generate};
use mlx_kvcache::CacheOptions;
use mlx_phi3::Phi3;

fn options(max_tokens: usize) -> GenerateOptions {
    GenerateOptions { max_tokens, ..GenerateOptions::default() }
}

fn alone(model: &mut Phi3, prompt: &[u32], options: GenerateOptions) -> Vec<u32> {
    let mut session = Session::new(model.new_cache(&CacheOptions::default()).unwrap());
    generate(model, &mut session, prompt, options).unwrap().map(|token| token.unwrap().id).collect()
}

/// Decodes until all have ended; answers each row's tokens and why it ended.
fn together(model: &mut Phi3, batch: &mut Batch) -> BTreeMap<RowId, (Vec<u32>, FinishReason)> {
    let mut open: BTreeMap<RowId, Vec<u32>> = BTreeMap::new();
    let mut ended = BTreeMap::new();
    while !batch.is_empty() {
        for answer in batch.step(model).unwrap() {
            open.entry(answer.row).or_default().extend(answer.token.map(|token| token.id));
            if let Some(finish) = answer.finish {
                ended.insert(answer.row, (open.remove(&answer.row).unwrap(), finish));
            }
        }
    }
    assert!(open.is_empty());
    ended
}

/// Prompts of different lengths and contents.
fn prompts() -> Vec<Vec<u32>> {
    [12, 3, 30, 1, 12].iter().enumerate().map(|(i, &n)| text(50)[i * 4..i * 4 + n].to_vec()).collect()
}

#[test]
fn rows_answer_as_if_they_were_alone() {
    // Plain, with a window that all of them leave behind, and over LongRoPE's border at different times.
    for (window, border) in [(None, None), (Some(6), None), (None, Some(16)), (Some(6), Some(16))] {
        let mut model = model(window, border);
        let mut batch = Batch::new(CacheOptions::default());
        let mut expected = BTreeMap::new();
        for (number, prompt) in prompts().iter().enumerate() {
            let options = options(10 + 7 * number);
            let row = batch.add(&mut model, prompt, options.clone()).unwrap();
            expected.insert(row, (alone(&mut model, prompt, options), FinishReason::MaxTokens));
        }
        assert_eq!(batch.len(), 5);
        assert_eq!(together(&mut model, &mut batch), expected, "window {window:?}, border {border:?}");
    }
}

#[test]
fn rows_join_and_leave_while_others_go_on() {
    let mut model = model(Some(6), None);
    let mut batch = Batch::new(CacheOptions::default());
    let prompts = prompts();
    let first = batch.add(&mut model, &prompts[0], options(20)).unwrap();
    let second = batch.add(&mut model, &prompts[1], options(20)).unwrap();
    let mut found: BTreeMap<RowId, Vec<u32>> = BTreeMap::new();
    let mut third = None;
    for step in 0..60 {
        if step == 5 {
            third = Some(batch.add(&mut model, &prompts[2], options(20)).unwrap());
        }
        if step == 8 {
            assert!(batch.remove(second).unwrap());
            assert!(!batch.remove(second).unwrap());
            assert_eq!(batch.tokens(second), None);
        }
        for answer in batch.step(&mut model).unwrap() {
            found.entry(answer.row).or_default().push(answer.token.unwrap().id);
        }
        if step == 3 {
            let tokens = batch.tokens(first).unwrap();
            assert_eq!((tokens.len(), &tokens[..12]), (12 + 4, &*prompts[0]));
        }
    }
    assert!(batch.is_empty());
    assert!(batch.step(&mut model).unwrap().is_empty());
    assert_eq!(found[&first], alone(&mut model, &prompts[0], options(20)));
    assert_eq!(found[&second], alone(&mut model, &prompts[1], options(8)));
    assert_eq!(found[&third.unwrap()], alone(&mut model, &prompts[2], options(20)));
}

#[test]
fn every_row_has_its_own_random_numbers_and_stop_tokens() {
    let mut model = model(None, None);
    let prompt = text(9);
    let drawn = |seed| GenerateOptions {
        sampling: Sampling { temperature: 1.0, seed, ..Sampling::default() },
        ..options(15)
    };
    let stop = alone(&mut model, &prompt, drawn(1))[6];
    let all = [drawn(1), drawn(2), drawn(1), GenerateOptions { stop_tokens: vec![stop], ..drawn(1) }];
    let mut batch = Batch::new(CacheOptions::default());
    let mut expected = BTreeMap::new();
    for options in all {
        let row = batch.add(&mut model, &prompt, options.clone()).unwrap();
        let tokens = alone(&mut model, &prompt, options.clone());
        let finish =
            if options.stop_tokens.is_empty() { FinishReason::MaxTokens } else { FinishReason::StopToken };
        expected.insert(row, (tokens, finish));
    }
    assert_eq!(together(&mut model, &mut batch), expected);
}

#[test]
fn a_row_ends_where_the_context_does() {
    let mut model = model(None, None);
    let prompt: Vec<u32> = (0..126).map(|i| i % 96).collect();
    let mut batch = Batch::new(CacheOptions::default());
    let row = batch.add(&mut model, &prompt, options(100)).unwrap();
    let ended = together(&mut model, &mut batch);
    assert_eq!(ended[&row].0, alone(&mut model, &prompt, options(100)));
    assert_eq!((ended[&row].0.len(), ended[&row].1), (3, FinishReason::ContextFull));
}

#[test]
fn a_prompt_that_is_refused_leaves_the_batch_as_it_was() {
    let mut model = model(None, None);
    let mut batch = Batch::new(CacheOptions::default());
    let row = batch.add(&mut model, &text(5), options(4)).unwrap();
    let refused = |result: Result<RowId, GenerateError>| result.unwrap_err().to_string();
    assert!(refused(batch.add(&mut model, &[], options(4))).contains("empty"));
    assert!(refused(batch.add(&mut model, &[96], options(4))).contains("96"));
    assert!(refused(batch.add(&mut model, &[1; 129], options(4))).contains("129"));
    assert_eq!(batch.len(), 1);
    assert_eq!(together(&mut model, &mut batch)[&row].0, alone(&mut model, &text(5), options(4)));
}
