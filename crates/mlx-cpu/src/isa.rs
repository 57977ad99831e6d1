//! Which instructions the kernels are made of.

use std::sync::OnceLock;

use crate::Simd;
use crate::simd::Portable;

/// An instruction set that kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// What every processor of the target has.
    Portable,
    /// x86-64 with AVX2, FMA and F16C: Haswell (2013), Zen.
    Avx2,
    /// x86-64 with the AVX-512 of Ice Lake (2019) and Zen 4: F, BW, DQ, VL, VBMI, VNNI.
    Avx512,
    /// AArch64.
    Neon,
}

/// Code that is written over vectors of any width. See [`Isa::run`].
pub trait Kernel {
    /// What it computes.
    type Output;

    /// Computes it. Mark it, and all that it calls with vectors, `#[inline(always)]`: else it is
    /// compiled without the instructions that `S` stands for.
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

impl Isa {
    /// All there are, the fastest last.
    pub const ALL: [Self; 4] = [Self::Portable, Self::Neon, Self::Avx2, Self::Avx512];

    /// Its name, as the environment variable `MLX_CPU_ISA` has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Neon => "neon",
        }
    }

    /// How many float32 its vectors have.
    pub const fn lanes(self) -> usize {
        match self {
            Self::Portable | Self::Avx2 => 8,
            Self::Avx512 => 16,
            Self::Neon => 4,
        }
    }

    /// Whether this processor has it.
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            Self::Avx512 => {
                Self::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vbmi")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(all(target_arch = "aarch64", not(miri)))]
            Self::Neon => true,
            #[cfg(not(all(target_arch = "x86_64", not(miri))))]
            Self::Avx2 | Self::Avx512 => false,
            #[cfg(not(all(target_arch = "aarch64", not(miri))))]
            Self::Neon => false,
        }
    }

    /// Those that this processor has, the fastest last.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|isa| isa.is_available())
    }

    /// The fastest that this processor has.
    pub fn best() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| Self::available().last().unwrap_or(Self::Portable))
    }

    /// Runs a kernel with these instructions.
    ///
    /// # Panics
    ///
    /// Where the processor does not have them.
    #[inline]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        assert!(self.is_available(), "this processor has no {}", self.name());
        match self {
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            Self::Avx2 => {
                // SAFETY: the processor has the instructions, as was just asserted.
                unsafe { with_avx2(kernel) }
            }
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            Self::Avx512 => {
                // SAFETY: the processor has the instructions, as was just asserted.
                unsafe { with_avx512(kernel) }
            }
            #[cfg(all(target_arch = "aarch64", not(miri)))]
            Self::Neon => {
                // SAFETY: NEON is part of the architecture.
                kernel.run(unsafe { crate::simd::Neon::new() })
            }
            _ => without(kernel),
        }
    }
}

/// Compiled once, not into every caller.
#[inline(never)]
fn without<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Portable)
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
#[target_feature(enable = "avx2,fma,f16c")]
fn with_avx2<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: this function is entered only where the instructions are there.
    kernel.run(unsafe { crate::simd::Avx2::new() })
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
#[target_feature(enable = "avx2,fma,f16c,bmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni")]
fn with_avx512<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: this function is entered only where the instructions are there.
    kernel.run(unsafe { crate::simd::Avx512::new() })
}
