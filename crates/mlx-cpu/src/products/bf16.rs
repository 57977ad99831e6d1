//! The tile kernel for bfloat16: pairs in vectors (AVX512-BF16), or tiles (AMX).
//!
//! Both take elements below 2^-126 as zeros, round to nearest even, and replace sums below 2^-126 by zeros, whatever
//! floating-point mode the program has set. For two pairs, AVX512-BF16 adds the product of the upper halves first, then
//! that of the lower halves, and rounds after each. AMX sums the products of the lower halves of 16 pairs and those of
//! the upper halves separately, with a rounding after each product, adds the two sums, and adds the result to the sum
//! in the tile. Intel, *Architecture Instruction Set Extensions Programming Reference*: `VDPBF16PS`, `TDPBF16PS`.

/// The number of pairs of a line that a tile holds. Panels for tiles are padded with zeros to a multiple of it.
pub(crate) const TILE: usize = 16;

#[cfg(all(target_arch = "x86_64", not(miri)))]
pub(super) use there::Multiplier;

#[cfg(not(all(target_arch = "x86_64", not(miri))))]
pub(super) use absent::Multiplier;

#[cfg(all(target_arch = "x86_64", not(miri)))]
mod there {
    use std::arch::asm;
    use std::arch::x86_64::*;

    use crate::Isa;
    use crate::products::bf16::TILE;
    use crate::products::panels::Numbers;
    use crate::products::tile::{AHEAD, MOST_ROWS, Product};
    use crate::simd::prefetch;

    /// The instructions that multiply panels of bfloat16.
    pub(in crate::products) enum Multiplier {
        Vectors,
        Tiles(Tiles),
    }

    impl Multiplier {
        /// The instructions of `isa` for panels of bfloat16; nothing for other panels.
        ///
        /// # Panics
        ///
        /// If the processor does not have them.
        pub(in crate::products) fn of(isa: Isa, numbers: Numbers) -> Option<Self> {
            if numbers != Numbers::Bfloat16 {
                return None;
            }
            assert!(isa.multiplies_bf16() && isa.is_available(), "this processor has no {}", isa.name());
            // SAFETY: as was just asserted; a thread works on one product at a time.
            Some(if isa == Isa::Amx { Self::Tiles(unsafe { Tiles::new() }) } else { Self::Vectors })
        }

        /// Writes the product of a panel of `rows` rows and a panel of 32 columns, both `depth` pairs deep.
        pub(in crate::products) fn multiply(
            &self,
            left: &[f32],
            right: &[f32],
            depth: usize,
            rows: usize,
            to: &mut Product,
        ) {
            assert!(left.len() == depth * rows && right.len() == depth * 32);
            let (left, right, to) = (left.as_ptr(), right.as_ptr(), to.0.as_mut_ptr());
            macro_rules! vectors {
                ($($rows:literal)*) => {
                    match rows {
                        // SAFETY: `self` exists only if the processor has the instructions; the lengths are
                        // those that were just asserted, and no product is larger than 32 rows.
                        $($rows => unsafe { vectors::<$rows>(depth, left, right, to) },)*
                        _ => unreachable!("a panel of {rows} rows"),
                    }
                };
            }
            match self {
                Self::Vectors => {
                    const { assert!(MOST_ROWS == 14) };
                    vectors!(1 2 3 4 5 6 7 8 9 10 11 12 13 14);
                }
                Self::Tiles(_) => {
                    assert!(depth > 0 && depth.is_multiple_of(TILE));
                    match rows {
                        // SAFETY: as above, and the tiles of this thread are set up as long as `self` exists.
                        16 => unsafe { tiles_of_16_rows(depth / TILE, left, right, to) },
                        // SAFETY: as above.
                        32 => unsafe { tiles_of_32_rows(depth / TILE, left, right, to) },
                        _ => unreachable!("tiles of {rows} rows"),
                    }
                }
            }
        }
    }

