//! Sessions: the logits are those of one pass over the whole sequence, on both sides of LongRoPE's border and across it.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::ops::ControlFlow;

use mlx_causal_lm::{CausalLm, LoadOptions, Logits, trace};
use mlx_checkpoint::Checkpoint;
use mlx_generate::{GenerateError, GenerateOptions, Session, generate, generate_with_progress};
use mlx_kvcache::{CacheError, CacheOptions, ModelCache, SavedCache};
use mlx_phi3::{Config, Phi3};
use mlx_rs::ops::concatenate;
use mlx_rs::ops::indexing::{TryIndexOp, argmax_axis};
use mlx_rs::{Array, Device, DeviceType, Dtype};
use mlx_testing::{RandomParameters, Tolerance, compare};

/// Where LongRoPE changes its factors, in tokens.
const BORDER: i32 = 8;

/// A Phi-3 with LongRoPE, a vocabulary of 96 and a context of 64 tokens.
fn model(window: Option<i32>) -> Phi3 {
    let window = window.map_or_else(|| "null".to_owned(), |window| window.to_string());
    let folder = tempfile::tempdir().unwrap();
    let config = format!(
        r#"{{
        "model_type": "phi3", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 96, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 64, "original_max_position_embeddings": {BORDER},
        "sliding_window": {window},
        "rope_scaling": {{
            "type": "longrope", "short_factor": [1.0, 1.1, 1.25, 1.5], "long_factor": [1.0, 2.0, 4.5, 7.0]
        }}
    }}"#
    );
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    std::fs::write(folder.path().join("model.safetensors"), b"\x02\0\0\0\0\0\0\0{}").unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let config = Config::from_checkpoint(&checkpoint, &LoadOptions::default()).unwrap();
    Phi3::new(&config, &mut RandomParameters::new(11, Dtype::Float32))
}

fn new_session(model: &Phi3) -> Session {
    Session::new(model.new_cache(&CacheOptions::default()).unwrap())
}

/// Tokens `[rows, length]`; the rows differ.
fn tokens(rows: i32, length: i32) -> Array {
    let ids: Vec<u32> = (0..(rows * length) as u32).map(|i| (i * i * 7 + i) % 96).collect();
    Array::from_slice(&ids, &[rows, length])
}

fn cut(tokens: &Array, start: i32, end: i32) -> Array {
    tokens.try_index((.., start..end)).unwrap()
}

/// All logits of one pass through a fresh cache.
fn one_pass(model: &mut Phi3, tokens: &Array) -> Array {
    let mut cache = model.new_cache(&CacheOptions::default()).unwrap();
    model.forward(tokens, &mut cache, Logits::All).unwrap()
}

#[track_caller]
fn assert_close(found: &Array, expected: &Array, what: &str) {
    let result = compare(found, expected, Tolerance::Close { rtol: 1e-4, atol: 1e-4 }).unwrap();
    assert!(result.is_equal(), "{what}: {result}");
}

#[test]
fn each_call_has_the_logits_of_one_pass_over_all_tokens_up_to_its_end() {
    for window in [None, Some(5)] {
        let mut model = model(window);
        let tokens = tokens(2, 20);
        for calls in [vec![20], vec![1; 20], vec![7, 1, 1, 11], vec![8, 12], vec![3, 17], vec![9, 11]] {
            for piece in [1, 3, 2048] {
                let mut session = new_session(&model);
                let mut start = 0;
                for &call in &calls {
                    let end = start + call;
                    let next = cut(&tokens, start, end);
                    let found = session.read_in_chunks(&mut model, &next, Logits::All, piece).unwrap();
                    let whole = one_pass(&mut model, &cut(&tokens, 0, end));
                    assert_close(&found, &cut(&whole, start, end), &format!("{calls:?} by {piece} to {end}"));
                    start = end;
                }
                assert_eq!((session.offset(), session.cache().offset()), (20, 20));
            }
        }
    }
}

