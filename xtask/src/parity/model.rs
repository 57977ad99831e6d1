//! Cases of kind `model`: a checkpoint's logits and greedy tokens.

use std::path::Path;

use mlx_models::generate::{GenerateOptions, Session, generate};
use mlx_models::{CacheOptions, CausalLm, FuseOptions, LoadOptions, Logits};
use mlx_rs::ops::concatenate;
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::{Array, Dtype};
use mlx_sys::cpu_kernels;
use mlx_testing::{Comparison, Tolerance, compare};

use super::Found;
use super::case::{Case, CaseError, FusedCase, ModelCase};
use super::nearer::InFloat32;
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
    // Kernels need not give the bits of stock MLX, and are to be as near to the exact answer.
    let with_kernels = case.is_exact() && cpu_kernels::is_enabled();
    let in_float32 = || InFloat32::load(checkpoint.path(), &options);
    let mut compared = None;
    if !comparison.is_equal() {
        let mut difference = Some(format!("logits: {comparison}"));
        if with_kernels {
            match in_float32()?.judge(case.tensor("tokens")?, spec, &found, expected)? {
                Ok(said) => (difference, compared) = (None, Some(said)),
                Err(said) => difference = difference.map(|difference| format!("{difference}; {said}")),
            }
        }
        if difference.is_some() {
            return Ok(Found { worst, difference, compared });
        }
    }
    let mut difference = greedy(&mut *model, case)?;
    if let Some(Parted { read, found, expected, .. }) = difference.as_ref().filter(|_| with_kernels)
        && let (Some(found), Some(expected)) = (*found, *expected)
        && in_float32()?.may_choose(read, found, expected, tolerance)?
    {
        let text = difference.take().map(|parted| parted.to_string()).unwrap_or_default();
        compared =
            Some(format!("{}{text}, alike in float32", compared.map_or(String::new(), |said| said + "; ")));
    }
    let mut difference = difference.map(|parted| parted.to_string());
    for fused in &spec.fused {
        if difference.is_none() {
            difference = fusing(case, spec, fused, checkpoint.path())?;
        }
    }
    Ok(Found { worst, difference, compared })
}

/// Fuses the adapters as a user would, and compares the folder that comes of it with the reference's.
fn fusing(
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
        // On another device a weight may fall on the other side of a border between two numbers.
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
    Ok(found.into_keys().next().map(|key| format!("{}: {key} is too much", fused.folder)))
}

/// The logits `[B, T, V]` of tokens `[B, T]`, read call by call through one fresh session.
pub(super) fn logits(model: &mut dyn CausalLm, tokens: &Array, calls: &[usize]) -> Result<Array, CaseError> {
    let problem = |problem: String| CaseError::Reference { problem };
    let &[(1..), length @ (1..)] = tokens.shape() else {
        return Err(problem(format!("tokens have shape {:?}, and [B, T] is needed", tokens.shape())));
    };
    let total = calls.iter().try_fold(0_usize, |sum, &call| sum.checked_add(call));
    if total != usize::try_from(length).ok() || calls.contains(&0) {
        return Err(problem(format!("the calls {calls:?} do not cut the {length} tokens into pieces")));
    }
    check_vocabulary(model, tokens)?;

    let mut session = Session::new(model.new_cache(&CacheOptions::default())?);
    let mut pieces = Vec::with_capacity(calls.len());
    let mut start = 0;
    for &call in calls {
        let end = start + call as i32;
        let piece = session.read(model, &tokens.try_index((.., start..end))?, Logits::All)?;
        piece.eval()?;
        pieces.push(piece);
        start = end;
    }
    Ok(concatenate(&pieces, 1)?)
}

fn check_vocabulary(model: &dyn CausalLm, tokens: &Array) -> Result<(), CaseError> {
    let vocab_size = model.info().vocab_size;
    let ids = ids("tokens", tokens)?;
    match ids.iter().find(|&&id| id >= vocab_size as u32) {
        Some(id) => Err(CaseError::Reference {
            problem: format!("token {id} is outside the vocabulary of {vocab_size}"),
        }),
        None => Ok(()),
    }
}

/// Where greedy decoding leaves the reference's tokens.
struct Parted {
    /// The prompt and the tokens up to there.
    read: Vec<u32>,
    at: usize,
    found: Option<u32>,
    expected: Option<u32>,
}

impl std::fmt::Display for Parted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "greedy token {}: {:?}, expected {:?}", self.at, self.found, self.expected)
    }
}

/// Where the case has them: the tokens that greedy decoding gives after a prompt.
fn greedy(model: &mut dyn CausalLm, case: &Case) -> Result<Option<Parted>, CaseError> {
    let Some(prompt) = case.optional_tensor("greedy_prompt") else { return Ok(None) };
    let prompt = ids("greedy_prompt", prompt)?;
    let expected = ids("greedy_tokens", case.tensor("greedy_tokens")?)?;

    let mut session = Session::new(model.new_cache(&CacheOptions::default())?);
    let options = GenerateOptions { max_tokens: expected.len(), ..GenerateOptions::default() };
    let tokens = generate(model, &mut session, &prompt, options)?;
    let found: Vec<u32> = tokens.map(|token| token.map(|token| token.id)).collect::<Result<_, _>>()?;
    if found == expected {
        return Ok(None);
    }
    let at = found.iter().zip(&expected).take_while(|(found, expected)| found == expected).count();
    let read = prompt.iter().chain(&expected[..at]).copied().collect();
    Ok(Some(Parted { read, at, found: found.get(at).copied(), expected: expected.get(at).copied() }))
}

/// Token ids of a reference, of any shape, on the host.
fn ids(name: &str, tokens: &Array) -> Result<Vec<u32>, CaseError> {
    let problem = |problem: String| CaseError::Reference { problem: format!("{name}: {problem}") };
    if tokens.dtype() != Dtype::Int32 {
        return Err(problem(format!("dtype {:?}, and int32 is needed", tokens.dtype())));
    }
    if tokens.size() == 0 {
        return Ok(Vec::new());
    }
    let ids = tokens.try_as_slice::<i32>().map_err(|e| problem(e.to_string()))?;
    ids.iter().map(|&id| u32::try_from(id).map_err(|_| problem(format!("negative id {id}")))).collect()
}
