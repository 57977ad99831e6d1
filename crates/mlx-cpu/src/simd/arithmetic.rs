//! Vectors of float32, and the number formats that tensors have.

use half::bf16;

use crate::Matrix;

/// The number of lanes of the widest vectors, those of AVX-512. An array of this length holds any vector.
pub const MAX_LANES: usize = 16;

/// Vectors of float32: loads, stores, and arithmetic in each lane.
///
/// A value of a type that implements this is proof that the processor has the instructions; a kernel gets one as its
/// argument. Loads widen half-precision numbers to float32, and stores round them to nearest, ties to even.
///
/// The methods with pointers are unsafe. Their callers promise that all the elements that a method reads or writes lie
/// in memory that they may read or write; the pointers need no alignment. Kernels use
/// [`load`](Self::load) and [`store`](Self::store) on slices where a check of the length costs nothing.
#[expect(clippy::missing_safety_doc, reason = "said once: the pointers of loads and stores")]
pub trait Arithmetic: Copy + Send + Sync + 'static {
    /// [`LANES`](Self::LANES) float32.
    type F: Copy;

    /// The number of float32 in a vector, at most [`MAX_LANES`].
    const LANES: usize;
    /// The number of vectors that fit into registers at a time.
    const REGISTERS: usize;

    /// `x` in each lane.
    fn splat(self, x: f32) -> Self::F;
    /// Sum.
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// Difference.
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// Product.
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// Quotient.
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once if the instruction set can, else twice.
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The larger number. Of a NaN and a number, either.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// The smaller number. Of a NaN and a number, either.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// The nearest whole number, ties to even.
    fn round(self, a: Self::F) -> Self::F;
    /// `a * 2^k` for whole `k` from -126 to 127, given as a float.
    fn scale(self, a: Self::F, k: Self::F) -> Self::F;
    /// `x` where it is NaN, else `a`.
    fn unless_nan(self, x: Self::F, a: Self::F) -> Self::F;
    /// `then` where `a < b`, else `other`.
    fn where_less(self, a: Self::F, b: Self::F, then: Self::F, other: Self::F) -> Self::F;
    /// Rounded to float16 and widened again.
    fn round_f16(self, x: Self::F) -> Self::F;
    /// Rounded to bfloat16 and widened again.
    fn round_bf16(self, x: Self::F) -> Self::F;
    /// The sum of all lanes, added in pairs: halves, quarters and so on.
    fn sum(self, a: Self::F) -> f32;
    /// The largest of all lanes.
    fn largest(self, a: Self::F) -> f32;

    /// Reads `LANES` float32.
    unsafe fn load_f32(self, from: *const f32) -> Self::F;
    /// Reads `LANES` float16 and widens them.
    unsafe fn load_f16(self, from: *const half::f16) -> Self::F;
    /// Reads `LANES` bfloat16 and widens them.
    unsafe fn load_bf16(self, from: *const half::bf16) -> Self::F;
    /// Writes `LANES` float32.
    unsafe fn store_f32(self, to: *mut f32, x: Self::F);
    /// Writes `LANES` float16.
    unsafe fn store_f16(self, to: *mut half::f16, x: Self::F);
    /// Writes `LANES` bfloat16.
    unsafe fn store_bf16(self, to: *mut half::bf16, x: Self::F);

    /// In lane `i`, the sum of all lanes of `x[i]`, for the first `LANES` vectors of `x`. The order of the additions is
    /// the instruction set's own.
    ///
    /// # Panics
    ///
    /// If `x` has fewer than `LANES` vectors.
    #[inline(always)]
    fn sums(self, x: &[Self::F]) -> Self::F {
        let mut all = [0.0; MAX_LANES];
        for (to, x) in all.iter_mut().zip(&x[..Self::LANES]) {
            *to = self.sum(*x);
        }
        // SAFETY: no instruction set has more than `MAX_LANES` lanes.
        unsafe { self.load_f32(all.as_ptr()) }
    }

    /// Writes the first `count` numbers; `count` is at most `LANES`.
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize, x: Self::F) {
        let mut all = [0.0; MAX_LANES];
        // SAFETY: no instruction set has more than `MAX_LANES` lanes; `count` is the caller's promise.
        unsafe {
            self.store_f32(all.as_mut_ptr(), x);
            std::ptr::copy_nonoverlapping(all.as_ptr(), to, count);
        }
    }

    /// Reads `count` numbers, at most `LANES`, into the first lanes; zeros in the others.
    #[inline(always)]
    unsafe fn load_first(self, from: *const f32, count: usize) -> Self::F {
        let mut all = [0.0; MAX_LANES];
        // SAFETY: no instruction set has more than `MAX_LANES` lanes; `count` is the caller's promise.
        unsafe {
            std::ptr::copy_nonoverlapping(from, all.as_mut_ptr(), count);
            self.load_f32(all.as_ptr())
        }
    }

    /// Exchanges rows and columns of the first `LANES` vectors.
    #[inline(always)]
    fn transpose(self, rows: &mut [Self::F; MAX_LANES]) {
        let mut all = [[0.0; MAX_LANES]; MAX_LANES];
        for (row, to) in rows[..Self::LANES].iter().zip(&mut all) {
            // SAFETY: no instruction set has more than `MAX_LANES` lanes.
            unsafe { self.store_f32(to.as_mut_ptr(), *row) };
        }
        for (i, row) in rows[..Self::LANES].iter_mut().enumerate() {
            let mut column = [0.0; MAX_LANES];
            for (to, row) in column.iter_mut().zip(&all[..Self::LANES]) {
                *to = row[i];
            }
            // SAFETY: as above.
            *row = unsafe { self.load_f32(column.as_ptr()) };
        }
    }

    /// Zero in each lane.
    #[inline(always)]
    fn zero(self) -> Self::F {
        self.splat(0.0)
    }

    /// The first `LANES` elements of a slice, as float32.
    ///
    /// # Panics
    ///
    /// If the slice is shorter.
    #[inline(always)]
    fn load<T: Element>(self, from: &[T]) -> Self::F {
        assert!(from.len() >= Self::LANES);
        // SAFETY: long enough, as was just asserted; `self` is proof of the instructions.
        unsafe { T::load(self, from.as_ptr()) }
    }

    /// Up to `LANES` elements of a slice, as float32, and `fill` in the other lanes.
    #[inline(always)]
    fn load_some<T: Element>(self, from: &[T], fill: f32) -> Self::F {
        let mut all = [fill; MAX_LANES];
        for (to, from) in all[..Self::LANES].iter_mut().zip(from) {
            *to = from.widen();
        }
        // SAFETY: no instruction set has more than `MAX_LANES` lanes.
        unsafe { self.load_f32(all.as_ptr()) }
    }

    /// Rounds to the format of the slice and writes its first `LANES` elements.
    ///
    /// # Panics
    ///
    /// If the slice is shorter.
    #[inline(always)]
    fn store<T: Element>(self, to: &mut [T], x: Self::F) {
        assert!(to.len() >= Self::LANES);
        // SAFETY: long enough, as was just asserted; `self` is proof of the instructions.
        unsafe { T::store(self, to.as_mut_ptr(), x) }
    }

    /// Rounds to the format of the slice and writes up to `LANES` elements.
    #[inline(always)]
    fn store_some<T: Element>(self, to: &mut [T], x: Self::F) {
        let mut all = [T::default(); MAX_LANES];
        // SAFETY: no instruction set has more than `MAX_LANES` lanes.
        unsafe { T::store(self, all.as_mut_ptr(), x) }
        for (to, from) in to.iter_mut().zip(&all[..Self::LANES]) {
            *to = *from;
        }
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
}

