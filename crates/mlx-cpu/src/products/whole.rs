//! Products of whole numbers in bytes, with several rows.
//!
//! As in [`blocked`](super::blocked), both factors are copied into panels. The left factor has numbers of 16 bits as two
//! planes of bytes, or numbers of 8 bits as one; the right one has codes, which are bytes without a sign. So a panel of
//! codes is half as large as one of pairs of 16 bits, and the sums of a tile stay in registers, those of a group as whole
//! numbers beside those of all groups in float32.
//!
//! The groups are added in order, so the bits of a row do not depend on the other rows, nor on how the work is cut.

use super::output::Output;
use super::panels::{Lines, Panels};
use super::scratch::{Purpose, with_scratch};
use crate::cpu::Shared;
use crate::{Cpu, Element, Integers, Isa, Kernel, MAX_LANES, Simd};

/// The number of rows of the left factor that are multiplied at a time.
/// Small for Miri, whose cases are small and must still be cut and shared between threads.
const ROWS: usize = if cfg!(miri) { 16 } else { 1024 };
/// The size of a block of the left factor, and of a strip of the right one, in numbers of 4 bytes: each takes half of a
/// second-level cache of 1 MiB.
const BLOCK: usize = if cfg!(miri) { 1 << 9 } else { 128 << 10 };
/// Fewer products of words with words than this are done by one thread: a few microseconds.
const SMALL: usize = if cfg!(miri) { 1 << 5 } else { 1 << 17 };
/// Fewer numbers of the left factor than this are packed by one thread.
const PACKED: usize = if cfg!(miri) { 1 << 4 } else { 1 << 14 };
/// The most strips of a thread.
const STRIPS: usize = 8;
/// The most rows of a panel of the left factor.
const MOST_ROWS: usize = 7;

/// The groups of both factors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Groups {
    /// The number of groups of a line.
    pub(crate) count: usize,
    /// The words of four codes of a group.
    pub(crate) words: usize,
    /// The planes of the left factor: 1 or 2.
    pub(crate) planes: usize,
}

impl Groups {
    /// The length of a line of the left factor: for each group its planes, its unit and the sum of its numbers.
    const fn left(self) -> usize {
        self.count * (self.words * self.planes + 2)
    }

    /// The length of a line of the right factor: for each group its codes, its scale, and what is multiplied by the sum of
    /// the other factor's numbers.
    const fn right(self) -> usize {
        self.count * (self.words + 2)
    }
}

/// The most rows of a tile: with two vectors of columns, the sums of a group and those of all groups take four registers
/// for each row.
const fn most_rows(isa: Isa) -> usize {
    if isa.lanes() == MAX_LANES { MOST_ROWS } else { 4 }
}

/// `out = a b`. The lines of `a` are its rows, and those of `b` its columns.
pub(crate) fn whole<T: Element>(
    cpu: &Cpu,
    a: &dyn Panels,
    b: &dyn Panels,
    groups: Groups,
    out: &Output<'_, T>,
) {
    let (rows, columns) = (a.lines(), b.lines());
    assert_eq!((rows, columns), (out.rows(), out.columns()), "shapes of a product");
    assert_eq!((a.depth(), b.depth()), (groups.left(), groups.right()), "groups of a product");
    let width = 2 * cpu.isa().lanes();
    let panels = columns.div_ceil(width);
    let threads = if rows * columns * groups.right() < SMALL { 1 } else { cpu.threads() };
    // A multiple of the number of threads, so that all are busy to the end.
    let at_most = (BLOCK / (groups.right() * width)).max(1);
    let strips = panels.div_ceil(at_most).max(if threads == 1 { 1 } else { STRIPS * threads });
    let strips = strips.next_multiple_of(threads).min(panels);
    let strip = panels.div_ceil(strips);
    let strips = panels.div_ceil(strip);
    for first in (0..rows).step_by(ROWS) {
        let cut = Cut::new(ROWS.min(rows - first), most_rows(cpu.isa()));
        with_scratch(Purpose::Left, cut.rows * groups.left(), |left| {
            let to = Shared(left.as_mut_ptr());
            let pack = |index: usize| {
                let (row, count) = cut.panel(index);
                let (start, length) = (row * groups.left(), count * groups.left());
                // SAFETY: panels do not overlap, and each is packed by one task.
                let to = unsafe { std::slice::from_raw_parts_mut(to.get().add(start), length) };
                with_scratch(Purpose::Right, a.scratch(width / 2), |scratch| {
                    a.pack(cpu.isa(), Lines { first: first + row, count, width: count }, to, scratch);
                });
            };
            if threads == 1 || cut.rows * groups.left() < PACKED {
                (0..cut.count).for_each(pack);
            } else {
                cpu.parallel(cut.count, pack);
            }
            let left = &*left;
            let work = |index: usize| {
                let panels = index * strip..panels.min((index + 1) * strip);
                let length = panels.len() * groups.right() * width;
                with_scratch(Purpose::Right, length + b.scratch(width / 2), |right| {
                    let (right, scratch) = right.split_at_mut(length);
                    cpu.run(Strip {
                        isa: cpu.isa(),
                        left,
                        cut,
                        first,
                        b,
                        groups,
                        panels,
                        right,
                        scratch,
                        out,
                    });
                });
            };
            if threads == 1 { (0..strips).for_each(work) } else { cpu.parallel(strips, work) }
        });
    }
}

