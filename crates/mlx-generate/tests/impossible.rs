//! Where no token can be chosen there is an error, and never token 0.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::ops::ControlFlow;

use common::{model, text};
use mlx_causal_lm::CausalLm;
use mlx_generate::{
    Batch, DraftModel, GenerateError, GenerateOptions, Penalties, PerplexityOptions, PromptLookup, Sampling,
    Session, Speculation, generate, generate_speculative, perplexity,
};
use mlx_kvcache::CacheOptions;
use mlx_phi3::Phi3;
use mlx_rs::Array;
use mlx_rs::module::{FlattenedModuleParam, ModuleParameters};

fn session(model: &Phi3) -> Session {
    Session::new(model.new_cache(&CacheOptions { rewind: 4, ..CacheOptions::default() }).unwrap())
}

/// The first error of plain decoding, of speculative decoding, and of a batch, which must report it as the row's error.
fn errors(model: &mut Phi3, options: &GenerateOptions) -> [GenerateError; 3] {
    let mut plain = session(model);
    let first =
        generate(model, &mut plain, &text(5), options.clone()).unwrap().find_map(Result::err).unwrap();
    let mut speculative = session(model);
    let draft = &mut PromptLookup::default();
    let speculation = Speculation { draft, most: 4 };
    let mut stream =
        generate_speculative(model, &mut speculative, &text(5), options.clone(), speculation).unwrap();
    let second = stream.find_map(Result::err).unwrap();
    drop(stream);
    let mut batch = Batch::new(CacheOptions::default());
    let row = batch.add(model, &text(5), options.clone()).unwrap();
    let third = loop {
        match batch.step(model) {
            Ok(_) => assert!(!batch.is_empty()),
            Err(GenerateError::Row { row: found, source }) => {
                assert_eq!(found, row);
                break *source;
            }
            Err(e) => panic!("{e}"),
        }
    };
    assert!(batch.is_empty());
    [first, second, third]
}

fn samplings() -> [Sampling; 3] {
    let drawn = Sampling { temperature: 1.0, seed: 3, ..Sampling::default() };
    let filtered = Sampling { top_p: 0.9, min_p: 0.1, top_k: 5, ..drawn.clone() };
    [Sampling::default(), drawn, filtered]
}

#[test]
fn every_token_is_forbidden() {
    let mut model = model(None, None);
    let all: Vec<(u32, f64)> = (0..96).map(|id| (id, f64::NEG_INFINITY)).collect();
    // All tokens; and all but the stop token, which is impossible before the minimum number of tokens.
    for (logit_bias, stop_tokens, min_tokens) in [(all.clone(), vec![], 0), (all[..95].to_vec(), vec![95], 2)]
    {
        for sampling in samplings() {
            let penalties = Penalties { logit_bias: logit_bias.clone(), ..Penalties::default() };
            let stop_tokens = stop_tokens.clone();
            let options =
                GenerateOptions { penalties, stop_tokens, min_tokens, sampling, ..GenerateOptions::new(&[]) };
            for error in errors(&mut model, &options) {
                assert!(matches!(error, GenerateError::NoTokenPossible), "{error}");
            }
        }
    }
    // Without the minimum number of tokens, the stop token is the only one that is left.
    let penalties = Penalties { logit_bias: all[..95].to_vec(), ..Penalties::default() };
    let options = GenerateOptions { penalties, stop_tokens: vec![95], ..GenerateOptions::new(&[]) };
    let mut session = session(&model);
    let tokens: Vec<u32> = generate(&mut model, &mut session, &text(5), options)
        .unwrap()
        .map(|token| token.unwrap().id)
        .collect();
    assert_eq!(tokens, [95]);
}

#[test]
fn weights_that_are_not_numbers() {
    let mut model = model(None, None);
    for bad in [f32::NAN, f32::INFINITY] {
        let norm = Array::from_slice(&[bad; 64], &[64]);
        model.update_flattened(FlattenedModuleParam::from_iter([("model.norm.weight".into(), norm)]));
        for sampling in samplings() {
            let options = GenerateOptions { sampling, ..GenerateOptions::new(&[]) };
            for error in errors(&mut model, &options) {
                assert!(matches!(error, GenerateError::NotANumber), "{error}");
            }
        }
        let error =
            perplexity(&mut model, &text(9), PerplexityOptions::default(), |_, _| ControlFlow::Continue(()));
        assert!(matches!(error, Err(GenerateError::NotANumber)));
    }
}

/// One row fails, and the others get all of their tokens.
#[test]
fn a_row_that_fails_leaves_the_others_alone() {
    let mut model = model(None, None);
    let options = GenerateOptions { max_tokens: 6, ..GenerateOptions::new(&[]) };
    let mut expected = session(&model);
    let expected: Vec<u32> = generate(&mut model, &mut expected, &text(7), options.clone())
        .unwrap()
        .map(|token| token.unwrap().id)
        .collect();
    let logit_bias = (0..96).map(|id| (id, f64::NEG_INFINITY)).collect();
    let impossible =
        GenerateOptions { penalties: Penalties { logit_bias, ..Penalties::default() }, ..options.clone() };
    let mut batch = Batch::new(CacheOptions::default());
    let bad = batch.add(&mut model, &text(5), impossible.clone()).unwrap();
    let good = batch.add(&mut model, &text(7), options).unwrap();
    let bad_too = batch.add(&mut model, &text(4), impossible).unwrap();
    let (mut tokens, mut failed) = (Vec::new(), Vec::new());
    while !batch.is_empty() {
        match batch.step(&mut model) {
            Ok(answers) => {
                tokens.extend(answers.into_iter().map(|answer| (answer.row, answer.token.unwrap().id)))
            }
            Err(GenerateError::Row { row, .. }) => failed.push(row),
            Err(e) => panic!("{e}"),
        }
    }
    assert!(failed.len() == 2 && failed.contains(&bad) && failed.contains(&bad_too));
    assert_eq!(tokens, expected.into_iter().map(|id| (good, id)).collect::<Vec<_>>());
}

/// A damaged draft does not change greedy answers. Where tokens are drawn, it is an error.
#[test]
fn a_draft_whose_weights_are_not_numbers() {
    let (mut large, mut small) = (model(None, None), model(None, None));
    let norm = Array::from_slice(&[f32::NAN; 64], &[64]);
    small.update_flattened(FlattenedModuleParam::from_iter([("model.norm.weight".into(), norm)]));
    for sampling in samplings() {
        let options = GenerateOptions { sampling, max_tokens: 6, ..GenerateOptions::new(&[]) };
        let mut plain = session(&large);
        let expected: Vec<u32> = generate(&mut large, &mut plain, &text(5), options.clone())
            .unwrap()
            .map(|token| token.unwrap().id)
            .collect();
        let its_session = session(&small);
        let mut draft = DraftModel::new(&mut small, &options).unwrap().with_session(its_session);
        let mut speculative = session(&large);
        let speculation = Speculation { draft: &mut draft, most: 4 };
        let greedy = options.sampling.temperature == 0.0;
        let stream =
            generate_speculative(&mut large, &mut speculative, &text(5), options, speculation).unwrap();
        match stream.collect::<Result<Vec<_>, _>>() {
            Ok(tokens) => assert!(greedy && tokens.iter().map(|token| token.id).eq(expected)),
            Err(error) => assert!(!greedy && matches!(error, GenerateError::DraftNotANumber), "{error}"),
        }
    }
}
