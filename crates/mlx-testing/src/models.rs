//! Checks that every language model must pass, of any architecture.
//!
//! Each function panics where a check fails. The functions compare a model with itself; the parity cases compare its logits
//! with those of other programs. Models are float32, and tokens are `[B, T]` with two different rows.
#![allow(clippy::unwrap_used, reason = "for tests, which want to stop there")]

use approx::{assert_relative_eq, assert_relative_ne};
use mlx_causal_lm::{CausalLm, Logits};
use mlx_kvcache::{CacheOptions, ModelCache};
use mlx_rs::Array;
use mlx_rs::builder::Builder;
use mlx_rs::error::Exception;
use mlx_rs::losses::CrossEntropyBuilder;
use mlx_rs::module::ModuleParametersExt;
use mlx_rs::nn::value_and_grad;
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::ops::{concatenate, zeros};
use mlx_rs::optimizers::{Adam, Optimizer};

use crate::tensor;

#[track_caller]
fn assert_close(found: &Array, expected: &Array) {
    assert_relative_eq!(tensor(found), tensor(expected), epsilon = 1e-4, max_relative = 1e-4);
}

/// The tokens of all rows from `start` to `end`.
fn columns(tokens: &Array, start: i32, end: i32) -> Array {
    tokens.try_index((.., start..end)).unwrap()
}

/// The logits of all tokens, which are read in one call with an empty cache.
pub fn all_logits(model: &mut dyn CausalLm, tokens: &Array) -> Array {
    let mut cache = model.new_cache(&CacheOptions::default()).unwrap();
    model.forward(tokens, &mut cache, Logits::All).unwrap()
}

/// Logits do not depend on how the tokens are cut into calls.
#[track_caller]
pub fn splits_do_not_matter(model: &mut dyn CausalLm, tokens: &Array, splits: &[Vec<i32>]) {
    let whole = all_logits(model, tokens);
    for calls in splits {
        let mut cache = model.new_cache(&CacheOptions::default()).unwrap();
        let mut pieces = Vec::new();
        for &call in calls {
            let start = cache.offset();
            let piece = columns(tokens, start, start + call);
            pieces.push(model.forward(&piece, &mut cache, Logits::All).unwrap());
        }
        assert_eq!(cache.offset(), tokens.dim(1), "{calls:?} are not all of the tokens");
        assert_close(&concatenate(&pieces, 1).unwrap(), &whole);
    }
}

/// A row of a batch has the same logits as alone, also with padding on the left.
#[track_caller]
pub fn batches_do_not_matter(model: &mut dyn CausalLm, tokens: &Array) {
    let (batch, length) = (tokens.dim(0), tokens.dim(1));
    let together = all_logits(model, tokens);
    for row in 0..batch {
        let alone = all_logits(model, &tokens.try_index((row..row + 1, ..)).unwrap());
        assert_close(&together.try_index((row..row + 1, .., ..)).unwrap(), &alone);

        let padding = length / 3;
        let left_padding = (0..batch).map(|other| if other == row { padding } else { 0 }).collect();
        let options = CacheOptions { left_padding, ..CacheOptions::default() };
        let mut cache = model.new_cache(&options).unwrap();
        let mut pieces = Vec::new();
        for call in [length / 2, 1, length - length / 2 - 1] {
            let start = cache.offset();
            let piece = columns(tokens, start, start + call);
            pieces.push(model.forward(&piece, &mut cache, Logits::All).unwrap());
        }
        let padded = concatenate(&pieces, 1).unwrap().try_index((row..row + 1, padding.., ..)).unwrap();
        let alone = all_logits(model, &tokens.try_index((row..row + 1, padding..)).unwrap());
        assert_close(&padded, &alone);
    }
}

/// A token changes the logits after it, and none before it.
#[track_caller]
pub fn the_future_is_not_seen(model: &mut dyn CausalLm, tokens: &Array) {
    let first = all_logits(model, tokens);
    let at = tokens.dim(1) / 2;
    let other = columns(tokens, at, at + 1).add(Array::from_int(1)).unwrap();
    let other =
        other.remainder(Array::from_int(model.info().vocab_size)).unwrap().as_dtype(tokens.dtype()).unwrap();
    let changed = [columns(tokens, 0, at), other, columns(tokens, at + 1, tokens.dim(1))];
    let second = all_logits(model, &concatenate(&changed, 1).unwrap());
    let before = |logits: &Array| logits.try_index((.., ..at, ..)).unwrap();
    let after = |logits: &Array| logits.try_index((.., at.., ..)).unwrap();
    assert_eq!(tensor(&before(&first)), tensor(&before(&second)));
    let (first, second) = (tensor(&after(&first)), tensor(&after(&second)));
    assert_relative_ne!(first, second, epsilon = 2e-4, max_relative = 2e-4);
}

