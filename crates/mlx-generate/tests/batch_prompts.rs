//! Prompts of a batch: they are read in parts between the tokens of the other rows, with the same answers.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use common::{model, text};
use mlx_causal_lm::{CausalLm, trace};
use mlx_generate::{
    Batch, BatchToken, Cancel, FinishReason, GenerateError, GenerateOptions, KvQuantization, PromptLookup,
    RowId, Session, Speculation, generate, generate_speculative,
};
use mlx_kvcache::{CacheError, CacheOptions, Quantization};
use mlx_phi3::Phi3;

fn options(max_tokens: usize) -> GenerateOptions {
    GenerateOptions { max_tokens, ..GenerateOptions::new(&[]) }
}

fn new_session(model: &Phi3) -> Session {
    Session::new(model.new_cache(&CacheOptions::default()).unwrap())
}

fn alone(model: &mut Phi3, mut session: Session, prompt: &[u32], count: usize) -> Vec<u32> {
    let stream = generate(model, &mut session, prompt, options(count)).unwrap();
    stream.map(|token| token.unwrap().id).collect()
}

/// A session that has read a text.
fn having_read(model: &mut Phi3, ids: &[u32]) -> Session {
    let mut session = new_session(model);
    session.read_all(model, ids, 4, |_, _| ControlFlow::Continue(())).unwrap();
    session
}

/// The tokens of all rows, and how many tokens of prompts each step read beside the newest ones of the rows.
fn together(model: &mut Phi3, batch: &mut Batch) -> (BTreeMap<RowId, Vec<u32>>, Vec<i32>) {
    let (mut found, mut read) = (BTreeMap::<RowId, Vec<u32>>::new(), Vec::new());
    while !batch.is_empty() {
        let (answers, outputs) = trace(model, |model: &mut dyn CausalLm| batch.step(model).unwrap());
        let decoded = answers.len() as i32;
        for answer in answers {
            found.entry(answer.row).or_default().extend(answer.token.map(|token| token.id));
        }
        let calls = outputs.iter().filter(|traced| traced.name == "embeddings");
        let all: i32 = calls.map(|traced| traced.output.dim(0) * traced.output.dim(1)).sum();
        read.push(all - decoded);
    }
    (found, read)
}

#[test]
fn prompts_that_are_read_in_parts_have_the_same_answers() {
    for (window, border) in [(None, None), (Some(6), None), (None, Some(16)), (Some(6), Some(16))] {
        let mut model = model(window, border);
        for most in [1, 3, 7, 100] {
            let mut batch = Batch::new(CacheOptions::default()).prompt_tokens_per_step(most);
            let mut expected = BTreeMap::new();
            for (number, length) in [(0, 5), (1, 40), (2, 1), (3, 11)] {
                let prompt = &text(60)[number..number + length];
                let session = new_session(&model);
                let row = batch.add(&mut model, prompt, options(20 + number)).unwrap();
                expected.insert(row, alone(&mut model, session, prompt, 20 + number));
            }
            // Sessions that have read the beginning, one of which is read again over LongRoPE's border.
            for (start, length) in [(4, 14), (15, 17), (15, 16)] {
                let all = text(length);
                let session = having_read(&mut model, &all[..start]);
                let row = batch.add_session(&mut model, session, &all[start..], options(9)).unwrap();
                let session = having_read(&mut model, &all[..start]);
                expected.insert(row, alone(&mut model, session, &all[start..], 9));
            }
            assert_eq!(batch.len(), 7);
            let (found, _) = together(&mut model, &mut batch);
            assert_eq!(found, expected, "window {window:?}, border {border:?}, {most} tokens per step");
        }
    }
}

