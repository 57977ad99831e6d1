//! Products of a few rows with the rows of a quantized matrix, in float32.
//!
//! The products of a group are summed without its scale, and the sum is multiplied by the scale. Biases are multiplied
//! by the sums of `x` over groups, which are the same for all rows of weights.

use super::format::{Codes, ForFormat, Format};
use super::matrix::QuantizedMatrix;
use crate::products::{
    Output, Purpose, ROWS_AT_ONCE, portions, reads_one_stream, rows_of_task, with_scratch, with_widened_rows,
};
use crate::simd::prefetch_stream;
use crate::{Arithmetic, Cpu, Decoding, Element, Isa, Kernel, MAX_LANES, Matrix, Simd};

/// The rows of weights that one call of [`Dots`] multiplies.
const ROWS: usize = 16;

/// `out = x w^T` for a few rows of `x`.
pub(super) fn rows_by_rows<T: Element>(
    cpu: &Cpu,
    x: Matrix<'_, T>,
    w: &QuantizedMatrix<'_, T>,
    out: &Output<'_, T>,
) {
    // Each row of x in float32, followed by its sums over groups.
    let padded = w.columns.next_multiple_of(MAX_LANES) + w.groups().next_multiple_of(MAX_LANES);
    with_widened_rows(cpu, x, padded, |x| {
        cpu.run(Prepare { x, padded, columns: w.columns, group: w.group, nibbles: w.bits() == 4 });
        let x = &*x;
        let size = rows_of_task(w.rows, w.row_bytes());
        cpu.parallel(w.rows.div_ceil(size), |index| {
            let rows = index * size..w.rows.min((index + 1) * size);
            // A vector may be read behind the last scale.
            with_scratch(Purpose::Right, 2 * ROWS * w.groups() + MAX_LANES, |scratch| {
                cpu.run(Piece { isa: cpu.isa(), x, padded, w, rows, scratch, out });
            });
        });
    });
}

/// Writes the sums over groups behind each row, and brings each vector into the order of the codes of
/// [`Format::unpack_fast`].
struct Prepare<'a> {
    x: &'a mut [f32],
    padded: usize,
    columns: usize,
    group: usize,
    nibbles: bool,
}

impl Kernel for Prepare<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for row in self.x.chunks_exact_mut(self.padded) {
            let (x, sums) = row.split_at_mut(self.columns);
            for (x, sum) in x.chunks_exact_mut(self.group).zip(sums) {
                let mut total = s.zero();
                for x in x.chunks_exact_mut(S::LANES) {
                    total = s.add(total, s.load(x));
                    if self.nibbles {
                        let mut ordered = [0.0; MAX_LANES];
                        for (to, from) in ordered[..S::LANES].iter_mut().zip(S::NIBBLES) {
                            *to = x[from];
                        }
                        x.copy_from_slice(&ordered[..S::LANES]);
                    }
                }
                *sum = s.sum(total);
            }
        }
    }
}

/// One task: some rows of weights. This part depends on the format of scales and output.
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
        let mut sums = [[0.0; ROWS]; ROWS_AT_ONCE];
        for first in rows.clone().step_by(ROWS) {
            let count = ROWS.min(rows.end - first);
            let (scales, biases) = scratch.split_at_mut(count * groups + MAX_LANES);
            let biases = &mut biases[..count * groups];
            w.widen_scales(s, first * groups, &mut scales[..count * groups], biases);
            w.prefetch_scales((first + ROWS) * groups, ROWS * groups);
            for (x_first, x_rows) in portions(out.rows()) {
                isa.run(Dots {
                    x: &x[x_first * padded..],
                    x_rows,
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
                for (i, sums) in sums.iter().enumerate().take(x_rows) {
                    for (index, sums) in sums[..count].chunks(S::LANES).enumerate() {
                        let x = some(s, sums);
                        // SAFETY: these columns belong to this task alone.
                        unsafe { out.put(s, x_first + i, first + index * S::LANES, sums.len(), x) };
                    }
                }
            }
        }
    }
}

