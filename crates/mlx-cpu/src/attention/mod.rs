//! Attention without the full matrix of scores.

mod decode;
mod heads;
mod prompt;

use std::cell::Cell;

pub use heads::{Heads, QuantizedHeads};

use crate::cpu::Shared;
use crate::products::FEW_ROWS;
use crate::{Cpu, Element, View, ViewMut};

/// Which keys a query sees, or what is added to its scores.
#[derive(Debug, Clone, Copy)]
pub enum Mask<'a, T> {
    /// All of them.
    None,
    /// Query `i` sees key `j` where `j <= i + S - L`: the last query sees the last key.
    Causal,
    /// Those that are true; `[B, Hq, L, S]`, with strides of 0 where it repeats.
    Bool(View<'a, bool, 4>),
    /// All, with these numbers added to the scores; `[B, Hq, L, S]`.
    Additive(View<'a, T, 4>),
}

/// `softmax(queries * keys^T * scale) * values`, for each head; Vaswani et al. 2017, *Attention Is All
/// You Need*, arXiv:1706.03762. Query head `h` uses the keys and values of head `h / (Hq / Hkv)`:
/// Ainslie et al. 2023, *GQA*, arXiv:2305.13245.
///
/// Rounds to `T` where MLX's graph does: the scaled queries, the scores, the scores with a mask added,
/// and the weights after they are divided by their sum. A key that is not seen has the lowest number of `T`
/// as its score, so a query that sees none gets the mean of all values. A sink is one more score
/// without a value, at the start of its head's rows.
///
/// # How
///
/// Rounded weights need the sum of their whole row first, so scores are kept, of one tile of queries at a
/// time: memory is linear in the number of keys. Blocks of keys that no query of a tile sees are skipped.
/// Few queries stream keys and values once for all heads that share them, split into blocks of keys for
/// the threads; many are computed in tiles whose vectors run over queries.
///
/// Up to 16 queries of a head each get the bits that they get alone.
///
/// Quantized keys and values ([`QuantizedHeads`]) are decoded a few rows at a time, which stay in the cache of a
/// core while they are multiplied.
///
/// # Shapes
///
/// `queries` `[B, Hq, L, D]`, `keys` `[B, Hkv, S, D]`, `values` `[B, Hkv, S, Dv]`, `sinks` `[Hq]`, `out`
/// `[B, Hq, L, Dv]`; any strides, the last of all but the mask 1.
///
/// # Error
///
/// Sums are float32, of `D` products for a score and of `S` for a result: off by at most `2^-24` times the
/// number of terms times the sum of their sizes. A quantized number is float32 too, not rounded to `T`: of it
/// `|scale code| + |bias|` counts as its size, and one more term. Exponentials are MLX's own, but 0 where a key's
/// score lies more than 69 below the largest: what such a value would add is less than 2^-99 of it, and may be
/// denormal, which takes processors long. A key or value that is not seen may be skipped, infinite or NaN or not,
/// where MLX multiplies it by 0.
///
/// # Panics
///
/// Where shapes do not agree, or numbers of a head lie apart.
#[expect(clippy::too_many_arguments, reason = "what attention is made of")]
pub fn attention<T: Element, H: Heads<T>>(
    cpu: &Cpu,
    queries: View<'_, T, 4>,
    keys: H,
    values: H,
    scale: f32,
    mask: Mask<'_, T>,
    sinks: Option<&[T]>,
    mut out: ViewMut<'_, T, 4>,
) {
    let [batch, heads, length, size] = queries.shape();
    let [_, shared_heads, count, _] = keys.shape();
    let out_size = values.shape()[3];
    assert!(
        keys.shape() == [batch, shared_heads, count, size],
        "keys of shape {:?} for queries of shape {:?}",
        keys.shape(),
        queries.shape()
    );
    assert!(
        values.shape() == [batch, shared_heads, count, out_size],
        "values of shape {:?} for keys of shape {:?}",
        values.shape(),
        keys.shape()
    );
    assert!(
        out.shape() == [batch, heads, length, out_size],
        "an output of shape {:?} for queries of shape {:?} and values of shape {:?}",
        out.shape(),
        queries.shape(),
        values.shape()
    );
    for (name, has_rows) in [
        ("queries", queries.has_rows() || queries.is_empty()),
        ("keys", keys.has_rows()),
        ("values", values.has_rows()),
        ("the output", out.has_rows()),
    ] {
        assert!(has_rows, "the numbers of a head of {name} lie apart");
    }
    if let Some(sinks) = sinks {
        assert!(sinks.len() == heads, "{} sinks for {heads} heads", sinks.len());
    }
    let mask_shape = match &mask {
        Mask::None | Mask::Causal => None,
        Mask::Bool(mask) => Some(mask.shape()),
        Mask::Additive(mask) => Some(mask.shape()),
    };
    if let Some(shape) = mask_shape {
        assert!(
            shape == [batch, heads, length, count],
            "a mask of shape {shape:?} for {batch} rows, {heads} heads, {length} queries and {count} keys"
        );
    }
    if batch * heads * length * out_size == 0 {
        return;
    }
    assert!(
        shared_heads > 0 && heads.is_multiple_of(shared_heads),
        "{heads} heads of queries for {shared_heads} of keys"
    );

    let group = heads / shared_heads;
    let problem = Problem {
        queries,
        keys,
        values,
        scale: T::narrow(scale).widen(),
        mask,
        sinks,
        out_strides: out.strides(),
        out: Shared(out.as_mut_ptr()),
        group,
    };
    if length <= FEW_ROWS {
        decode::run(cpu, &problem);
    } else {
        prompt::run(cpu, &problem);
    }
}

/// The arguments of [`attention`], checked.
struct Problem<'a, T, H> {
    queries: View<'a, T, 4>,
    keys: H,
    values: H,
    /// Rounded to `T`.
    scale: f32,
    mask: Mask<'a, T>,
    sinks: Option<&'a [T]>,
    out: Shared<T>,
    out_strides: [usize; 4],
    /// Heads of queries for one of keys.
    group: usize,
}

