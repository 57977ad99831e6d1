//! Softmax, log-sum-exp and argmax over rows.
//!
//! A long row is cut into pieces, whose sums are added in order. The pieces do not depend on the number of threads.

use crate::cpu::Shared;
use crate::rows::{Rows, assert_rows, load, store, tasks};
use crate::{Cpu, Element, Kernel, MAX_LANES, Matrix, MatrixMut, Simd, formula};

/// The number of elements in a piece of a row.
const PIECE: usize = 16_384;

/// `exp(x - max) / sum(exp(x - max))` for each row, rounded once: MLX's `softmax` with `precise`.
///
/// Without `precise` MLX sums half-precision numbers in half precision; this sums in float32. The exponential is MLX's
/// own. A row becomes NaN if it has a NaN or positive infinity, or if all its elements are negative infinity, as in
/// MLX.
///
/// # Shapes
///
/// `x` and `out` `[N, D]`; the elements of a row of `x` follow each other.
///
/// # Error
///
/// The relative error of an exponential is at most 8e-6, and that of the sum at most
/// `min(D, 16384) / 8 + D / 16384 + 8` times `2^-24`.
///
/// # Panics
///
/// If the shapes do not agree, or the elements of a row do not follow each other.
pub fn softmax<T: Element>(cpu: &Cpu, x: Matrix<'_, T>, mut out: MatrixMut<'_, T>) {
    let (rows, columns) = (x.rows(), x.columns());
    assert!(
        (out.rows(), out.columns()) == (rows, columns),
        "an output of {} by {} for an input of {rows} by {columns}",
        out.rows(),
        out.columns()
    );
    if columns == 0 {
        return;
    }
    let out = Rows::new(&mut out);
    by_pieces(cpu, x, |cpu, totals, row, from, to| {
        // SAFETY: the output is borrowed by the caller, and pieces do not overlap.
        let out = unsafe { out.part(row, from..to) };
        cpu.run(Write { x: &x.row(row)[from..to], totals, out });
    });
}

/// `log(sum(exp(x)))` for each row: MLX's `logsumexp`. Infinite if the largest element is infinite.
///
/// # Shapes
///
/// `x` `[N, D]`, `out` `[N]`; the elements of a row follow each other.
///
/// # Error
///
/// The error of the sum is that of [`softmax`]. Its float32 logarithm plus the largest element is rounded to `T`.
///
/// # Panics
///
/// If the shapes do not agree, a row has no element, or the elements of a row do not follow each other.
pub fn logsumexp<T: Element>(cpu: &Cpu, x: Matrix<'_, T>, out: &mut [T]) {
    let (rows, columns) = (x.rows(), x.columns());
    assert!(out.len() == rows, "an output of {} for {rows} rows", out.len());
    assert!(columns > 0 || rows == 0, "a row of no elements has no sum of exponentials");
    let out = Shared(out.as_mut_ptr());
    by_pieces(cpu, x, |_, Totals { largest, sum }, row, from, _| {
        if from > 0 {
            return;
        }
        let result = if largest.is_infinite() && !x.row(row).iter().any(|x| x.widen().is_nan()) {
            largest
        } else {
            sum.ln() + largest
        };
        // SAFETY: the output has as many elements as there are rows and is borrowed by the caller; the
        // first piece of a row is one task's.
        unsafe { out.get().add(row).write(T::narrow(result)) };
    });
}

/// The index of the largest element of each row, the first of equal ones: MLX's `argmax`. No comparison with a NaN is
/// true, so a NaN counts only as the first element: then it is the result.
///
/// # Shapes
///
/// `x` `[N, D]`, `out` `[N]`; the elements of a row follow each other.
///
/// # Panics
///
/// If the shapes do not agree, a row has no element or more than a `u32` can count, or the elements of a row do not
/// follow each other.
pub fn argmax<T: Element>(cpu: &Cpu, x: Matrix<'_, T>, out: &mut [u32]) {
    let (rows, columns) = (x.rows(), x.columns());
    assert_rows(&x, "x");
    assert!(out.len() == rows, "an output of {} for {rows} rows", out.len());
    assert!(columns > 0 || rows == 0, "a row of no elements has no largest");
    assert!(u32::try_from(columns).is_ok(), "a row of {columns} elements");
    let pieces = columns.div_ceil(PIECE).max(1);
    let mut tops = vec![(f32::NEG_INFINITY, 0); rows * pieces];
    let size = (rows * pieces).div_ceil(tasks(cpu, rows * pieces, columns.min(PIECE) / 8 + 1)).max(1);
    cpu.parallel_pieces(&mut tops, size, |index, tops| {
        for (i, top) in tops.iter_mut().enumerate() {
            let (row, piece) = ((index * size + i) / pieces, (index * size + i) % pieces);
            let from = piece * PIECE;
            let x = &x.row(row)[from..columns.min(from + PIECE)];
            let (largest, place) = cpu.run(Largest { x, is_first: piece == 0 });
            *top = (largest, from + place);
        }
    });
    for (tops, out) in tops.chunks(pieces).zip(out) {
        let mut best = tops[0];
        for top in &tops[1..] {
            if top.0 > best.0 {
                best = *top;
            }
        }
        *out = best.1 as u32;
    }
}

/// The largest element of a row and its sum.
#[derive(Debug, Clone, Copy)]
struct Totals {
    largest: f32,
    /// The sum of the exponentials of all elements less the largest.
    sum: f32,
}

