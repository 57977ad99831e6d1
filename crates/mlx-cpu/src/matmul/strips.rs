//! Products with the rows of a matrix: `x w^T`, for any number of rows.
//!
//! Weights are read once, as they lie in memory, and vectors run along their rows; nothing is transposed. The rows of
//! weights are cut into tasks. A task takes a few rows at a time: with up to eight rows of `x` it reads them where they
//! lie; for more it copies them into the order of their use, which costs little beside the multiplications. Meanwhile
//! the next rows are prefetched, so that memory and multipliers work at the same time.
//!
//! Each product is the sum of the lanes of one vector of sums, in a fixed order. So a row of the output has the same
//! bits whichever rows share the call.

use super::dots::{self, Ahead, MOST_COLUMNS, Multiply, ROWS, ROWS_IN_PLACE, Sums, Widened};
use crate::cpu::Shared;
use crate::products::{Output, Purpose, with_scratch};
use crate::{Arithmetic, Cpu, Element, Isa, Kernel, MAX_LANES, Matrix, Simd};

/// The number of rows of `x` that are multiplied at a time. Copying weights again for the next rows costs little.
const MOST_ROWS: usize = if cfg!(miri) { 16 } else { 1024 };
/// Up to this many rows of `x`, weights are read where they lie.
const IN_PLACE: usize = 8;
/// Numbers of 4 bytes of a row that are copied at a time: [`MOST_COLUMNS`] of them stay in the first-level cache.
const PART: usize = if cfg!(miri) { 32 } else { 1024 };
/// Up to this many rows of `x`, parts are half as long: the weights that are copied count, too, and both stay in the
/// first-level cache.
const HALVED: usize = 32;
/// Numbers of 4 bytes of `x` that are used with one copy of weights. They stay in the second-level cache.
const BLOCK: usize = if cfg!(miri) { 1 << 9 } else { 128 << 10 };
/// Bytes of weights between those that are multiplied and those that are prefetched, at least.
const FAR: usize = 16 << 10;
/// Products of a row that are written together.
const STRIP: usize = 64;
/// Bytes of weights that one task reads: about 5 microseconds.
const PIECE: usize = if cfg!(miri) { 1 << 7 } else { 64 << 10 };
/// Up to this many bytes of weights are one task, if there are at most eight rows of `x`, and fewer bytes if there are
/// more rows.
const SMALL: usize = if cfg!(miri) { 1 << 9 } else { 128 << 10 };

/// `out = x w^T` for a `w` with contiguous rows.
pub(super) fn rows_by_rows<T: Element>(cpu: &Cpu, x: Matrix<'_, T>, w: Matrix<'_, T>, out: &Output<'_, T>) {
    let pairs = cpu.isa().multiplies_bf16() && T::as_bf16(w).is_some();
    let lanes = cpu.isa().lanes();
    let steps = w.columns().div_ceil(if pairs { 2 * lanes } else { lanes });
    for first in (0..x.rows()).step_by(MOST_ROWS) {
        let rows = MOST_ROWS.min(x.rows() - first);
        let product = Product { x: x.part(first, rows), w, out, first, steps, lanes };
        with_scratch(Purpose::Left, rows * steps * lanes, |copy| {
            let to = Shared(copy.as_mut_ptr());
            let copy_tile = |tile: usize| {
                let (first, count) = product.tile(tile);
                // SAFETY: tiles do not overlap, and each is copied by one task.
                let to = unsafe {
                    std::slice::from_raw_parts_mut(to.get().add(first * steps * lanes), count * steps * lanes)
                };
                product.run(cpu.isa(), Part::Copy { tile, to });
            };
            if product.is_in_place() {
                (0..product.tiles()).for_each(copy_tile);
            } else {
                cpu.parallel(product.tiles(), copy_tile);
            }
            let x = &*copy;
            let size = product.columns_of_task(cpu.threads());
            cpu.parallel(w.rows().div_ceil(size), |index| {
                let columns = index * size..w.rows().min((index + 1) * size);
                with_scratch(Purpose::Right, product.scratch(), |scratch| {
                    product.run(cpu.isa(), Part::Multiply { columns, x, scratch });
                });
            });
        });
    }
}

