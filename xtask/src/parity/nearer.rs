//! Which of two answers is nearer to the one that float32 gives.
//!
//! Stock MLX on the CPU adds quantized products up in the dtype of the activations, and our kernels in
//! float32 or in whole numbers. So with kernels an answer may lie outside a reference's tolerance because the reference is
//! off. Then the same weights, codes and all, are run in float32 by stock MLX, and ours has to be as
//! near to that as the reference.

use std::path::Path;

use mlx_models::generate::Session;
use mlx_models::{CacheOptions, CausalLm, LoadOptions, Logits};
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::{Array, Dtype};
use mlx_sys::cpu_kernels;
use mlx_testing::{Tolerance, to_f64};

use super::case::{CaseError, ModelCase};
use super::model;

/// Two answers that are rounded equally often are not equally far by chance: by so much at most.
const CHANCE: f64 = 1.25;

/// A model in float32, computed by stock MLX whatever the rest of the process does.
pub(super) struct InFloat32 {
    model: Box<dyn CausalLm>,
}

impl InFloat32 {
    pub(super) fn load(checkpoint: &Path, options: &LoadOptions) -> Result<Self, CaseError> {
        on_stock(|| {
            let mut model = mlx_models::load_with(checkpoint, options)?;
            for (_, parameter) in model.parameters_mut().flatten() {
                // Codes stay as they are; their scales and biases are widened.
                if matches!(parameter.dtype(), Dtype::Float16 | Dtype::Bfloat16) {
                    *parameter = parameter.as_dtype(Dtype::Float32)?;
                }
            }
            Ok(Self { model })
        })
    }

    /// Compares logits of a case's tokens: what to say where `found` is as near as `expected`,
    /// else how far both are.
    pub(super) fn judge(
        &mut self,
        tokens: &Array,
        spec: &ModelCase,
        found: &Array,
        expected: &Array,
    ) -> Result<Result<String, String>, CaseError> {
        let exact = on_stock(|| model::logits(&mut *self.model, tokens, &spec.calls))?;
        let [ours, theirs] = [distance(found, &exact)?, distance(expected, &exact)?];
        let said = format!("{ours:.1e} from float32, the reference {theirs:.1e}");
        // Written so that NaN is not near.
        Ok(if ours <= CHANCE * theirs { Ok(said) } else { Err(said) })
    }

    /// The likeliest token after each of `ids`.
    #[cfg(test)]
    pub(super) fn choices(&mut self, ids: &[u32]) -> Result<Vec<u32>, CaseError> {
        on_stock(|| choices(&mut *self.model, ids))
    }

    /// Whether, after these tokens, it is a matter of rounding to choose `found` and not `expected`, or right.
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

/// The likeliest token after each of `ids`, by one pass over all.
#[cfg(test)]
pub(super) fn choices(model: &mut dyn CausalLm, ids: &[u32]) -> Result<Vec<u32>, CaseError> {
    let ids: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
    let tokens = Array::from_slice(&ids, &[1, ids.len() as i32]);
    let logits = model::logits(model, &tokens, &[ids.len()])?;
    let best = mlx_rs::ops::indexing::argmax_axis(&logits, -1, false)?.reshape(&[-1])?;
    best.try_as_slice::<u32>()
        .map(<[u32]>::to_vec)
        .map_err(|e| CaseError::Reference { problem: e.to_string() })
}

/// Has stock MLX compute. The caller is the only one who computes; see `computing`.
fn on_stock<T>(task: impl FnOnce() -> T) -> T {
    let enabled = cpu_kernels::is_enabled();
    cpu_kernels::set_enabled(false);
    let result = task();
    cpu_kernels::set_enabled(enabled);
    result
}

/// Root of the mean square.
fn distance(found: &Array, exact: &Array) -> Result<f64, CaseError> {
    let (found, exact) = (to_f64(found)?, to_f64(exact)?);
    if found.len() != exact.len() {
        return Ok(f64::INFINITY);
    }
    let sum: f64 = found.iter().zip(&exact).map(|(found, exact)| (found - exact).powi(2)).sum();
    Ok((sum / found.len().max(1) as f64).sqrt())
}
