//! Products of one or a few rows in whole numbers.
//!
//! A vector of words of a row of weights has some groups, or a part of one. The products of its codes are summed in each
//! lane; then the sums of as many rows as a vector has lanes are brought together, so that there is a vector for each
//! group, with a lane for each row of weights. The sums of a group are exact, and the groups are added in order: a result
//! has the bits that it has in a product with many rows.

use std::ops::Range;

use super::fixed::{Fixing, Form, Row, halved};
use super::format::{Codes, ForFormat, Format};
use super::matrix::QuantizedMatrix;
use crate::products::{Output, Purpose, ROWS_AT_ONCE, portions, rows_of_task, widen_row, with_scratch};
use crate::simd::prefetch;
use crate::{Cpu, Decoding, Element, Isa, Kernel, MAX_LANES, Matrix, Simd};

/// The groups whose scales are converted at a time. Their words fill whole vectors.
/// Small for Miri, whose cases are small and must still take several times.
const GROUPS: usize = if cfg!(miri) { 4 } else { 32 };
/// The bytes of codes that are prefetched ahead, at least: rows of weights follow each other in memory.
const AHEAD: usize = 8 << 10;

/// `out = x w^T`. The numbers of `x` are those of `fixing`.
pub(super) fn rows_by_rows<T: Element>(
    cpu: &Cpu,
    x: Matrix<'_, T>,
    w: &QuantizedMatrix<'_, T>,
    fixing: Fixing,
    out: &Output<'_, T>,
) {
    let row = Row::new(fixing, cpu.isa().lanes());
    let stride = row.length.next_multiple_of(MAX_LANES);
    with_scratch(Purpose::Left, x.rows() * stride, |to| {
        with_scratch(Purpose::Right, w.columns + halved(w.columns), |scratch| {
            cpu.run(Prepare { x, row, stride, scratch, to });
        });
        let x = &*to;
        let size = rows_of_task(w.rows, w.row_bytes()).next_multiple_of(MAX_LANES);
        cpu.parallel(w.rows.div_ceil(size), |index| {
            let rows = index * size..w.rows.min((index + 1) * size);
            with_scratch(Purpose::Right, 2 * GROUPS * MAX_LANES, |scratch| {
                cpu.run(Piece { isa: cpu.isa(), x, stride, row, w, rows, scratch, out });
            });
        });
    });
}

/// Writes the whole numbers of each row.
struct Prepare<'a, T> {
    x: Matrix<'a, T>,
    row: Row,
    stride: usize,
    scratch: &'a mut [f32],
    to: &'a mut [f32],
}

impl<T: Element> Kernel for Prepare<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { x, row, stride, scratch, to } = self;
        let (wide, whole) = scratch.split_at_mut(x.columns());
        for (i, to) in to.chunks_exact_mut(stride).enumerate() {
            widen_row(s, &x, i, wide);
            row.write(s, wide, whole, to);
        }
    }
}

/// One task: some rows of weights. This part depends on the format of scales and output.
struct Piece<'a, T> {
    isa: Isa,
    x: &'a [f32],
    stride: usize,
    row: Row,
    w: &'a QuantizedMatrix<'a, T>,
    rows: Range<usize>,
    scratch: &'a mut [f32],
    out: &'a Output<'a, T>,
}

impl<T: Element> Kernel for Piece<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { isa, x, stride, row, w, rows, scratch, out } = self;
        let (scales, biases) = scratch.split_at_mut(GROUPS * MAX_LANES);
        for first in rows.clone().step_by(S::LANES) {
            let count = S::LANES.min(rows.end - first);
            for (x_first, x_rows) in portions(out.rows()) {
                let mut totals = [[0.0; MAX_LANES]; ROWS_AT_ONCE];
                for group in (0..w.groups()).step_by(GROUPS) {
                    let groups = group..w.groups().min(group + GROUPS);
                    w.scales_across(s, first..first + count, groups.clone(), scales, biases);
                    // Those of the next rows, as many as were just read.
                    w.prefetch_scales(
                        (first + S::LANES) * w.groups() + group * S::LANES,
                        groups.len() * S::LANES,
                    );
                    isa.run(Dots {
                        x: &x[x_first * stride..],
                        x_rows,
                        stride,
                        row,
                        format: w.codes,
                        codes: &w.bytes()[first * w.row_bytes()..][..count * w.row_bytes()],
                        rows: count,
                        groups,
                        scales,
                        biases,
                        totals: &mut totals,
                    });
                }
                for (i, totals) in totals.iter().enumerate().take(x_rows) {
                    // SAFETY: these columns belong to this task alone.
                    unsafe { out.put(s, x_first + i, first, count, s.load(totals)) };
                }
            }
        }
    }
}

