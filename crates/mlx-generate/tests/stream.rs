//! The token loop on a tiny model with random weights.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::ops::ControlFlow;

use approx::assert_abs_diff_eq;
use mlx_causal_lm::{CausalLm, Logits};
use mlx_checkpoint::Checkpoint;
use mlx_generate::{
    Dry, FinishReason, GenerateError, GenerateOptions, Overflow, Penalties, Penalty, Sampling, Session,
    Token, default_prefill_chunk, generate, generate_with_progress,
};
use mlx_kvcache::{CacheOptions, Limit};
use mlx_lille_130m::{Config, Lille130m};
use mlx_rs::ops::indexing::argmax_axis;
use mlx_rs::{Array, Dtype};
use mlx_testing::{RandomParameters, on_cpu};

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
    GenerateOptions { max_tokens, ..GenerateOptions::new(&[]) }
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
        assert_abs_diff_eq!(token.logprob, logprob, epsilon = 1e-4);
    }
}

#[test]
fn the_size_of_the_chunks_of_a_prompt_changes_nothing() {
    let mut model = model();
    let prompt: Vec<u32> = (0..40).map(|i| i * 13 % 96).collect();
    let expected = ids(&mut model, &prompt, options(10));
    for prefill_chunk in [0, 1, 7, 39, 40].map(Some) {
        assert_eq!(ids(&mut model, &prompt, GenerateOptions { prefill_chunk, ..options(10) }), expected);
    }
}

