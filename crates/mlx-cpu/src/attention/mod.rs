//! Attention without the full matrix of scores.

mod decode;
mod heads;
mod pairs;
mod problem;
mod prompt;

pub use heads::{Heads, QuantizedHeads};
pub use problem::{Mask, Scores};

use problem::Problem;

use crate::cpu::Shared;
use crate::{Cpu, Element, View, ViewMut};

/// The largest number of queries of a head that `decode.rs` computes. They have the bits that each has alone.
const FEW: usize = if cfg!(miri) { 16 } else { 64 };
/// The same with pairs of bfloat16. There `prompt.rs` gives the same bits and is faster from here on.
const FEW_IN_PAIRS: usize = 16;

/// `softmax(queries * keys^T * scale) * values`, for each head; Vaswani et al. 2017, *Attention Is All
/// You Need*, arXiv:1706.03762. Query head `h` uses the keys and values of head `h / (Hq / Hkv)`:
/// Ainslie et al. 2023, *GQA*, arXiv:2305.13245. [`Scores`] says how scores are scaled, and whether they are soft-capped.
///
/// Rounds to `T` where MLX's graph does: the scaled queries, the scores, the three steps of a soft cap, the scores with a
/// mask added, and the weights after they are divided by their sum. A key that is not seen has the lowest number of `T` as its score, so a query
/// that sees no key gets the mean of all values. A sink is one more score of each query of its head, without a value.
///
/// # How
///
/// A weight can be rounded only when the sum of its row is known. So the scores of one tile of queries are kept, and
/// memory is linear in the number of keys. Blocks of keys that no query of a tile sees are skipped.
///
/// With few queries, keys and values are read once, for all heads that share them, and threads share blocks of keys.
/// With many queries, threads share tiles of queries, and vectors run over queries.
///
/// Up to 64 queries of a head each get the bits that they get alone. With more queries the sums have another order,
/// except for bfloat16 on a processor with AVX512-BF16 and an even `D`: there any number of queries gets these bits.
/// Such a processor multiplies pairs of bfloat16, without widening them.
///
/// Quantized keys and values ([`QuantizedHeads`]) are decoded a few rows at a time, which stay in the cache of a core
/// while they are multiplied.
///
/// # Shapes
///
/// `queries` `[B, Hq, L, D]`, `keys` `[B, Hkv, S, D]`, `values` `[B, Hkv, S, Dv]`, `sinks` `[Hq]`, `out`
/// `[B, Hq, L, Dv]`; any strides, but the last one is 1, except for the mask.
///
/// # Error
///
/// Sums are float32, of `D` products for a score and of `S` for a result. The error is at most `2^-24` times the number
/// of terms times the sum of their absolute values. With AVX512-BF16, terms and sums of bfloat16 below
/// 2^-126 count as 0. A quantized number is not rounded to `T`: it counts with `|scale
/// code| + |bias|`, and as one more term.
///
/// The hyperbolic tangent of a soft cap is within 5 units in the last place of float32.
///
/// Exponentials are MLX's own, except that the exponential of a score that lies more than 69 below the largest is 0.
/// Such a value would add less than 2^-99 of itself, and its denormal numbers would take processors long. A key or
/// value that is not seen may be skipped, even if it is infinite or NaN; MLX multiplies it by 0.
///
/// # Panics
///
/// If shapes do not agree, or the numbers of a head do not follow each other.
#[expect(clippy::too_many_arguments, reason = "the operands of attention")]
pub fn attention<T: Element, H: Heads<T>>(
    cpu: &Cpu,
    queries: View<'_, T, 4>,
    keys: H,
    values: H,
    scores: impl Into<Scores>,
    mask: Mask<'_, T>,
    sinks: Option<&[T]>,
    mut out: ViewMut<'_, T, 4>,
) {
    check(&queries, &keys, &values, &mask, sinks, &out);
    let [batch, heads, length, _] = queries.shape();
    let shared_heads = keys.shape()[1];
    let out_size = values.shape()[3];
    if batch * heads * length * out_size == 0 {
        return;
    }
    assert!(
        shared_heads > 0 && heads.is_multiple_of(shared_heads),
        "{heads} heads of queries for {shared_heads} of keys"
    );

    let group = heads / shared_heads;
    let Scores { scale, softcap } = scores.into();
    let problem = Problem {
        queries,
        keys,
        values,
        scale: T::narrow(scale).widen(),
        softcap: softcap.map(|cap| T::narrow(cap).widen()),
        mask,
        sinks,
        out_strides: out.strides(),
        out: Shared(out.as_mut_ptr()),
        group,
    };
    let in_pairs = pairs::multiplies(cpu.isa(), &problem);
    if length <= if in_pairs { FEW_IN_PAIRS } else { FEW } {
        decode::run(cpu, &problem);
    } else {
        prompt::run(cpu, &problem);
    }
}

/// Asserts that the shapes agree, and that the numbers of each head follow each other.
fn check<T: Element, H: Heads<T>>(
    queries: &View<'_, T, 4>,
    keys: &H,
    values: &H,
    mask: &Mask<'_, T>,
    sinks: Option<&[T]>,
    out: &ViewMut<'_, T, 4>,
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
    let mask_shape = match mask {
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
}
