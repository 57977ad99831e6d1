//! Work that is shared between threads by rows.

use crate::cpu::Shared;
use crate::{Arithmetic, Cpu, Element, Matrix, MatrixMut};

/// Less work than this, in nanoseconds, is done by one thread: waking another one costs as much.
/// Small for Miri, whose cases are small and must still be shared between threads.
const WORTHWHILE: usize = if cfg!(miri) { 100 } else { 20_000 };

/// Into how many tasks `items` items of about `nanoseconds` each are split: one if more threads would not pay, and at
/// most four for each thread.
pub(crate) fn tasks(cpu: &Cpu, items: usize, nanoseconds: usize) -> usize {
    let work = items.saturating_mul(nanoseconds);
    if cpu.threads() == 1 || work < WORTHWHILE {
        return 1;
    }
    (work / (WORTHWHILE / 4)).min(cpu.threads() * 4).clamp(1, items.max(1))
}

/// Calls `task` with ranges that together cover 0 to `items`, on several threads if that pays. An item takes about
/// `nanoseconds`.
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

/// An output whose rows are written by different tasks.
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
    /// The matrix is still borrowed, and no other task has this row.
    #[expect(clippy::mut_from_ref, reason = "rows do not overlap, and each is asked for once")]
    pub(crate) unsafe fn row(&self, i: usize) -> &mut [T] {
        // SAFETY: the caller's promise.
        unsafe { self.part(i, 0..self.columns) }
    }

    /// The elements of row `i` in these columns.
    ///
    /// # Safety
    ///
    /// The matrix is still borrowed, and no other task has these elements.
    #[expect(clippy::mut_from_ref, reason = "parts do not overlap, and each is asked for once")]
    pub(crate) unsafe fn part(&self, i: usize, columns: std::ops::Range<usize>) -> &mut [T] {
        assert!(i < self.rows && columns.start <= columns.end && columns.end <= self.columns);
        if columns.is_empty() {
            return &mut [];
        }
        // SAFETY: within the matrix, as its constructor has checked; the caller's promise.
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

/// Up to `LANES` elements, and `fill` in the other lanes. Fast for whole vectors.
#[inline(always)]
pub(crate) fn load<S: Arithmetic, T: Element>(s: S, from: &[T], fill: f32) -> S::F {
    if from.len() >= S::LANES { s.load(from) } else { s.load_some(from, fill) }
}

/// Writes up to `LANES` elements. Fast for whole vectors.
#[inline(always)]
pub(crate) fn store<S: Arithmetic, T: Element>(s: S, to: &mut [T], x: S::F) {
    if to.len() >= S::LANES { s.store(to, x) } else { s.store_some(to, x) }
}