/// A number format of tensors: `f32`, [`struct@half::f16`] or [`bf16`]. All arithmetic is in float32.
pub trait Element: sealed::Sealed + Copy + Default + Send + Sync + std::fmt::Debug + 'static {
    /// The lowest finite number.
    const LOWEST: f32;
    /// The number of bits of a significand, the leading one among them.
    const PRECISION: u32;

    /// The same number as float32; exact.
    fn widen(self) -> f32;

    /// The nearest number of this format, ties to even.
    fn narrow(x: f32) -> Self;

    /// Reads the vector at `from`, as float32.
    ///
    /// # Safety
    ///
    /// `S::LANES` elements can be read at `from`, and the processor has the instructions of `S`.
    unsafe fn load<S: Arithmetic>(s: S, from: *const Self) -> S::F;

    /// Rounds `x` to this format and writes it to `to`.
    ///
    /// # Safety
    ///
    /// `S::LANES` elements can be written at `to`, and the processor has the instructions of `S`.
    unsafe fn store<S: Arithmetic>(s: S, to: *mut Self, x: S::F);

    /// `x` rounded to this format, as float32.
    fn rounded<S: Arithmetic>(s: S, x: S::F) -> S::F;

    /// The matrix itself if this format is [`bf16`], else nothing.
    fn as_bf16(_: Matrix<'_, Self>) -> Option<Matrix<'_, bf16>> {
        None
    }
}