/// The products of some groups of up to as many rows of weights as a vector has lanes, and of up to [`ROWS_AT_ONCE`] rows
/// of x. It is compiled once for each instruction set, format of codes, number of rows of x and size of a group.
struct Dots<'a> {
    x: &'a [f32],
    x_rows: usize,
    stride: usize,
    row: Row,
    format: Codes,
    codes: &'a [u8],
    rows: usize,
    groups: Range<usize>,
    /// For each group a vector with a lane for each row of weights.
    scales: &'a [f32],
    biases: &'a [f32],
    /// What the products are added to.
    totals: &'a mut [[f32; MAX_LANES]; ROWS_AT_ONCE],
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

impl<S: Decoding> ForFormat for All<'_, S> {
    #[inline(always)]
    fn run<F: Format>(mut self, _: F) {
        if const { !F::WHOLE } {
            unreachable!("codes that are not whole numbers");
        }
        let Self { dots, s } = &mut self;
        match (dots.row.fixing.form, dots.x_rows) {
            (Form::Bytes { planes: 1 }, rows) if const { S::MULTIPLIES_BYTES && F::PLAIN } => match rows {
                1 => dots.sized::<S, F, 1, 1>(*s),
                2 => dots.sized::<S, F, 2, 1>(*s),
                _ => unreachable!("{rows} rows of bytes"),
            },
            (Form::Bytes { .. }, rows) if const { S::MULTIPLIES_BYTES && F::PLAIN } => match rows {
                1 => dots.sized::<S, F, 1, 2>(*s),
                2 => dots.sized::<S, F, 2, 2>(*s),
                _ => unreachable!("{rows} rows of bytes"),
            },
            (Form::Pairs, _) if const { S::MULTIPLIES_BYTES && F::PLAIN } => {
                unreachable!("codes that are bytes")
            }
            (Form::Pairs, 1) => dots.sized::<S, F, 1, 0>(*s),
            (Form::Pairs, 2) => dots.sized::<S, F, 2, 0>(*s),
            (Form::Pairs, 3) => dots.sized::<S, F, 3, 0>(*s),
            (Form::Pairs, 4) => dots.sized::<S, F, 4, 0>(*s),
            _ => unreachable!("{} rows", dots.x_rows),
        }
    }
}

