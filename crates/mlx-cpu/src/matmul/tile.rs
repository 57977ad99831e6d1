//! The kernel in the middle of every large product.

use crate::{Isa, Simd};

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

/// The product of a panel of `ROWS` rows and one of two vectors of columns, both `depth` deep.
///
/// # Safety
///
/// `depth * ROWS` numbers can be read at `a`, `depth * 2 * S::LANES` at `b`.
#[inline(always)]
pub(super) unsafe fn tile<S: Simd, const ROWS: usize>(
    s: S,
    depth: usize,
    a: *const f32,
    b: *const f32,
) -> [[S::F; 2]; ROWS] {
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
    sums
}
