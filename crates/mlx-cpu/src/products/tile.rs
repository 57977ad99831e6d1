//! The tile kernel: the innermost loop of every product with many rows.

use super::panels::Numbers;
use crate::simd::prefetch;
use crate::{Arithmetic, Integers, Isa, Kernel, MAX_LANES, Simd};

/// How many steps of the depth ahead panels are prefetched: they come from the second-level cache.
pub(super) const AHEAD: usize = 12;

/// The part of a product that is held in registers (in tiles for AMX).
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// The largest number of rows.
    pub(super) rows: usize,
    /// The rows of a panel are a multiple of this; the missing ones are filled with zeros.
    pub(super) unit: usize,
    /// Two vectors of columns.
    pub(super) columns: usize,
}

impl Shape {
    /// As large as the registers allow: of 32 (AVX-512) or 16 (AVX2), all but those that hold two vectors of the right
    /// factor and a number of the left one. The larger the part, the fewer loads for each multiplication. Of the eight
    /// tiles of AMX four hold sums.
    pub(super) const fn of(isa: Isa, numbers: Numbers) -> Self {
        match (isa, numbers) {
            (Isa::Amx, Numbers::Bfloat16) => Self { rows: 32, unit: 16, columns: 32 },
            (Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx, _) => Self { rows: MOST_ROWS, unit: 1, columns: 32 },
            (Isa::Avx2, _) => Self { rows: 6, unit: 1, columns: 16 },
            (Isa::Neon, _) => Self { rows: 12, unit: 1, columns: 8 },
            (Isa::Portable, _) => Self { rows: 4, unit: 1, columns: 16 },
        }
    }
}

/// The product of two panels. A kernel of its own, so that it is compiled once for each instruction set, and not for
/// each kind of matrix.
pub(super) struct Tile<'a> {
    /// A panel of the left factor: `rows` numbers for each step of the depth.
    pub(super) left: &'a [f32],
    /// A panel of the right factor: two vectors for each step of the depth.
    pub(super) right: &'a [f32],
    pub(super) depth: usize,
    /// Float32 or whole numbers; `bf16.rs` multiplies bfloat16.
    pub(super) numbers: Numbers,
    /// 1 to [`MOST_ROWS`].
    pub(super) rows: usize,
    /// The product, row by row.
    pub(super) to: &'a mut Product,
}

/// The largest number of rows of a panel of the left factor, except for the tiles of AMX.
pub(crate) const MOST_ROWS: usize = 14;

/// Memory for the product of two panels of any size.
#[repr(align(64))]
pub(super) struct Product(pub(super) [f32; 32 * 32]);

impl Kernel for Tile<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { left, right, depth, numbers, rows, to } = self;
        assert!(left.len() == depth * rows && right.len() == depth * 2 * S::LANES);
        if let Numbers::Whole { group } = numbers {
            assert!(group > 2 && depth.is_multiple_of(group));
        }
        let (left, right, to) = (left.as_ptr(), right.as_ptr(), to.0.as_mut_ptr());
        macro_rules! rows {
            ($($rows:literal)*) => {
                match (rows, numbers) {
                    // SAFETY: the lengths are those that were just asserted, and no product is
                    // larger than 14 rows of two vectors of 16.
                    $(($rows, Numbers::Float32) => unsafe { tile::<S, $rows>(s, depth, left, right, to) },)*
                    // SAFETY: as above.
                    $(($rows, Numbers::Whole { group }) => unsafe {
                        whole_tile::<S, $rows>(s, depth / group, group - 2, left, right, to);
                    })*
                    _ => unreachable!("a panel of {rows} rows of {numbers:?}"),
                }
            };
        }
        match S::LANES {
            MAX_LANES => rows!(1 2 3 4 5 6 7 8 9 10 11 12 13 14),
            8 => rows!(1 2 3 4 5 6),
            _ => rows!(1 2 3 4 5 6 7 8 9 10 11 12),
        }
    }
}

