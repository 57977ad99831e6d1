//! Batches: every row gets the tokens that it would get alone, while other rows come and go.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::collections::BTreeMap;

use common::{model, text};
use mlx_causal_lm::CausalLm;
use mlx_generate::{
    Batch, BatchToken, Cancel, Dry, FinishReason, GenerateError, GenerateOptions, Penalties, Penalty, RowId,
    Sampling, Session, Token, generate,
};
use mlx_kvcache::CacheOptions;
use mlx_phi3::Phi3;

fn options(max_tokens: usize) -> GenerateOptions {
    GenerateOptions { max_tokens, ..GenerateOptions::new(&[]) }
}

fn alone(model: &mut Phi3, prompt: &[u32], options: GenerateOptions) -> Vec<u32> {
    let mut session = Session::new(model.new_cache(&CacheOptions::default()).unwrap());
    generate(model, &mut session, prompt, options).unwrap().map(|token| token.unwrap().id).collect()
}

/// Decodes until all rows have ended, and returns the tokens of each row and why it ended.
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
fn rows_generate_the_tokens_that_they_generate_alone() {
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

/// One set of options for each thing that a stream can do, all with the logprobs of four alternatives.
fn every_kind_of_option(stop_tokens: Vec<u32>) -> Vec<GenerateOptions> {
    let penalty = |penalty| Penalty { penalty, context_size: 8 };
    let with = |penalties| GenerateOptions { penalties, top_logprobs: 4, ..options(18) };
    let none = Penalties::default;
    let logit_bias = vec![(5, 3.0), (17, f64::NEG_INFINITY)];
    let dry = Some(Dry { multiplier: 5.0, allowed_length: 1, ..Dry::default() });
    let sampling = Sampling { temperature: 0.9, top_p: 0.9, seed: 5, ..Sampling::default() };
    vec![
        with(none()),
        with(Penalties { logit_bias, ..none() }),
        with(Penalties { repetition: penalty(1.5), ..none() }),
        with(Penalties { presence: penalty(0.7), frequency: penalty(0.3), ..none() }),
        with(Penalties { dry, ..none() }),
        GenerateOptions {
            stop_tokens,
            min_tokens: 9,
            ..with(Penalties { presence: penalty(0.7), ..none() })
        },
        GenerateOptions { sampling, ..with(Penalties { repetition: penalty(1.2), ..none() }) },
    ]
}

/// The same tokens and alternatives, and log-probabilities within 1e-4: a batch adds up in another order.
fn assert_same_tokens(row: RowId, found: &[Token], expected: &[Token]) {
    let ids = |token: &Token| -> Vec<u32> {
        let alternatives = token.alternatives.iter().map(|(id, _)| *id);
        [token.id].into_iter().chain(alternatives).collect()
    };
    let logprobs = |token: &Token| -> Vec<f32> {
        let alternatives = token.alternatives.iter().map(|(_, logprob)| *logprob);
        [token.logprob].into_iter().chain(alternatives).collect()
    };
    assert_eq!(found.len(), expected.len(), "{row:?}");
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(ids(found), ids(expected), "{row:?}");
        assert_eq!(found.alternatives.len(), 4);
        let (found, expected) = (logprobs(found), logprobs(expected));
        approx::assert_relative_eq!(&found[..], &expected[..], epsilon = 1e-4, max_relative = 1e-4);
    }
}

