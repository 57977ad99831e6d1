//! Cases of kind `model`: the logits, greedy tokens and fused adapters of a checkpoint.

use std::path::Path;

use mlx_models::generate::{GenerateOptions, Session, generate};
use mlx_models::{CacheOptions, CausalLm, FuseOptions, LoadOptions};
use mlx_rs::{Array, Dtype};
use mlx_testing::{Comparison, Tolerance, compare};

use super::Found;
use super::case::{Case, CaseError, FusedCase, ModelCase};
use super::in_float32::InFloat32;
use super::logits::{ids, logits};
use super::weights::CheckpointFolder;

pub(super) fn run(case: &Case, spec: &ModelCase) -> Result<Found, CaseError> {
    let adapters = spec.adapters.as_ref().map(|adapters| case.folder.join(adapters));
    let options = LoadOptions { long_rope: spec.longrope.into(), adapters, ..LoadOptions::default() };
    let checkpoint = CheckpointFolder::of(&case.folder)?;
    let mut model = mlx_models::load_with(checkpoint.path(), &options)?;
    let expected = case.tensor("logits")?;
    let found = logits(&mut *model, case.tensor("tokens")?, &spec.calls)?;

    let tolerance = case.tolerance(expected.dtype());
    let comparison = compare(&found, expected, tolerance)?;
    let worst = match &comparison {
        Comparison::Equal { worst } | Comparison::Elements { worst, .. } => Some(*worst),
        _ => None,
    };
    let rounds_otherwise = case.rounds_otherwise();
    let in_float32 = || InFloat32::load(checkpoint.path(), &options);
    let mut compared = None;
    if !comparison.is_equal() {
        let mut difference = Some(format!("logits: {comparison}"));
        if rounds_otherwise {
            match in_float32()?.judge(case.tensor("tokens")?, spec, &found, expected)? {
                Ok(distances) => (difference, compared) = (None, Some(distances)),
                Err(distances) => {
                    difference = difference.map(|difference| format!("{difference}; {distances}"))
                }
            }
        }
        if difference.is_some() {
            return Ok(Found { worst, difference, compared });
        }
    }
    let mut difference = greedy_difference(&mut *model, case)?;
    if let Some(GreedyDifference { read, found, expected, .. }) =
        difference.as_ref().filter(|_| rounds_otherwise)
        && let (Some(found), Some(expected)) = (*found, *expected)
        && in_float32()?.may_choose(read, found, expected, tolerance)?
    {
        let text = difference.take().map(|difference| difference.to_string()).unwrap_or_default();
        let logits = compared.map_or(String::new(), |distances| distances + "; ");
        compared = Some(format!("{logits}{text}, equally good in float32"));
    }
    let mut difference = difference.map(|difference| difference.to_string());
    for fused in &spec.fused {
        if difference.is_none() {
            difference = fused_difference(case, spec, fused, checkpoint.path())?;
        }
    }
    Ok(Found { worst, difference, compared })
}

/// Fuses the adapters as a user would, and compares the new folder with the reference's.
fn fused_difference(
    case: &Case,
    spec: &ModelCase,
    fused: &FusedCase,
    checkpoint: &Path,
) -> Result<Option<String>, CaseError> {
    let io = |source| CaseError::Io { file: case.folder.clone(), source };
    let adapters = spec
        .adapters
        .as_ref()
        .ok_or_else(|| CaseError::Description { problem: "fused needs adapters".to_owned() })?;
    let scratch = tempfile::tempdir().map_err(io)?;
    let out = scratch.path().join("fused");
    let options = FuseOptions { dequantize: fused.dequantize };
    mlx_models::fuse(checkpoint, case.folder.join(adapters), &out, &options)?;
    mlx_models::load(&out)?;

    let read = |folder: &Path| {
        Array::load_safetensors(folder.join("model.safetensors"))
            .map_err(|e| CaseError::Reference { problem: format!("{}: {e}", fused.folder) })
    };
    let (mut found, expected) = (read(&out)?, read(&case.folder.join(&fused.folder))?);
    for (key, expected) in &expected {
        let Some(found) = found.remove(key) else {
            return Ok(Some(format!("{}: {key} is missing", fused.folder)));
        };
        let tolerance = case.tolerance(expected.dtype());
        let is_float = matches!(expected.dtype(), Dtype::Float32 | Dtype::Float16 | Dtype::Bfloat16);
        // On another device, a quantized weight may be rounded the other way.
        if !is_float && tolerance != Tolerance::Exact {
            continue;
        }
        let widened = |array: &Array| match array.dtype() {
            Dtype::Uint8 => array.as_dtype(Dtype::Uint32),
            _ => Ok(array.clone()),
        };
        let comparison = compare(&widened(&found)?, &widened(expected)?, tolerance)?;
        if !comparison.is_equal() {
            return Ok(Some(format!("{}: {key}: {comparison}", fused.folder)));
        }
    }
    Ok(found.into_keys().next().map(|key| format!("{}: the reference does not have {key}", fused.folder)))
}

/// The first greedy token that is not the reference's.
struct GreedyDifference {
    /// The prompt, and the tokens before the first different one.
    read: Vec<u32>,
    at: usize,
    found: Option<u32>,
    expected: Option<u32>,
}

impl std::fmt::Display for GreedyDifference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "greedy token {}: {:?}, expected {:?}", self.at, self.found, self.expected)
    }
}

/// Compares the tokens that greedy decoding generates after a prompt, if the case has them.
fn greedy_difference(model: &mut dyn CausalLm, case: &Case) -> Result<Option<GreedyDifference>, CaseError> {
    let Some(prompt) = case.optional_tensor("greedy_prompt") else { return Ok(None) };
    let prompt = ids("greedy_prompt", prompt)?;
    let expected = ids("greedy_tokens", case.tensor("greedy_tokens")?)?;

    let mut session = Session::new(model.new_cache(&CacheOptions::default())?);
    let options = GenerateOptions { max_tokens: expected.len(), ..GenerateOptions::new(&[]) };
    let tokens = generate(model, &mut session, &prompt, options)?;
    let found: Vec<u32> = tokens.map(|token| token.map(|token| token.id)).collect::<Result<_, _>>()?;
    if found == expected {
        return Ok(None);
    }
    let at = found.iter().zip(&expected).take_while(|(found, expected)| found == expected).count();
    let read = prompt.iter().chain(&expected[..at]).copied().collect();
    Ok(Some(GreedyDifference {
        read,
        at,
        found: found.get(at).copied(),
        expected: expected.get(at).copied(),
    }))
}