/// The other rows get a token in every step, and no step reads more of the prompt than it may.
#[test]
fn a_long_prompt_does_not_hold_up_the_other_rows() {
    let mut model = model(Some(6), None);
    let session = new_session(&model);
    let expected = alone(&mut model, session, &text(5), 25);
    let mut batch = Batch::new(CacheOptions::default()).prompt_tokens_per_step(10);
    let short = batch.add(&mut model, &text(5), options(25)).unwrap();
    assert_eq!(batch.step(&mut model).unwrap().len(), 1);
    let long = batch.add(&mut model, &text(96), options(3)).unwrap();
    let behind = batch.add(&mut model, &text(8), options(3)).unwrap();
    assert_eq!((batch.unread(short), batch.unread(long), batch.unread(behind)), (Some(0), Some(96), Some(8)));
    let mut found = vec![expected[0]];
    for step in 1..=9 {
        let (answers, outputs) = trace(&mut model, |model: &mut dyn CausalLm| batch.step(model).unwrap());
        let longest = outputs.iter().filter(|traced| traced.name == "embeddings");
        assert!(longest.map(|traced| traced.output.dim(1)).max() <= Some(10));
        assert!(matches!(&answers[..], [BatchToken { row, .. }] if *row == short), "{answers:?}");
        found.extend(answers[0].token.as_ref().map(|token| token.id));
        assert_eq!(batch.unread(long), Some(96 - 10 * step));
        assert_eq!(batch.session(long).unwrap().unwrap().offset() as usize, 10 * step);
        assert_eq!(batch.tokens(long), Some(&text(96)[..]));
    }
    // The last six tokens of the long prompt, and four of the one behind it.
    let answers = batch.step(&mut model).unwrap();
    assert_eq!(answers.iter().map(|answer| answer.row).collect::<Vec<_>>(), [short, long]);
    found.extend(answers[0].token.as_ref().map(|token| token.id));
    assert_eq!((batch.unread(long), batch.unread(behind)), (Some(0), Some(4)));
    let (rest, read) = together(&mut model, &mut batch);
    found.extend(&rest[&short]);
    assert_eq!(found, expected);
    assert_eq!((rest[&long].len(), rest[&behind].len()), (2, 3));
    assert_eq!(read[..3], [3, 0, 0]);
    assert_eq!(batch.unread(long), None);
}

/// What has to be read again counts as well: a session that comes over LongRoPE's border.
#[test]
fn tokens_that_are_read_again_are_read_in_parts_too() {
    let mut model = model(None, Some(16));
    let session = having_read(&mut model, &text(14));
    let mut batch = Batch::new(CacheOptions::default()).prompt_tokens_per_step(5);
    let row = batch.add_session(&mut model, session, &text(20)[14..], options(4)).unwrap();
    let (found, read) = together(&mut model, &mut batch);
    // 14 tokens again, five of the prompt, and its last one with the first answer.
    assert_eq!(read, [5, 5, 5, 4, 0, 0, 0]);
    let session = new_session(&model);
    assert_eq!(found[&row], alone(&mut model, session, &text(20), 4));
}

#[test]
fn sequences_end_while_their_prompts_are_read() {
    let mut model = model(None, None);
    let mut batch = Batch::new(CacheOptions::default()).prompt_tokens_per_step(4);
    let cancel = Cancel::default();
    let cancelled = GenerateOptions { cancel: cancel.clone(), ..options(20) };
    let cancelled = batch.add(&mut model, &text(30), cancelled).unwrap();
    let removed = batch.add(&mut model, &text(30), options(20)).unwrap();
    let none = batch.add(&mut model, &text(30), options(0)).unwrap();
    let ended = |row, finish| BatchToken { row, token: None, finish: Some(finish) };
    assert_eq!(batch.step(&mut model).unwrap(), [ended(none, FinishReason::MaxTokens)]);
    assert_eq!(batch.unread(cancelled), Some(26));
    assert!(batch.remove(removed).unwrap() && !batch.remove(removed).unwrap());
    cancel.cancel();
    assert_eq!(batch.step(&mut model).unwrap(), [ended(cancelled, FinishReason::Cancelled)]);
    assert!(batch.is_empty());
}