/// A row can do what a stream can do: each kind of option for one row, all in the same batch.
#[test]
fn every_row_has_the_options_of_a_stream() {
    for (window, border) in [(None, None), (Some(6), Some(16))] {
        let mut model = model(window, border);
        let stop_tokens = alone(&mut model, &text(11), options(3));
        let mut batch = Batch::new(CacheOptions::default());
        let mut expected: BTreeMap<RowId, (Vec<Token>, Option<FinishReason>)> = BTreeMap::new();
        let mut distinct = std::collections::BTreeSet::new();
        for options in every_kind_of_option(stop_tokens) {
            let mut session = Session::new(model.new_cache(&CacheOptions::default()).unwrap());
            let mut stream = generate(&mut model, &mut session, &text(11), options.clone()).unwrap();
            let tokens: Vec<Token> = stream.by_ref().map(Result::unwrap).collect();
            let finish = stream.finish_reason();
            drop(stream);
            distinct.insert(tokens.iter().map(|token| token.id).collect::<Vec<_>>());
            expected.insert(batch.add(&mut model, &text(11), options).unwrap(), (tokens, finish));
        }
        assert!(distinct.len() >= 5, "the options change nothing");
        let mut found: BTreeMap<RowId, (Vec<Token>, Option<FinishReason>)> = BTreeMap::new();
        while !batch.is_empty() {
            for BatchToken { row, token, finish } in batch.step(&mut model).unwrap() {
                let (tokens, why) = found.entry(row).or_default();
                tokens.extend(token);
                *why = finish;
            }
        }
        for ((row, (found, why)), (expected, finish)) in found.iter().zip(expected.values()) {
            assert_same_tokens(*row, found, expected);
            assert_eq!(why, finish, "{row:?}");
        }
    }
}

/// A cancelled row ends before its next token, as a stream does, and a row that asks for no token has none.
#[test]
fn rows_that_end_without_a_token_are_reported() {
    let mut model = model(None, None);
    let mut batch = Batch::new(CacheOptions::default());
    let cancel = Cancel::default();
    let cancelled = GenerateOptions { cancel: cancel.clone(), ..options(20) };
    let cancelled = batch.add(&mut model, &text(7), cancelled).unwrap();
    let none = batch.add(&mut model, &text(5), options(0)).unwrap();
    let other = batch.add(&mut model, &text(9), options(4)).unwrap();
    let ended = |row, finish| BatchToken { row, token: None, finish: Some(finish) };
    let expected = alone(&mut model, &text(9), options(4));
    let ids = |answers: &[BatchToken], row: RowId| -> Vec<u32> {
        let of_row = answers.iter().filter(|answer| answer.row == row);
        of_row.filter_map(|answer| answer.token.as_ref().map(|token| token.id)).collect()
    };
    let mut answers = batch.step(&mut model).unwrap();
    assert_eq!(answers[1], ended(none, FinishReason::MaxTokens));
    answers.extend(batch.step(&mut model).unwrap());
    cancel.cancel();
    let third = batch.step(&mut model).unwrap();
    assert_eq!((third.len(), &third[0]), (2, &ended(cancelled, FinishReason::Cancelled)));
    assert_eq!(batch.tokens(cancelled), None);
    answers.extend(third);
    answers.extend(batch.step(&mut model).unwrap());
    assert!(batch.is_empty());
    assert_eq!(ids(&answers, cancelled), alone(&mut model, &text(7), options(2)));
    assert_eq!(ids(&answers, other), expected);
}

/// A prompt whose beginning was read before, and the cache of a row that is kept for later.
#[test]
fn rows_continue_sessions_and_give_them_back() {
    for (window, border) in [(None, None), (Some(6), None), (None, Some(16))] {
        let mut model = model(window, border);
        let expected = alone(&mut model, &text(14), options(12));
        let mut session = Session::new(model.new_cache(&CacheOptions::default()).unwrap());
        session.read_all(&mut model, &text(14)[..10], 4, |_, _| std::ops::ControlFlow::Continue(())).unwrap();
        let mut batch = Batch::new(CacheOptions::default());
        batch.add(&mut model, &text(20), options(30)).unwrap();
        let row = batch.add_session(&mut model, session, &text(14)[10..], options(12)).unwrap();
        assert_eq!(batch.tokens(row), Some(&text(14)[..]));
        for _ in 0..5 {
            batch.step(&mut model).unwrap();
        }
        let mut kept = batch.session(row).unwrap().unwrap();
        let tokens = batch.tokens(row).unwrap().to_vec();
        assert_eq!((kept.rows(), &kept.ids().unwrap()[..]), (1, &tokens[..tokens.len() - 1]));
        let rest = &tokens[tokens.len() - 1..];
        let stream = generate(&mut model, &mut kept, rest, options(7)).unwrap();
        assert_eq!(stream.map(|token| token.unwrap().id).collect::<Vec<_>>(), expected[5..]);
        let ended = together(&mut model, &mut batch);
        assert_eq!(ended[&row].0, expected[5..]);
        assert!(batch.session(row).unwrap().is_none());
    }
}