// No closures except those that `from_fn` calls: if a closure is called in several places, the compiler may make it a
// function of its own, which then lacks the instructions.
impl Dots<'_> {
    /// The products of `X` rows of x, in `PLANES` planes of bytes, or as pairs if `PLANES` is 0.
    #[inline(always)]
    fn sized<S: Decoding, F: Format, const X: usize, const PLANES: usize>(&mut self, s: S) {
        // The lanes of a group in a vector of words.
        match self.row.fixing.group * F::BITS / 32 {
            2 => self.go::<S, F, X, PLANES, 2>(s),
            4 if const { S::LANES > 4 } => self.go::<S, F, X, PLANES, 4>(s),
            8 if const { S::LANES > 8 } => self.go::<S, F, X, PLANES, 8>(s),
            _ if const { S::LANES == MAX_LANES } => self.go::<S, F, X, PLANES, MAX_LANES>(s),
            _ if const { S::LANES == 8 } => self.go::<S, F, X, PLANES, 8>(s),
            _ => self.go::<S, F, X, PLANES, 4>(s),
        }
    }

    #[inline(always)]
    fn go<S: Decoding, F: Format, const X: usize, const PLANES: usize, const LANES: usize>(&mut self, s: S) {
        let Row { fixing: Fixing { columns, group, .. }, vectors, units, sums: sums_at, length } = self.row;
        let (words, lanes) = (columns * F::BITS / 32, group * F::BITS / 32);
        let Range { start, end } = self.groups;
        assert!(self.x_rows == X && X <= ROWS_AT_ONCE && lanes >= LANES && lanes.is_multiple_of(LANES));
        assert!(self.x.len() >= (X - 1) * self.stride + length && end * lanes <= words);
        assert!((start * lanes).is_multiple_of(S::LANES) && vectors == vectors_of::<F, PLANES>());
        let rows = 1..=S::LANES;
        assert!(rows.contains(&self.rows) && self.codes.len() == self.rows * words * 4);
        assert!(
            self.scales.len() >= (end - start) * S::LANES && self.biases.len() >= (end - start) * S::LANES
        );
        // Lanes behind the last row read that row again.
        let from: [*const f32; MAX_LANES] =
            std::array::from_fn(|i| self.codes[i.min(self.rows - 1) * words * 4..].as_ptr().cast());
        let ahead = self.codes.as_ptr().wrapping_add(AHEAD.max(self.codes.len()));
        let mut totals: [S::F; X] = std::array::from_fn(|i| s.load(&self.totals[i]));
        let mut carried = [s.bits(s.zero()); X];
        let mut group = start;
        for word in (start * lanes..end * lanes).step_by(S::LANES) {
            let some = S::LANES.min(end * lanes - word);
            // SAFETY: each row has `some` words from `word` on, and `x` is as long as its layout says.
            let mut sums = unsafe {
                let x = self.x.as_ptr().add(word * vectors);
                let ahead = ahead.wrapping_add(word * 4 * S::LANES);
                self.products::<S, F, X, PLANES>(s, &from, word, some, x, ahead)
            };
            for sums in &mut sums {
                s.sums_of_groups::<LANES>(sums);
            }
            for j in 0..S::LANES / LANES {
                if j * LANES >= some {
                    break;
                }
                let whole = if lanes > LANES {
                    for (carried, sums) in carried.iter_mut().zip(&sums) {
                        *carried = s.plus(*carried, sums[j]);
                    }
                    if !(word + S::LANES).is_multiple_of(lanes) {
                        continue;
                    }
                    std::mem::replace(&mut carried, [s.bits(s.zero()); X])
                } else {
                    std::array::from_fn(|i| sums[i][j])
                };
                // SAFETY: there are units and sums for each group, and scales and biases from the first group on.
                unsafe {
                    let scale = s.load_f32(self.scales.as_ptr().add((group - start) * S::LANES));
                    let bias = s.load_f32(self.biases.as_ptr().add((group - start) * S::LANES));
                    for (i, total) in totals.iter_mut().enumerate() {
                        let x = self.x.as_ptr().add(i * self.stride + group);
                        // In this order no product is too large that is not multiplied by a large scale.
                        let scale = s.mul(s.splat(*x.add(units)), scale);
                        *total = s.mul_add(s.to_float(whole[i]), scale, *total);
                        *total = s.mul_add(s.splat(*x.add(sums_at)), bias, *total);
                    }
                }
                group += 1;
            }
        }
        for (to, total) in self.totals.iter_mut().zip(totals) {
            s.store(to, total);
        }
    }

    /// The sums of the products of a vector of words of each row of weights, in each lane.
    ///
    /// # Safety
    ///
    /// `some` words, at most a vector of them, can be read of each row from `word` on, and at `x` what belongs to them of
    /// `X` rows of x.
    #[inline(always)]
    unsafe fn products<S: Decoding, F: Format, const X: usize, const PLANES: usize>(
        &self,
        s: S,
        from: &[*const f32; MAX_LANES],
        word: usize,
        some: usize,
        x: *const f32,
        ahead: *const u8,
    ) -> [[S::I; MAX_LANES]; X] {
        let zero = s.bits(s.zero());
        let mut sums = [[zero; MAX_LANES]; X];
        // SAFETY: the caller's promise.
        unsafe {
            for row in 0..S::LANES {
                let at = from[row].add(word);
                if (row * S::LANES * 4).is_multiple_of(64) {
                    prefetch(ahead.wrapping_add(row * S::LANES * 4));
                }
                let words = s.bits(if some == S::LANES { s.load_f32(at) } else { s.load_first(at, some) });
                let fields = if PLANES == 0 { 16 / F::BITS } else { 8 / F::BITS };
                for plane in 0..if PLANES == 0 { 1 } else { PLANES } {
                    for field in 0..fields {
                        let vector = (plane * fields + field) * S::LANES;
                        if const { PLANES == 0 } {
                            let codes = F::field16(s, words, field);
                            for (i, sums) in sums.iter_mut().enumerate() {
                                let x = s.bits(s.load_f32(x.add(i * self.stride + vector)));
                                sums[row] = s.dot(codes, x, sums[row]);
                            }
                        } else if const { S::MULTIPLIES_BYTES && F::PLAIN } {
                            let codes = F::field8(s, words, field);
                            for (i, sums) in sums.iter_mut().enumerate() {
                                let x = s.bits(s.load_f32(x.add(i * self.stride + vector)));
                                let upper = plane > 0 && field == 0;
                                let before = if upper { s.times_256(sums[row]) } else { sums[row] };
                                sums[row] = s.dot_bytes(codes, x, before);
                            }
                        }
                    }
                }
            }
        }
        sums
    }
}

/// The vectors of x that belong to a vector of words.
const fn vectors_of<F: Format, const PLANES: usize>() -> usize {
    if PLANES == 0 { 16 / F::BITS } else { 8 / F::BITS * PLANES }
}
