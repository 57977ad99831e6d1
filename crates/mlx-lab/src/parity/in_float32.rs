//! Which of two results is closer to that of float32.
//!
//! On the CPU, stock MLX adds up quantized products in the dtype of the activations, our kernels in float32 or in
//! integers, and a GPU in float32. So with kernels and on a GPU, a result may be outside the tolerance because the reference
//! is inexact. In this case stock MLX runs the same weights, with the same quantized values, in float32 on the CPU. Our
//! result must be as close to that as the reference.

use std::path::Path;

use mlx_models::generate::Session;
use mlx_models::{CacheOptions, CausalLm, LoadOptions, Logits};
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::{Array, Dtype, Stream, with_stream};
use mlx_sys::cpu_kernels;
use mlx_testing::{Tolerance, to_f64};

use super::case::{CaseError, ModelCase};
use super::logits::logits;

/// The distances of two results that are rounded equally often differ by chance, at most by this factor.
const CHANCE: f64 = 1.25;

/// A model in float32 that stock MLX computes on the CPU, also while the rest of the process uses the kernels or a GPU.
pub(super) struct InFloat32 {
    model: Box<dyn CausalLm>,
}

impl InFloat32 {
    pub(super) fn load(checkpoint: &Path, options: &LoadOptions) -> Result<Self, CaseError> {
        on_stock(|| {
            let mut model = mlx_models::load_with(checkpoint, options)?;
            for (_, parameter) in model.parameters_mut().flatten() {
                // Quantized values stay as they are; their scales and biases are widened.
                if matches!(parameter.dtype(), Dtype::Float16 | Dtype::Bfloat16) {
                    *parameter = parameter.as_dtype(Dtype::Float32)?;
                }
            }
            Ok(Self { model })
        })
    }

    /// Compares the logits of a case's tokens with those of float32. Returns both distances as text: `Ok` if `found` is
    /// as close as `expected`, otherwise `Err`.
    pub(super) fn judge(
        &mut self,
        tokens: &Array,
        spec: &ModelCase,
        found: &Array,
        expected: &Array,
    ) -> Result<Result<String, String>, CaseError> {
        let exact = on_stock(|| logits(&mut *self.model, tokens, &spec.calls))?;
        let [ours, theirs] = [distance(found, &exact)?, distance(expected, &exact)?];
        let distances = format!("{ours:.1e} from float32, the reference {theirs:.1e}");
        // In this form of the comparison, NaN is not close.
        Ok(if ours <= CHANCE * theirs { Ok(distances) } else { Err(distances) })
    }

    /// The likeliest token after each of `ids`.
    #[cfg(test)]
    pub(super) fn choices(&mut self, ids: &[u32]) -> Result<Vec<u32>, CaseError> {
        on_stock(|| choices(&mut *self.model, ids))
    }

    /// Whether greedy decoding may choose `found` instead of `expected` after these tokens: float32 prefers it, or its
    /// logits for the two are within the tolerance.
    pub(super) fn may_choose(
        &mut self,
        read: &[u32],
        found: u32,
        expected: u32,
        tolerance: Tolerance,
    ) -> Result<bool, CaseError> {
        let ids: Vec<i32> = read.iter().map(|&id| id as i32).collect();
        let tokens = Array::from_slice(&ids, &[1, ids.len() as i32]);
        let logits = on_stock(|| {
            let mut session = Session::new(self.model.new_cache(&CacheOptions::default())?);
            let logits = session.read(&mut *self.model, &tokens, Logits::Last)?.try_index((0, -1, ..))?;
            logits.eval()?;
            Ok::<_, CaseError>(logits)
        })?;
        let logits = to_f64(&logits)?;
        let [found, expected] = [found, expected].map(|id| logits[id as usize]);
        let allowed = match tolerance {
            Tolerance::Exact => 0.0,
            Tolerance::Close { rtol, atol } => atol + rtol * expected.abs(),
        };
        Ok(expected - found <= allowed)
    }
}

/// The likeliest token after each of `ids`, from one call with all of them.
#[cfg(test)]
pub(super) fn choices(model: &mut dyn CausalLm, ids: &[u32]) -> Result<Vec<u32>, CaseError> {
    let ids: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
    let tokens = Array::from_slice(&ids, &[1, ids.len() as i32]);
    let logits = logits(model, &tokens, &[ids.len()])?;
    let best = mlx_rs::ops::indexing::argmax_axis(&logits, -1, false)?.reshape(&[-1])?;
    best.try_as_slice::<u32>()
        .map(<[u32]>::to_vec)
        .map_err(|e| CaseError::Reference { problem: e.to_string() })
}

/// Runs a task with stock MLX on the CPU. The caller must hold the lock of `computing`.
fn on_stock<T>(task: impl FnOnce() -> T) -> T {
    let enabled = cpu_kernels::is_enabled();
    cpu_kernels::set_enabled(false);
    let result = with_stream(&Stream::cpu(), task);
    cpu_kernels::set_enabled(enabled);
    result
}

/// The root mean square difference.
fn distance(found: &Array, exact: &Array) -> Result<f64, CaseError> {
    let (found, exact) = (to_f64(found)?, to_f64(exact)?);
    if found.len() != exact.len() {
        return Ok(f64::INFINITY);
    }
    let sum: f64 = found.iter().zip(&exact).map(|(found, exact)| (found - exact).powi(2)).sum();
    Ok((sum / found.len().max(1) as f64).sqrt())
}
