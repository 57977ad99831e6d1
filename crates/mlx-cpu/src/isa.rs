//! Instruction sets: which the processor has, and kernels compiled for each.

use std::sync::OnceLock;

use crate::simd::Portable;
use crate::{MAX_LANES, Simd};

/// An instruction set that kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// What every processor of the target has.
    Portable,
    /// x86-64 with AVX2, FMA and F16C: Haswell (2013), Zen.
    Avx2,
    /// x86-64 with the AVX-512 of Ice Lake (2019) and Zen 4: F, BW, DQ, VL, VBMI, VNNI.
    Avx512,
    /// [`Avx512`](Self::Avx512) and BF16: Zen 4 (2022). Only products of bfloat16 differ from `Avx512`.
    Avx512Bf16,
    /// [`Avx512Bf16`](Self::Avx512Bf16) and the tiles of AMX, with BF16: Sapphire Rapids (2023). Only products of
    /// bfloat16 with more than 64 rows differ from `Avx512Bf16`.
    Amx,
    /// AArch64.
    Neon,
}

/// The arguments of a computation that is written over vectors of any width. [`Isa::run`] runs it.
pub trait Kernel {
    /// The result.
    type Output;

    /// Computes the result. Mark this and every function that it calls with vectors `#[inline(always)]`; otherwise it
    /// is compiled without the instructions of `S`.
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

// Arrays for one vector have `MAX_LANES` numbers.
const _: () = {
    let mut index = 0;
    while index < Isa::ALL.len() {
        assert!(Isa::ALL[index].lanes() <= MAX_LANES);
        index += 1;
    }
};

impl Isa {
    /// All instruction sets, the fastest last.
    pub const ALL: [Self; 6] =
        [Self::Portable, Self::Neon, Self::Avx2, Self::Avx512, Self::Avx512Bf16, Self::Amx];

    /// The name, as in the environment variable `MLX_CPU_ISA`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512bf16",
            Self::Amx => "amx",
            Self::Neon => "neon",
        }
    }

    /// The number of float32 in a vector.
    pub const fn lanes(self) -> usize {
        match self {
            Self::Portable | Self::Avx2 => 8,
            Self::Avx512 | Self::Avx512Bf16 | Self::Amx => MAX_LANES,
            Self::Neon => 4,
        }
    }

    /// Whether it multiplies bfloat16. Panels then hold bfloat16 and not float32.
    pub(crate) const fn multiplies_bf16(self) -> bool {
        matches!(self, Self::Avx512Bf16 | Self::Amx)
    }

    /// Whether this processor has it and the operating system lets this process use it.
    ///
    /// The tiles of AMX have to be requested. Linux grants them to the whole process for its lifetime; on other systems
    /// they count as missing.
    #[inline]
    pub fn is_available(self) -> bool {
        // Every call of `run` asks.
        static ANSWERS: [OnceLock<bool>; Isa::ALL.len()] = [const { OnceLock::new() }; Isa::ALL.len()];
        *ANSWERS[self as usize].get_or_init(|| self.detect())
    }

    /// [`is_available`](Self::is_available), asked of the processor and the operating system.
    fn detect(self) -> bool {
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
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            Self::Avx512Bf16 => Self::Avx512.is_available() && is_x86_feature_detected!("avx512bf16"),
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            Self::Amx => Self::Avx512Bf16.is_available() && has_tiles(),
            #[cfg(all(target_arch = "aarch64", not(miri)))]
            Self::Neon => true,
            #[cfg(not(all(target_arch = "x86_64", not(miri))))]
            Self::Avx2 | Self::Avx512 | Self::Avx512Bf16 | Self::Amx => false,
            #[cfg(not(all(target_arch = "aarch64", not(miri))))]
            Self::Neon => false,
        }
    }

    /// The available instruction sets, the fastest last.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|isa| isa.is_available())
    }

    /// The fastest available instruction set.
    pub fn best() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| Self::available().last().unwrap_or(Self::Portable))
    }

    /// Runs a kernel with these instructions.
    ///
    /// # Panics
    ///
    /// If the processor does not have them.
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
            Self::Avx512 | Self::Avx512Bf16 | Self::Amx => {
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

/// Not inlined, so that it is compiled once and not into every caller.
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

/// Whether the processor has tiles that multiply bfloat16, and Linux grants them.
///
/// Intel, *Architecture Instruction Set Extensions Programming Reference*, chapter 3; Linux, *Using XSTATE features in
/// user space applications* (Documentation/arch/x86/xstate.rst).
#[cfg(all(target_arch = "x86_64", not(miri)))]
fn has_tiles() -> bool {
    /// Bits of EDX in CPUID's leaf 7: AMX-BF16 and AMX-TILE.
    const FEATURES: u32 = 1 << 22 | 1 << 24;
    // A processor with AVX-512 has this leaf.
    std::arch::x86_64::__cpuid_count(7, 0).edx & FEATURES == FEATURES && tiles_are_granted()
}

#[cfg(all(target_arch = "x86_64", target_os = "linux", not(miri)))]
fn tiles_are_granted() -> bool {
    const SYS_ARCH_PRCTL: u64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const XFEATURE_XTILEDATA: u64 = 18;
    let mut result = SYS_ARCH_PRCTL;
    // SAFETY: a system call that touches no memory of this process. Linux before 5.16 answers with an error.
    unsafe {
        std::arch::asm!(
            "syscall",
            inout("rax") result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            out("rcx") _,
            out("r11") _,
            options(nostack)
        );
    }
    result == 0
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux"), not(miri)))]
const fn tiles_are_granted() -> bool {
    false
}
