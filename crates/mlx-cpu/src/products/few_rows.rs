//! How products of a few rows with the rows of a quantized matrix are cut: what a model computes for each new token.
//!
//! Every weight is used once or a few times, so the time goes into reading memory without a pause. The rows of weights
//! are cut into tasks whose size depends on the shape alone.

use super::panels::widen;
use super::scratch::{Purpose, with_scratch};
use crate::{Arithmetic, Cpu, Element, Kernel, MAX_LANES, Matrix, Simd};

/// The largest number of rows that quantized matrices multiply without panels; with more rows, panels pay. Up to here each row has
/// the bits that it has alone, so that checking the tokens of a draft model gives the answer of decoding them one by
/// one.
pub(crate) const FEW_ROWS: usize = 16;
/// The largest number of rows that are multiplied at a time: their sums stay in registers.
pub(crate) const ROWS_AT_ONCE: usize = 4;
/// Bytes of weights that one task reads: about 5 microseconds.
const PIECE: usize = if cfg!(miri) { 1 << 7 } else { 64 << 10 };
/// Up to this many bytes of weights are one task. Sharing fewer costs more than it brings.
/// Small for Miri, whose cases are small and must still share work between threads.
const SMALL: usize = if cfg!(miri) { 1 << 9 } else { 128 << 10 };

/// Whether a single row is multiplied with one row of weights at a time, and not with four.
///
/// One row of weights after the other is one stream of memory. A core reads it faster than the four streams of four
/// rows. Narrow vectors need the sums of four rows nevertheless: each addition to a sum waits for the one before.
pub(crate) const fn reads_one_stream<S: Arithmetic>() -> bool {
    S::LANES == MAX_LANES
}

/// The number of rows of weights, of `bytes` bytes each, that one task takes.
pub(crate) fn rows_of_task(rows: usize, bytes: usize) -> usize {
    if rows * bytes <= SMALL {
        return rows.max(1);
    }
    // A multiple of four tasks, so that two or four threads end together.
    let tasks = (rows * bytes).div_ceil(PIECE).next_multiple_of(4);
    rows.div_ceil(tasks).next_multiple_of(4)
}

/// Cuts `rows` rows into portions of at most [`ROWS_AT_ONCE`] rows, of almost equal size: the first row of each and the
/// number of its rows.
pub(crate) fn portions(rows: usize) -> impl Iterator<Item = (usize, usize)> {
    let count = rows.div_ceil(ROWS_AT_ONCE);
    (0..count).map(move |index| {
        let (first, end) = (index * rows / count, (index + 1) * rows / count);
        (first, end - first)
    })
}

/// Calls `task` with the rows of `x` widened to float32, for a kernel that reads them again and again. Each takes
/// `padded` numbers, with zeros at its end.
pub(crate) fn with_widened_rows<T: Element, R>(
    cpu: &Cpu,
    x: Matrix<'_, T>,
    padded: usize,
    task: impl FnOnce(&mut [f32]) -> R,
) -> R {
    with_scratch(Purpose::Left, x.rows() * padded, |to| {
        cpu.run(Widen { x, padded, to });
        task(to)
    })
}

struct Widen<'a, T> {
    x: Matrix<'a, T>,
    padded: usize,
    to: &'a mut [f32],
}

impl<T: Element> Kernel for Widen<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let columns = self.x.columns();
        for (i, to) in self.to.chunks_exact_mut(self.padded).enumerate() {
            let (to, rest) = to.split_at_mut(columns);
            widen_row(s, &self.x, i, to);
            rest.fill(0.0);
        }
    }
}

/// Widens a row of any column stride.
#[inline(always)]
pub(crate) fn widen_row<S: Arithmetic, T: Element>(s: S, x: &Matrix<'_, T>, row: usize, to: &mut [f32]) {
    if x.column_stride() == 1 {
        return widen(s, x.row(row), to);
    }
    for (k, to) in to.iter_mut().enumerate() {
        *to = x.data()[row * x.row_stride() + k * x.column_stride()].widen();
    }
}
