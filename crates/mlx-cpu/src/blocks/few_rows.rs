//! Products of a few rows with the rows of a matrix of blocks.
//!
//! A vector has a lane for each group, so the products of a group are summed in its lane, and then multiplied by its
//! scale.

use std::ops::Range;

use super::activations::{Form, Layout, Prepare};
use super::format::{BlockFormat, CHUNK, ForPlanes, Many, Planes, Words, load};
use super::matrix::{BlockMatrix, Chunk};
use crate::products::{
    Output, Purpose, ROWS_AT_ONCE, portions, rows_of_task, with_scratch, with_widened_rows,
};
use crate::simd::{prefetch, prefetch_stream};
use crate::{Cpu, Element, Integers, Isa, Kernel, MAX_LANES, Matrix, Simd};

/// The rows of weights that one call of [`Dots`] multiplies.
const ROWS: usize = 16;

/// `out = x w^T` for at most [`FEW_ROWS`](crate::products::FEW_ROWS) rows of `x`.
pub(super) fn rows_by_rows<T: Element>(
    cpu: &Cpu,
    x: Matrix<'_, T>,
    w: &BlockMatrix<'_>,
    out: &Output<'_, T>,
) {
    let layout = Layout::new(w, Form::of::<T>(), cpu.isa().lanes());
    // Each row of x in float32, followed by its numbers in the order of the codes.
    let at = w.columns.next_multiple_of(MAX_LANES);
    let stride = (at + layout.length()).next_multiple_of(MAX_LANES);
    with_widened_rows(cpu, x, stride, |x| {
        cpu.run(Prepare { x, stride, at, layout, zero: w.format.zero() });
        let x = &x[at..];
        let size = rows_of_task(w.rows, w.row_words() * 4 + w.scale_bytes());
        cpu.parallel(w.rows.div_ceil(size), |index| {
            let rows = index * size..w.rows.min((index + 1) * size);
            // A vector may be read behind the last scale.
            with_scratch(Purpose::Right, 2 * (ROWS * w.groups() + MAX_LANES), |scratch| {
                cpu.run(Piece { isa: cpu.isa(), x, stride, layout, w, rows, scratch, out });
            });
        });
    });
}

/// One task: some rows of weights.
struct Piece<'a, T> {
    isa: Isa,
    x: &'a [f32],
    stride: usize,
    layout: Layout,
    w: &'a BlockMatrix<'a>,
    rows: Range<usize>,
    scratch: &'a mut [f32],
    out: &'a Output<'a, T>,
}

impl<T: Element> Kernel for Piece<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { isa, x, stride, layout, w, rows, scratch, out } = self;
        let (scales, added) = scratch.split_at_mut(ROWS * w.groups() + MAX_LANES);
        let mut sums = [[0.0; ROWS]; ROWS_AT_ONCE];
        for first in rows.clone().step_by(ROWS) {
            let count = ROWS.min(rows.end - first);
            isa.run(Scales { w, rows: first..first + count, scales, added });
            for (x_first, x_rows) in portions(out.rows()) {
                isa.run(Dots {
                    x: &x[x_first * stride..],
                    x_rows,
                    stride,
                    layout,
                    format: w.format,
                    has_minimums: w.format.has_minimums(),
                    codes: w.codes_of(first..first + count),
                    rows: count,
                    scales,
                    added,
                    sums: &mut sums,
                });
                for (i, sums) in sums.iter().enumerate().take(x_rows) {
                    for (index, sums) in sums[..count].chunks(S::LANES).enumerate() {
                        // SAFETY: no more numbers than the slice has; these columns belong to this task alone.
                        unsafe {
                            let x = s.load_first(sums.as_ptr(), sums.len());
                            out.put(s, x_first + i, first + index * S::LANES, sums.len(), x);
                        }
                    }
                }
            }
        }
    }
}

/// Widens the scales of some rows. A kernel of its own, so that it is compiled once for each instruction set.
struct Scales<'a> {
    w: &'a BlockMatrix<'a>,
    rows: Range<usize>,
    scales: &'a mut [f32],
    added: &'a mut [f32],
}

impl Kernel for Scales<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { w, rows, scales, added } = self;
        // Those of the next rows.
        let bytes = w.scale_bytes();
        for at in (rows.end * bytes..(rows.end + ROWS) * bytes).step_by(64) {
            prefetch(w.scales.as_ptr().wrapping_add(at));
        }
        w.widen_scales(s, rows, scales, added);
    }
}

