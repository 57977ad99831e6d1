//! The logits of a model for the tokens of a case.

use mlx_models::generate::Session;
use mlx_models::{CacheOptions, CausalLm, Logits};
use mlx_rs::ops::concatenate;
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::{Array, Dtype};

use super::case::CaseError;

/// The logits `[B, T, V]` of tokens `[B, T]`, read call by call through one new session.
pub(super) fn logits(model: &mut dyn CausalLm, tokens: &Array, calls: &[usize]) -> Result<Array, CaseError> {
    let problem = |problem: String| CaseError::Reference { problem };
    let &[(1..), length @ (1..)] = tokens.shape() else {
        return Err(problem(format!("tokens have shape {:?}, and must have [B, T]", tokens.shape())));
    };
    let total = calls.iter().try_fold(0_usize, |sum, &call| sum.checked_add(call));
    if total != usize::try_from(length).ok() || calls.contains(&0) {
        return Err(problem(format!("the lengths in calls, {calls:?}, do not add up to {length} tokens")));
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

/// The ids in a tensor of the reference, of any shape.
pub(super) fn ids(name: &str, tokens: &Array) -> Result<Vec<u32>, CaseError> {
    let problem = |problem: String| CaseError::Reference { problem: format!("{name}: {problem}") };
    if tokens.dtype() != Dtype::Int32 {
        return Err(problem(format!("dtype {:?} instead of int32", tokens.dtype())));
    }
    if tokens.size() == 0 {
        return Ok(Vec::new());
    }
    let ids = tokens.try_as_slice::<i32>().map_err(|e| problem(e.to_string()))?;
    ids.iter().map(|&id| u32::try_from(id).map_err(|_| problem(format!("negative id {id}")))).collect()
}
