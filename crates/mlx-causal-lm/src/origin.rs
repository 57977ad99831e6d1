//! What made a cache: digests of a model's weights, adapters and config.

use std::fmt::Debug;

use crc32fast::Hasher;
use mlx_kvcache::MadeBy;
use mlx_rs::error::Exception;
use mlx_rs::ops::indexing::{take, take_along_axis};
use mlx_rs::transforms::eval;
use mlx_rs::{Array, Dtype};

use crate::CausalLm;

/// How many elements of a vector go into the digest of the weights, spread evenly. Of a matrix, one element of each row
/// does.
const SAMPLES: i32 = 4096;

/// Identifies the model that computed a cache of this many `tokens`, for the file of the cache.
///
/// The digest of the weights reads one element of every row of each weight: that takes milliseconds, and still changes
/// when a row was trained. Weights that are not in memory yet are evaluated.
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
    let settings = info.adapter_settings.as_ref();
    let adapters = settings.map(|settings| Ok::<_, Exception>(digest(&(settings, digest_of(&adapters)?))));
    let with_adapters = || {
        let problem =
            "this model has adapters, with which it may not have been made; make it again with them";
        problem.to_owned()
    };
    Ok(MadeBy {
        model_type: info.model_type.clone(),
        weights: digest_of(&weights)?,
        config: info.config_digest.clone(),
        unlike_mlx_lm: model.unlike_mlx_lm(tokens).or_else(|| settings.map(|_| with_adapters())),
        adapters: adapters.transpose()?,
    })
}

/// A digest of a model's config, for [`ModelInfo::config_digest`](crate::ModelInfo::config_digest). It covers the whole
/// `Debug` output, so names and order of the fields count, too.
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

/// The bytes of a sample of an array's elements.
fn sample(array: &Array) -> Result<Array, Exception> {
    let elements = match *array.shape() {
        [.., rows, columns] if rows > 0 && columns > 0 => {
            let matrix = array.reshape(&[-1, columns])?; // [R, C]
            // Another column for each row, so that the digest also changes when one column was trained.
            let places: Vec<i32> =
                (0..matrix.dim(0)).map(|row| row.wrapping_mul(7919).rem_euclid(columns)).collect();
            take_along_axis(&matrix, Array::from_slice(&places, &[matrix.dim(0), 1]), -1)?
        }
        _ => {
            let size = array.size() as i32;
            let count = size.min(SAMPLES);
            let places: Vec<i32> =
                (0..i64::from(count)).map(|i| (i * i64::from(size) / i64::from(count)) as i32).collect();
            take(array.reshape(&[-1])?, Array::from_slice(&places, &[count]))?
        }
    };
    elements.reshape(&[-1])?.view_dtype(Dtype::Uint8)
}
