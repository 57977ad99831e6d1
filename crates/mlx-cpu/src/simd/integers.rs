//! Vectors of whole numbers.

use super::arithmetic::{Arithmetic, MAX_LANES};

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

    /// The same bits as floats.
    fn floats(self, x: Self::I) -> Self::F;

    /// The sums of whole numbers of 32 bits. A sum that is too large wraps.
    fn plus(self, a: Self::I, b: Self::I) -> Self::I;

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

    /// Vector `j` becomes the sums of the lanes `j * N..(j + 1) * N` of the first [`LANES`](Arithmetic::LANES) vectors, as
    /// whole numbers of 32 bits: that of vector `i` in lane `i`. `N` divides the number of lanes. The other vectors have any
    /// value afterwards.
    #[inline(always)]
    fn sums_of_groups<const N: usize>(self, x: &mut [Self::I; MAX_LANES]) {
        sums_of_transposed::<Self, N>(self, x);
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

    /// Rounds to nearest, ties to even, and writes the upper and the lower bytes of `LANES` whole numbers of 16 bits. A number
    /// is 256 times its upper byte plus its lower byte, both with a sign. Returns the whole numbers, with 32 bits.
    #[inline(always)]
    unsafe fn store_bytes(self, upper: *mut u8, lower: *mut u8, x: Self::F) -> Self::I {
        let (mut whole, mut wide) = ([0_i16; MAX_LANES], [0_i32; MAX_LANES]);
        // SAFETY: no instruction set has more than `MAX_LANES` lanes; the rest is the caller's promise.
        unsafe {
            self.store_i16(whole.as_mut_ptr(), x);
            for i in 0..Self::LANES {
                wide[i] = i32::from(whole[i]);
                lower.add(i).write(whole[i] as u8);
                // It wraps only for numbers from 32640 on.
                upper.add(i).write((whole[i].wrapping_add(128) >> 8) as u8);
            }
            self.bits(self.load_f32(wide.as_ptr().cast()))
        }
    }

    /// Writes byte `order[i]` of the sixteen bytes at `from` to place `i`.
    #[inline(always)]
    unsafe fn order_bytes(self, from: *const u8, order: [u8; 16], to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe {
            let from = from.cast::<[u8; 16]>().read();
            to.cast::<[u8; 16]>().write(order.map(|place| from[usize::from(place)]));
        }
    }

    /// Rounds to nearest, ties to even, and writes `LANES` whole numbers of 16 bits.
    unsafe fn store_i16(self, to: *mut i16, x: Self::F);
}

/// [`Integers::sums_of_groups`] with a transposition of all vectors.
#[inline(always)]
pub(super) fn sums_of_transposed<S: Integers, const N: usize>(s: S, x: &mut [S::I; MAX_LANES]) {
    let mut lanes = [s.zero(); MAX_LANES];
    for (to, x) in lanes[..S::LANES].iter_mut().zip(&*x) {
        *to = s.floats(*x);
    }
    s.transpose(&mut lanes);
    for j in 0..S::LANES / N {
        let mut sum = s.bits(lanes[j * N]);
        for lane in &lanes[j * N + 1..(j + 1) * N] {
            sum = s.plus(sum, s.bits(*lane));
        }
        x[j] = sum;
    }
}
