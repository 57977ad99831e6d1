//! Everything that is `Send` goes on working on the thread that it is sent to.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::thread;

use approx::assert_abs_diff_eq;
use common::{model, model_of, text};
use mlx_causal_lm::{CausalLm, Logits};
use mlx_generate::{
    Batch, DraftModel, GenerateError, GenerateOptions, KvQuantization, Penalties, Penalty, Sampling, Session,
    Speculation, Token, generate, generate_speculative,
};
use mlx_kvcache::{CacheOptions, Quantization};
use mlx_phi3::Phi3;
use mlx_rs::Array;
use mlx_rs::module::ModuleParameters;
use mlx_rs::transforms::eval_params;

/// A model with its weights in memory, as `mlx_models::load` returns it.
fn loaded(window: Option<i32>, border: Option<i32>) -> Phi3 {
    let model = model(window, border);
    eval_params(model.parameters()).unwrap();
    model
}

/// Options that keep state between tokens: random numbers, penalties, alternatives.
fn options(max_tokens: usize) -> GenerateOptions {
    let penalty = |penalty| Penalty { penalty, context_size: 8 };
    GenerateOptions {
        max_tokens,
        sampling: Sampling { temperature: 0.8, top_p: 0.95, seed: 7, ..Sampling::default() },
        penalties: Penalties { repetition: penalty(1.2), presence: penalty(0.1), ..Penalties::default() },
        top_logprobs: 2,
        ..GenerateOptions::new(&[])
    }
}

fn cache() -> CacheOptions {
    CacheOptions { rewind: 4, ..CacheOptions::default() }
}

fn row(tokens: &[u32]) -> Array {
    Array::from_slice(tokens, &[1, tokens.len() as i32])
}

/// Runs this on a new thread, and waits for the end of the thread.
fn elsewhere<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| scope.spawn(work).join().unwrap())
}

const KINDS: [(Option<i32>, Option<i32>); 4] =
    [(None, None), (Some(6), None), (None, Some(16)), (Some(6), Some(16))];

fn ids(tokens: Vec<Token>) -> Vec<u32> {
    tokens.into_iter().map(|token| token.id).collect()
}

#[test]
fn a_stream_goes_on_on_another_thread() {
    for (window, border) in KINDS {
        let mut model = loaded(window, border);
        let mut session = Session::new(model.new_cache(&cache()).unwrap());
        let expected: Vec<Token> =
            generate(&mut model, &mut session, &text(11), options(20)).unwrap().map(Result::unwrap).collect();

        let (mut model, mut session) = elsewhere(move || {
            let session = Session::new(model.new_cache(&cache()).unwrap());
            (model, session)
        });
        let mut stream = generate(&mut model, &mut session, &text(11), options(20)).unwrap();
        let mut found = vec![stream.next().unwrap().unwrap()];
        // One thread for each token, and one for the rest.
        for _ in 0..5 {
            found.push(elsewhere(|| stream.next().unwrap().unwrap()));
        }
        found.extend(elsewhere(move || stream.map(Result::unwrap).collect::<Vec<_>>()));
        assert_eq!(found, expected, "{window:?} {border:?}");
        // And the session goes on.
        assert_eq!(session.offset(), 30);
        elsewhere(|| session.read(&mut model, &row(&[1, 2, 3]), Logits::Last).unwrap().eval().unwrap());
    }
}

#[test]
fn a_session_that_is_half_read_goes_on_on_another_thread() {
    for (window, border) in KINDS {
        for logits in [Logits::All, Logits::Last, Logits::None] {
            let mut model = loaded(window, border);
            let mut whole = Session::new(model.new_cache(&cache()).unwrap());
            let expected = whole.read(&mut model, &row(&text(24)), Logits::Last).unwrap();
            let expected = expected.as_slice::<f32>().to_vec();

            let mut session = Session::new(model.new_cache(&cache()).unwrap());
            let int32 = row(&text(24)[..9]).as_dtype(mlx_rs::Dtype::Int32).unwrap();
            // The logits are not used.
            drop(session.read(&mut model, &int32, logits).unwrap());
            elsewhere(|| session.read_in_chunks(&mut model, &row(&text(24)[9..20]), logits, 4).map(drop))
                .unwrap();
            elsewhere(|| session.trim(2)).unwrap();
            let answer = elsewhere(|| session.read(&mut model, &row(&text(24)[18..]), Logits::Last)).unwrap();
            let found = elsewhere(move || answer.as_slice::<f32>().to_vec());
            assert_abs_diff_eq!(&found[..], &expected[..], epsilon = 1e-4);
        }
    }
}