/// The border has an effect: otherwise the first test would pass without sessions.
#[test]
fn a_cache_alone_is_wrong_over_the_border() {
    let mut model = model(None);
    let tokens = tokens(1, 12);
    let mut cache = model.new_cache(&CacheOptions::default()).unwrap();
    model.forward(&cut(&tokens, 0, 7), &mut cache, Logits::None).unwrap();
    let found = model.forward(&cut(&tokens, 7, 12), &mut cache, Logits::All).unwrap();
    let whole = one_pass(&mut model, &tokens);
    let near = Tolerance::Close { rtol: 1e-2, atol: 1e-2 };
    assert!(!compare(&found, &cut(&whole, 7, 12), near).unwrap().is_equal());
}

#[test]
fn tokens_removed_from_a_session_leave_no_trace() {
    for window in [None, Some(4)] {
        let mut model = model(window);
        let tokens = tokens(2, 20);
        // Numbers of tokens that are read, taken back, and read again: below the border, across it and back, beyond it,
        // and all of them.
        for (read, back, more) in [(6, 2, 3), (12, 8, 2), (12, 8, 10), (15, 3, 4), (12, 4, 1), (10, 10, 5)] {
            let mut session = new_session(&model);
            session.read(&mut model, &cut(&tokens, 0, read), Logits::None).unwrap();
            assert_eq!(session.trim(back).unwrap(), back);
            let kept = read - back;
            assert_eq!(session.offset(), kept);
            // Other tokens than those that were taken back.
            let next = cut(&tokens, 20 - more, 20);
            let found = session.read(&mut model, &next, Logits::All).unwrap();
            let sequence = concatenate(&[&cut(&tokens, 0, kept), &next], 1).unwrap();
            let whole = one_pass(&mut model, &sequence);
            assert_close(
                &found,
                &cut(&whole, kept, kept + more),
                &format!("{window:?} {read} {back} {more}"),
            );
            let held = session.tokens().unwrap().unwrap();
            assert!(compare(&held, &sequence, Tolerance::Exact).unwrap().is_equal());
        }
    }
}

#[test]
fn a_session_refuses_negative_cuts_and_is_empty_after_large_ones() {
    let mut model = model(None);
    let mut session = new_session(&model);
    session.read(&mut model, &tokens(1, 5), Logits::None).unwrap();
    assert!(matches!(session.trim(-1), Err(GenerateError::Cache(CacheError::Negative { tokens: -1 }))));
    assert_eq!(session.offset(), 5);
    assert_eq!(session.trim(9).unwrap(), 5);
    assert_eq!(session.offset(), 0);
    assert!(session.tokens().unwrap().is_none());
}

/// Greedy decoding without a cache: everything is read again for every token.
fn naive(model: &mut Phi3, prompt: &[u32], count: usize) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    for _ in 0..count {
        let logits = one_pass(model, &Array::from_slice(&tokens, &[1, tokens.len() as i32]));
        let last = logits.try_index((.., -1.., ..)).unwrap();
        tokens.push(argmax_axis(&last, -1, false).unwrap().item_exact::<u32>());
    }
    tokens.split_off(prompt.len())
}

fn decode(model: &mut Phi3, session: &mut Session, prompt: &[u32], count: usize, chunk: usize) -> Vec<u32> {
    let options =
        GenerateOptions { max_tokens: count, prefill_chunk: Some(chunk), ..GenerateOptions::new(&[]) };
    generate(model, session, prompt, options).unwrap().map(|token| token.unwrap().id).collect()
}

#[test]
fn a_stream_crosses_the_border_in_the_middle_of_decoding() {
    for window in [None, Some(5)] {
        let mut model = model(window);
        for prompt in [&[3_u32, 1, 4, 1, 5][..], &[2; 8], &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]] {
            let expected = naive(&mut model, prompt, 12);
            for chunk in [1, 4, 2048] {
                let mut session = new_session(&model);
                let found = decode(&mut model, &mut session, prompt, 12, chunk);
                assert_eq!(found, expected, "{window:?} {prompt:?} {chunk}");
                assert_eq!(session.offset(), prompt.len() as i32 + 11);
            }
        }
    }
}

