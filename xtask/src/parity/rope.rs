//! Cases of kind `rope`: a rotation alone.

use mlx_rope::{RopeLayout, RopeOffset, initialize_rope};
use mlx_testing::{Comparison, compare};

use super::Found;
use super::case::{Case, CaseError, Offset, RopeCase};

pub(super) fn run(case: &Case, spec: &RopeCase) -> Result<Found, CaseError> {
    let arguments = &spec.rope;
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
                return Ok(Found { worst: Some(this), difference });
            }
            other => return Ok(Found { worst: None, difference: Some(format!("call {i}: {other}")) }),
        }
    }
    Ok(Found { worst: Some(worst), difference: None })
}
