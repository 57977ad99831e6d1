//! Products of a few rows with the rows of a matrix.

use crate::products::{Output, portions, reads_one_stream, rows_of_task, with_widened_rows};
use crate::simd::prefetch_stream;
use crate::{Arithmetic, Cpu, Element, Kernel, MAX_LANES, Matrix, Simd};

/// `out = x w^T` for at most [`FEW_ROWS`](crate::products::FEW_ROWS) rows of `x`, and a `w` with contiguous rows.
pub(super) fn rows_by_rows<T: Element>(cpu: &Cpu, x: Matrix<'_, T>, w: Matrix<'_, T>, out: &Output<'_, T>) {
    let padded = x.columns().next_multiple_of(MAX_LANES);
    with_widened_rows(cpu, x, padded, |x| {
        let x = &*x;
        let size = rows_of_task(w.rows(), w.columns() * size_of::<T>());
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
            let one = row + 4 > self.rows.end || self.out.rows() == 1 && reads_one_stream::<S>();
            let count = if one { 1 } else { 4 };
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
    /// The products of `X` rows of `x` and `W` rows of weights: independent sums, and each vector of `x` is loaded
    /// once.
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
