//! The kernel in the middle of every large product.

use crate::{Isa, Kernel, Simd};

/// How much of a product is held in registers: rows by columns.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// At most so many rows.
    pub(super) rows: usize,
    /// Two vectors of columns.
    pub(super) columns: usize,
}

impl Shape {
    /// As large as the registers allow: of 32 (AVX-512) or 16 (AVX2) all but those that hold two
    /// vectors of the right factor and a number of the left one. The larger the tile, the fewer
    /// loads for each product.
    pub(super) const fn of(isa: Isa) -> Self {
        match isa {
            Isa::Avx512 => Self { rows: 14, columns: 32 },
            Isa::Avx2 => Self { rows: 6, columns: 16 },
            Isa::Neon => Self { rows: 12, columns: 8 },
            Isa::Portable => Self { rows: 4, columns: 16 },
        }
    }
}

/// The product of two panels, as a kernel of its own: it is compiled once for an instruction set,
/// whatever the panels were made from.
pub(super) struct Tile<'a> {
    /// `rows` numbers for each step of the depth.
    pub(super) left: &'a [f32],
    /// Two vectors for each step of the depth.
    pub(super) right: &'a [f32],
    pub(super) depth: usize,
    /// 1 to 14.
    pub(super) rows: usize,
    /// Where the product goes, row by row.
    pub(super) to: &'a mut Product,
}

/// The largest product of two panels.
#[repr(align(64))]
pub(super) struct Product(pub(super) [f32; 14 * 32]);

impl Kernel for Tile<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { left, right, depth, rows, to } = self;
        assert!(left.len() == depth * rows && right.len() == depth * 2 * S::LANES);
        macro_rules! rows {
            ($($rows:literal)*) => {
                match rows {
                    // SAFETY: the lengths are those that were just asserted, and no product is
                    // larger than 14 rows of two vectors of 16.
                    $($rows => unsafe {
                        tile::<S, $rows>(s, depth, left.as_ptr(), right.as_ptr(), to.0.as_mut_ptr());
                    })*
                    _ => unreachable!("a panel of {rows} rows"),
                }
            };
        }
        match S::LANES {
            16 => rows!(1 2 3 4 5 6 7 8 9 10 11 12 13 14),
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
unsafe fn tile<S: Simd, const ROWS: usize>(s: S, depth: usize, a: *const f32, b: *const f32, to: *mut f32) {
    let mut sums = [[s.zero(); 2]; ROWS];
    let (mut a, mut b) = (a, b);
    for _ in 0..depth {
        // SAFETY: the caller's promise; the pointers move by one step of the panels.
        unsafe {
            let right = [s.load_f32(b), s.load_f32(b.add(S::LANES))];
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