/// The product of a panel of `ROWS` rows and one of two vectors of columns, both `depth` deep.
///
/// # Safety
///
/// `depth * ROWS` numbers can be read at `a`, `depth * 2 * S::LANES` at `b`, and `ROWS * 2 * S::LANES`
/// written at `to`.
#[inline(always)]
unsafe fn tile<S: Arithmetic, const ROWS: usize>(
    s: S,
    depth: usize,
    a: *const f32,
    b: *const f32,
    to: *mut f32,
) {
    let mut sums = [[s.zero(); 2]; ROWS];
    let (mut a, mut b) = (a, b);
    for _ in 0..depth {
        // SAFETY: the caller's promise; the pointers move by one step of the panels.
        unsafe {
            let right = [s.load_f32(b), s.load_f32(b.add(S::LANES))];
            prefetch(b.wrapping_add(AHEAD * 2 * S::LANES));
            prefetch(b.wrapping_add((AHEAD * 2 + 1) * S::LANES));
            prefetch(a.wrapping_add(AHEAD * ROWS));
            for (i, sums) in sums.iter_mut().enumerate() {
                let left = s.splat(*a.add(i));
                sums[0] = s.mul_add(left, right[0], sums[0]);
                sums[1] = s.mul_add(left, right[1], sums[1]);
            }
            a = a.add(ROWS);
            b = b.add(2 * S::LANES);
        }
    }
    for (i, sums) in sums.into_iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe {
            s.store_f32(to.add(2 * i * S::LANES), sums[0]);
            s.store_f32(to.add((2 * i + 1) * S::LANES), sums[1]);
        }
    }
}

/// [`tile`] for whole numbers: `groups` groups of `pairs` pairs and two floats. The sum of a group is exact.
///
/// # Safety
///
/// As for [`tile`] with a depth of `groups * (pairs + 2)`.
#[inline(always)]
unsafe fn whole_tile<S: Integers, const ROWS: usize>(
    s: S,
    groups: usize,
    pairs: usize,
    a: *const f32,
    b: *const f32,
    to: *mut f32,
) {
    let width = 2 * S::LANES;
    let (mut a, mut b) = (a, b);
    for i in 0..2 * ROWS {
        // SAFETY: the caller's promise.
        unsafe { s.store_f32(to.add(i * S::LANES), s.zero()) };
    }
    for _ in 0..groups {
        let mut sums = [[s.bits(s.zero()); 2]; ROWS];
        for _ in 0..pairs {
            // SAFETY: the caller's promise; the pointers move by one step of the panels.
            unsafe {
                let right = [s.bits(s.load_f32(b)), s.bits(s.load_f32(b.add(S::LANES)))];
                prefetch(b.wrapping_add(AHEAD * width));
                prefetch(b.wrapping_add(AHEAD * width + S::LANES));
                prefetch(a.wrapping_add(AHEAD * ROWS));
                for (i, sums) in sums.iter_mut().enumerate() {
                    let left = s.bits(s.splat(*a.add(i)));
                    sums[0] = s.dot(left, right[0], sums[0]);
                    sums[1] = s.dot(left, right[1], sums[1]);
                }
                a = a.add(ROWS);
                b = b.add(width);
            }
        }
        // SAFETY: as above; a step of scales, and one of summands.
        unsafe {
            let scales = [s.load_f32(b), s.load_f32(b.add(S::LANES))];
            let added = [s.load_f32(b.add(width)), s.load_f32(b.add(width + S::LANES))];
            // By value: an array that a loop indexes is not kept in registers.
            for (i, [low, high]) in sums.into_iter().enumerate() {
                let (unit, sum) = (s.splat(*a.add(i)), s.splat(*a.add(ROWS + i)));
                let to = [to.add(i * width), to.add(i * width + S::LANES)];
                let low = s.mul_add(s.to_float(low), s.mul(unit, scales[0]), s.load_f32(to[0]));
                let high = s.mul_add(s.to_float(high), s.mul(unit, scales[1]), s.load_f32(to[1]));
                s.store_f32(to[0], s.mul_add(sum, added[0], low));
                s.store_f32(to[1], s.mul_add(sum, added[1], high));
            }
            a = a.add(2 * ROWS);
            b = b.add(2 * width);
        }
    }
}