/// The products of up to [`ROWS`] rows of weights and up to [`ROWS_AT_ONCE`] rows of x. It is compiled once for each
/// instruction set, format of codes and number of rows of x.
struct Dots<'a> {
    x: &'a [f32],
    x_rows: usize,
    padded: usize,
    format: Codes,
    codes: &'a [u8],
    rows: usize,
    columns: usize,
    group: usize,
    /// Those of all groups, and [`MAX_LANES`] more numbers of any value.
    scales: &'a [f32],
    biases: Option<&'a [f32]>,
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

impl<S: Decoding> ForFormat for All<'_, S> {
    #[inline(always)]
    fn run<F: Format>(mut self, _: F) {
        // As many sums at a time as stay in registers: the sum of a group and the total, for each row of weights and
        // each row of x. `const`, so that the branches for other instruction sets are not compiled.
        if const { S::REGISTERS >= 32 } {
            match self.dots.x_rows {
                1 if const { reads_one_stream::<S>() } => self.dots.go::<S, F, 1, 1>(self.s),
                1 => self.dots.go::<S, F, 1, 4>(self.s),
                2 => self.dots.go::<S, F, 2, 4>(self.s),
                3 => self.dots.go::<S, F, 3, 2>(self.s),
                _ => self.dots.go::<S, F, 4, 2>(self.s),
            }
        } else if const { S::REGISTERS >= 16 } {
            match self.dots.x_rows {
                1 => self.dots.go::<S, F, 1, 4>(self.s),
                2 => self.dots.go::<S, F, 2, 2>(self.s),
                3 => self.dots.go::<S, F, 3, 1>(self.s),
                _ => self.dots.go::<S, F, 4, 1>(self.s),
            }
        } else {
            match self.dots.x_rows {
                1 => self.dots.go::<S, F, 1, 1>(self.s),
                2 => self.dots.go::<S, F, 2, 1>(self.s),
                3 => self.dots.go::<S, F, 3, 1>(self.s),
                _ => self.dots.go::<S, F, 4, 1>(self.s),
            }
        }
    }
}

