//! The kernel of [`strips`](super::strips): scalar products of a few rows of `x` and a few rows of weights.
//!
//! Vectors run along the depth, and each scalar product has one vector of sums. Rows are read as they lie in memory, or
//! from a copy in which the vectors of all rows lie in the order in which they are used. Either way the additions are
//! the same ones in the same order.

#![expect(
    clippy::needless_range_loop,
    reason = "the compiler unrolls loops over numbers and keeps the sums in registers; over iterators it does neither, \
              and without link-time optimization their closures become functions without the instructions"
)]

use crate::simd::{prefetch_far, prefetch_stream};
use crate::{Arithmetic, Element, MAX_LANES, Matrix};

/// The largest number of rows of `x` that are multiplied at a time.
pub(super) const ROWS: usize = 3;
/// The largest number of rows of weights that are multiplied at a time.
pub(super) const MOST_COLUMNS: usize = 8;
/// The largest number of rows of `x` that are multiplied at a time with weights that are read where they lie.
pub(super) const ROWS_IN_PLACE: usize = 8;
/// The largest number of scalar products that are computed at a time.
const MOST_SUMS: usize = ROWS_IN_PLACE * MOST_COLUMNS;
/// The steps of the depth after which memory is prefetched.
const BETWEEN: usize = 4;

/// The number of rows of weights that are multiplied at a time: with [`ROWS`] rows of `x`, 24 of the 32 registers of
/// AVX-512 and NEON hold sums, or 12 of the 16 of others.
pub(super) const fn columns<S: Arithmetic>() -> usize {
    if S::REGISTERS >= 32 { MOST_COLUMNS } else { MOST_COLUMNS / 2 }
}

/// How vectors of elements are multiplied. A vector takes [`Arithmetic::LANES`] numbers of 4 bytes.
///
/// The methods with pointers are unsafe: as many elements or numbers as a vector has can be read or written there.
pub(super) trait Multiply<T>: Copy {
    type S: Arithmetic;
    type V: Copy;
    /// The number of elements of a vector, at most `2 * MAX_LANES`.
    const STEP: usize;

    fn simd(self) -> Self::S;
    /// Reads elements of a matrix.
    unsafe fn read(self, from: *const T) -> Self::V;
    /// Reads a vector of a copy.
    unsafe fn load(self, from: *const f32) -> Self::V;
    /// Writes a vector of a copy.
    unsafe fn store(self, to: *mut f32, x: Self::V);
    /// Adds the products of `a` and `b` to `sums`.
    fn mul_add(self, a: Self::V, b: Self::V, sums: <Self::S as Arithmetic>::F) -> <Self::S as Arithmetic>::F;
}

/// Elements, widened to float32.
#[derive(Debug, Clone, Copy)]
pub(super) struct Widened<S>(pub(super) S);

impl<T: Element, S: Arithmetic> Multiply<T> for Widened<S> {
    type S = S;
    type V = S::F;
    const STEP: usize = S::LANES;

    #[inline(always)]
    fn simd(self) -> S {
        self.0
    }