#[test]
fn a_second_prompt_may_be_what_crosses_the_border() {
    let mut model = model(None);
    let (first, second) = ([3_u32, 1, 4], [1_u32, 5, 9, 2, 6, 5, 3]);
    let mut session = new_session(&model);
    let answer = decode(&mut model, &mut session, &first, 2, 2048);
    let before: Vec<u32> = [&first[..], &answer[..1], &second].concat();
    let expected = naive(&mut model, &before, 6);
    assert_eq!(decode(&mut model, &mut session, &second, 6, 4), expected);

    // What is read again is part of the progress.
    let mut session = new_session(&model);
    session.read(&mut model, &Array::from_slice(&before[..4], &[1, 4]), Logits::None).unwrap();
    let mut seen = Vec::new();
    let options = GenerateOptions { max_tokens: 1, prefill_chunk: Some(3), ..GenerateOptions::new(&[]) };
    let stream = generate_with_progress(&mut model, &mut session, &second, options, |read, total| {
        seen.push((read, total));
        ControlFlow::Continue(())
    });
    drop(stream.unwrap());
    assert_eq!(seen, [(0, 11), (3, 11), (4, 11), (7, 11), (10, 11), (11, 11)]);
}

/// With the kernels of the CPU, all tokens of a short prompt are read in one call; elsewhere the last one is read alone.
#[test]
fn the_call_that_reads_the_last_token_computes_its_logits_alone() {
    let mut model = model(None);
    let prompt = [3_u32, 1, 4, 1, 5];
    let mut session = new_session(&model);
    let options = GenerateOptions { max_tokens: 1, ..GenerateOptions::new(&[]) };
    let (first, outputs) = trace(&mut model, |model: &mut dyn CausalLm| {
        generate(model, &mut session, &prompt, options).unwrap().next().unwrap().unwrap().id
    });
    let lengths = |name: &str| {
        let outputs = outputs.iter().filter(|traced| traced.name == name);
        outputs.map(|traced| traced.output.dim(1)).collect::<Vec<_>>()
    };
    let is_on_cpu = matches!(Device::try_default().unwrap().get_type(), Ok(DeviceType::Cpu));
    let calls: &[i32] = if mlx_sys::cpu_kernels::is_enabled() && is_on_cpu { &[5] } else { &[4, 1] };
    assert_eq!((lengths("embeddings"), lengths("logits")), (calls.to_vec(), vec![1]));
    assert_eq!([first], naive(&mut model, &prompt, 1)[..]);
}

