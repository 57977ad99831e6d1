//! What made a cache: digests of a model's weights, adapters and config.

use std::fmt::Debug;

use crc32fast::Hasher;
use mlx_kvcache::MadeBy;
use mlx_rs::error::Exception;
use mlx_rs::ops::indexing::take;
use mlx_rs::transforms::eval;
use mlx_rs::{Array, Dtype};

use crate::CausalLm;

/// Elements of each parameter that the digest of the weights looks at, spread evenly. Two models that were trained
/// apart differ in nearly all of them.
const SAMPLES: i32 = 64;

/// What makes the keys and values of this model, as a cache of so many `tokens` says it in its file.
///
/// The weights are looked at in a few places each, so this takes milliseconds, whatever the size of the model. Weights
/// that were not evaluated yet are.
///
/// # Errors
///
/// What MLX reports.
pub fn made_by(model: &dyn CausalLm, tokens: i32) -> Result<MadeBy, Exception> {
    let info = model.info();
    let parameters = model.parameters().flatten();
    let is_adapter = |key: &str| matches!(key.rsplit('.').next(), Some("lora_a" | "lora_b" | "m"));
    let mut weights: Vec<(&str, &Array)> =
        parameters.iter().map(|(key, parameter)| (&**key, *parameter)).collect();
    weights.sort_by_key(|(key, _)| *key);
    let (adapters, weights): (Vec<_>, Vec<_>) = weights.into_iter().partition(|(key, _)| is_adapter(key));
    Ok(MadeBy {
        model_type: info.model_type.clone(),
        weights: digest_of(&weights)?,
        config: info.config_digest.clone(),
        adapters: if adapters.is_empty() { None } else { Some(digest_of(&adapters)?) },
        unlike_mlx_lm: model.unlike_mlx_lm(tokens),
    })
}

/// A digest of a model's config, for [`ModelInfo::config_digest`](crate::ModelInfo::config_digest): of everything
/// that its `Debug` shows.
pub fn digest(config: &impl Debug) -> String {
    format!("{:08x}", crc32fast::hash(format!("{config:?}").as_bytes()))
}

fn digest_of(parameters: &[(&str, &Array)]) -> Result<String, Exception> {
    let mut hasher = Hasher::new();
    let mut samples = Vec::with_capacity(parameters.len());
    for (key, parameter) in parameters {
        hasher.update(format!("{key} {:?} {:?};", parameter.dtype(), parameter.shape()).as_bytes());
        samples.push(sample(parameter)?);
    }
    eval(&samples)?;
    for sample in samples.iter().filter(|sample| sample.size() > 0) {
        hasher.update(sample.try_as_slice::<u8>().map_err(|e| Exception::custom(e.to_string()))?);
    }
    Ok(format!("{:08x}", hasher.finalize()))
}

/// The bytes of some elements of an array.
fn sample(array: &Array) -> Result<Array, Exception> {
    let size = i32::try_from(array.size()).unwrap_or(i32::MAX);
    let count = size.min(SAMPLES);
    let places: Vec<i32> =
        (0..i64::from(count)).map(|i| (i * i64::from(size) / i64::from(count)) as i32).collect();
    let elements = take(array.reshape(&[-1])?, Array::from_slice(&places, &[count]))?;
    elements.view_dtype(Dtype::Uint8)
}