// No closures except those that `from_fn` calls: if a closure is called in several places, the compiler may make it a
// function of its own, which then lacks the instructions.
impl Dots<'_> {
    #[inline(always)]
    fn go<S: Decoding, F: Format, const X: usize, const W: usize>(&mut self, s: S) {
        let (columns, groups) = (self.columns, self.columns / self.group);
        assert!(self.x_rows == X && X <= ROWS_AT_ONCE);
        assert!(self.x.len() >= (X - 1) * self.padded + columns + groups);
        assert!(self.scales.len() == self.rows * groups + MAX_LANES && self.rows <= ROWS);
        assert!(self.biases.is_none_or(|biases| biases.len() == self.rows * groups));
        assert!(self.codes.len() * 8 == self.rows * columns * F::BITS);
        let mut all = [[s.zero(); ROWS]; X];
        let mut row = 0;
        while row < self.rows {
            let left = self.rows - row;
            if left >= W {
                self.rows::<S, F, X, W>(s, row, &mut all);
                row += W;
            } else {
                self.rows::<S, F, X, 1>(s, row, &mut all);
                row += 1;
            }
        }
        for (vectors, sums) in all.iter().zip(&mut *self.sums) {
            for (vectors, sums) in vectors.chunks_exact(S::LANES).zip(sums.chunks_exact_mut(S::LANES)) {
                s.store(sums, s.sums(vectors));
            }
        }
    }

    /// The products of `W` rows of weights from `row` on and all rows of x, as vectors whose lanes have still to be
    /// summed.
    #[inline(always)]
    fn rows<S: Decoding, F: Format, const X: usize, const W: usize>(
        &self,
        s: S,
        row: usize,
        all: &mut [[S::F; ROWS]; X],
    ) {
        let mut totals = [[s.zero(); X]; W];
        // Several vectors unrolled: as many as the most frequent groups have.
        let vectors = self.group / S::LANES;
        if const { S::REGISTERS < 16 } || const { F::GROUP <= S::LANES } && vectors == 1 {
            self.groups::<S, F, X, W, 1>(s, row, &mut totals);
        } else if const { F::GROUP <= 2 * S::LANES } && vectors == 2 {
            self.groups::<S, F, X, W, 2>(s, row, &mut totals);
        } else if const { S::REGISTERS >= 16 } {
            self.groups::<S, F, X, W, 4>(s, row, &mut totals);
        }
        if let Some(biases) = self.biases {
            let groups = self.columns / self.group;
            for first in (0..groups).step_by(S::LANES) {
                let count = S::LANES.min(groups - first);
                // SAFETY: there are `groups` biases for each row of weights, and sums for each row of x: `go` has
                // asserted it.
                unsafe {
                    let at = self.x.as_ptr().add(self.columns + first);
                    let sums: [S::F; X] =
                        std::array::from_fn(|i| s.load_first(at.add(i * self.padded), count));
                    for (w, totals) in totals.iter_mut().enumerate() {
                        let biases = s.load_first(biases.as_ptr().add((row + w) * groups + first), count);
                        for (sum, total) in sums.iter().zip(totals) {
                            *total = s.mul_add(biases, *sum, *total);
                        }
                    }
                }
            }
        }
        for (w, totals) in totals.iter().enumerate() {
            for (all, total) in all.iter_mut().zip(totals) {
                all[row + w] = *total;
            }
        }
    }

    /// Adds the products of `W` rows of weights from `row` on to `totals`, in float32, `N` vectors of a group at a
    /// time.
    #[inline(always)]
    fn groups<S: Decoding, F: Format, const X: usize, const W: usize, const N: usize>(
        &self,
        s: S,
        row: usize,
        totals: &mut [[S::F; X]; W],
    ) {
        let groups = self.columns / self.group;
        let row_bytes = self.columns * F::BITS / 8;
        let codes: [*const u8; W] =
            std::array::from_fn(|w| self.codes.as_ptr().wrapping_add((row + w) * row_bytes));
        let scales: [*const f32; W] =
            std::array::from_fn(|w| self.scales.as_ptr().wrapping_add((row + w) * groups));
        for group in 0..groups {
            let mut sums = [[s.zero(); X]; W];
            let first = group * self.group;
            for codes in codes {
                prefetch_stream(codes.wrapping_add(first * F::BITS / 8));
            }
            for time in 0..self.group / (S::LANES * N) {
                for part in 0..N {
                    let k = first + (time * N + part) * S::LANES;
                    // SAFETY: `k` is a multiple of `LANES` within the rows of codes and of x, as `go` has asserted.
                    unsafe {
                        let x: [S::F; X] =
                            std::array::from_fn(|i| s.load_f32(self.x.as_ptr().add(i * self.padded + k)));
                        for (codes, sums) in codes.iter().zip(&mut sums) {
                            let code = F::unpack_fast(s, *codes, k);
                            for (x, sum) in x.iter().zip(sums) {
                                *sum = s.mul_add(code, *x, *sum);
                            }
                        }
                    }
                }
            }
            for ((scales, sums), totals) in scales.iter().zip(sums).zip(&mut *totals) {
                // SAFETY: there are `groups` scales for each row, as `go` has asserted.
                let scale = s.splat(unsafe { *scales.add(group) });
                for (sum, total) in sums.into_iter().zip(totals) {
                    *total = s.mul_add(sum, scale, *total);
                }
            }
        }
    }
}

/// A vector from a slice, with zeros if the slice is shorter.
#[inline(always)]
fn some<S: Arithmetic>(s: S, from: &[f32]) -> S::F {
    // SAFETY: no more than the slice has.
    unsafe { s.load_first(from.as_ptr(), from.len().min(S::LANES)) }
}