#[test]
fn a_session_catches_up_after_an_interruption() {
    let mut model = model(None);
    let (first, second) = ([3_u32, 1, 4, 1], [5_u32, 9, 2, 6, 5]);
    let expected = naive(&mut model, &[&first[..], &second].concat(), 6);
    // Stopped in the middle of what has to be read again, and in the middle of the prompt.
    for stop_at in [0, 1, 3, 5, 8] {
        let mut session = new_session(&model);
        session.read(&mut model, &Array::from_slice(&first, &[1, 4]), Logits::None).unwrap();
        let options = GenerateOptions { max_tokens: 6, prefill_chunk: Some(1), ..GenerateOptions::new(&[]) };
        let stopped = generate_with_progress(&mut model, &mut session, &second, options, |read, _| {
            if read >= stop_at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(matches!(stopped, Err(GenerateError::Cancelled)));
        let known = session.offset() as usize;
        assert!((4..9).contains(&known));
        // The rest of the prompt.
        let rest = &second[known - 4..];
        assert_eq!(decode(&mut model, &mut session, rest, 6, 2048), expected, "{stop_at}");
    }
}

#[test]
fn a_call_that_fails_leaves_the_session_as_it_was() {
    let mut model = model(None);
    let tokens = tokens(1, 12);
    let mut session = new_session(&model);
    session.read(&mut model, &cut(&tokens, 0, 5), Logits::None).unwrap();
    for wrong in [Array::from_slice(&[1_u32], &[1]), Array::from_slice(&[1_u32, 2], &[2, 1])] {
        session.read(&mut model, &wrong, Logits::Last).unwrap_err();
        assert_eq!(session.offset(), 5);
    }
    let found = session.read(&mut model, &cut(&tokens, 5, 12), Logits::All).unwrap();
    assert_close(&found, &cut(&one_pass(&mut model, &tokens), 5, 12), "after an error");
}

#[test]
fn a_clone_is_independent() {
    let mut model = model(None);
    let tokens = tokens(1, 12);
    let mut session = new_session(&model);
    session.read(&mut model, &cut(&tokens, 0, 6), Logits::None).unwrap();
    let mut other = session.clone();
    session.read(&mut model, &cut(&tokens, 6, 12), Logits::None).unwrap();
    let found = other.read(&mut model, &cut(&tokens, 9, 10), Logits::All).unwrap();
    let sequence = concatenate(&[&cut(&tokens, 0, 6), &cut(&tokens, 9, 10)], 1).unwrap();
    assert_close(&found, &cut(&one_pass(&mut model, &sequence), 6, 7), "the clone");
    assert_eq!((session.offset(), other.offset()), (12, 7));
}

/// The rows of a batch cross the border at different times.
#[test]
fn padded_rows_cross_the_border_by_their_own_lengths() {
    let mut model = model(None);
    let (long, short) = (tokens(1, 14), cut(&tokens(2, 14), 0, 10).try_index((1.., ..)).unwrap());
    let padded = concatenate(&[&Array::zeros::<u32>(&[1, 4]).unwrap(), &short], 1).unwrap();
    let batch = concatenate(&[&long, &padded], 0).unwrap();
    let options = CacheOptions { left_padding: vec![0, 4], ..CacheOptions::default() };
    let mut session = Session::new(model.new_cache(&options).unwrap());
    session.read(&mut model, &cut(&batch, 0, 6), Logits::None).unwrap();
    for end in 7..=14 {
        let found = session.read(&mut model, &cut(&batch, end - 1, end), Logits::Last).unwrap();
        for (row, alone) in [(0, cut(&long, 0, end)), (1, cut(&short, 0, end - 4))] {
            let expected = one_pass(&mut model, &alone).try_index((.., -1.., ..)).unwrap();
            let found = found.try_index((row..row + 1, .., ..)).unwrap();
            assert_close(&found, &expected, &format!("row {row} to {end}"));
        }
    }
}

#[test]
fn a_cache_with_unknown_tokens_is_used_up_to_the_border() {
    let mut model = model(None);
    let tokens = tokens(1, 12);
    let cache = |model: &mut Phi3, length: i32| -> ModelCache {
        let mut cache = model.new_cache(&CacheOptions::default()).unwrap();
        model.forward(&cut(&tokens, 0, length), &mut cache, Logits::None).unwrap();
        cache
    };
    let mut session = Session::new(cache(&mut model, 5));
    let found = session.read(&mut model, &cut(&tokens, 5, 8), Logits::All).unwrap();
    assert_close(&found, &cut(&one_pass(&mut model, &cut(&tokens, 0, 8)), 5, 8), "within");
    let error = session.read(&mut model, &cut(&tokens, 8, 9), Logits::All).unwrap_err();
    assert!(matches!(error, GenerateError::UnknownTokens { tokens: 5 }), "{error}");
    assert!(error.to_string().contains("the first 5 tokens"), "{error}");
    assert_eq!(session.offset(), 8);
    // Without those tokens it can go on.
    assert_eq!(session.trim(8).unwrap(), 8);
    let found = session.read(&mut model, &tokens, Logits::All).unwrap();
    assert_close(&found, &one_pass(&mut model, &tokens), "from the beginning");

    // Beyond the border there is no second border.
    let mut session = Session::new(cache(&mut model, 10));
    let found = session.read(&mut model, &cut(&tokens, 10, 12), Logits::All).unwrap();
    assert_close(&found, &cut(&one_pass(&mut model, &tokens), 10, 12), "beyond");
    assert_eq!(session.into_cache().offset(), 12);
}

#[test]
fn a_cache_from_a_file_goes_on_over_the_border_with_its_tokens() {
    let mut model = model(None);
    let tokens = tokens(1, 12);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cache.safetensors");
    let mut session = new_session(&model);
    session.read(&mut model, &cut(&tokens, 0, 6), Logits::None).unwrap();
    session.cache().save(&file, "test", &[]).unwrap();

    let load = || SavedCache::read(&file).unwrap().into_cache();
    let empty = model.new_cache(&CacheOptions::default()).unwrap();
    for calls in [[7, 12], [10, 12]] {
        let mut session = Session::resume(load(), &cut(&tokens, 0, 6), &empty).unwrap();
        let mut start = 6;
        for end in calls {
            let found = session.read(&mut model, &cut(&tokens, start, end), Logits::All).unwrap();
            let whole = one_pass(&mut model, &cut(&tokens, 0, end));
            assert_close(&found, &cut(&whole, start, end), &format!("{calls:?}"));
            start = end;
        }
    }
    let error = Session::resume(load(), &cut(&tokens, 0, 5), &empty).unwrap_err();
    assert!(matches!(error, GenerateError::CachedTokens { found: 6, expected: 5 }), "{error}");
    let error = Session::resume(load(), &cut(&tokens, 0, 6), &load()).unwrap_err();
    assert_eq!(error.to_string(), "a cache of 6 tokens, where one of 0 is needed");
    assert_eq!(Session::resume(empty.clone(), &cut(&tokens, 0, 0), &empty).unwrap().offset(), 0);
}

/// A text is rotated for its whole length, which a clone of the cache knows too.
#[test]
fn caches_remember_what_was_expected() {
    let model = model(None);
    let mut cache = model.new_cache(&CacheOptions::default()).unwrap();
    assert_eq!((cache.expected(), cache.expected_after(3)), (0, 0));
    let before = cache.clone();
    cache.expect(20);
    assert_eq!((cache.expected(), cache.expected_after(3), cache.expected_after(30)), (20, 17, 0));
    assert_eq!(cache.clone().expected(), 20);
    assert_eq!(before.expected(), 0);
}

#[test]
fn many_single_tokens_are_kept_together() {
    let mut model = model(Some(4));
    let mut session = new_session(&model);
    // A session does not limit the sequence to the context of 64 tokens; the caller does.
    let ids: Vec<u32> = (0..1200).map(|i| i * 31 % 96).collect();
    for id in &ids {
        session.read(&mut model, &Array::from_slice(&[*id as i32], &[1, 1]), Logits::None).unwrap();
    }
    let tokens = session.tokens().unwrap().unwrap();
    assert_eq!((tokens.shape(), tokens.dtype()), (&[1, 1200][..], Dtype::Uint32));
    assert_eq!(tokens.as_slice::<u32>(), ids);
}

/// MLX would read another row of the embedding table.
#[test]
fn tokens_that_the_model_does_not_have_are_refused() {
    let mut model = model(None);
    let mut session = Session::new(model.new_cache(&CacheOptions::default()).unwrap());
    for (tokens, id, position) in [
        (Array::from_slice(&[3_u32, 1_000_000], &[1, 2]), 1_000_000, 1),
        (Array::from_slice(&[-1_i32, 3], &[1, 2]), -1, 0),
        (Array::from_slice(&[95_i32, 1, 2, 96], &[2, 2]), 96, 3),
    ] {
        let error = session.read(&mut model, &tokens, Logits::Last).unwrap_err();
        let expected = (id, position, 96);
        let found = match error {
            GenerateError::OutsideVocabulary { id, position, vocab_size } => (id, position, vocab_size),
            other => panic!("{other}"),
        };
        assert_eq!(found, expected);
    }
    assert_eq!(session.offset(), 0);
}