/// The product of some rows of `x`, at most [`MOST_ROWS`].
#[derive(Clone, Copy)]
struct Product<'a, T> {
    x: Matrix<'a, T>,
    w: Matrix<'a, T>,
    out: &'a Output<'a, T>,
    /// The row of the output that belongs to the first row of `x`.
    first: usize,
    /// The number of vectors of a row.
    steps: usize,
    /// The numbers of 4 bytes of a vector.
    lanes: usize,
}

/// What one task does.
enum Part<'a> {
    /// Copies a tile of `x`.
    Copy { tile: usize, to: &'a mut [f32] },
    /// Multiplies the copy of `x` with some rows of weights, which are columns of the output.
    Multiply { columns: std::ops::Range<usize>, x: &'a [f32], scratch: &'a mut [f32] },
}

impl<T: Element> Product<'_, T> {
    /// Whether weights are read where they lie.
    const fn is_in_place(&self) -> bool {
        self.x.rows() <= IN_PLACE
    }

    /// The number of tiles: of up to [`ROWS`] or [`ROWS_IN_PLACE`] rows, and of almost equal size.
    const fn tiles(&self) -> usize {
        self.x.rows().div_ceil(if self.is_in_place() { ROWS_IN_PLACE } else { ROWS })
    }

    /// The first row of a tile and the number of its rows.
    const fn tile(&self, index: usize) -> (usize, usize) {
        let (rows, tiles) = (self.x.rows(), self.tiles());
        let first = index * rows / tiles;
        (first, (index + 1) * rows / tiles - first)
    }

    /// The number of parts of almost equal length that rows are cut into.
    const fn parts(&self) -> usize {
        let part = if self.x.rows() <= HALVED { PART / 2 } else { PART };
        self.steps.div_ceil(part / self.lanes)
    }

    /// The first vector of a part of the rows, and the number of its vectors.
    const fn part(&self, index: usize) -> (usize, usize) {
        let first = index * self.steps / self.parts();
        (first, (index + 1) * self.steps / self.parts() - first)
    }

    /// The number of blocks of tiles whose parts stay in the second-level cache. If the whole `x` does, all parts of
    /// some weights follow each other.
    const fn blocks(&self) -> usize {
        if self.is_small() {
            return 1;
        }
        let at_once = BLOCK / (ROWS * self.lanes * self.steps.div_ceil(self.parts()));
        self.tiles().div_ceil(if at_once == 0 { 1 } else { at_once })
    }

    const fn is_small(&self) -> bool {
        self.x.rows() * self.steps * self.lanes <= BLOCK
    }

    /// The number of columns of the output that are written together. Between two parts of a row their sums wait in
    /// memory, and should not take much of it.
    const fn strip(&self) -> usize {
        match (self.parts(), self.is_small()) {
            (1, _) => STRIP,
            (_, true) => STRIP / 4,
            (_, false) => STRIP / 2,
        }
    }

    /// The number of columns of the output that one task computes.
    fn columns_of_task(&self, threads: usize) -> usize {
        let columns = self.w.rows();
        let bytes = columns * self.w.columns() * size_of::<T>();
        if bytes * self.x.rows().div_ceil(MOST_COLUMNS) <= SMALL {
            return columns;
        }
        // A multiple of four tasks, so that two or four threads end together.
        let tasks = bytes.div_ceil(PIECE).next_multiple_of(4);
        let size = columns.div_ceil(tasks);
        let size =
            if self.is_in_place() { size } else { size.max(self.strip()).min(columns.div_ceil(threads)) };
        size.next_multiple_of(MOST_COLUMNS)
    }

    /// The scratch memory that [`Part::Multiply`] needs, in numbers: a copy of weights, products, and sums between two
    /// parts.
    const fn scratch(&self) -> usize {
        let products = self.x.rows() * self.strip();
        MOST_COLUMNS * PART + products + if self.parts() > 1 { products * self.lanes } else { 0 }
    }

    /// Runs a part with the instructions of `isa`.
    fn run(self, isa: Isa, part: Part<'_>) {
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        if isa.multiplies_bf16()
            && let (Some(x), Some(w)) = (T::as_bf16(self.x), T::as_bf16(self.w))
        {
            assert!(isa.is_available(), "this processor has no {}", isa.name());
            // SAFETY: `T` is bfloat16.
            let out = unsafe { &*std::ptr::from_ref(self.out).cast::<Output<'_, half::bf16>>() };
            let Self { first, steps, lanes, .. } = self;
            // SAFETY: the processor has the instructions, as was just asserted.
            return unsafe { pairs(Product { x, w, out, first, steps, lanes }, part) };
        }
        isa.run(Task { product: self, part });
    }

    #[inline(always)]
    fn go<M: Multiply<T>, const W: usize>(&self, m: M, part: Part<'_>) {
        assert!(self.lanes == M::S::LANES && self.steps == self.w.columns().div_ceil(M::STEP));
        match part {
            Part::Copy { tile, to } => {
                let rows = self.tile(tile);
                macro_rules! rows {
                    ($($rows:literal)*) => {
                        match rows.1 {
                            $($rows => dots::copy::<T, M, $rows>(m, &self.x, rows, (0, self.steps), to),)*
                            _ => unreachable!("a tile of {} rows", rows.1),
                        }
                    };
                }
                rows!(1 2 3 4 5 6 7 8);
            }
            Part::Multiply { columns, x, scratch } => {
                assert!(
                    x.len() == self.x.rows() * self.steps * self.lanes && scratch.len() == self.scratch()
                );
                for first in columns.clone().step_by(self.strip()) {
                    let strip = first..columns.end.min(first + self.strip());
                    if self.is_in_place() {
                        self.in_place::<M, W>(m, strip, x, scratch);
                    } else {
                        self.copied::<M, W>(m, strip, x, scratch);
                    }
                }
            }
        }
    }

    /// The products of a few rows, and of rows of weights that are read where they lie.
    ///
    /// With wide vectors one row of weights follows the other: a core reads one stream of memory faster than several.
    /// Narrow vectors need several rows, since each addition to a sum waits for the one before.
    #[inline(always)]
    fn in_place<M: Multiply<T>, const W: usize>(
        &self,
        m: M,
        strip: std::ops::Range<usize>,
        x: &[f32],
        products: &mut [f32],
    ) {
        let (w, stride) = (&self.w, self.strip());
        for column in strip.clone().step_by(W) {
            for tile in 0..self.tiles() {
                let (row, count) = self.tile(tile);
                let x = x[row * self.steps * self.lanes..][..count * self.steps * self.lanes].as_ptr();
                let to = products[row * stride + column - strip.start..].as_mut_ptr();
                let sums = Sums { held: to, is_first: true, is_last: true, to, stride };
                macro_rules! rows {
                    ($($rows:literal)*) => {
                        match count {
                            $(
                                // SAFETY: the copy of `x` has `steps` vectors for each row, and `products` has rows of
                                // `stride` numbers.
                                $rows if const { M::S::LANES == MAX_LANES } => unsafe {
                                    dots::in_place::<T, M, $rows, W, { if $rows > 4 { 2 } else { 1 } }>(m, x, w, column, sums);
                                }
                                // SAFETY: as above.
                                $rows => unsafe {
                                    dots::in_place::<T, M, $rows, W, { at_once($rows) }>(m, x, w, column, sums);
                                }
                            )*
                            _ => unreachable!("a tile of {count} rows"),
                        }
                    };
                }
                rows!(1 2 3 4 5 6 7 8);
            }
        }
        self.put(m.simd(), 0..self.x.rows(), strip, products);
    }

    /// The products of all rows with copies of rows of weights.
    #[inline(always)]
    fn copied<M: Multiply<T>, const W: usize>(
        &self,
        m: M,
        strip: std::ops::Range<usize>,
        x: &[f32],
        scratch: &mut [f32],
    ) {
        let (copy, rest) = scratch.split_at_mut(MOST_COLUMNS * PART);
        let (products, held) = rest.split_at_mut(self.x.rows() * self.strip());
        let (parts, blocks) = (self.parts(), self.blocks());
        for block in 0..blocks {
            let tiles = block * self.tiles() / blocks..(block + 1) * self.tiles() / blocks;
            let rows = self.tile(tiles.start).0..self.tile(tiles.end).0;
            for part in 0..parts {
                for column in strip.clone().step_by(W) {
                    let (first, steps) = self.part(part);
                    let count = W.min(self.w.rows() - column);
                    let copy = &mut copy[..steps * W * self.lanes];
                    dots::copy::<T, M, W>(m, &self.w, (column, count), (first, steps), copy);
                    let mut ahead = self.ahead::<W>(&strip, column, part, block + 1 == blocks, M::STEP);
                    let pace = ahead.pace(steps * tiles.len());
                    for index in tiles.clone() {
                        let (row, count) = self.tile(index);
                        let at = (row - rows.start, column - strip.start);
                        let sums = Sums {
                            held: held
                                .as_mut_ptr()
                                .wrapping_add((at.0 * self.strip() + at.1 * count) * self.lanes),
                            is_first: part == 0,
                            is_last: part + 1 == parts,
                            to: products.as_mut_ptr().wrapping_add(at.0 * self.strip() + at.1),
                            stride: self.strip(),
                        };
                        let from = (
                            x[(row * self.steps + first * count) * self.lanes..]
                                [..steps * count * self.lanes]
                                .as_ptr(),
                            copy.as_ptr(),
                        );
                        // SAFETY: the lengths are those of the slices. A tile has room for its sums and products in
                        // `held` and `products`, whose rows have `strip` columns.
                        unsafe {
                            match count {
                                1 => dots::copied::<T, M, 1, W>(m, steps, from, sums, &mut ahead, pace),
                                2 => dots::copied::<T, M, 2, W>(m, steps, from, sums, &mut ahead, pace),
                                _ => dots::copied::<T, M, ROWS, W>(m, steps, from, sums, &mut ahead, pace),
                            }
                        }
                    }
                }
            }
            self.put(m.simd(), rows, strip.clone(), products);
        }
    }

    /// The weights that are copied after those from row `column` on.
    #[inline(always)]
    fn ahead<const W: usize>(
        &self,
        strip: &std::ops::Range<usize>,
        column: usize,
        part: usize,
        is_last: bool,
        step: usize,
    ) -> Ahead {
        if self.parts() == 1 && is_last {
            let bytes = W * self.w.columns() * size_of::<T>();
            return Ahead::new(&self.w, (column + W * FAR.div_ceil(bytes), W), (0, self.w.columns()));
        }
        let (column, part) = if column + W < strip.end {
            (column + W, part)
        } else if part + 1 < self.parts() {
            (strip.start, part + 1)
        } else {
            (if is_last { strip.end } else { strip.start }, 0)
        };
        let (first, steps) = self.part(part);
        let length = (steps * step).min(self.w.columns() - first * step);
        Ahead::new(&self.w, (column, W), (first * step, length))
    }

    /// Writes products to the output.
    #[inline(always)]
    fn put<S: Arithmetic>(
        &self,
        s: S,
        rows: std::ops::Range<usize>,
        columns: std::ops::Range<usize>,
        from: &[f32],
    ) {
        for (row, from) in rows.zip(from.chunks_exact(self.strip())) {
            for (column, from) in columns.clone().step_by(S::LANES).zip(from.chunks_exact(S::LANES)) {
                let count = S::LANES.min(columns.end - column);
                // SAFETY: these columns belong to this task alone.
                unsafe { self.out.put(s, self.first + row, column, count, s.load(from)) };
            }
        }
    }
}

/// The number of rows of weights that narrow vectors multiply at a time with `rows` rows of `x`.
const fn at_once(rows: usize) -> usize {
    match rows {
        1..=4 => 4,
        5 | 6 => 2,
        _ => 1,
    }
}

/// A part of a product of any elements.
struct Task<'a, 'b, T> {
    product: Product<'a, T>,
    part: Part<'b>,
}

impl<T: Element> Kernel for Task<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        if const { dots::columns::<S>() == MOST_COLUMNS } {
            self.product.go::<Widened<S>, MOST_COLUMNS>(Widened(s), self.part);
        } else {
            self.product.go::<Widened<S>, { MOST_COLUMNS / 2 }>(Widened(s), self.part);
        }
    }
}

/// A part of a product of bfloat16, with the instructions for it.
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[target_feature(
    enable = "avx2,fma,f16c,bmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx512bf16"
)]
fn pairs(product: Product<'_, half::bf16>, part: Part<'_>) {
    // SAFETY: this function is entered only where the instructions are there.
    product.go::<dots::Bfloat16, MOST_COLUMNS>(unsafe { dots::Bfloat16::new() }, part);
}
