//! Normalization for language models: RMSNorm, Gemma's offset RMSNorm, Gemma's clipped residual.
//!
//! API: usable without the rest of this workspace; `mlx-rs` is the only dependency.
//!
//! # Why normalize
//!
//! Each block of a transformer adds its result to its input, so the vectors of the residual stream grow with depth.
//! Without a norm, every layer would see inputs of another scale, and that scale would drift during training. Root mean
//! square normalization divides a vector of `D` features by its own size before a layer reads it, and multiplies each
//! feature by a learned scale `g_j`:
//!
//! ```text
//! y_j = x_j / r * g_j        r = sqrt((x_1² + ... + x_D²) / D + eps)
//! ```
//!
//! With `eps = 0` the result does not change when `x` is multiplied by a positive number, and with all `g_j = 1` its
//! mean square is 1. `eps` prevents a division by zero when all features are 0. Layer normalization also subtracts the
//! mean and adds a bias; RMSNorm does neither.
//!
//! # Contents
//!
//! | function | module | `g` | used by |
//! |---|---|---|---|
//! | [`rms_norm`] | [`RmsNorm`] | the weight | Llama, Phi-3, OLMo, Lille |
//! | [`offset_rms_norm`] | [`OffsetRmsNorm`] | 1 + the weight | Gemma |
//! | [`clip_residual`] | [`ClipResidual`] | | Gemma, for the sums of the residual stream |
//!
//! The modules implement [`Module`](mlx_rs::module::Module) and
//! [`ModuleParameters`](mlx_rs::module::ModuleParameters) of mlx-rs, so its optimizers, `value_and_grad`, loading and
//! saving work on them. With the feature `tap` the modules offer their outputs to `mlx-tap`, which traces what a model
//! computes.
//!
//! ```
//! use approx::assert_abs_diff_eq;
//! use mlx_norms::RmsNorm;
//! use mlx_rs::{Array, module::Module};
//!
//! # fn main() -> Result<(), mlx_rs::error::Exception> {
//! let mut norm = RmsNorm::new(Array::from_slice(&[1.0_f32, 0.5], &[2]), 1e-5);
//! let x = Array::from_slice(&[3.0_f32, 4.0], &[1, 2]); // mean square 12.5
//! let y = norm.forward(&x)?;
//! assert_abs_diff_eq!(y.as_slice::<f32>()[0], 3.0 / 12.5_f32.sqrt(), epsilon = 1e-5);
//! assert_abs_diff_eq!(y.as_slice::<f32>()[1], 0.5 * 4.0 / 12.5_f32.sqrt(), epsilon = 1e-5);
//! # Ok(())
//! # }
//! ```

mod clip;
mod offset;
mod rms;

pub use clip::{ClipResidual, clip_residual};
pub use offset::{OffsetRmsNorm, offset_rms_norm};
pub use rms::{RmsNorm, rms_norm};

/// Offers the output of the layer with this weight to `mlx-tap`.
#[cfg(feature = "tap")]
use mlx_tap::layer as offer;

/// Does nothing without the feature `tap`.
#[cfg(not(feature = "tap"))]
fn offer(_weight: &mlx_rs::Array, _output: &mlx_rs::Array) {}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