#[test]
fn chunks_suit_the_device_unless_they_are_chosen() {
    let chosen = |prefill_chunk| GenerateOptions { prefill_chunk, ..options(1) }.chunk();
    assert_eq!(default_prefill_chunk(), if on_cpu() { 512 } else { 2048 });
    assert_eq!(chosen(None), default_prefill_chunk());
    assert_eq!([0, 1, 7].map(|chunk| chosen(Some(chunk))), [1, 1, 7]);
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
    // 64 places: 5 tokens of the prompt, 59 that were read, and a last one that is not read.
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
    let chunks = GenerateOptions { prefill_chunk: Some(2), ..options(1) };
    let stream = generate_with_progress(&mut model, &mut session, &PROMPT, chunks.clone(), |read, total| {
        seen.push((read, total));
        ControlFlow::Continue(())
    });
    drop(stream.unwrap());
    assert_eq!(seen, [(0, 5), (2, 5), (4, 5), (5, 5)]);

    let mut session = new_session(&model);
    let stopped = generate_with_progress(&mut model, &mut session, &PROMPT, chunks, |read, _| {
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
fn a_prompt_that_does_not_fit_after_the_cache_is_an_error() {
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

fn tokens(model: &mut Lille130m, prompt: &[u32], options: GenerateOptions) -> Vec<Token> {
    let mut session = new_session(model);
    generate(model, &mut session, prompt, options).unwrap().map(Result::unwrap).collect()
}

#[test]
fn alternatives_are_the_most_probable_tokens() {
    let mut model = model();
    for (top_logprobs, expected) in [(0, 0), (1, 1), (5, 5), (96, 96), (1000, 96)] {
        for token in tokens(&mut model, &PROMPT, GenerateOptions { top_logprobs, ..options(4) }) {
            assert_eq!(token.alternatives.len(), expected);
            // Greedy, so the token is the first of them.
            if expected > 0 {
                assert_eq!(token.alternatives[0], (token.id, token.logprob));
            }
            assert!(token.alternatives.is_sorted_by(|a, b| a.1 >= b.1), "{:?}", token.alternatives);
        }
    }
    // The probabilities of all tokens add up to 1.
    let all =
        &tokens(&mut model, &PROMPT, GenerateOptions { top_logprobs: 96, ..options(1) })[0].alternatives;
    let mut ids: Vec<u32> = all.iter().map(|&(id, _)| id).collect();
    ids.sort_unstable();
    assert_eq!(ids, (0..96).collect::<Vec<_>>());
    let sum: f64 = all.iter().map(|&(_, logprob)| f64::from(logprob).exp()).sum();
    assert_abs_diff_eq!(sum, 1.0, epsilon = 1e-5);
}

#[test]
fn stop_tokens_are_impossible_before_the_minimum_length() {
    let mut model = model();
    let plain = ids(&mut model, &PROMPT, options(8));
    // Ids outside of the vocabulary have no effect.
    let stop = GenerateOptions { stop_tokens: vec![plain[0], 96, u32::MAX], ..options(8) };
    assert_eq!(ids(&mut model, &PROMPT, stop.clone()), plain[..1]);
    for min_tokens in [1, 3, 8, 100] {
        let found = ids(&mut model, &PROMPT, GenerateOptions { min_tokens, ..stop.clone() });
        assert!(found.len() >= min_tokens.min(8), "{found:?}");
        assert!(!found[..min_tokens.min(8)].contains(&plain[0]), "{found:?}");
    }
    // The token has no probability, and the others have all of it.
    let options = GenerateOptions { min_tokens: 1, top_logprobs: 96, ..stop };
    let alternatives = &tokens(&mut model, &PROMPT, options)[0].alternatives;
    assert_eq!(alternatives[95], (plain[0], f32::NEG_INFINITY));
    let sum: f64 = alternatives.iter().map(|&(_, logprob)| f64::from(logprob).exp()).sum();
    assert_abs_diff_eq!(sum, 1.0, epsilon = 1e-5);
}

/// Greedy decoding without a cache or look-ahead, with penalties by their definitions for tokens `from` on.
fn naive_with_penalties(
    model: &mut Lille130m,
    prompt: &[u32],
    penalties: &Penalties,
    from: usize,
    count: usize,
) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    for _ in 0..count {
        let mut cache = model.new_cache(&CacheOptions::default()).unwrap();
        let input = Array::from_slice(&tokens, &[1, tokens.len() as i32]);
        let logits = model.forward(&input, &mut cache, Logits::Last).unwrap();
        let mut logits = logits.as_slice::<f32>().to_vec();
        let history = &tokens[from..];
        let Penalty { penalty, context_size } = penalties.frequency;
        for &id in &history[history.len().saturating_sub(context_size)..] {
            logits[id as usize] -= penalty as f32;
        }
        if let Some(dry) = &penalties.dry {
            for next in 1..history.len() {
                let repeated =
                    (1..=next).take_while(|n| history[next - n] == history[history.len() - n]).count();
                if repeated >= dry.allowed_length {
                    // So large that one repetition is enough.
                    logits[history[next] as usize] -= dry.multiplier as f32;
                }
            }
        }
        let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
        tokens.push(best as u32);
    }
    tokens.split_off(prompt.len())
}

#[test]
fn penalties_see_the_prompt_and_every_token_up_to_the_newest() {
    let mut model = model();
    let prompt: Vec<u32> = (0..30).map(|i| i * 7 % 96).chain([5, 9, 5, 9, 5]).collect();
    let plain = ids(&mut model, &prompt, options(20));
    let frequency = Penalty { penalty: 3.0, context_size: 40 };
    let dry = Dry { multiplier: 1000.0, allowed_length: 1, ..Dry::default() };
    let cases = [
        Penalties { frequency, ..Penalties::default() },
        Penalties { dry: Some(dry.clone()), ..Penalties::default() },
        Penalties { frequency, dry: Some(dry), ..Penalties::default() },
    ];
    for penalties in cases {
        let expected = naive_with_penalties(&mut model, &prompt, &penalties, 0, 20);
        assert_ne!(expected, plain);
        // The whole prompt counts, and so do tokens that the session had before.
        for from in [20, prompt.len() - 1] {
            let without = naive_with_penalties(&mut model, &prompt, &penalties, from, 20);
            assert!(without != expected || penalties.frequency.penalty == 0.0, "{from}");
        }
        let with_penalties = GenerateOptions { penalties, ..options(20) };
        assert_eq!(ids(&mut model, &prompt, with_penalties.clone()), expected, "{with_penalties:?}");

        // The session's earlier tokens count, except those that were taken back.
        let mut session = new_session(&model);
        let first = Array::from_slice(&[&prompt[..20], &[7, 7]].concat(), &[1, 22]);
        session.read(&mut model, &first, Logits::None).unwrap();
        session.trim(2).unwrap();
        let stream = generate(&mut model, &mut session, &prompt[20..], with_penalties).unwrap();
        assert_eq!(stream.map(|token| token.unwrap().id).collect::<Vec<_>>(), expected);
    }
}

#[test]
fn a_bias_for_a_token_that_the_model_does_not_have_is_an_error() {
    let penalties = Penalties { logit_bias: vec![(96, 1.0)], ..Penalties::default() };
    let error = error(&[1], GenerateOptions { penalties, ..options(1) });
    assert_eq!(error.to_string(), "the token id of a logit bias is 96, and must be below 96");
}

#[test]
fn a_handle_stops_a_prompt_and_a_stream_from_another_thread() {
    let mut model = model();
    let options = options(20);
    let cancel = options.cancel.clone();
    let mut session = new_session(&model);
    let mut stream = generate(&mut model, &mut session, &PROMPT, options.clone()).unwrap();
    assert_eq!(stream.by_ref().take(4).count(), 4);
    std::thread::spawn(move || cancel.cancel()).join().unwrap();
    assert!(stream.next().is_none());
    assert_eq!(stream.finish_reason(), Some(FinishReason::Cancelled));
    drop(stream);
    assert_eq!(session.offset(), 9);

    let mut session = new_session(&model);
    let error = generate(&mut model, &mut session, &PROMPT, options).unwrap_err();
    assert!(matches!(error, GenerateError::Cancelled), "{error}");
}

/// With a limited cache a text can become longer than the context, and memory does not grow.
#[test]
fn a_sequence_may_slide_past_the_context() {
    let mut model = model();
    let limit = Some(Limit { max_size: 16, keep: 4 });
    let options = GenerateOptions { overflow: Overflow::Slide, ..options(100) };
    let cache = model.new_cache(&CacheOptions { limit, ..CacheOptions::default() }).unwrap();
    let mut session = Session::new(cache);
    let stream = generate(&mut model, &mut session, &PROMPT, options.clone()).unwrap();
    let tokens: Vec<u32> = stream.map(|token| token.unwrap().id).collect();
    // The context of this model is 64 tokens.
    assert_eq!((tokens.len(), session.offset()), (100, 104));
    let long: Vec<u32> = (0..80).map(|i| i % 96).collect();
    assert_eq!(ids(&mut model, &long, GenerateOptions { max_tokens: 3, ..options }).len(), 3);
    let mut session = new_session(&model);
    let error = generate(&mut model, &mut session, &long, self::options(3)).unwrap_err();
    assert!(matches!(error, GenerateError::PromptTooLong { .. }), "{error}");
}