    /// The product of `ROWS` rows and 32 columns, over `depth` pairs, in vector registers.
    ///
    /// # Safety
    ///
    /// `depth * ROWS` numbers can be read at `a`, `depth * 32` at `b`, and `ROWS * 32` written at `to`.
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn vectors<const ROWS: usize>(depth: usize, a: *const f32, b: *const f32, to: *mut f32) {
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        let (mut a, mut b) = (a, b);
        for _ in 0..depth {
            // SAFETY: the caller's promise; the pointers move by one step of the panels. The two types of vectors
            // differ in name only.
            unsafe {
                let pairs = |x| std::mem::transmute::<__m512, __m512bh>(x);
                let right = [pairs(_mm512_loadu_ps(b)), pairs(_mm512_loadu_ps(b.add(16)))];
                prefetch(b.wrapping_add(AHEAD * 32));
                prefetch(b.wrapping_add(AHEAD * 32 + 16));
                prefetch(a.wrapping_add(AHEAD * ROWS));
                for (i, sums) in sums.iter_mut().enumerate() {
                    let left = pairs(_mm512_set1_ps(*a.add(i)));
                    sums[0] = _mm512_dpbf16_ps(sums[0], left, right[0]);
                    sums[1] = _mm512_dpbf16_ps(sums[1], left, right[1]);
                }
                a = a.add(ROWS);
                b = b.add(32);
            }
        }
        for (i, sums) in sums.into_iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe {
                _mm512_storeu_ps(to.add(32 * i), sums[0]);
                _mm512_storeu_ps(to.add(32 * i + 16), sums[1]);
            }
        }
    }

    /// The tiles of this thread, set up for [`tiles_of_32_rows`]. Dropping it releases them, so that the system does
    /// not have to save their 8 KiB whenever it switches threads.
    pub(in crate::products) struct Tiles(std::marker::PhantomData<*const ()>);

    /// The memory that `ldtilecfg` reads.
    #[repr(C, align(64))]
    struct Setup {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        row_bytes: [u16; 16],
        rows: [u8; 16],
    }

    /// All eight tiles: 16 rows of 64 bytes.
    static SETUP: Setup = {
        let mut setup =
            Setup { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        let mut tile = 0;
        while tile < 8 {
            setup.row_bytes[tile] = 64;
            setup.rows[tile] = 16;
            tile += 1;
        }
        setup
    };

    impl Tiles {
        /// # Safety
        ///
        /// The processor has tiles, the system grants them, and this thread has no other value of this type.
        unsafe fn new() -> Self {
            // SAFETY: the caller's promise. Compiled code does not use tiles.
            unsafe {
                asm!("ldtilecfg [{}]", in(reg) &raw const SETUP, options(readonly, nostack, preserves_flags))
            };
            Self(std::marker::PhantomData)
        }
    }

    impl Drop for Tiles {
        fn drop(&mut self) {
            // SAFETY: a value exists only where there are tiles, and not on another thread.
            unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
        }
    }

    /// 32 rows times 32 columns in four tiles of sums, over `blocks` times [`TILE`] pairs.
    ///
    /// # Safety
    ///
    /// The tiles of this thread are set up, `blocks` is not 0, `blocks * TILE * 32` numbers can be read at `a`, the
    /// left factor, and at `b`, and 32 * 32 written at `to`.
    unsafe fn tiles_of_32_rows(blocks: usize, a: *const f32, b: *const f32, to: *mut f32) {
        // SAFETY: the caller's promise. A line of a tile of `a` takes 64 bytes, one of `b` and `to` 128.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                "tileloadd tmm4, [{a} + {narrow}*1]",
                "tileloadd tmm6, [{b} + {wide}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b} + {wide}*1 + 64]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{a} + {narrow}*1 + 1024]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {a}, 2048",
                "add {b}, 2048",
                "dec {blocks}",
                "jnz 2b",
                "tilestored [{to} + {wide}*1], tmm0",
                "tilestored [{to} + {wide}*1 + 64], tmm1",
                "tilestored [{to} + {wide}*1 + 2048], tmm2",
                "tilestored [{to} + {wide}*1 + 2112], tmm3",
                a = inout(reg) a => _,
                b = inout(reg) b => _,
                blocks = inout(reg) blocks => _,
                to = in(reg) to,
                narrow = in(reg) 64_usize,
                wide = in(reg) 128_usize,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack)
            );
        }
    }

    /// [`tiles_of_32_rows`] for 16 rows.
    ///
    /// # Safety
    ///
    /// As for [`tiles_of_32_rows`], with half the length of `a` and `to`.
    unsafe fn tiles_of_16_rows(blocks: usize, a: *const f32, b: *const f32, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "2:",
                "tileloadd tmm4, [{a} + {narrow}*1]",
                "tileloadd tmm6, [{b} + {wide}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b} + {wide}*1 + 64]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "add {a}, 1024",
                "add {b}, 2048",
                "dec {blocks}",
                "jnz 2b",
                "tilestored [{to} + {wide}*1], tmm0",
                "tilestored [{to} + {wide}*1 + 64], tmm1",
                a = inout(reg) a => _,
                b = inout(reg) b => _,
                blocks = inout(reg) blocks => _,
                to = in(reg) to,
                narrow = in(reg) 64_usize,
                wide = in(reg) 128_usize,
                out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
                options(nostack)
            );
        }
    }
}

#[cfg(not(all(target_arch = "x86_64", not(miri))))]
mod absent {
    use crate::Isa;
    use crate::products::panels::Numbers;
    use crate::products::tile::Product;

    /// This processor has no such instructions.
    pub(in crate::products) enum Multiplier {}

    impl Multiplier {
        pub(in crate::products) const fn of(_: Isa, _: Numbers) -> Option<Self> {
            None
        }

        pub(in crate::products) const fn multiply(
            &self,
            _: &[f32],
            _: &[f32],
            _: usize,
            _: usize,
            _: &mut Product,
        ) {
            match *self {}
        }
    }
}