/// The model computes the logits that were asked for, and fills the cache in each case.
#[track_caller]
pub fn logits_come_as_asked_for(model: &mut dyn CausalLm, tokens: &Array) {
    let all = all_logits(model, tokens);
    let (batch, length, vocab_size) = (tokens.dim(0), tokens.dim(1), model.info().vocab_size);
    assert_eq!(all.shape(), [batch, length, vocab_size]);
    assert_eq!(all.dtype(), model.info().dtype);

    let mut cache = model.new_cache(&CacheOptions::default()).unwrap();
    let none = model.forward(&columns(tokens, 0, length - 2), &mut cache, Logits::None).unwrap();
    assert_eq!(none.shape(), [batch, 0, vocab_size]);
    assert_eq!(cache.offset(), length - 2);
    let last = model.forward(&columns(tokens, length - 2, length), &mut cache, Logits::Last).unwrap();
    assert_close(&last, &all.try_index((.., -1.., ..)).unwrap());
}

/// A cache that was made for rewinding removes tokens, also beyond the windows of layers.
#[track_caller]
pub fn tokens_can_be_taken_back(model: &mut dyn CausalLm, tokens: &Array, rewind: i32) {
    let whole = all_logits(model, tokens);
    let length = tokens.dim(1);
    let options = CacheOptions { rewind, ..CacheOptions::default() };
    for start in [rewind, length / 2, length - 2] {
        let mut cache = model.new_cache(&options).unwrap();
        model.forward(&columns(tokens, 0, start), &mut cache, Logits::None).unwrap();
        let wrong = zeros::<u32>(&[tokens.dim(0), rewind]).unwrap();
        model.forward(&wrong, &mut cache, Logits::None).unwrap();
        assert_eq!(cache.trim(rewind).unwrap(), rewind);
        let rest = model.forward(&columns(tokens, start, length), &mut cache, Logits::All).unwrap();
        assert_close(&rest, &whole.try_index((.., start.., ..)).unwrap());
    }
}

/// Tokens without a batch axis and a cache of another model are errors.
#[track_caller]
pub fn wrong_calls_are_errors(model: &mut dyn CausalLm, tokens: &Array) {
    let mut cache = model.new_cache(&CacheOptions::default()).unwrap();
    let error = model.forward(&Array::from_slice(&[1_u32, 2], &[2]), &mut cache, Logits::All).unwrap_err();
    assert!(error.what().contains("tokens of shape [2]"), "{error}");

    let mut layers = model.info().layers.clone();
    layers.push(layers[0]);
    let mut cache = ModelCache::for_layers(&layers, &CacheOptions::default()).unwrap();
    let error = model.forward(tokens, &mut cache, Logits::All).unwrap_err();
    assert!(error.what().contains(&format!("a cache of {} layers", layers.len())), "{error}");
}

/// Every parameter has a gradient, which is finite and not zero everywhere, and each of a few steps of an optimizer lowers
/// the loss of predicting the next token.
#[track_caller]
pub fn it_learns<M: CausalLm + 'static>(model: &mut M, tokens: &Array) {
    let loss = |model: &mut M, tokens: &Array| -> Result<Array, Exception> {
        let length = tokens.dim(1);
        let logits = all_logits(model, &columns(tokens, 0, length - 1));
        let targets = columns(tokens, 1, length);
        let cross_entropy =
            CrossEntropyBuilder::new().build().map_err(|e| Exception::custom(e.to_string()))?;
        cross_entropy.apply(logits, targets)?.mean(None)
    };
    let mut step = value_and_grad(loss);
    let mut optimizer = Adam::new(0.01);

    let mut keys: Vec<String> = model.parameters().flatten().keys().map(|key| key.to_string()).collect();
    keys.sort_unstable();
    let mut losses = Vec::new();
    for _ in 0..5 {
        let (loss, gradients) = step(model, tokens).unwrap();
        let mut found: Vec<String> = gradients.keys().map(|key| key.to_string()).collect();
        found.sort_unstable();
        assert_eq!(found, keys, "not the parameters that have gradients");
        for (key, gradient) in &gradients {
            let gradient = gradient.flatten(None, None).unwrap(); // contiguous
            let values = gradient.try_as_slice::<f32>().unwrap();
            assert!(values.iter().all(|value| value.is_finite()), "{key}: not finite");
            assert!(values.iter().any(|&value| value != 0.0), "{key}: no gradient");
        }
        optimizer.update(model, &gradients).unwrap();
        model.eval().unwrap();
        losses.push(loss.item_exact::<f32>());
    }
    assert!(losses.windows(2).all(|pair| pair[1] < pair[0]), "{losses:?}");
}
