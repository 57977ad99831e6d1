//! Hidden states: they lead to the logits, and do not depend on how the text is cut into calls.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use common::{model, text};
use mlx_causal_lm::{CausalLm, Logits, trace};
use mlx_generate::{GenerateError, Session, default_prefill_chunk};
use mlx_kvcache::CacheOptions;
use mlx_phi3::Phi3;
use mlx_rs::Array;
use mlx_rs::fast::rms_norm;
use mlx_rs::module::ModuleParameters;
use mlx_rs::ops::indexing::{TryIndexOp, take_axis};
use mlx_testing::tensor;

fn session(model: &Phi3) -> Session {
    Session::new(model.new_cache(&CacheOptions::default()).unwrap())
}

fn row(ids: &[u32]) -> Array {
    Array::from_slice(ids, &[1, ids.len() as i32])
}

#[test]
fn hidden_states_are_what_logits_are_made_of() {
    let mut model = model(Some(6), Some(16));
    let tokens = row(&text(23));
    let states = session(&model).hidden_states(&mut model, &tokens).unwrap();
    let logits = session(&model).read(&mut model, &tokens, Logits::All).unwrap();
    assert_eq!(tensor(&model.head(&states.last).unwrap()), tensor(&logits));
    assert_eq!(
        tensor(&session(&model).last_hidden_state(&mut model, &tokens).unwrap()),
        tensor(&states.last)
    );

    // The first are the embedded tokens, and the last norm makes `last` of the last.
    let parameters = model.parameters().flatten();
    let embedded = take_axis(parameters["model.embed_tokens.weight"], &tokens, 0).unwrap();
    assert_eq!(tensor(&states.layers[0]), tensor(&embedded));
    let normed = rms_norm(&states.layers[2], Some(parameters["model.norm.weight"]), 1e-5).unwrap();
    assert_eq!(tensor(&normed), tensor(&states.last));
    assert_eq!(states.layers.len(), 3);
}

#[test]
fn hidden_states_of_layers_are_the_outputs_of_blocks() {
    let mut model = model(None, None);
    let tokens = row(&text(9));
    let states = session(&model).hidden_states(&mut model, &tokens).unwrap();
    let mut cache = model.new_cache(&CacheOptions::default()).unwrap();
    let (logits, outputs) =
        trace(&mut model, |model: &mut dyn CausalLm| model.forward(&tokens, &mut cache, Logits::All));
    logits.unwrap();
    for (index, layer) in states.layers[1..].iter().enumerate() {
        let of_block = |name: &str| {
            let found = outputs.iter().find(|output| output.block == Some(index) && output.name == name);
            tensor(&found.unwrap().output)
        };
        assert_eq!(tensor(layer), of_block("output"), "{index}");
    }
}

/// In several calls, over LongRoPE's border where the session reads the text again, and in chunks.
#[test]
fn the_text_may_be_cut_anywhere() {
    for (window, border) in [(None, None), (Some(6), None), (None, Some(16)), (Some(6), Some(16))] {
        let mut model = model(window, border);
        let ids = text(24);
        let all = session(&model).hidden_states(&mut model, &row(&ids)).unwrap();
        for at in [1, 7, 15, 16, 17, 23] {
            let mut session = session(&model);
            session.read(&mut model, &row(&ids[..at]), Logits::None).unwrap();
            let rest = session.hidden_states(&mut model, &row(&ids[at..])).unwrap();
            let expected = all.layers.iter().chain([&all.last]);
            for (found, expected) in rest.layers.iter().chain([&rest.last]).zip(expected) {
                let expected = expected.try_index((.., at as i32..)).unwrap();
                approx::assert_abs_diff_eq!(tensor(found), tensor(&expected), epsilon = 1e-4);
            }
            assert_eq!(session.ids().unwrap(), ids);
        }
    }
    let mut model = model(Some(6), None);
    let long = text(2 * default_prefill_chunk() as u32 + 5);
    let states = session(&model).hidden_states(&mut model, &row(&long)).unwrap();
    let mut cache = model.new_cache(&CacheOptions::default()).unwrap();
    let expected = model.hidden_states(&row(&long), &mut cache).unwrap();
    approx::assert_abs_diff_eq!(tensor(&states.last), tensor(&expected), epsilon = 1e-4);
    assert!(states.layers.iter().all(|layer| layer.shape() == expected.shape()));
}

#[test]
fn tokens_outside_the_vocabulary_are_an_error() {
    let mut model = model(None, None);
    let mut session = session(&model);
    let error = session.hidden_states(&mut model, &row(&[3, 96])).unwrap_err();
    assert!(matches!(error, GenerateError::OutsideVocabulary { id: 96, position: 1, .. }), "{error:?}");
    assert!(session.last_hidden_state(&mut model, &row(&[96])).is_err());
    assert_eq!(session.offset(), 0);
}