/// Whichever comes first: otherwise it would keep out the rows that have the options of the batch.
#[test]
fn a_session_with_other_options_is_refused() {
    let mut model = model(Some(6), None);
    let quantization = Quantization::affine(8, 32).unwrap();
    let quantized = CacheOptions { quantization: Some(quantization), ..CacheOptions::default() };
    let quantized = Session::new(model.new_cache(&quantized).unwrap());
    let mut quantized_later = having_read(&mut model, &text(3));
    quantized_later.quantize_from(&model, KvQuantization { quantization, from: 10 }).unwrap();
    let padded = CacheOptions { left_padding: vec![0], ..CacheOptions::default() };
    let padded = Session::new(model.new_cache(&padded).unwrap());
    for is_first in [true, false] {
        let mut batch = Batch::new(CacheOptions::default());
        let mut rows = Vec::new();
        if !is_first {
            rows.push(batch.add(&mut model, &text(5), options(3)).unwrap());
        }
        for session in [&quantized, &quantized_later] {
            let error = batch.add_session(&mut model, session.clone(), &text(7), options(3)).unwrap_err();
            let is_refused =
                matches!(&error, GenerateError::Cache(CacheError::Merge { what: "quantization", .. }));
            assert!(is_refused, "{error:?}");
        }
        assert_eq!(batch.len(), rows.len());
        rows.push(batch.add(&mut model, &text(5), options(3)).unwrap());
        rows.push(batch.add_session(&mut model, padded.clone(), &text(5), options(3)).unwrap());
        let (found, _) = together(&mut model, &mut batch);
        let session = new_session(&model);
        let expected = alone(&mut model, session, &text(5), 3);
        assert_eq!(found, rows.into_iter().map(|row| (row, expected.clone())).collect());
    }
}

/// Speculation has given the session's cache more room than the batch's caches have.
#[test]
fn a_session_that_was_decoded_with_drafts_goes_on_in_a_batch() {
    let mut model = model(Some(6), None);
    for rewind in [0, 9] {
        let cache_options = CacheOptions { rewind, ..CacheOptions::default() };
        let mut session = new_session(&model);
        let speculation = Speculation { draft: &mut PromptLookup::default(), most: 4 };
        let prompt = text(11);
        let stream =
            generate_speculative(&mut model, &mut session, &prompt, options(8), speculation).unwrap();
        let last = stream.map(|token| token.unwrap().id).last().unwrap();
        let read = session.ids().unwrap();
        let mut batch = Batch::new(cache_options);
        let first = batch.add(&mut model, &text(9), options(20)).unwrap();
        let row = batch.add_session(&mut model, session, &[last], options(20)).unwrap();
        let (found, _) = together(&mut model, &mut batch);
        let session = new_session(&model);
        assert_eq!(found[&first], alone(&mut model, session, &text(9), 20));
        let session = new_session(&model);
        assert_eq!(found[&row], alone(&mut model, session, &[&read[..], &[last]].concat(), 20));
    }
}

/// After an error of one row the next step tells of the others, but not of those that were removed meanwhile.
#[test]
fn a_removed_sequence_is_not_told_of_again() {
    let mut model = model(None, None);
    let impossible = |mut options: GenerateOptions| {
        options.penalties.logit_bias = (0..96).map(|token| (token, f64::NEG_INFINITY)).collect();
        options
    };
    let mut batch = Batch::new(CacheOptions::default());
    let kept = batch.add(&mut model, &text(5), options(2)).unwrap();
    let removed = batch.add(&mut model, &text(6), options(2)).unwrap();
    let fails = batch.add(&mut model, &text(7), impossible(options(2))).unwrap();
    let unseen = batch.add(&mut model, &text(8), impossible(options(2))).unwrap();
    let error = batch.step(&mut model).unwrap_err();
    let GenerateError::Row { row, .. } = error else { panic!("{error:?}") };
    let other = if row == fails { unseen } else { fails };
    assert!(batch.remove(removed).unwrap());
    batch.remove(other).unwrap();
    let answers = batch.step(&mut model).unwrap();
    assert_eq!(answers.iter().map(|answer| answer.row).collect::<Vec<_>>(), [kept]);
    assert!(batch.remove(kept).unwrap() && batch.is_empty());
}
