//! Normalization for language models: RMSNorm, Gemma's offset RMSNorm, Gemma's clipped residual.
//!
//! API: usable without the rest of this workspace.
//!
//! # Why normalize
//!
//! A transformer's block adds its result to what came in, so the vectors of the residual stream grow
//! with depth. Each layer would see inputs of another scale, and the scale would drift in training.
//! Root mean square normalization divides a vector of `D` features by its own size before a layer
//! reads it, and lets the layer learn how loud each feature should be:
//!
//! ```text
//! y_j = x_j / r * g_j        r = sqrt((x_1² + ... + x_D²) / D + eps)
//! ```
//!
//! For `eps = 0` the result does not change when `x` is multiplied by a positive number, and with
//! all `g_j = 1` its mean square is 1. `eps` keeps a vector of zeros from being divided by zero.
//! Layer normalization subtracts the mean first and adds a bias last; RMSNorm does neither.
//!
//! # The parts
//!
//! | function | module | `g` | used by |
//! |---|---|---|---|
//! | [`rms_norm`] | [`RmsNorm`] | the weight | Llama, Phi-3, OLMo, Lille |
//! | [`offset_rms_norm`] | [`OffsetRmsNorm`] | 1 + the weight | Gemma |
//! | [`clip_residual`] | [`ClipResidual`] | | Gemma, where the residual stream is added up |
//!
//! The modules implement mlx-rs's [`Module`](mlx_rs::module::Module) and
//! [`ModuleParameters`](mlx_rs::module::ModuleParameters): its optimizers, `value_and_grad`, loading
//! and saving work on them.
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

/// Without the feature `tap` nobody asks for outputs.
#[cfg(not(feature = "tap"))]
fn offer(_weight: &mlx_rs::Array, _output: &mlx_rs::Array) {}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