/// Finds the totals of each row, and calls `task` for each piece of it: with the totals, the row, and the first element
/// of the piece and its end.
fn by_pieces<T: Element>(
    cpu: &Cpu,
    x: Matrix<'_, T>,
    task: impl Fn(&Cpu, Totals, usize, usize, usize) + Sync,
) {
    let (rows, columns) = (x.rows(), x.columns());
    assert_rows(&x, "x");
    if rows == 0 {
        return;
    }
    let pieces = columns.div_ceil(PIECE);
    let ends = |piece: usize| (piece * PIECE, columns.min((piece + 1) * PIECE));
    let piece_of = |row: usize, piece: usize| {
        let (from, to) = ends(piece);
        &x.row(row)[from..to]
    };

    // Each row on one thread, or else the pieces of one row on all threads.
    let alone = tasks(cpu, rows * pieces, columns.min(PIECE)) == 1;
    if alone || pieces == 1 || rows >= 4 * cpu.threads() {
        let size = rows.div_ceil(if alone { 1 } else { tasks(cpu, rows, columns) });
        cpu.parallel(rows.div_ceil(size), |index| {
            for row in index * size..rows.min((index + 1) * size) {
                let mut largest = f32::NEG_INFINITY;
                for piece in 0..pieces {
                    largest = largest.max(cpu.run(Top(piece_of(row, piece))));
                }
                let mut sum = 0.0;
                for piece in 0..pieces {
                    sum += cpu.run(Powers { x: piece_of(row, piece), largest });
                }
                for piece in 0..pieces {
                    let (from, to) = ends(piece);
                    task(cpu, Totals { largest, sum }, row, from, to);
                }
            }
        });
        return;
    }
    let mut parts = vec![0.0_f32; pieces];
    for row in 0..rows {
        cpu.parallel_pieces(&mut parts, 1, |piece, part| part[0] = cpu.run(Top(piece_of(row, piece))));
        let largest = parts.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
        cpu.parallel_pieces(&mut parts, 1, |piece, part| {
            part[0] = cpu.run(Powers { x: piece_of(row, piece), largest });
        });
        let sum = parts.iter().fold(0.0, |a, b| a + b);
        cpu.parallel(pieces, |piece| {
            let (from, to) = ends(piece);
            task(cpu, Totals { largest, sum }, row, from, to);
        });
    }
}

/// The largest element. A NaN may be ignored.
struct Top<'a, T>(&'a [T]);

impl<T: Element> Kernel for Top<'_, T> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let lowest = s.splat(f32::NEG_INFINITY);
        let mut tops = [lowest; 4];
        let mut blocks = self.0.chunks_exact(4 * S::LANES);
        for block in &mut blocks {
            for (i, top) in tops.iter_mut().enumerate() {
                *top = s.max(s.load(&block[i * S::LANES..]), *top);
            }
        }
        for vector in blocks.remainder().chunks(S::LANES) {
            tops[0] = s.max(load(s, vector, f32::NEG_INFINITY), tops[0]);
        }
        s.largest(s.max(s.max(tops[0], tops[1]), s.max(tops[2], tops[3])))
    }
}

/// The sum of the exponentials of a piece.
struct Powers<'a, T> {
    x: &'a [T],
    largest: f32,
}

impl<T: Element> Kernel for Powers<'_, T> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let largest = s.splat(self.largest);
        let mut sums = [s.zero(); 2];
        let mut blocks = self.x.chunks_exact(2 * S::LANES);
        for block in &mut blocks {
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = s.add(*sum, formula::exp(s, s.sub(s.load(&block[i * S::LANES..]), largest)));
            }
        }
        for vector in blocks.remainder().chunks(S::LANES) {
            // Lanes behind the end count as 0, even if `largest` is infinite.
            let power = formula::exp(s, s.sub(load(s, vector, 0.0), largest));
            let mut powers = [0.0_f32; MAX_LANES];
            s.store(&mut powers, power);
            powers[vector.len()..].fill(0.0);
            sums[0] = s.add(sums[0], s.load(&powers));
        }
        s.sum(s.add(sums[0], sums[1]))
    }
}

/// Writes the exponentials of a piece divided by the sum of the row.
struct Write<'a, T> {
    x: &'a [T],
    totals: Totals,
    out: &'a mut [T],
}

impl<T: Element> Kernel for Write<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let largest = s.splat(self.totals.largest);
        let factor = s.splat(1.0 / self.totals.sum);
        for (x, out) in self.x.chunks(S::LANES).zip(self.out.chunks_mut(S::LANES)) {
            let power = formula::exp(s, s.sub(load(s, x, 0.0), largest));
            store(s, out, s.mul(power, factor));
        }
    }
}

/// The largest element of a piece, the first of equal ones, and its index. A NaN is ignored, except at the start of a
/// row: then it is the result.
struct Largest<'a, T> {
    x: &'a [T],
    /// Whether this is the first piece of its row.
    is_first: bool,
}

impl<T: Element> Kernel for Largest<'_, T> {
    type Output = (f32, usize);

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> (f32, usize) {
        /// Blocks of this many elements are searched for the index, once the block of the largest element is known.
        const BLOCK: usize = 512;
        let first = self.x[0].widen();
        if first.is_nan() && self.is_first {
            return (first, 0);
        }
        let (mut best, mut block) = (if first.is_nan() { f32::NEG_INFINITY } else { first }, 0);
        for (i, x) in self.x.chunks(BLOCK).enumerate() {
            let mut top = s.splat(best);
            for vector in x.chunks(S::LANES) {
                let x = load(s, vector, f32::NEG_INFINITY);
                top = s.where_less(top, x, x, top);
            }
            let top = s.largest(top);
            if top > best {
                (best, block) = (top, i);
            }
        }
        let at = self.x[block * BLOCK..].iter().position(|x| x.widen() == best).unwrap_or(0);
        (best, block * BLOCK + at)
    }
}
