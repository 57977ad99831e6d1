//! What the units of this processor do at most: loops that only multiply, and one that only reads memory. Benchmarks compare
//! kernels with them.

use std::hint::black_box;

use crate::simd::prefetch_stream;
use crate::{Isa, Kernel, Simd};

/// Vectors of sums, enough that no multiplication waits for an earlier one.
const SUMS: usize = 16;

/// A unit of the processor that multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Multiplies and adds float32.
    Float32,
    /// Multiplies pairs of bfloat16 and adds them to float32: `vdpbf16ps`.
    Bf16,
    /// Multiplies pairs of 16-bit integers and adds them to 32-bit integers: `vpdpwssd`, or `vpmaddwd` with an addition.
    Words,
    /// Multiplies four 8-bit integers and adds them to 32-bit integers: `vpdpbusd`.
    Bytes,
    /// Multiplies tiles of bfloat16: `tdpbf16ps` of AMX.
    Tiles,
}

impl Unit {
    /// All units.
    pub const ALL: [Self; 5] = [Self::Float32, Self::Bf16, Self::Words, Self::Bytes, Self::Tiles];

    /// What it multiplies, for a table.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Bf16 => "bfloat16",
            Self::Words => "16-bit integers",
            Self::Bytes => "8-bit integers",
            Self::Tiles => "bfloat16 tiles",
        }
    }

    /// Whether this processor has it. Every processor has [`Float32`](Self::Float32).
    #[must_use]
    pub fn is_available(self) -> bool {
        match self {
            Self::Float32 => true,
            Self::Words => Isa::best() != Isa::Portable,
            Self::Bytes => Isa::Avx512.is_available(),
            Self::Bf16 => Isa::Avx512Bf16.is_available(),
            Self::Tiles => Isa::Amx.is_available(),
        }
    }

    /// Repeats the instructions of this unit `steps` times on the calling thread, without memory. Returns the number of
    /// operations, of which a multiplication is one and an addition another.
    ///
    /// # Panics
    ///
    /// If the processor does not have it.
    pub fn run(self, steps: usize) -> u64 {
        assert!(self.is_available(), "this processor does not multiply {}", self.name());
        let isa = Isa::best();
        let lanes = isa.lanes();
        let for_each_lane = match self {
            Self::Float32 => {
                black_box(isa.run(Floats(steps)));
                2
            }
            Self::Words => {
                black_box(isa.run(Integers { steps, bytes: false }));
                4
            }
            Self::Bytes => {
                black_box(isa.run(Integers { steps, bytes: true }));
                8
            }
            Self::Bf16 => {
                x86::pairs(steps);
                4
            }
            // A step has four products of 16 x 32 by 32 x 16 numbers.
            Self::Tiles => {
                x86::tiles(steps);
                return (steps * 4 * 2 * 16 * 16 * 32) as u64;
            }
        };
        (steps * SUMS * lanes * for_each_lane) as u64
    }
}

/// Reads these numbers and returns their sum, with prefetching, as products of one row do. It is limited by memory if they are
/// not in a cache.
pub fn read(numbers: &[f32]) -> f32 {
    Isa::best().run(Sum(numbers))
}

struct Floats(usize);

impl Kernel for Floats {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let factor = s.splat(black_box(0.999));
        let mut sums = [s.splat(0.5); SUMS];
        for _ in 0..self.0 {
            for sum in &mut sums {
                *sum = s.mul_add(*sum, factor, factor);
            }
        }
        sums.into_iter().map(|sum| s.sum(sum)).sum()
    }
}

struct Integers {
    steps: usize,
    bytes: bool,
}

impl Kernel for Integers {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let (a, b) = (s.splat_bits(black_box(0x0102_0304)), s.splat_bits(black_box(0x0403_0201)));
        let mut sums = [s.splat_bits(0); SUMS];
        // Two loops, so that none decides in its middle.
        if self.bytes {
            for _ in 0..self.steps {
                for sum in &mut sums {
                    *sum = s.dot_bytes(a, b, *sum);
                }
            }
        } else {
            for _ in 0..self.steps {
                for sum in &mut sums {
                    *sum = s.dot(a, b, *sum);
                }
            }
        }
        sums.into_iter().map(|sum| s.sum(s.to_float(sum))).sum()
    }
}