    #[inline(always)]
    unsafe fn read(self, from: *const T) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { T::load(self.0, from) }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { self.0.load_f32(from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, x: S::F) {
        // SAFETY: the caller's promise.
        unsafe { self.0.store_f32(to, x) }
    }

    #[inline(always)]
    fn mul_add(self, a: S::F, b: S::F, sums: S::F) -> S::F {
        self.0.mul_add(a, b, sums)
    }
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
pub(super) use there::Bfloat16;

#[cfg(all(target_arch = "x86_64", not(miri)))]
mod there {
    use std::arch::x86_64::*;

    use half::bf16;

    use super::Multiply;
    use crate::MAX_LANES;
    use crate::simd::Avx512;

    /// Pairs of bfloat16, for AVX512-BF16. Code that uses it is compiled with `avx512bf16`.
    #[derive(Debug, Clone, Copy)]
    pub(in crate::matmul) struct Bfloat16(Avx512);

    impl Bfloat16 {
        /// A value is proof that the processor has the instructions.
        ///
        /// # Safety
        ///
        /// The processor has them.
        #[inline(always)]
        pub(in crate::matmul) const unsafe fn new() -> Self {
            // SAFETY: the caller's promise.
            Self(unsafe { Avx512::new() })
        }
    }

    impl Multiply<bf16> for Bfloat16 {
        type S = Avx512;
        type V = __m512i;
        const STEP: usize = 2 * MAX_LANES;

        #[inline(always)]
        fn simd(self) -> Avx512 {
            self.0
        }

        #[inline(always)]
        unsafe fn read(self, from: *const bf16) -> __m512i {
            // SAFETY: the caller's promise.
            unsafe { _mm512_loadu_si512(from.cast()) }
        }

        #[inline(always)]
        unsafe fn load(self, from: *const f32) -> __m512i {
            // SAFETY: the caller's promise.
            unsafe { _mm512_loadu_si512(from.cast()) }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32, x: __m512i) {
            // SAFETY: the caller's promise.
            unsafe { _mm512_storeu_si512(to.cast(), x) }
        }

        #[inline(always)]
        fn mul_add(self, a: __m512i, b: __m512i, sums: __m512) -> __m512 {
            // SAFETY: `self` is proof of the instructions. The two types of vectors differ in name only.
            unsafe {
                let pairs = |x| std::mem::transmute::<__m512i, __m512bh>(x);
                _mm512_dpbf16_ps(sums, pairs(a), pairs(b))
            }
        }
    }
}

/// The `step`-th vector of a row, with zeros behind the end of the row.
#[inline(always)]
pub(super) fn vector<T: Element, M: Multiply<T>>(
    m: M,
    from: &Matrix<'_, T>,
    row: usize,
    step: usize,
) -> M::V {
    let first = step * M::STEP;
    let count = M::STEP.min(from.columns().saturating_sub(first));
    let at = row * from.row_stride() + first * from.column_stride();
    if count == M::STEP && from.column_stride() == 1 {
        // SAFETY: these elements are within the slice.
        return unsafe { m.read(from.data()[at..][..count].as_ptr()) };
    }
    let mut some = [T::default(); 2 * MAX_LANES];
    for (i, to) in some[..count].iter_mut().enumerate() {
        *to = from.data()[at + i * from.column_stride()];
    }
    // SAFETY: a vector has at most `2 * MAX_LANES` elements.
    unsafe { m.read(some.as_ptr()) }
}

/// Copies `steps` vectors, from vector `first` on, of `W` rows from row `row` on: the first vector of each row, then the
/// second of each row, and so on. Rows from `row + count` on count as zeros.
#[inline(always)]
pub(super) fn copy<T: Element, M: Multiply<T>, const W: usize>(
    m: M,
    from: &Matrix<'_, T>,
    (row, count): (usize, usize),
    (first, steps): (usize, usize),
    to: &mut [f32],
) {
    let lanes = M::S::LANES;
    assert!(to.len() == steps * W * lanes && row + count <= from.rows() && count <= W);
    let to = to.as_mut_ptr();
    let whole = if from.column_stride() == 1 {
        (from.columns() / M::STEP).clamp(first, first + steps) - first
    } else {
        0
    };
    let zero = [T::default(); 2 * MAX_LANES];
    for i in 0..W {
        // SAFETY: vector number `step * W + i` is within `to`. Of `whole` vectors all elements are within the row.
        unsafe {
            let to = to.add(i * lanes);
            if i >= count {
                for step in 0..steps {
                    m.store(to.add(step * W * lanes), m.read(zero.as_ptr()));
                }
                continue;
            }
            let elements = from.as_ptr().wrapping_add((row + i) * from.row_stride() + first * M::STEP);
            for step in 0..whole {
                m.store(to.add(step * W * lanes), m.read(elements.add(step * M::STEP)));
            }
            for step in whole..steps {
                m.store(to.add(step * W * lanes), vector(m, from, row + i, first + step));
            }
        }
    }
}

/// Memory that is prefetched bit by bit while something is computed: a range of the columns of some rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ahead {
    at: *const u8,
    /// The lines of the present row that are left.
    left_of_row: usize,
    /// The lines of a row.
    lines: usize,
    /// From behind the last line of a row to the first of the next.
    gap: usize,
    /// All lines that are left.
    left: usize,
}

/// The size of a cache line.
const LINE: usize = 64;

impl Ahead {
    /// `length` elements from element `first` on of the rows from `row` on, at most `count`, or as many as there are.
    pub(super) fn new<T>(
        w: &Matrix<'_, T>,
        (row, count): (usize, usize),
        (first, length): (usize, usize),
    ) -> Self {
        let bytes = size_of::<T>();
        let lines = (length * bytes).div_ceil(LINE).max(1);
        let left = lines * count.min(w.rows().saturating_sub(row));
        Self {
            at: w.as_ptr().wrapping_add(row * w.row_stride() + first).cast(),
            left_of_row: lines,
            lines,
            gap: (w.row_stride() * bytes).wrapping_sub(lines * LINE),
            left,
        }
    }

