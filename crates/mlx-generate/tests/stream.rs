//! The token loop on a tiny model with random weights.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::ops::ControlFlow;

use mlx_causal_lm::{CausalLm, Logits};
use mlx_checkpoint::Checkpoint;
use mlx_generate::{
    FinishReason, GenerateError, GenerateOptions, Sampling, Session, generate, generate_with_progress,
};
use mlx_kvcache::CacheOptions;
use mlx_lille_130m::{Config, Lille130m};
use mlx_rs::ops::indexing::argmax_axis;
use mlx_rs::{Array, Dtype};
use mlx_testing::RandomParameters;

/// A model with a vocabulary of 96 and a context of 64 tokens.
fn model() -> Lille130m {
    let folder = tempfile::tempdir().unwrap();
    let config = r#"{
        "model_type": "lille-130m", "block_size": 64, "layer_norm_eps": 1e-5, "n_embd": 64, "n_head": 4,
        "n_kv_heads": 2, "n_layer": 2, "rope_theta": 10000.0, "vocab_size": 96
    }"#;
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    std::fs::write(folder.path().join("model.safetensors"), b"\x02\0\0\0\0\0\0\0{}").unwrap();
    let config = Config::from_checkpoint(&Checkpoint::open(folder.path()).unwrap()).unwrap();
    Lille130m::new(&config, &mut RandomParameters::new(11, Dtype::Float32))
}

const PROMPT: [u32; 5] = [3, 1, 4, 1, 5];

fn options(max_tokens: usize) -> GenerateOptions {
    GenerateOptions { max_tokens, ..GenerateOptions::default() }
}

fn new_session(model: &Lille130m) -> Session {
    Session::new(model.new_cache(&CacheOptions::default()).unwrap())
}

fn ids(model: &mut Lille130m, prompt: &[u32], options: GenerateOptions) -> Vec<u32> {
    let mut session = new_session(model);
    generate(model, &mut session, prompt, options).unwrap().map(|token| token.unwrap().id).collect()
}

/// Greedy decoding without a cache: everything is read again for every token.
fn naive(model: &mut Lille130m, prompt: &[u32], count: usize) -> Vec<(u32, f32)> {
    let mut tokens = prompt.to_vec();
    (0..count)
        .map(|_| {
            let mut cache = model.new_cache(&CacheOptions::default()).unwrap();
            let input = Array::from_slice(&tokens, &[1, tokens.len() as i32]);
            let logits = model.forward(&input, &mut cache, Logits::Last).unwrap();
            let id = argmax_axis(&logits, -1, false).unwrap().item_exact::<u32>();
            let logits = logits.as_slice::<f32>();
            let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
            tokens.push(id);
            (id, (f64::from(logits[id as usize]) - sum.ln()) as f32)
        })
        .collect()
}

#[test]
fn greedy_tokens_and_their_logprobs_are_those_of_a_loop_without_cache() {
    let mut model = model();
    let expected = naive(&mut model, &PROMPT, 20);
    let mut session = new_session(&model);
    let stream = generate(&mut model, &mut session, &PROMPT, options(20)).unwrap();
    for (token, (id, logprob)) in stream.map(Result::unwrap).zip(expected) {
        assert_eq!(token.id, id);
        assert!((token.logprob - logprob).abs() < 1e-4, "{} {logprob}", token.logprob);
    }
}

#[test]
fn the_size_of_the_pieces_of_a_prompt_changes_nothing() {
    let mut model = model();
    let prompt: Vec<u32> = (0..40).map(|i| i * 13 % 96).collect();
    let expected = ids(&mut model, &prompt, options(10));
    for prefill_chunk in [0, 1, 7, 39, 40] {
        assert_eq!(ids(&mut model, &prompt, GenerateOptions { prefill_chunk, ..options(10) }), expected);
    }
}

#[test]
fn a_prompt_continues_what_the_cache_holds() {
    let mut model = model();
    let expected = ids(&mut model, &PROMPT, options(6));
    let mut session = new_session(&model);
    let first = Array::from_slice(&PROMPT[..3], &[1, 3]);
    session.read(&mut model, &first, Logits::None).unwrap();
    let stream = generate(&mut model, &mut session, &PROMPT[3..], options(6)).unwrap();
    assert_eq!(stream.map(|token| token.unwrap().id).collect::<Vec<_>>(), expected);
}