#[test]
fn a_session_that_becomes_quantized_goes_on_on_another_thread() {
    let mut model = loaded(None, None);
    let quantization = KvQuantization { quantization: Quantization::affine(8, 32).unwrap(), from: 13 };
    let decode = |model: &mut Phi3, moves: bool| {
        let mut session = Session::new(model.new_cache(&cache()).unwrap());
        session.quantize_from(model, quantization).unwrap();
        let mut stream = generate(model, &mut session, &text(11), options(9)).unwrap();
        let mut tokens = Vec::new();
        while let Some(token) = if moves { elsewhere(|| stream.next()) } else { stream.next() } {
            tokens.push(token.unwrap());
        }
        drop(stream);
        if moves {
            elsewhere(|| session.read(model, &row(&[3]), Logits::Last).unwrap().eval().unwrap());
        }
        tokens
    };
    assert_eq!(decode(&mut model, true), decode(&mut model, false));
}

#[test]
fn a_batch_goes_on_on_another_thread() {
    for (window, border) in KINDS {
        let mut model = loaded(window, border);
        let mut run = |moves: bool| {
            let mut batch = Batch::new(cache());
            let mut tokens = Vec::new();
            for i in 0..14 {
                if [0, 1, 5].contains(&i) {
                    let prompt = text(9 + i);
                    let mut add = || batch.add(&mut model, &prompt, options(6)).unwrap();
                    if moves {
                        elsewhere(add)
                    } else {
                        add()
                    };
                }
                let mut step = || batch.step(&mut model).unwrap();
                let answers = if moves { elsewhere(step) } else { step() };
                tokens.extend(answers.into_iter().map(|answer| (answer.row, answer.token)));
            }
            assert!(batch.is_empty());
            tokens
        };
        assert_eq!(run(true), run(false), "{window:?} {border:?}");
    }
}

#[test]
fn a_speculative_stream_goes_on_on_another_thread() {
    for (window, border) in KINDS {
        let mut model = loaded(window, border);
        let mut small = model_of(window, border, 96, 12);
        eval_params(small.parameters()).unwrap();
        let mut run = |moves: bool| {
            let its_session = Session::new(small.new_cache(&cache()).unwrap());
            let mut draft = DraftModel::new(&mut small, &options(20)).unwrap().with_session(its_session);
            let mut session = Session::new(model.new_cache(&cache()).unwrap());
            let speculation = Speculation { draft: &mut draft, most: 3 };
            let mut stream =
                generate_speculative(&mut model, &mut session, &text(11), options(20), speculation).unwrap();
            let mut tokens = Vec::new();
            while let Some(token) = if moves { elsewhere(|| stream.next()) } else { stream.next() } {
                tokens.push(token.unwrap());
            }
            ids(tokens)
        };
        assert_eq!(run(true), run(false), "{window:?} {border:?}");
    }
}

/// MLX's own message does not say what a user can do.
#[test]
fn weights_that_were_never_read_are_named() {
    let mut model = model(None, None);
    // Like a weight that has not been read from its file: only this thread can compute it.
    let norm = Array::ones::<f32>(&[64]).unwrap().add(Array::from_f32(0.0)).unwrap();
    model.update_flattened(mlx_rs::module::FlattenedModuleParam::from_iter([(
        "model.norm.weight".into(),
        norm,
    )]));
    let error = elsewhere(move || {
        let mut session = Session::new(model.new_cache(&cache()).unwrap());
        let error = generate(&mut model, &mut session, &text(5), options(3)).map(drop).unwrap_err();
        (matches!(error, GenerateError::OtherThread), error.to_string())
    });
    assert!(error.0, "{}", error.1);
}