    /// The number of lines to prefetch every [`BETWEEN`] steps, so that all are prefetched in `steps` steps.
    pub(super) const fn pace(&self, steps: usize) -> usize {
        self.left.div_ceil(if steps < BETWEEN { 1 } else { steps / BETWEEN })
    }

    /// Prefetches the next `count` lines.
    #[inline(always)]
    fn go_on(&mut self, count: usize) {
        let count = count.min(self.left);
        self.left -= count;
        for _ in 0..count {
            prefetch_far(self.at);
            self.at = self.at.wrapping_add(LINE);
            self.left_of_row -= 1;
            if self.left_of_row == 0 {
                self.left_of_row = self.lines;
                self.at = self.at.wrapping_add(self.gap);
            }
        }
    }
}

/// Where the sums of a part of the depth come from, and where they go to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sums {
    /// Sums between two parts: a vector for each scalar product.
    pub(super) held: *mut f32,
    /// Whether this is the first part of the depth: the sums begin at zero.
    pub(super) is_first: bool,
    /// Whether this is the last part of the depth: the scalar products are written to `to`, and not the sums to `held`.
    pub(super) is_last: bool,
    pub(super) to: *mut f32,
    /// The distance of the rows of `to`.
    pub(super) stride: usize,
}

impl Sums {
    #[inline(always)]
    unsafe fn begin<S: Arithmetic, const X: usize, const W: usize>(&self, s: S) -> [[S::F; W]; X] {
        let mut sums = [[s.zero(); W]; X];
        if !self.is_first {
            for i in 0..X {
                for j in 0..W {
                    // SAFETY: the caller's promise.
                    sums[i][j] = unsafe { s.load_f32(self.held.add((i * W + j) * S::LANES)) };
                }
            }
        }
        sums
    }

    #[inline(always)]
    unsafe fn end<S: Arithmetic, const X: usize, const W: usize>(&self, s: S, sums: &[[S::F; W]; X]) {
        if !self.is_last {
            for i in 0..X {
                for j in 0..W {
                    // SAFETY: the caller's promise.
                    unsafe { s.store_f32(self.held.add((i * W + j) * S::LANES), sums[i][j]) };
                }
            }
            return;
        }
        // Rows of `W` sums, and zeros up to a multiple of the lanes.
        let mut all = [s.zero(); MOST_SUMS];
        for i in 0..X {
            for j in 0..W {
                all[i * W + j] = sums[i][j];
            }
        }
        let mut numbers = [0.0; MOST_SUMS];
        let mut from = 0;
        while from < X * W {
            // SAFETY: `X * W` is at most `MOST_SUMS`, a multiple of the lanes.
            unsafe { s.store_f32(numbers.as_mut_ptr().add(from), s.sums(&all[from..from + S::LANES])) };
            from += S::LANES;
        }
        for i in 0..X {
            // SAFETY: the caller's promise.
            unsafe {
                std::ptr::copy_nonoverlapping(numbers[i * W..].as_ptr(), self.to.add(i * self.stride), W)
            };
        }
    }
}