/// Sums with enough vectors that the additions only wait for memory.
struct Sum<'a>(&'a [f32]);

impl Kernel for Sum<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let mut sums = [s.zero(); 4];
        let chunks = self.0.chunks_exact(4 * S::LANES);
        let rest: f32 = chunks.remainder().iter().sum();
        for chunk in chunks {
            for (i, sum) in sums.iter_mut().enumerate() {
                let vector = &chunk[i * S::LANES..];
                // Once for each cache line.
                if (i * S::LANES).is_multiple_of(16) {
                    prefetch_stream(vector.as_ptr());
                }
                *sum = s.add(*sum, s.load(vector));
            }
        }
        sums.into_iter().fold(rest, |total, sum| total + s.sum(sum))
    }
}

/// The loops of instructions that [`Simd`] does not have.
#[cfg(all(target_arch = "x86_64", not(miri)))]
mod x86 {
    use std::arch::asm;
    use std::arch::x86_64::{
        __m512, __m512bh, _mm512_dpbf16_ps, _mm512_reduce_add_ps, _mm512_set1_ps, _mm512_setzero_ps,
    };
    use std::hint::black_box;

    use super::SUMS;
    use crate::Isa;

    pub(super) fn pairs(steps: usize) {
        assert!(Isa::Avx512Bf16.is_available());
        // SAFETY: the processor has the instructions.
        black_box(unsafe { pairs_of_bf16(steps) });
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn pairs_of_bf16(steps: usize) -> f32 {
        // SAFETY: the two types of vectors differ in name only.
        let numbers = unsafe { std::mem::transmute::<__m512, __m512bh>(_mm512_set1_ps(black_box(1.0))) };
        let mut sums = [_mm512_setzero_ps(); SUMS];
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, numbers, numbers);
            }
        }
        sums.into_iter().map(|sum| _mm512_reduce_add_ps(sum)).sum()
    }

    /// The memory that `ldtilecfg` reads: all eight tiles, 16 rows of 64 bytes.
    #[repr(C, align(64))]
    struct Setup([u8; 64]);

    static SETUP: Setup = {
        let mut bytes = [0; 64];
        bytes[0] = 1; // the only palette
        let mut tile = 0;
        while tile < 8 {
            bytes[16 + 2 * tile] = 64;
            bytes[48 + tile] = 16;
            tile += 1;
        }
        Setup(bytes)
    };

    pub(super) fn tiles(steps: usize) {
        assert!(Isa::Amx.is_available());
        if steps == 0 {
            return;
        }
        // SAFETY: the processor has tiles and the system grants them. Compiled code does not use tiles, and no caller on this
        // thread has tiles set up: kernels release them before they return.
        unsafe {
            asm!(
                "ldtilecfg [{setup}]",
                "tilezero tmm4",
                "tilezero tmm5",
                "tilezero tmm6",
                "tilezero tmm7",
                "2:",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "dec {steps}",
                "jnz 2b",
                "tilerelease",
                setup = in(reg) &raw const SETUP,
                steps = inout(reg) steps => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(readonly, nostack)
            );
        }
    }
}

/// This processor has no such instructions.
#[cfg(not(all(target_arch = "x86_64", not(miri))))]
mod x86 {
    pub(super) fn pairs(_steps: usize) {}

    pub(super) fn tiles(_steps: usize) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_that_is_there_counts_its_operations() {
        let lanes = Isa::best().lanes() as u64;
        for unit in Unit::ALL.into_iter().filter(|unit| unit.is_available()) {
            let of_a_step = match unit {
                Unit::Float32 => 16 * lanes * 2,
                Unit::Words | Unit::Bf16 => 16 * lanes * 4,
                Unit::Bytes => 16 * lanes * 8,
                Unit::Tiles => 65_536,
            };
            assert_eq!(unit.run(0), 0, "{}", unit.name());
            assert_eq!(unit.run(3), 3 * of_a_step, "{}", unit.name());
        }
    }

    #[test]
    fn every_number_is_read() {
        let numbers: Vec<f32> = (0..1001_u16).map(f32::from).collect();
        for isa in Isa::available() {
            approx::assert_abs_diff_eq!(isa.run(Sum(&numbers)), 500_500.0, epsilon = 0.25);
        }
        approx::assert_abs_diff_eq!(read(&numbers), 500_500.0, epsilon = 0.25);
    }
}