/// A query of a group: its head among all, and its place.
#[derive(Debug, Clone, Copy)]
struct Query {
    batch: usize,
    head: usize,
    place: usize,
}

impl<T: Element, H: Heads<T>> Problem<'_, T, H> {
    /// The numbers of a query.
    #[inline(always)]
    fn query(&self, Query { batch, head, place }: Query) -> &[T] {
        let size = self.queries.shape()[3];
        &self.queries.data()[self.queries.at([batch, head, place, 0])..][..size]
    }

    /// The result of a query.
    ///
    /// # Safety
    ///
    /// The output is still borrowed, and nobody else has this row.
    #[expect(clippy::mut_from_ref, reason = "rows do not overlap, and each is asked for by one task")]
    unsafe fn out(&self, Query { batch, head, place }: Query) -> &mut [T] {
        let [of_batch, of_head, of_place, _] = self.out_strides;
        let at = batch * of_batch + head * of_head + place * of_place;
        // SAFETY: inside the output, whose constructor checked that; the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.out.get().add(at), self.values.shape()[3]) }
    }

    /// How many keys a query sees of those that follow each other from the first, where the mask is causal.
    fn causal_end(&self, place: usize) -> usize {
        let (length, count) = (self.queries.shape()[2], self.keys.shape()[2]);
        (place + 1 + count).saturating_sub(length)
    }
}

/// Calls `task` with `length` numbers that hold anything. Each thread keeps the memory for the next time.
fn with_scratch<R>(length: usize, task: impl FnOnce(&mut [f32]) -> R) -> R {
    thread_local! {
        static SCRATCH: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    }
    let mut scratch = SCRATCH.take();
    if scratch.len() < length {
        // Not `resize`: the old numbers need no copy.
        scratch = vec![0.0; length];
    }
    let result = task(&mut scratch[..length]);
    SCRATCH.set(scratch);
    result
}
