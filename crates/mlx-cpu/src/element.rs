//! The number formats of tensors.

use half::{bf16, f16};

use crate::{Matrix, Simd};

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
}

/// A float that tensors hold: `f32`, [`struct@f16`] or [`bf16`]. All arithmetic is in float32.
pub trait Element: sealed::Sealed + Copy + Default + Send + Sync + std::fmt::Debug + 'static {
    /// The lowest finite number.
    const LOWEST: f32;
    /// How many bits a significand has, the leading one among them.
    const PRECISION: u32;

    /// The same number as float32; exact.
    fn widen(self) -> f32;

    /// The nearest number of this format, ties to even.
    fn narrow(x: f32) -> Self;

    /// The vector at `from`, as float32.
    ///
    /// # Safety
    ///
    /// `S::LANES` elements can be read at `from`, and the processor has the instructions of `S`.
    unsafe fn load<S: Simd>(s: S, from: *const Self) -> S::F;

    /// Rounds `x` to this format and writes it to `to`.
    ///
    /// # Safety
    ///
    /// `S::LANES` elements can be written at `to`, and the processor has the instructions of `S`.
    unsafe fn store<S: Simd>(s: S, to: *mut Self, x: S::F);

    /// `x` rounded to this format, as float32.
    fn rounded<S: Simd>(s: S, x: S::F) -> S::F;

    /// The same matrix where this is [`bf16`].
    fn as_bf16(_: Matrix<'_, Self>) -> Option<Matrix<'_, bf16>> {
        None
    }
}

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
    unsafe fn load<S: Simd>(s: S, from: *const Self) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { s.load_f32(from) }
    }

    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, to: *mut Self, x: S::F) {
        // SAFETY: the caller's promise.
        unsafe { s.store_f32(to, x) }
    }

    #[inline(always)]
    fn rounded<S: Simd>(_: S, x: S::F) -> S::F {
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
    unsafe fn load<S: Simd>(s: S, from: *const Self) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { s.load_f16(from) }
    }

    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, to: *mut Self, x: S::F) {
        // SAFETY: the caller's promise.
        unsafe { s.store_f16(to, x) }
    }

    #[inline(always)]
    fn rounded<S: Simd>(s: S, x: S::F) -> S::F {
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
    unsafe fn load<S: Simd>(s: S, from: *const Self) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { s.load_bf16(from) }
    }

    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, to: *mut Self, x: S::F) {
        // SAFETY: the caller's promise.
        unsafe { s.store_bf16(to, x) }
    }

    #[inline(always)]
    fn rounded<S: Simd>(s: S, x: S::F) -> S::F {
        s.round_bf16(x)
    }

    fn as_bf16(matrix: Matrix<'_, Self>) -> Option<Matrix<'_, bf16>> {
        Some(matrix)
    }
}
