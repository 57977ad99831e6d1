//! The number formats of tensors.

use half::{bf16, f16};

use super::arithmetic::{Arithmetic, Element};
use crate::Matrix;

impl Element for f32 {
    const LOWEST: f32 = f32::MIN;
    const PRECISION: u32 = 24;

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn narrow(x: f32) -> Self {
        x
    }

    #[inline(always)]
    unsafe fn load<S: Arithmetic>(s: S, from: *const Self) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { s.load_f32(from) }
    }

    #[inline(always)]
    unsafe fn store<S: Arithmetic>(s: S, to: *mut Self, x: S::F) {
        // SAFETY: the caller's promise.
        unsafe { s.store_f32(to, x) }
    }

    #[inline(always)]
    fn rounded<S: Arithmetic>(_: S, x: S::F) -> S::F {
        x
    }
}

impl Element for f16 {
    const LOWEST: f32 = -65_504.0;
    const PRECISION: u32 = 11;

    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }

    #[inline(always)]
    fn narrow(x: f32) -> Self {
        Self::from_f32(x)
    }

    #[inline(always)]
    unsafe fn load<S: Arithmetic>(s: S, from: *const Self) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { s.load_f16(from) }
    }

    #[inline(always)]
    unsafe fn store<S: Arithmetic>(s: S, to: *mut Self, x: S::F) {
        // SAFETY: the caller's promise.
        unsafe { s.store_f16(to, x) }
    }

    #[inline(always)]
    fn rounded<S: Arithmetic>(s: S, x: S::F) -> S::F {
        s.round_f16(x)
    }
}

impl Element for bf16 {
    const LOWEST: f32 = -3.389_531_4e38;
    const PRECISION: u32 = 8;

    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn narrow(x: f32) -> Self {
        Self::from_f32(x)
    }

    #[inline(always)]
    unsafe fn load<S: Arithmetic>(s: S, from: *const Self) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { s.load_bf16(from) }
    }

    #[inline(always)]
    unsafe fn store<S: Arithmetic>(s: S, to: *mut Self, x: S::F) {
        // SAFETY: the caller's promise.
        unsafe { s.store_bf16(to, x) }
    }

    #[inline(always)]
    fn rounded<S: Arithmetic>(s: S, x: S::F) -> S::F {
        s.round_bf16(x)
    }

    fn as_bf16(matrix: Matrix<'_, Self>) -> Option<Matrix<'_, bf16>> {
        Some(matrix)
    }
}