/// The products of up to [`ROWS`] rows of weights and up to [`ROWS_AT_ONCE`] rows of x. It is compiled once for each
/// instruction set, layout of codes, form and number of rows of x.
struct Dots<'a> {
    x: &'a [f32],
    x_rows: usize,
    stride: usize,
    layout: Layout,
    format: BlockFormat,
    has_minimums: bool,
    codes: &'a [u32],
    rows: usize,
    /// Those of all groups of the rows, and [`MAX_LANES`] more numbers of any value.
    scales: &'a [f32],
    /// The same for what is added, in formats with minimums.
    added: &'a [f32],
    sums: &'a mut [[f32; ROWS]; ROWS_AT_ONCE],
}

impl Kernel for Dots<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.format.with(All { dots: self, s });
    }
}

struct All<'a, S> {
    dots: Dots<'a>,
    s: S,
}

impl<S: Integers> ForPlanes<()> for All<'_, S> {
    #[inline(always)]
    fn run<P: Planes>(self, _: P) {
        let Self { mut dots, s } = self;
        // As many rows of x at a time as registers have room for the sums of, and float32 is rare.
        match (dots.layout.form, dots.x_rows) {
            (Form::Float32, _) => dots.each::<S, P, false>(s),
            _ if const { S::REGISTERS < 16 } => dots.each::<S, P, true>(s),
            (_, 1) => dots.go::<S, P, true, 1>(s, 0),
            (_, 2) => dots.go::<S, P, true, 2>(s, 0),
            (_, 3) => dots.go::<S, P, true, 3>(s, 0),
            _ => dots.go::<S, P, true, 4>(s, 0),
        }
    }
}

