//! Cases of kind `cache`: attention over one layer's cache.

use mlx_kvcache::{Full, KvCache, ModelCache, Quantization, Ring, SavedCache, UnknownQuantization};
use mlx_rs::Array;
use mlx_testing::{Comparison, compare};

use super::Found;
use super::case::{CacheArguments, CacheCase, CacheOperation, CacheType, Case, CaseError};

pub(super) fn run(case: &Case, spec: &CacheCase) -> Result<Found, CaseError> {
    let mut cache = ModelCache::new(vec![build(spec)?]);
    let (mut worst, mut update) = (0.0_f64, 0);
    for (i, operation) in spec.ops.iter().enumerate() {
        let problem = |problem: String| CaseError::Reference { problem: format!("operation {i}: {problem}") };
        match *operation {
            CacheOperation::Update { n } => {
                let tensor = |name: &str| case.tensor(&format!("{name}.{update}"));
                let (queries, keys, values) = (tensor("q")?, tensor("k")?, tensor("v")?);
                for array in [queries, keys, values] {
                    if array.ndim() != 4 || array.dim(2) != n {
                        return Err(problem(format!(
                            "a tensor for {n} tokens has the shape {:?}",
                            array.shape()
                        )));
                    }
                }
                let found = attend(&mut cache, queries, keys, values, spec.scale)?;
                let expected = tensor("out")?;
                let comparison = compare(&found, expected, case.tolerance(expected.dtype()))?;
                let difference = || Some(format!("update {update}: {comparison}"));
                match &comparison {
                    Comparison::Equal { worst: this } => worst = worst.max(*this),
                    Comparison::Elements { worst, .. } => {
                        return Ok(Found { worst: Some(*worst), difference: difference(), compared: None });
                    }
                    _ => return Ok(Found { worst: None, difference: difference(), compared: None }),
                }
                update += 1;
            }
            CacheOperation::Trim { n } => {
                let gone = cache.trim(n)?;
                if gone != n {
                    return Err(problem(format!("cannot trim {n} tokens, there are only {gone}")));
                }
            }
            CacheOperation::SaveLoad => {
                let folder = tempfile::tempdir()
                    .map_err(|source| CaseError::Io { file: std::env::temp_dir(), source })?;
                let file = folder.path().join("cache.safetensors");
                cache.save(&file, "parity", &[])?;
                cache = SavedCache::read(&file)?.into_cache();
            }
        }
    }
    if case.optional_tensor(&format!("q.{update}")).is_some() {
        let problem = format!("there is a tensor q.{update}, but ops has only {update} updates");
        return Err(CaseError::Reference { problem });
    }
    if update == 0 {
        return Err(CaseError::Description {
            problem: "ops has no update, so nothing is compared".to_owned(),
        });
    }
    Ok(Found { worst: Some(worst), difference: None, compared: None })
}

fn build(spec: &CacheCase) -> Result<KvCache, CaseError> {
    let CacheArguments { kind, max_size, keep, rewind, quantize } = spec.cache;
    let wrong = |problem: &str| Err(CaseError::Description { problem: problem.to_owned() });
    let mut cache = match (kind, max_size, spec.window) {
        (CacheType::Full, None, window) if keep.is_none() && rewind.is_none() => KvCache::new(match window {
            Some(window) => Full::new().with_window(window)?,
            None => Full::new(),
        }),
        (CacheType::Full, ..) => return wrong("a full cache cannot have max_size, keep or rewind"),
        (CacheType::Rotating, Some(max_size), None) => {
            let ring = Ring::new(max_size)?.with_keep(keep.unwrap_or(0))?;
            KvCache::new(ring).with_rewind(rewind.unwrap_or(0))?
        }
        (CacheType::Rotating, None, _) => return wrong("a rotating cache needs max_size"),
        (CacheType::Rotating, _, Some(_)) => return wrong("only a full cache can have a window"),
    };
    if let Some(quantize) = quantize {
        let quantization = Quantization::affine(quantize.bits, quantize.group_size);
        let problem = |e: UnknownQuantization| CaseError::Description { problem: e.to_string() };
        cache.quantize(quantization.map_err(problem)?)?;
    }
    Ok(cache)
}

/// Does what a layer of a model does: makes the mask, appends the keys and values, and attends.
fn attend(
    cache: &mut ModelCache,
    queries: &Array,
    keys: &Array,
    values: &Array,
    scale: f32,
) -> Result<Array, CaseError> {
    let mask = cache.masks(queries.dim(2))?.remove(0);
    let Some(layer) = cache.layers_mut().next() else {
        return Err(CaseError::Reference { problem: "a cache without layers".to_owned() });
    };
    let out = layer.append(keys, values)?.attention(queries, scale, &mask)?;
    out.eval()?;
    Ok(out)
}
