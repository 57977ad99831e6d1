//! Products of a few rows with the rows of a quantized matrix.
//!
//! A group is summed over its codes and then multiplied with its scale; biases are multiplied with
//! the sums of `x` over groups, which are the same for all rows of weights.

use super::format::{ForFormat, Format};
use super::{Codes, QuantizedMatrix};
use crate::matmul::{MOST, Output, Purpose, piece, with_rows, with_scratch};
use crate::simd::prefetch;
use crate::{Cpu, Element, Isa, Kernel, Matrix, Simd};

/// Bytes that are asked for before they are used.
const AHEAD: usize = 1536;
/// Rows of weights that are worked on with one call.
const ROWS: usize = 16;

/// `out = x w^T` for at most [`MOST`] rows of `x`.
pub(super) fn rows_by_rows<T: Element>(
    cpu: &Cpu,
    x: Matrix<'_, T>,
    w: &QuantizedMatrix<'_, T>,
    out: &Output<'_, T>,
) {
    // Each row of x, and behind it its sums over groups.
    let padded = (w.columns + w.groups()).next_multiple_of(16);
    with_rows(cpu, x, padded, |x| {
        cpu.run(Sums { x, padded, columns: w.columns, group: w.group });
        let x = &*x;
        let size = piece(cpu, w.rows, w.row_bytes());
        cpu.parallel(w.rows.div_ceil(size), |index| {
            let rows = index * size..w.rows.min((index + 1) * size);
            with_scratch(Purpose::Right, 2 * ROWS * w.groups(), |scratch| {
                cpu.run(Piece { isa: cpu.isa(), x, padded, w, rows, scratch, out });
            });
        });
    });
}

/// Writes the sums over groups behind each row.
struct Sums<'a> {
    x: &'a mut [f32],
    padded: usize,
    columns: usize,
    group: usize,
}

impl Kernel for Sums<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for row in self.x.chunks_exact_mut(self.padded) {
            let (x, sums) = row.split_at_mut(self.columns);
            for (x, sum) in x.chunks_exact(self.group).zip(sums) {
                let mut total = s.zero();
                for x in x.chunks_exact(S::LANES) {
                    total = s.add(total, s.load(x));
                }
                *sum = s.sum(total);
            }
        }
    }
}

/// Some rows of weights: what depends on the format of scales and output.
struct Piece<'a, T> {
    isa: Isa,
    x: &'a [f32],
    padded: usize,
    w: &'a QuantizedMatrix<'a, T>,
    rows: std::ops::Range<usize>,
    scratch: &'a mut [f32],
    out: &'a Output<'a, T>,
}

impl<T: Element> Kernel for Piece<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { isa, x, padded, w, rows, scratch, out } = self;
        let groups = w.groups();
        let mut sums = [[0.0; ROWS]; MOST];
        for first in rows.clone().step_by(ROWS) {
            let count = ROWS.min(rows.end - first);
            let (scales, biases) = scratch.split_at_mut(count * groups);
            let biases = &mut biases[..count * groups];
            w.widen_scales(s, first * groups, scales, biases);
            isa.run(Dots {
                x,
                x_rows: out.rows(),
                padded,
                format: w.codes,
                codes: &w.bytes()[first * w.row_bytes()..][..count * w.row_bytes()],
                rows: count,
                columns: w.columns,
                group: w.group,
                scales,
                biases: w.is_affine().then_some(&*biases),
                sums: &mut sums,
            });
            for (i, sums) in sums.iter().enumerate().take(out.rows()) {
                for (index, sums) in sums[..count].chunks(S::LANES).enumerate() {
                    let x = s.load_some(sums, 0.0);
                    // SAFETY: these columns belong to this task alone.
                    unsafe { out.put(s, i, first + index * S::LANES, sums.len(), x) };
                }
            }
        }
    }
}

/// Up to [`ROWS`] rows of weights with all rows of x. It is compiled once for each instruction set,
/// format of codes and number of rows of x.
struct Dots<'a> {
    x: &'a [f32],
    x_rows: usize,
    padded: usize,
    format: Codes,
    codes: &'a [u8],
    rows: usize,
    columns: usize,
    group: usize,
    scales: &'a [f32],
    biases: Option<&'a [f32]>,
    sums: &'a mut [[f32; ROWS]; MOST],
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

impl<S: Simd> ForFormat for All<'_, S> {
    #[inline(always)]
    fn run<F: Format>(mut self, _: F) {
        match self.dots.x_rows {
            1 => self.dots.go::<S, F, 1>(self.s),
            2 => self.dots.go::<S, F, 2>(self.s),
            3 => self.dots.go::<S, F, 3>(self.s),
            4 => self.dots.go::<S, F, 4>(self.s),
            rows => unreachable!("{rows} rows"),
        }
    }
}

impl Dots<'_> {
    #[inline(always)]
    fn go<S: Simd, F: Format, const X: usize>(&mut self, s: S) {
        let (columns, groups) = (self.columns, self.columns / self.group);
        assert!(self.x.len() >= X * self.padded && self.padded >= columns + groups);
        assert!(self.scales.len() == self.rows * groups && self.rows <= ROWS);
        assert!(self.codes.len() * 8 == self.rows * columns * F::BITS);
        // SAFETY: for multiples of `LANES` below `columns`.
        let x = |i: usize, k: usize| unsafe { s.load_f32(self.x.as_ptr().add(i * self.padded + k)) };
        for row in 0..self.rows {
            let codes = self.codes[row * columns * F::BITS / 8..].as_ptr();
            let mut totals = [s.zero(); X];
            for group in 0..groups {
                let mut sums = [s.zero(); X];
                let first = group * self.group;
                for k in (first..first + self.group).step_by(S::LANES) {
                    if (k * F::BITS / 8).is_multiple_of(64) {
                        prefetch(codes.wrapping_add(k * F::BITS / 8 + AHEAD));
                    }
                    // SAFETY: a multiple of `LANES` within the row.
                    let code = unsafe { F::unpack(s, codes, k) };
                    for (i, sum) in sums.iter_mut().enumerate() {
                        *sum = s.mul_add(code, x(i, k), *sum);
                    }
                }
                let scale = s.splat(self.scales[row * groups + group]);
                for (total, sum) in totals.iter_mut().zip(sums) {
                    *total = s.mul_add(sum, scale, *total);
                }
            }
            if let Some(biases) = self.biases {
                let biases = &biases[row * groups..][..groups];
                for (i, total) in totals.iter_mut().enumerate() {
                    let sums = &self.x[i * self.padded + columns..][..groups];
                    for (biases, sums) in biases.chunks(S::LANES).zip(sums.chunks(S::LANES)) {
                        *total = s.mul_add(some(s, biases), some(s, sums), *total);
                    }
                }
            }
            for (i, total) in totals.into_iter().enumerate() {
                self.sums[i][row] = s.sum(total);
            }
        }
    }
}

/// A vector, with zeros where the slice is shorter.
#[inline(always)]
fn some<S: Simd>(s: S, from: &[f32]) -> S::F {
    if from.len() >= S::LANES { s.load(from) } else { s.load_some(from, 0.0) }
}
