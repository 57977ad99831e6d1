//! The context length of a model.

use crate::scaling::original_length;
use crate::{RopeError, RopeScaling};

/// The longest context that is accepted, in tokens: 2^28.
const LONGEST: f64 = (1_u32 << 28) as f64;

/// The context length: see [`RopeKeys::context_length`](crate::RopeKeys::context_length).
pub(crate) fn context_length(
    scaling: &RopeScaling,
    original: Option<f64>,
    stated: i32,
) -> Result<i32, RopeError> {
    let factor = match scaling {
        RopeScaling::Yarn(yarn) => yarn.factor,
        RopeScaling::Linear { factor }
        | RopeScaling::Proportional { factor, .. }
        | RopeScaling::Dynamic { factor } => *factor,
        // The factor of Llama 3.2 is 32, but its context grew only from 8192 to 131072 tokens. LongRoPE's factor is the
        // ratio of two lengths that the config states.
        RopeScaling::Llama3(_) | RopeScaling::LongRope(_) => return Ok(stated),
        RopeScaling::Default | RopeScaling::Mrope { .. } => return Ok(stated),
    };
    let Some(original) = original else { return Ok(stated) };
    let extended = (f64::from(original_length(original)?) * factor).floor();
    if extended > LONGEST {
        let expected = "such that factor * original_max_position_embeddings is at most 2^28";
        return Err(RopeError::Number { key: "factor", found: factor, expected });
    }
    Ok(stated.max(extended as i32))
}
