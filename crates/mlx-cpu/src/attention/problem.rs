//! What attention computes: the arguments of the kernels, and where they find queries and results.

use std::cell::Cell;

use super::heads::Heads;
use crate::cpu::Shared;
use crate::rows::{load, store};
use crate::simd::tanh;
use crate::{Arithmetic, Element, View};

/// How scores are made of the products of queries and keys. A number is a scale without a soft cap.
#[derive(Debug, Clone, Copy)]
pub struct Scores {
    /// What products are multiplied by.
    pub scale: f32,
    /// The cap of soft-capped scores: each scaled product x becomes `cap * tanh(x / cap)`, before the mask is applied;
    /// Gemma Team 2024, *Gemma 2*, arXiv:2408.00118, section 2.
    pub softcap: Option<f32>,
}

impl From<f32> for Scores {
    fn from(scale: f32) -> Self {
        Self { scale, softcap: None }
    }
}

/// Which keys a query sees, or what is added to its scores.
#[derive(Debug, Clone, Copy)]
pub enum Mask<'a, T> {
    /// Every query sees all keys.
    None,
    /// Query `i` sees key `j` where `j <= i + S - L`: the last query sees the last key.
    Causal,
    /// A query sees the keys for which this is true; `[B, Hq, L, S]`, with strides of 0 where it repeats.
    Bool(View<'a, bool, 4>),
    /// Every query sees all keys, with these numbers added to the scores; `[B, Hq, L, S]`.
    Additive(View<'a, T, 4>),
}

/// The arguments of [`attention`](super::attention()), checked.
pub(super) struct Problem<'a, T, H> {
    pub(super) queries: View<'a, T, 4>,
    pub(super) keys: H,
    pub(super) values: H,
    /// Rounded to `T`.
    pub(super) scale: f32,
    /// Rounded to `T`.
    pub(super) softcap: Option<f32>,
    pub(super) mask: Mask<'a, T>,
    pub(super) sinks: Option<&'a [T]>,
    pub(super) out: Shared<T>,
    pub(super) out_strides: [usize; 4],
    /// The number of heads of queries for one head of keys.
    pub(super) group: usize,
}

/// Which query.
#[derive(Debug, Clone, Copy)]
pub(super) struct Query {
    /// The row of the batch.
    pub(super) batch: usize,
    pub(super) head: usize,
    /// Its number among the queries of the head.
    pub(super) place: usize,
}

impl<T: Element, H: Heads<T>> Problem<'_, T, H> {
    /// The numbers of a query.
    #[inline(always)]
    pub(super) fn query(&self, Query { batch, head, place }: Query) -> &[T] {
        let size = self.queries.shape()[3];
        &self.queries.data()[self.queries.at([batch, head, place, 0])..][..size]
    }

    /// Where the result of a query goes.
    ///
    /// # Safety
    ///
    /// The output is still borrowed, and no other task has this row.
    #[expect(clippy::mut_from_ref, reason = "rows do not overlap, and each is asked for by one task")]
    pub(super) unsafe fn out(&self, Query { batch, head, place }: Query) -> &mut [T] {
        let [of_batch, of_head, of_place, _] = self.out_strides;
        let at = batch * of_batch + head * of_head + place * of_place;
        // SAFETY: within the output, as its constructor has checked; the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.out.get().add(at), self.values.shape()[3]) }
    }

    /// Applies the soft cap to scores, if there is one. Each step is rounded, as in MLX's graph.
    #[inline(always)]
    pub(super) fn softcap<S: Arithmetic>(&self, s: S, scores: &mut [f32]) {
        let Some(cap) = self.softcap else { return };
        let cap = s.splat(cap);
        for scores in scores.chunks_mut(S::LANES) {
            let share = T::rounded(s, s.div(load(s, scores, 0.0), cap));
            let bent = T::rounded(s, tanh(s, share));
            store(s, scores, T::rounded(s, s.mul(bent, cap)));
        }
    }

    /// With a causal mask, the number of keys that a query sees, from the first on.
    pub(super) fn causal_end(&self, place: usize) -> usize {
        let (length, count) = (self.queries.shape()[2], self.keys.shape()[2]);
        (place + 1 + count).saturating_sub(length)
    }
}

/// Calls `task` with `length` numbers of any value. Each thread keeps the memory for the next call.
pub(super) fn with_scratch<R>(length: usize, task: impl FnOnce(&mut [f32]) -> R) -> R {
    thread_local! {
        static SCRATCH: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    }
    let mut scratch = SCRATCH.take();
    if scratch.len() < length {
        // Not `resize`, which would copy the old numbers. With room for more: a context grows by a key a time.
        scratch = vec![0.0; length.next_power_of_two()];
    }
    let result = task(&mut scratch[..length]);
    SCRATCH.set(scratch);
    result
}