#[test]
fn a_stream_says_why_it_ended() {
    let mut model = model();
    let tokens = ids(&mut model, &PROMPT, options(8));
    let first_of = |id: u32| tokens.iter().position(|&token| token == id).unwrap() + 1;

    let mut session = new_session(&model);
    let stop = GenerateOptions { stop_tokens: vec![tokens[4]], ..options(8) };
    let mut stream = generate(&mut model, &mut session, &PROMPT, stop).unwrap();
    assert_eq!(stream.finish_reason(), None);
    assert_eq!(stream.by_ref().count(), first_of(tokens[4]));
    assert_eq!(stream.finish_reason(), Some(FinishReason::StopToken));
    assert!(stream.next().is_none());

    let mut session = new_session(&model);
    let mut stream = generate(&mut model, &mut session, &PROMPT, options(3)).unwrap();
    assert_eq!(stream.by_ref().count(), 3);
    assert_eq!(stream.finish_reason(), Some(FinishReason::MaxTokens));

    let mut session = new_session(&model);
    let mut stream = generate(&mut model, &mut session, &PROMPT, options(0)).unwrap();
    assert_eq!(stream.by_ref().count(), 0);
    assert_eq!(stream.finish_reason(), Some(FinishReason::MaxTokens));
}

#[test]
fn a_full_context_ends_the_stream() {
    let mut model = model();
    let mut session = new_session(&model);
    let mut stream = generate(&mut model, &mut session, &PROMPT, options(1000)).unwrap();
    // 64 places: 5 of the prompt, 59 read tokens, and one that is not read any more.
    assert_eq!(stream.by_ref().count(), 60);
    assert_eq!(stream.finish_reason(), Some(FinishReason::ContextFull));
    assert_eq!(session.offset(), 64);
}

#[test]
fn a_dropped_stream_leaves_a_cache_that_can_be_continued() {
    let mut model = model();
    let expected = ids(&mut model, &PROMPT, options(8));
    let mut session = new_session(&model);
    let taken: Vec<u32> = generate(&mut model, &mut session, &PROMPT, options(8))
        .unwrap()
        .take(3)
        .map(|t| t.unwrap().id)
        .collect();
    let read = session.offset() as usize;
    let known = [&PROMPT[..], &taken].concat();
    session.trim((read - known.len() + 1) as i32).unwrap();
    let rest = generate(&mut model, &mut session, &known[known.len() - 1..], options(5)).unwrap();
    assert_eq!(rest.map(|token| token.unwrap().id).collect::<Vec<_>>(), expected[3..]);
}

#[test]
fn progress_counts_the_prompt_and_may_stop_it() {
    let mut model = model();
    let mut session = new_session(&model);
    let mut seen = Vec::new();
    let pieces = GenerateOptions { prefill_chunk: 2, ..options(1) };
    let stream = generate_with_progress(&mut model, &mut session, &PROMPT, pieces.clone(), |read, total| {
        seen.push((read, total));
        ControlFlow::Continue(())
    });
    drop(stream.unwrap());
    assert_eq!(seen, [(0, 5), (2, 5), (4, 5), (5, 5)]);

    let mut session = new_session(&model);
    let stopped = generate_with_progress(&mut model, &mut session, &PROMPT, pieces, |read, _| {
        if read >= 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(stopped, Err(GenerateError::Cancelled)));
    assert_eq!(session.offset(), 2);
}

fn error(prompt: &[u32], options: GenerateOptions) -> GenerateError {
    let mut model = model();
    let mut session = new_session(&model);
    generate(&mut model, &mut session, prompt, options).unwrap_err()
}

#[test]
fn an_empty_prompt_is_an_error() {
    assert!(matches!(error(&[], options(1)), GenerateError::EmptyPrompt));
}

#[test]
fn a_prompt_beyond_the_context_is_an_error() {
    let error = error(&[1; 65], options(1));
    assert!(matches!(error, GenerateError::PromptTooLong { prompt: 65, cached: 0, context: 64 }));
    assert_eq!(error.to_string(), "the prompt has 65 tokens, and the model's context ends at 64");
}

#[test]
fn a_prompt_beyond_what_the_cache_leaves_is_an_error() {
    let mut model = model();
    let mut session = new_session(&model);
    drop(generate(&mut model, &mut session, &[1; 60], options(1)).unwrap());
    let error = generate(&mut model, &mut session, &[1; 5], options(1)).unwrap_err();
    assert!(error.to_string().contains("after the 60 that were read before"), "{error}");
}

#[test]
fn a_token_outside_the_vocabulary_is_an_error() {
    let error = error(&[1, 2, 96], options(1));
    assert!(matches!(error, GenerateError::OutsideVocabulary { id: 96, position: 2, vocab_size: 96 }));
    assert!(error.to_string().contains("token id 96 at position 2"), "{error}");
}

#[test]
fn a_negative_temperature_is_an_error() {
    let sampling = Sampling { temperature: -1.0, ..Sampling::default() };
    let error = error(&[1], GenerateOptions { sampling, ..options(1) });
    assert!(matches!(error, GenerateError::Option { option: "temperature", .. }), "{error}");
}