/// Rows, cut into panels of almost the same height: a low panel has too few sums to keep the multipliers busy.
#[derive(Debug, Clone, Copy)]
struct Cut {
    rows: usize,
    /// The number of panels.
    count: usize,
}

impl Cut {
    const fn new(rows: usize, at_most: usize) -> Self {
        Self { rows, count: rows.div_ceil(at_most) }
    }

    /// The first row of panel number `index`, and the number of its rows.
    const fn panel(self, index: usize) -> (usize, usize) {
        let (first, end) = (index * self.rows / self.count, (index + 1) * self.rows / self.count);
        (first, end - first)
    }
}

/// One task: the product of all rows of the left factor and some panels of columns.
struct Strip<'a, T> {
    isa: Isa,
    left: &'a [f32],
    cut: Cut,
    /// The row of the output that belongs to the first row of `left`.
    first: usize,
    b: &'a dyn Panels,
    groups: Groups,
    panels: std::ops::Range<usize>,
    right: &'a mut [f32],
    scratch: &'a mut [f32],
    out: &'a Output<'a, T>,
}

impl<T: Element> Kernel for Strip<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { isa, left, cut, first: first_row, b, groups, panels, right, scratch, out } = self;
        let (width, columns) = (2 * S::LANES, b.lines());
        let mut product = Product([0.0; MOST_ROWS * 2 * MAX_LANES]);
        // Blocks of rows that stay in the second-level cache while all panels of columns pass.
        let block = (BLOCK / (groups.left() * cut.rows.div_ceil(cut.count))).max(1);
        // If there is one block, a panel of columns is multiplied while it is in the first-level cache.
        let together = if cut.count <= block { 1 } else { panels.len() };
        for some in panels.clone().step_by(together) {
            let some = some..panels.end.min(some + together);
            for (panel, to) in some.clone().zip(right.chunks_exact_mut(groups.right() * width)) {
                let lines = Lines { first: panel * width, count: width.min(columns - panel * width), width };
                b.pack(isa, lines, to, scratch);
            }
            for from in (0..cut.count).step_by(block) {
                for (panel, right) in some.clone().zip(right.chunks_exact(groups.right() * width)) {
                    for index in from..cut.count.min(from + block) {
                        let (row, rows) = cut.panel(index);
                        let left = &left[row * groups.left()..][..rows * groups.left()];
                        isa.run(Tile { left, right, groups, rows, to: &mut product });
                        let (j, count) = (panel * width, columns - panel * width);
                        for (i, from) in product.0.chunks_exact(width).take(rows).enumerate() {
                            let i = first_row + row + i;
                            // SAFETY: these rows and columns belong to this task alone.
                            unsafe {
                                out.put(s, i, j, count.min(S::LANES), s.load(from));
                                if count > S::LANES {
                                    let (j, count) = (j + S::LANES, (count - S::LANES).min(S::LANES));
                                    out.put(s, i, j, count, s.load(&from[S::LANES..]));
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The product of two panels. A kernel of its own, so that it is compiled once for each instruction set.
struct Tile<'a> {
    left: &'a [f32],
    right: &'a [f32],
    groups: Groups,
    /// 1 to [`most_rows`].
    rows: usize,
    /// The product, row by row.
    to: &'a mut Product,
}

/// Memory for the product of two panels of any size.
#[repr(align(64))]
struct Product([f32; MOST_ROWS * 2 * MAX_LANES]);

impl Kernel for Tile<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        if const { !S::MULTIPLIES_BYTES } {
            unreachable!("there are no products of bytes");
        }
        let Self { left, right, groups, rows, to } = self;
        assert!(left.len() == groups.left() * rows && right.len() == groups.right() * 2 * S::LANES);
        let (left, right, to) = (left.as_ptr(), right.as_ptr(), to.0.as_mut_ptr());
        macro_rules! rows {
            ($($rows:literal)*) => {
                match (rows, groups.planes) {
                    // SAFETY: the lengths are those that were just asserted, and a product has at most 7 rows of two
                    // vectors of 16.
                    $(($rows, 1) => unsafe { tile::<S, $rows, 1>(s, groups, left, right, to) },)*
                    // SAFETY: as above.
                    $(($rows, 2) => unsafe { tile::<S, $rows, 2>(s, groups, left, right, to) },)*
                    _ => unreachable!("a panel of {rows} rows in {} planes", groups.planes),
                }
            };
        }
        const { assert!(MOST_ROWS == 7) };
        match S::LANES {
            MAX_LANES => rows!(1 2 3 4 5 6 7),
            _ => rows!(1 2 3 4),
        }
    }
}

/// The product of a panel of `ROWS` rows and one of two vectors of columns.
///
/// # Safety
///
/// `groups.left() * ROWS` numbers can be read at `a`, `groups.right() * 2 * S::LANES` at `b`, and `ROWS * 2 * S::LANES`
/// written at `to`.
#[inline(always)]
unsafe fn tile<S: Integers, const ROWS: usize, const PLANES: usize>(
    s: S,
    groups: Groups,
    a: *const f32,
    b: *const f32,
    to: *mut f32,
) {
    let (width, words) = (2 * S::LANES, groups.words);
    let (mut a, mut b) = (a, b);
    let mut totals = [[s.zero(); 2]; ROWS];
    for _ in 0..groups.count {
        let mut sums = [[s.bits(s.zero()); 2]; ROWS];
        // SAFETY: the caller's promise; the pointers move by a group.
        unsafe {
            if const { PLANES == 2 && ROWS <= 4 } {
                // Few sums: those of the two planes are independent, so that no multiplication waits for another one.
                let mut lower = sums;
                for word in 0..words {
                    let b = b.add(word * width);
                    let codes = [s.bits(s.load_f32(b)), s.bits(s.load_f32(b.add(S::LANES)))];
                    for i in 0..ROWS {
                        let x = s.bits(s.splat(*a.add(word * ROWS + i)));
                        sums[i] =
                            [s.dot_bytes(codes[0], x, sums[i][0]), s.dot_bytes(codes[1], x, sums[i][1])];
                        let x = s.bits(s.splat(*a.add((words + word) * ROWS + i)));
                        lower[i] =
                            [s.dot_bytes(codes[0], x, lower[i][0]), s.dot_bytes(codes[1], x, lower[i][1])];
                    }
                }
                for (sums, lower) in sums.iter_mut().zip(lower) {
                    *sums = [s.plus(s.times_256(sums[0]), lower[0]), s.plus(s.times_256(sums[1]), lower[1])];
                }
            } else {
                multiply::<S, ROWS>(s, words, a, b, &mut sums);
                if const { PLANES == 2 } {
                    for sums in &mut sums {
                        *sums = [s.times_256(sums[0]), s.times_256(sums[1])];
                    }
                    multiply::<S, ROWS>(s, words, a.add(words * ROWS), b, &mut sums);
                }
            }
            a = a.add(words * PLANES * ROWS);
            b = b.add(words * width);
            let scales = [s.load_f32(b), s.load_f32(b.add(S::LANES))];
            let added = [s.load_f32(b.add(width)), s.load_f32(b.add(width + S::LANES))];
            for (i, (sums, totals)) in sums.into_iter().zip(&mut totals).enumerate() {
                let (unit, sum) = (s.splat(*a.add(i)), s.splat(*a.add(ROWS + i)));
                for h in 0..2 {
                    let total = s.mul_add(s.to_float(sums[h]), s.mul(unit, scales[h]), totals[h]);
                    totals[h] = s.mul_add(sum, added[h], total);
                }
            }
            a = a.add(2 * ROWS);
            b = b.add(2 * width);
        }
    }
    for (i, totals) in totals.into_iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe {
            s.store_f32(to.add(i * width), totals[0]);
            s.store_f32(to.add(i * width + S::LANES), totals[1]);
        }
    }
}

/// Adds the products of a plane of a group to `sums`.
///
/// # Safety
///
/// `words * ROWS` numbers can be read at `a`, and `words * 2 * S::LANES` at `b`.
#[inline(always)]
unsafe fn multiply<S: Integers, const ROWS: usize>(
    s: S,
    words: usize,
    a: *const f32,
    b: *const f32,
    sums: &mut [[S::I; 2]; ROWS],
) {
    for word in 0..words {
        // SAFETY: the caller's promise.
        unsafe {
            let b = b.add(word * 2 * S::LANES);
            let codes = [s.bits(s.load_f32(b)), s.bits(s.load_f32(b.add(S::LANES)))];
            for (i, sums) in sums.iter_mut().enumerate() {
                let x = s.bits(s.splat(*a.add(word * ROWS + i)));
                *sums = [s.dot_bytes(codes[0], x, sums[0]), s.dot_bytes(codes[1], x, sums[1])];
            }
        }
    }
}
