//! Products of a few rows with the rows of a matrix: what a model does for each new token.
//!
//! Every weight is used once or a few times, so what counts is to read memory without a pause. The
//! rows of weights are cut into pieces of a size that depends on the shape alone.

use super::output::Output;
use super::pack::copy;
use super::scratch::{Purpose, with_scratch};
use crate::simd::prefetch_stream;
use crate::{Arithmetic, Cpu, Element, Kernel, MAX_LANES, Matrix, Simd};

/// So many rows at most; with more, panels pay. Up to here each row has the bits that it has alone, so that
/// checking guessed tokens gives the answer that decoding them one by one gives.
pub(crate) const FEW: usize = 16;
/// So many rows are worked on at a time: their sums stay in registers.
pub(crate) const MOST: usize = 4;
/// Bytes of weights that one task reads: some 5 microseconds.
const PIECE: usize = if cfg!(miri) { 1 << 7 } else { 64 << 10 };
/// Bytes of weights that are one task. To share fewer costs more than it brings.
/// Miri's cases are small, and threads are what it is to see.
const SMALL: usize = if cfg!(miri) { 1 << 9 } else { 128 << 10 };

/// How many rows of weights of `bytes` each one task takes.
pub(crate) fn piece(rows: usize, bytes: usize) -> usize {
    if rows * bytes <= SMALL {
        return rows.max(1);
    }
    // A multiple of four pieces, so that two or four threads end together.
    let pieces = (rows * bytes).div_ceil(PIECE).next_multiple_of(4);
    rows.div_ceil(pieces).next_multiple_of(4)
}

/// Cuts rows into portions of at most [`MOST`], of almost the same size: the first row and the number.
pub(crate) fn portions(rows: usize) -> impl Iterator<Item = (usize, usize)> {
    let count = rows.div_ceil(MOST);
    (0..count).map(move |index| {
        let (first, end) = (index * rows / count, (index + 1) * rows / count);
        (first, end - first)
    })
}

/// Widens the rows of `x` for a kernel that reads them again and again: `padded` numbers for each,
/// zeros at their ends.
pub(crate) fn with_rows<T: Element, R>(
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

/// Widens a row, however far its elements are apart.
#[inline(always)]
pub(crate) fn widen_row<S: Arithmetic, T: Element>(s: S, x: &Matrix<'_, T>, row: usize, to: &mut [f32]) {
    if x.column_stride() == 1 {
        return copy(s, x.row(row), to);
    }
    for (k, to) in to.iter_mut().enumerate() {
        *to = x.data()[row * x.row_stride() + k * x.column_stride()].widen();
    }
}

/// `out = x w^T` for a few rows of `x` and rows of `w` whose elements follow each other.
pub(super) fn rows_by_rows<T: Element>(cpu: &Cpu, x: Matrix<'_, T>, w: Matrix<'_, T>, out: &Output<'_, T>) {
    let padded = x.columns().next_multiple_of(MAX_LANES);
    with_rows(cpu, x, padded, |x| {
        let x = &*x;
        let size = piece(w.rows(), w.columns() * size_of::<T>());
        let task = |index: usize| {
            let rows = index * size..w.rows().min((index + 1) * size);
            cpu.run(Dot { x, padded, w, rows, out });
        };
        cpu.parallel(w.rows().div_ceil(size), task);
    });
}

struct Dot<'a, T> {
    x: &'a [f32],
    padded: usize,
    w: Matrix<'a, T>,
    rows: std::ops::Range<usize>,
    out: &'a Output<'a, T>,
}

impl<T: Element> Kernel for Dot<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut row = self.rows.start;
        while row < self.rows.end {
            let count = if row + 4 <= self.rows.end { 4 } else { 1 };
            for (first, rows) in portions(self.out.rows()) {
                match (rows, count) {
                    (1, 4) => self.some::<S, 1, 4>(s, first, row),
                    (2, 4) => self.some::<S, 2, 4>(s, first, row),
                    (3, 4) => self.some::<S, 3, 4>(s, first, row),
                    (4, 4) => self.some::<S, 4, 4>(s, first, row),
                    (1, _) => self.some::<S, 1, 1>(s, first, row),
                    (2, _) => self.some::<S, 2, 1>(s, first, row),
                    (3, _) => self.some::<S, 3, 1>(s, first, row),
                    (4, _) => self.some::<S, 4, 1>(s, first, row),
                    _ => unreachable!("a portion of {rows} rows"),
                }
            }
            row += count;
        }
    }
}

impl<T: Element> Dot<'_, T> {
    /// `W` rows of weights at once: independent sums, and each vector of `x` is loaded once for all.
    #[inline(always)]
    fn some<S: Arithmetic, const X: usize, const W: usize>(&self, s: S, first: usize, row: usize) {
        let columns = self.w.columns();
        let weights: [&[T]; W] = std::array::from_fn(|i| self.w.row(row + i));
        let x = &self.x[first * self.padded..];
        assert!(x.len() >= X * self.padded && self.padded >= columns.next_multiple_of(S::LANES));
        let mut sums = [[s.zero(); X]; W];
        let whole = columns / S::LANES * S::LANES;
        for k in (0..whole).step_by(S::LANES) {
            // SAFETY: `LANES` elements from `k` on are within each row, and within each of `x`.
            unsafe {
                let x: [S::F; X] = std::array::from_fn(|i| s.load_f32(x.as_ptr().add(i * self.padded + k)));
                for (weights, sums) in weights.iter().zip(&mut sums) {
                    let at = weights.as_ptr().add(k);
                    if (k * size_of::<T>()).is_multiple_of(64) {
                        prefetch_stream(at);
                    }
                    let weights = T::load(s, at);
                    for (x, sum) in x.iter().zip(sums) {
                        *sum = s.mul_add(*x, weights, *sum);
                    }
                }
            }
        }
        if whole < columns {
            // SAFETY: `x` is padded to a whole vector.
            let x: [S::F; X] =
                std::array::from_fn(|i| unsafe { s.load_f32(x.as_ptr().add(i * self.padded + whole)) });
            for (weights, sums) in weights.iter().zip(&mut sums) {
                let weights = s.load_some(&weights[whole..], 0.0);
                for (x, sum) in x.iter().zip(sums) {
                    *sum = s.mul_add(*x, weights, *sum);
                }
            }
        }
        for (w, sums) in sums.into_iter().enumerate() {
            for (i, sum) in sums.into_iter().enumerate() {
                // SAFETY: these columns belong to this task alone.
                unsafe { self.out.put_one(first + i, row + w, s.sum(sum)) };
            }
        }
    }
}
