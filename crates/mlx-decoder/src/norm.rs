//! The norms of a model.

use std::fmt::Debug;

use mlx_layers::Norm;
use mlx_norms::{OffsetRmsNorm, RmsNorm};
use mlx_rs::Array;

/// A norm over the residual stream.
pub trait DecoderNorm: Norm + Debug + Clone + Send {
    /// The norm with this weight, `[D]`.
    fn new(weight: Array, eps: f32) -> Self;
}

impl DecoderNorm for RmsNorm {
    fn new(weight: Array, eps: f32) -> Self {
        Self::new(weight, eps)
    }
}

impl DecoderNorm for OffsetRmsNorm {
    fn new(weight: Array, eps: f32) -> Self {
        Self::new(weight, eps)
    }
}
