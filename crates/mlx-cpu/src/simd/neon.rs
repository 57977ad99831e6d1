//! NEON: vectors of four numbers.

use std::arch::aarch64::*;

use half::{bf16, f16};

use super::arithmetic::{Arithmetic, Element};
use super::decoding::Decoding;
use super::integers::Integers;
use super::packing::E2M1_TWICE;

/// AArch64.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Neon(());

impl Neon {
    /// A value is proof that the processor has the instructions.
    ///
    /// # Safety
    ///
    /// The processor has them.
    #[inline(always)]
    pub(crate) const unsafe fn new() -> Self {
        Self(())
    }
}

/// Rounds to bfloat16, to nearest, ties to even, and puts its bits into the lower halves of the lanes. NaN stays NaN.
#[inline(always)]
unsafe fn bf16_bits(x: float32x4_t) -> uint32x4_t {
    // SAFETY: in all of this file: NEON is part of the architecture.
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

impl Arithmetic for Neon {
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
    fn sums(self, x: &[float32x4_t]) -> float32x4_t {
        let x = &x[..4];
        // SAFETY: NEON is part of the architecture.
        unsafe { vpaddq_f32(vpaddq_f32(x[0], x[1]), vpaddq_f32(x[2], x[3])) }
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
        // The conversion instruction is not stable in Rust.
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

impl Integers for Neon {
    type I = int32x4_t;

    #[inline(always)]
    fn bits(self, x: float32x4_t) -> int32x4_t {
        // SAFETY: NEON is part of the architecture.
        unsafe { vreinterpretq_s32_f32(x) }
    }

    #[inline(always)]
    fn floats(self, x: int32x4_t) -> float32x4_t {
        // SAFETY: NEON is part of the architecture.
        unsafe { vreinterpretq_f32_s32(x) }
    }

    #[inline(always)]
    fn plus(self, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        // SAFETY: NEON is part of the architecture.
        unsafe { vaddq_s32(a, b) }
    }

    #[inline(always)]
    unsafe fn store_bits(self, to: *mut f32, x: int32x4_t) {
        // SAFETY: the caller's promise.
        unsafe { vst1q_s32(to.cast(), x) }
    }

    #[inline(always)]
    fn and(self, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        // SAFETY: NEON is part of the architecture.
        unsafe { vandq_s32(a, b) }
    }

    #[inline(always)]
    fn or(self, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        // SAFETY: NEON is part of the architecture.
        unsafe { vorrq_s32(a, b) }
    }

    #[inline(always)]
    fn shift_left(self, x: int32x4_t, by: u32) -> int32x4_t {
        // SAFETY: NEON is part of the architecture.
        unsafe { vshlq_s32(x, vdupq_n_s32(by as i32)) }
    }

    #[inline(always)]
    fn shift_right(self, x: int32x4_t, by: u32) -> int32x4_t {
        // SAFETY: NEON is part of the architecture.
        unsafe { vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(x), vdupq_n_s32(-(by as i32)))) }
    }

    #[inline(always)]
    fn to_float(self, x: int32x4_t) -> float32x4_t {
        // SAFETY: NEON is part of the architecture.
        unsafe { vcvtq_f32_s32(x) }
    }

    #[inline(always)]
    fn dot(self, a: int32x4_t, b: int32x4_t, sums: int32x4_t) -> int32x4_t {
        // SAFETY: NEON is part of the architecture.
        unsafe {
            let (a, b) = (vreinterpretq_s16_s32(a), vreinterpretq_s16_s32(b));
            let low = vmull_s16(vget_low_s16(a), vget_low_s16(b));
            vaddq_s32(sums, vpaddq_s32(low, vmull_high_s16(a, b)))
        }
    }

    #[inline(always)]
    unsafe fn store_i16(self, to: *mut i16, x: float32x4_t) {
        // SAFETY: the caller's promise.
        unsafe { vst1_s16(to, vqmovn_s32(vcvtnq_s32_f32(x))) }
    }

    #[inline(always)]
    unsafe fn permute(self, from: *const f32, places: int32x4_t) -> float32x4_t {
        let mut all = [0; 4];
        // SAFETY: an array of four.
        unsafe { vst1q_s32(all.as_mut_ptr(), places) };
        // SAFETY: the caller's promise.
        let all = all.map(|place| unsafe { from.add(place as usize).read() });
        // SAFETY: an array of four.
        unsafe { vld1q_f32(all.as_ptr()) }
    }
}

impl Decoding for Neon {
    #[inline(always)]
    fn field16<const BITS: usize>(self, words: int32x4_t, index: usize) -> int32x4_t {
        // SAFETY: NEON is part of the architecture.
        unsafe {
            let right = vdupq_n_s16(-((index * BITS) as i16));
            let fields = vshlq_u16(vreinterpretq_u16_s32(words), right);
            vreinterpretq_s32_u16(vandq_u16(fields, vdupq_n_u16((1 << BITS) - 1)))
        }
    }

    #[inline(always)]
    fn field16_e2m1(self, words: int32x4_t, index: usize) -> int32x4_t {
        // SAFETY: NEON is part of the architecture; the table is an array of 16.
        unsafe {
            // The numbers fit into bytes; the shifts fill the upper byte with the sign.
            let table = E2M1_TWICE.map(|number| number as i8);
            let codes = vreinterpretq_u8_s32(self.field16::<4>(words, index));
            let found = vreinterpretq_s16_s8(vqtbl1q_s8(vld1q_s8(table.as_ptr()), codes));
            vreinterpretq_s32_s16(vshrq_n_s16::<8>(vshlq_n_s16::<8>(found)))
        }
    }
}
