//! NEON: four numbers.

use std::arch::aarch64::*;

use half::{bf16, f16};

use super::Simd;
use crate::Element;

/// AArch64.
#[derive(Debug, Clone, Copy)]
pub struct Neon(());

impl Neon {
    /// Proof of the instructions.
    ///
    /// # Safety
    ///
    /// The processor has them.
    #[inline(always)]
    pub const unsafe fn new() -> Self {
        Self(())
    }
}

/// The bits of bfloat16 in the lower halves: rounded to nearest even, NaN kept.
#[inline(always)]
unsafe fn bf16_bits(x: float32x4_t) -> uint32x4_t {
    // SAFETY: for all of this file: NEON is part of the architecture.
    unsafe {
        let bits = vreinterpretq_u32_f32(x);
        let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
        let rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
        let quiet = vorrq_u32(bits, vdupq_n_u32(0x40_0000));
        vshrq_n_u32::<16>(vbslq_u32(vceqq_f32(x, x), rounded, quiet))
    }
}

macro_rules! lanewise {
    ($($name:ident($($argument:ident),*) = $body:expr;)*) => {$(
        #[inline(always)]
        fn $name(self, $($argument: float32x4_t),*) -> float32x4_t {
            // SAFETY: NEON is part of the architecture.
            unsafe { $body }
        }
    )*};
}

impl Simd for Neon {
    type F = float32x4_t;
    const LANES: usize = 4;
    const REGISTERS: usize = 32;

    #[inline(always)]
    fn splat(self, x: f32) -> float32x4_t {
        // SAFETY: NEON is part of the architecture.
        unsafe { vdupq_n_f32(x) }
    }

    lanewise! {
        add(a, b) = vaddq_f32(a, b);
        sub(a, b) = vsubq_f32(a, b);
        mul(a, b) = vmulq_f32(a, b);
        div(a, b) = vdivq_f32(a, b);
        mul_add(a, b, c) = vfmaq_f32(c, a, b);
        max(a, b) = vmaxq_f32(a, b);
        min(a, b) = vminq_f32(a, b);
        round(a) = vrndnq_f32(a);
        scale(a, k) = vmulq_f32(a, vreinterpretq_f32_s32(vshlq_n_s32::<23>(
            vaddq_s32(vcvtnq_s32_f32(k), vdupq_n_s32(127)))));
        where_less(a, b, then, other) = vbslq_f32(vcltq_f32(a, b), then, other);
        unless_nan(x, a) = vbslq_f32(vceqq_f32(x, x), a, x);
        round_bf16(x) = vreinterpretq_f32_u32(vshlq_n_u32::<16>(bf16_bits(x)));
    }

    #[inline(always)]
    fn round_f16(self, x: float32x4_t) -> float32x4_t {
        let mut all = [0.0; 4];
        // SAFETY: an array of four.
        unsafe { self.store_f32(all.as_mut_ptr(), x) };
        let all = all.map(|x| f16::narrow(x).widen());
        // SAFETY: an array of four.
        unsafe { self.load_f32(all.as_ptr()) }
    }

    #[inline(always)]
    fn sum(self, a: float32x4_t) -> f32 {
        // SAFETY: NEON is part of the architecture.
        unsafe { vaddvq_f32(a) }
    }

    #[inline(always)]
    fn largest(self, a: float32x4_t) -> f32 {
        // SAFETY: NEON is part of the architecture.
        unsafe { vmaxvq_f32(a) }
    }

    #[inline(always)]
    unsafe fn load_f32(self, from: *const f32) -> float32x4_t {
        // SAFETY: the caller's promise.
        unsafe { vld1q_f32(from) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const f16) -> float32x4_t {
        // The conversion instruction is not stable in Rust for all of AArch64.
        // SAFETY: the caller's promise.
        let all: [f32; 4] = std::array::from_fn(|i| unsafe { from.add(i).read_unaligned() }.widen());
        // SAFETY: an array of four.
        unsafe { vld1q_f32(all.as_ptr()) }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, from: *const bf16) -> float32x4_t {
        // SAFETY: the caller's promise.
        unsafe { vreinterpretq_f32_u32(vshlq_n_u32::<16>(vmovl_u16(vld1_u16(from.cast())))) }
    }

    #[inline(always)]
    unsafe fn load_u8(self, from: *const u8) -> float32x4_t {
        // SAFETY: the caller's promise.
        let all: [f32; 4] = std::array::from_fn(|i| f32::from(unsafe { from.add(i).read() }));
        // SAFETY: an array of four.
        unsafe { vld1q_f32(all.as_ptr()) }
    }

    #[inline(always)]
    unsafe fn store_f32(self, to: *mut f32, x: float32x4_t) {
        // SAFETY: the caller's promise.
        unsafe { vst1q_f32(to, x) }
    }

    #[inline(always)]
    unsafe fn store_f16(self, to: *mut f16, x: float32x4_t) {
        let mut all = [0.0; 4];
        // SAFETY: an array of four.
        unsafe { self.store_f32(all.as_mut_ptr(), x) };
        for (i, x) in all.into_iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { to.add(i).write_unaligned(f16::narrow(x)) }
        }
    }

    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16, x: float32x4_t) {
        // SAFETY: the caller's promise.
        unsafe { vst1_u16(to.cast(), vmovn_u32(bf16_bits(x))) }
    }
}
