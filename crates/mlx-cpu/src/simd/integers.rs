//! Vectors of whole numbers.

use super::arithmetic::Arithmetic;

/// The vectors of [`Arithmetic`] as whole numbers: products of activations and codes that are both whole.
///
/// A vector has as many bytes as one of floats. It holds [`LANES`](Arithmetic::LANES) numbers of 32 bits, or a pair of
/// 16-bit numbers or four bytes in each lane; the method says which.
#[expect(clippy::missing_safety_doc, reason = "said once, at `Arithmetic`: the pointers of loads and stores")]
pub trait Integers: Arithmetic {
    /// [`LANES`](Arithmetic::LANES) lanes of 32 bits.
    type I: Copy;

    /// Whether there are products of bytes: [`dot_bytes`](Self::dot_bytes) and [`times_256`](Self::times_256).
    const MULTIPLIES_BYTES: bool = false;

    /// The same bits.
    fn bits(self, x: Self::F) -> Self::I;

    /// The bits of both.
    fn and(self, a: Self::I, b: Self::I) -> Self::I;

    /// The bits of either.
    fn or(self, a: Self::I, b: Self::I) -> Self::I;

    /// The bits of each lane of 32 bits moved up by `by`, below 32, with zeros behind them.
    fn shift_left(self, x: Self::I, by: u32) -> Self::I;

    /// The bits of each lane of 32 bits moved down by `by`, below 32, with zeros before them.
    fn shift_right(self, x: Self::I, by: u32) -> Self::I;

    /// Whole numbers of 32 bits as float32, rounded to nearest.
    fn to_float(self, x: Self::I) -> Self::F;

    /// In each lane, adds the products of the two pairs of 16-bit numbers to a sum of 32 bits.
    fn dot(self, a: Self::I, b: Self::I, sums: Self::I) -> Self::I;

    /// In each lane, adds the products of the four pairs of bytes to a sum of 32 bits. The bytes of `a` have no sign (0
    /// to 255), those of `b` have one (-128 to 127).
    ///
    /// # Panics
    ///
    /// If there are no products of bytes.
    fn dot_bytes(self, _a: Self::I, _b: Self::I, _sums: Self::I) -> Self::I {
        unreachable!("there are no products of bytes")
    }

    /// Whole numbers of 32 bits times 256.
    ///
    /// # Panics
    ///
    /// If there are no products of bytes.
    fn times_256(self, _x: Self::I) -> Self::I {
        unreachable!("there are no products of bytes")
    }

    /// `x` in each lane of 32 bits.
    #[inline(always)]
    fn splat_bits(self, x: u32) -> Self::I {
        self.bits(self.splat(f32::from_bits(x)))
    }

    /// In lane `i`, number `places[i]` of the `LANES` numbers at `from`.
    unsafe fn permute(self, from: *const f32, places: Self::I) -> Self::F;

    /// Writes the bits of `LANES` lanes.
    unsafe fn store_bits(self, to: *mut f32, x: Self::I);

    /// Rounds to nearest, ties to even, and writes `LANES` whole numbers of 16 bits.
    unsafe fn store_i16(self, to: *mut i16, x: Self::F);
}
