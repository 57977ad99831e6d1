//! The most probable tokens of a step.

use mlx_rs::error::Exception;
use mlx_rs::ops::indexing::{TryIndexOp, take_along_axis};
use mlx_rs::ops::{argpartition_axis, argsort_axis};
use mlx_rs::{Array, Dtype};

/// The tokens with the largest log-probabilities of one row, which the device may still be computing.
#[derive(Debug)]
pub(crate) struct Alternatives {
    ids: Array,
    logprobs: Array,
}

impl Alternatives {
    /// The `count` most probable tokens, or all where there are fewer, of log-probabilities `[1, V]`; `None` for a count
    /// of 0.
    pub(crate) fn new(logprobs: &Array, count: usize) -> Result<Option<Self>, Exception> {
        let vocab_size = logprobs.dim(-1);
        let count = i32::try_from(count).unwrap_or(i32::MAX).min(vocab_size);
        if count == 0 {
            return Ok(None);
        }
        let improbability = logprobs.negative()?;
        let best = argpartition_axis(&improbability, count - 1, -1)?.try_index((.., ..count))?;
        let order = argsort_axis(take_along_axis(&improbability, &best, -1)?, -1)?;
        let best = take_along_axis(&best, &order, -1)?;
        let logprobs = take_along_axis(logprobs, &best, -1)?.as_dtype(Dtype::Float32)?;
        Ok(Some(Self {
            ids: best.as_dtype(Dtype::Uint32)?.reshape(&[-1])?,
            logprobs: logprobs.reshape(&[-1])?,
        }))
    }

    pub(crate) fn arrays(&self) -> [&Array; 2] {
        [&self.ids, &self.logprobs]
    }

    /// Ids and log-probabilities, the largest first.
    pub(crate) fn read(&self) -> Result<Vec<(u32, f32)>, Exception> {
        self.ids.eval()?;
        self.logprobs.eval()?;
        let custom = |e: mlx_rs::error::AsSliceError| Exception::custom(e.to_string());
        let ids = self.ids.try_as_slice::<u32>().map_err(custom)?;
        let logprobs = self.logprobs.try_as_slice::<f32>().map_err(custom)?;
        Ok(ids.iter().copied().zip(logprobs.iter().copied()).collect())
    }
}
