//! Cases of kind `rope`: a rotation alone.

use mlx_rope::{RopeLayout, RopeOffset, initialize_rope};
use mlx_testing::{Comparison, compare};

use super::Found;
use super::case::{Case, CaseError, Offset, RopeCase};

pub(super) fn run(case: &Case, spec: &RopeCase) -> Result<Found, CaseError> {
    let arguments = &spec.rope;
    let problem = |problem: String| CaseError::Reference { problem };
    if spec.calls.is_empty() {
        return Err(CaseError::Description { problem: "calls is empty, so nothing is compared".to_owned() });
    }
    // Checked before any table is made, because a table of that many dims could fill the memory.
    let head_dim = case.tensor("x.0")?.shape().last().copied().unwrap_or(0);
    if arguments.dims > head_dim {
        return Err(problem(format!("x.0 has {head_dim} features, but dims is {}", arguments.dims)));
    }
    if case.optional_tensor(&format!("x.{}", spec.calls.len())).is_some() {
        return Err(problem(format!("there is a tensor x.{0}, but only {0} calls", spec.calls.len())));
    }
    let layout = if arguments.traditional { RopeLayout::Interleaved } else { RopeLayout::Halves };
    let scaling = arguments.scaling.clone().with_long_rope_mode(spec.longrope.into());
    let rope =
        initialize_rope(arguments.dims, arguments.base, layout, &scaling, arguments.max_position_embeddings)?;

    let mut worst = 0.0_f64;
    for (i, call) in spec.calls.iter().enumerate() {
        let expected = case.tensor(&format!("y.{i}"))?;
        let offset = match &call.offset {
            Offset::One(offset) => RopeOffset::One(*offset),
            Offset::PerRow(offsets) => RopeOffset::PerRow(offsets),
        };
        let found = rope.rotate(case.tensor(&format!("x.{i}"))?, offset)?;
        let comparison = compare(&found, expected, case.tolerance(expected.dtype()))?;
        match comparison {
            Comparison::Equal { worst: this } => worst = worst.max(this),
            Comparison::Elements { worst: this, .. } => {
                let difference = Some(format!("call {i}: {comparison}"));
                return Ok(Found { worst: Some(this), difference, compared: None });
            }
            other => {
                return Ok(Found {
                    worst: None,
                    difference: Some(format!("call {i}: {other}")),
                    compared: None,
                });
            }
        }
    }
    Ok(Found { worst: Some(worst), difference: None, compared: None })
}