/// The scalar products of `X` rows of `x` and `W` rows of weights over `steps` vectors, both in copies.
///
/// # Safety
///
/// `steps * X` vectors can be read at `x` and `steps * W` at `w`; at `sums.held`, if it is not the first and the last
/// part, are `X * W` vectors, and at `sums.to`, if it is the last part, `X` rows of `W` numbers.
#[inline(always)]
pub(super) unsafe fn copied<T, M: Multiply<T>, const X: usize, const W: usize>(
    m: M,
    steps: usize,
    (mut x, mut w): (*const f32, *const f32),
    sums: Sums,
    ahead: &mut Ahead,
    pace: usize,
) {
    let (s, lanes) = (m.simd(), M::S::LANES);
    // SAFETY: the caller's promise.
    unsafe {
        let mut dots = sums.begin::<M::S, X, W>(s);
        let mut left = steps;
        while left > 0 {
            ahead.go_on(pace);
            let now = left.min(BETWEEN);
            left -= now;
            for _ in 0..now {
                let mut a = [m.load(x); X];
                for i in 1..X {
                    a[i] = m.load(x.add(i * lanes));
                }
                for j in 0..W {
                    let b = m.load(w.add(j * lanes));
                    for i in 0..X {
                        dots[i][j] = m.mul_add(a[i], b, dots[i][j]);
                    }
                }
                x = x.add(X * lanes);
                w = w.add(W * lanes);
            }
        }
        sums.end(s, &dots);
    }
}

/// [`copied`] for rows of weights, from row `row` on, that are read where they lie, over their whole length, `C` at a
/// time. In place of rows behind the last one, the last one is used.
///
/// # Safety
///
/// As for [`copied`], except for the weights.
#[inline(always)]
pub(super) unsafe fn in_place<T: Element, M: Multiply<T>, const X: usize, const W: usize, const C: usize>(
    m: M,
    x: *const f32,
    w: &Matrix<'_, T>,
    row: usize,
    sums: Sums,
) {
    let (s, lanes) = (m.simd(), M::S::LANES);
    let whole = w.columns() / M::STEP;
    let mut all = [[s.zero(); W]; X];
    for column in (0..W).step_by(C) {
        let rows = w.row_starts::<C>(row + column);
        let mut dots = [[s.zero(); C]; X];
        // SAFETY: the caller's promise; `whole` vectors are within each row.
        unsafe {
            for step in 0..whole {
                let x = x.add(step * X * lanes);
                for j in 0..C {
                    let at = rows[j].add(step * M::STEP);
                    if (step * M::STEP * size_of::<T>()).is_multiple_of(LINE) {
                        prefetch_stream(at);
                    }
                    let b = m.read(at);
                    for i in 0..X {
                        dots[i][j] = m.mul_add(m.load(x.add(i * lanes)), b, dots[i][j]);
                    }
                }
            }
            if whole * M::STEP < w.columns() {
                let x = x.add(whole * X * lanes);
                for j in 0..C {
                    let b = vector(m, w, (row + column + j).min(w.rows() - 1), whole);
                    for i in 0..X {
                        dots[i][j] = m.mul_add(m.load(x.add(i * lanes)), b, dots[i][j]);
                    }
                }
            }
        }
        for i in 0..X {
            for j in 0..C {
                all[i][column + j] = dots[i][j];
            }
        }
    }
    // SAFETY: the caller's promise.
    unsafe { sums.end(s, &all) };
}
