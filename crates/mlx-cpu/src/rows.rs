//! Work that is done row by row.

use crate::cpu::Shared;
use crate::{Arithmetic, Cpu, Element, Matrix, MatrixMut};

/// Less than this many nanoseconds of work is not worth the threads: waking one costs that much.
/// Miri's cases are small, and threads are what it is to see.
const WORTHWHILE: usize = if cfg!(miri) { 100 } else { 20_000 };

/// Into how many tasks work is split, of which there are `items` of some `nanoseconds` each: one where
/// threads would not pay, and never more than a few for each thread.
pub(crate) fn tasks(cpu: &Cpu, items: usize, nanoseconds: usize) -> usize {
    let work = items.saturating_mul(nanoseconds);
    if cpu.threads() == 1 || work < WORTHWHILE {
        return 1;
    }
    (work / (WORTHWHILE / 4)).min(cpu.threads() * 4).clamp(1, items.max(1))
}

/// Calls `task` with ranges that cover 0 to `items`, shared among the threads where it pays.
pub(crate) fn parallel_ranges(
    cpu: &Cpu,
    items: usize,
    nanoseconds: usize,
    task: impl Fn(std::ops::Range<usize>) + Sync,
) {
    if items == 0 {
        return;
    }
    let size = items.div_ceil(tasks(cpu, items, nanoseconds));
    cpu.parallel(items.div_ceil(size), |index| task(index * size..items.min((index + 1) * size)));
}

/// The rows of an output that tasks share.
pub(crate) struct Rows<T> {
    start: Shared<T>,
    rows: usize,
    columns: usize,
    row_stride: usize,
}

impl<T> Rows<T> {
    pub(crate) fn new(out: &mut MatrixMut<'_, T>) -> Self {
        let (rows, columns, row_stride) = (out.rows(), out.columns(), out.row_stride());
        Self { start: Shared(out.as_mut_ptr()), rows, columns, row_stride }
    }

    /// Row `i`.
    ///
    /// # Safety
    ///
    /// The matrix is still borrowed, and nobody else has this row.
    #[expect(clippy::mut_from_ref, reason = "rows do not overlap, and each is asked for once")]
    pub(crate) unsafe fn row(&self, i: usize) -> &mut [T] {
        // SAFETY: the caller's promise.
        unsafe { self.part(i, 0..self.columns) }
    }

    /// Some elements of row `i`.
    ///
    /// # Safety
    ///
    /// The matrix is still borrowed, and nobody else has these elements.
    #[expect(clippy::mut_from_ref, reason = "parts do not overlap, and each is asked for once")]
    pub(crate) unsafe fn part(&self, i: usize, columns: std::ops::Range<usize>) -> &mut [T] {
        assert!(i < self.rows && columns.start <= columns.end && columns.end <= self.columns);
        if columns.is_empty() {
            return &mut [];
        }
        // SAFETY: within the matrix, whose constructor checked that; the caller's promise.
        unsafe {
            let start = self.start.get().add(i * self.row_stride + columns.start);
            std::slice::from_raw_parts_mut(start, columns.len())
        }
    }
}

/// Asserts that the elements of the rows of `x` follow each other.
pub(crate) fn assert_rows<T>(x: &Matrix<'_, T>, name: &str) {
    assert!(
        x.column_stride() == 1 || x.columns() <= 1 || x.rows() == 0,
        "the elements of a row of {name} lie {} apart",
        x.column_stride()
    );
}

/// A vector of as many elements as there are, up to `LANES`, and `fill` in the other lanes.
#[inline(always)]
pub(crate) fn load<S: Arithmetic, T: Element>(s: S, from: &[T], fill: f32) -> S::F {
    if from.len() >= S::LANES { s.load(from) } else { s.load_some(from, fill) }
}

/// Writes as many elements as there are, up to `LANES`.
#[inline(always)]
pub(crate) fn store<S: Arithmetic, T: Element>(s: S, to: &mut [T], x: S::F) {
    if to.len() >= S::LANES { s.store(to, x) } else { s.store_some(to, x) }
}