// No closures except those that `from_fn` calls, as in `quantized/few_rows.rs`.
impl Dots<'_> {
    /// One row of x at a time.
    #[inline(always)]
    fn each<S: Integers, P: Planes, const WHOLE: bool>(&mut self, s: S) {
        for i in 0..self.x_rows {
            self.go::<S, P, WHOLE, 1>(s, i);
        }
    }

    /// The products of all rows of weights and `X` rows of x, from row `from` on.
    #[inline(always)]
    fn go<S: Integers, P: Planes, const WHOLE: bool, const X: usize>(&mut self, s: S, from: usize) {
        let (layout, rows) = (self.layout, self.rows);
        let groups = layout.groups;
        let row_words = groups * P::GROUP * P::BITS / 32;
        assert!(from + X <= self.x_rows && self.x_rows <= ROWS_AT_ONCE && rows <= ROWS);
        assert!(layout.lanes == S::LANES && layout.group == P::GROUP);
        assert!(self.x.len() >= (from + X - 1) * self.stride + layout.length());
        assert!(self.codes.len() == rows * row_words);
        assert!(self.scales.len() >= rows * groups + MAX_LANES && self.added.len() == self.scales.len());
        let mut all = [[s.zero(); ROWS]; X];
        for row in 0..rows {
            let codes = self.codes[row * row_words..][..row_words].as_ptr();
            let mut totals = [s.zero(); X];
            for first in (0..groups).step_by(S::LANES) {
                // SAFETY: the lengths are those that were asserted, and `first` is below the number of groups.
                unsafe {
                    let number = row * groups + first;
                    self.vector::<S, P, WHOLE, X>(s, codes, from, first, number, &mut totals);
                }
            }
            for (all, total) in all.iter_mut().zip(totals) {
                all[row] = total;
            }
        }
        for (vectors, sums) in all.iter().zip(&mut self.sums[from..]) {
            for (vectors, sums) in vectors.chunks_exact(S::LANES).zip(sums.chunks_exact_mut(S::LANES)) {
                s.store(sums, s.sums(vectors));
            }
        }
    }

    /// Adds the products of a vector of groups of a row, from group `first` on, to `totals`. The first of them has scale
    /// `number`.
    ///
    /// # Safety
    ///
    /// The lengths are those that `go` asserts, and `codes` are those of the row.
    #[inline(always)]
    unsafe fn vector<S: Integers, P: Planes, const WHOLE: bool, const X: usize>(
        &self,
        s: S,
        codes: *const u32,
        from: usize,
        first: usize,
        number: usize,
        totals: &mut [S::F; X],
    ) {
        let layout = self.layout;
        let chunk = Chunk::of(first, layout.groups);
        let in_chunk = first - chunk.first;
        let count = S::LANES.min(chunk.lanes - in_chunk);
        let at = self.x.as_ptr().wrapping_add(from * self.stride + first / S::LANES * layout.vector());
        // SAFETY: the caller's promise. Each vector of groups has the numbers of x that `Layout` lists, and behind the
        // scales there are more numbers.
        unsafe {
            let codes = codes.add(chunk.word(P::BITS, P::GROUP));
            if in_chunk == 0 {
                let bytes = chunk.lanes * P::GROUP * P::BITS / 8;
                for line in (0..bytes).step_by(64) {
                    prefetch_stream(codes.cast::<u8>().wrapping_add(line));
                }
            }
            let (words, scale, added);
            if count == S::LANES {
                // The compiler knows the number of lanes of a whole chunk.
                let lanes = if const { S::LANES == CHUNK } { CHUNK } else { chunk.lanes };
                words = load::<S, P>(s, codes, lanes, in_chunk, S::LANES);
                scale = s.load_f32(self.scales.as_ptr().add(number));
                added = s.load_f32(self.added.as_ptr().add(number));
            } else {
                words = load::<S, P>(s, codes, chunk.lanes, in_chunk, count);
                scale = s.load_first(self.scales.as_ptr().add(number), count);
                added = s.load_first(self.added.as_ptr().add(number), count);
            }
            let words = std::array::from_fn(|k| s.bits(words[k]));
            let sums = if WHOLE {
                self.whole::<S, P, X>(s, &words, at)
            } else {
                self.floats::<S, P, X>(s, &words, at)
            };
            for (i, (sum, total)) in sums.into_iter().zip(&mut *totals).enumerate() {
                let at = at.add(i * self.stride);
                let scale = if WHOLE { s.mul(scale, s.load_f32(at.add(layout.units()))) } else { scale };
                *total = s.mul_add(sum, scale, *total);
            }
            if self.has_minimums {
                for (i, total) in totals.iter_mut().enumerate() {
                    let sum = s.load_f32(at.add(i * self.stride + layout.sums()));
                    *total = s.mul_add(added, sum, *total);
                }
            }
        }
    }

    /// The sums of the products of a vector of groups, in units of the rows of x. They are exact before they become
    /// floats.
    ///
    /// # Safety
    ///
    /// As for [`vector`](Self::vector); `at` points to what the first row of x has for these groups.
    #[inline(always)]
    unsafe fn whole<S: Integers, P: Planes, const X: usize>(
        &self,
        s: S,
        words: &[S::I; 8],
        at: *const f32,
    ) -> [S::F; X] {
        let (stride, start) = (self.stride, self.layout.start());
        // SAFETY: the caller's promise.
        unsafe {
            let load = |at: *const f32| s.bits(s.load_f32(at));
            let mut upper: [S::I; X] = std::array::from_fn(|i| load(at.add(i * stride + start)));
            let mut lower: [S::I; X] = std::array::from_fn(|i| load(at.add(i * stride + start + S::LANES)));
            for h in 0..P::VECTORS {
                let codes = P::codes(Many(s), words, h);
                let x = at.add(2 * h * S::LANES);
                if const { S::MULTIPLIES_BYTES } {
                    for (i, (upper, lower)) in upper.iter_mut().zip(&mut lower).enumerate() {
                        let x = x.add(i * stride);
                        *upper = s.dot_bytes(codes, load(x), *upper);
                        *lower = s.dot_bytes(codes, load(x.add(S::LANES)), *lower);
                    }
                } else {
                    let even = Many(s).field(codes, 0, 0x00ff_00ff);
                    let odd = Many(s).field(codes, 8, 0x00ff_00ff);
                    for (i, sum) in lower.iter_mut().enumerate() {
                        let x = x.add(i * stride);
                        *sum = s.dot(even, load(x), *sum);
                        *sum = s.dot(odd, load(x.add(S::LANES)), *sum);
                    }
                }
            }
            std::array::from_fn(|i| {
                let lower = s.to_float(lower[i]);
                if const { S::MULTIPLIES_BYTES } {
                    s.mul_add(s.to_float(upper[i]), s.splat(256.0), lower)
                } else {
                    lower
                }
            })
        }
    }

    /// [`whole`](Self::whole) in float32.
    ///
    /// # Safety
    ///
    /// As there.
    #[inline(always)]
    unsafe fn floats<S: Integers, P: Planes, const X: usize>(
        &self,
        s: S,
        words: &[S::I; 8],
        at: *const f32,
    ) -> [S::F; X] {
        let zero = s.splat(f32::from(self.format.zero()));
        let mut sums = [s.zero(); X];
        for h in 0..P::VECTORS {
            let codes = P::codes(Many(s), words, h);
            for b in 0..4 {
                let code = s.sub(s.to_float(Many(s).field(codes, 8 * b as i32, 0xff)), zero);
                for (i, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: the caller's promise.
                    let x = unsafe { s.load_f32(at.add(i * self.stride + (4 * h + b) * S::LANES)) };
                    *sum = s.mul_add(code, x, *sum);
                }
            }
        }
        sums
    }
}
