//! Codes of quantized weights as numbers.

use super::arithmetic::{Arithmetic, MAX_LANES};
use super::integers::Integers;
use super::packing;

/// The codes of quantized weights, a vector at a time, in two ways.
///
/// *In memory* codes follow each other, from the low bits of the first byte on, and a code may continue in the next
/// byte. The methods that begin with `unpack` and `nibbles` read [`LANES`](Arithmetic::LANES) neighbours from there,
/// from code number `first` on. They read only the bytes that hold these codes; `first` is a multiple of `LANES`.
///
/// *In a vector of words* each lane holds several codes. The methods that begin with `field` take the code with the
/// same `index` from every lane: as floats from words of 32 bits (`field`), or as whole numbers from words of 16 bits
/// (`field16`) or bytes (`field8`), for products of [`Integers`].
///
/// Codes are whole numbers of `BITS` bits from 0 on, or the small floats E2M1 and E4M3 (*OCP Microscaling Formats
/// Specification* 1.0).
#[expect(clippy::missing_safety_doc, reason = "said once, above: the codes that are read")]
pub trait Decoding: Integers {
    /// The order of [`nibbles`](Self::nibbles): lane `i` has code number `NIBBLES[i]`. The first `LANES` count.
    const NIBBLES: [usize; MAX_LANES] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

    /// `LANES` whole numbers of 2, 3, 4, 5, 6 or 8 bits.
    #[inline(always)]
    unsafe fn unpack<const BITS: usize>(self, from: *const u8, first: usize) -> Self::F {
        let mut all = [0.0; MAX_LANES];
        for (i, to) in all[..Self::LANES].iter_mut().enumerate() {
            // SAFETY: the bytes that the code lies in are the caller's promise.
            *to = f32::from(unsafe { packing::code::<BITS>(from, first + i) });
        }
        // SAFETY: no instruction set has more than `MAX_LANES` lanes.
        unsafe { self.load_f32(all.as_ptr()) }
    }

    /// `LANES` numbers of the format E2M1, of 4 bits.
    #[inline(always)]
    unsafe fn unpack_e2m1(self, from: *const u8, first: usize) -> Self::F {
        let mut all = [0.0; MAX_LANES];
        for (i, to) in all[..Self::LANES].iter_mut().enumerate() {
            // SAFETY: the bytes that the code lies in are the caller's promise.
            *to = packing::E2M1[usize::from(unsafe { packing::code::<4>(from, first + i) })];
        }
        // SAFETY: no instruction set has more than `MAX_LANES` lanes.
        unsafe { self.load_f32(all.as_ptr()) }
    }

    /// `LANES` numbers of the format E4M3, of 8 bits. The codes that the specification calls NaN are 480, as in MLX.
    #[inline(always)]
    unsafe fn unpack_e4m3(self, from: *const u8, first: usize) -> Self::F {
        let mut all = [0.0; MAX_LANES];
        for (i, to) in all[..Self::LANES].iter_mut().enumerate() {
            // SAFETY: the bytes are the caller's promise.
            *to = packing::e4m3(unsafe { *from.add(first + i) });
        }
        // SAFETY: no instruction set has more than `MAX_LANES` lanes.
        unsafe { self.load_f32(all.as_ptr()) }
    }

    /// [`unpack`](Self::unpack) for 4 bits, in the order [`NIBBLES`](Self::NIBBLES), which takes the fewest
    /// instructions.
    #[inline(always)]
    unsafe fn nibbles(self, from: *const u8, first: usize) -> Self::F {
        // SAFETY: the caller's promise.
        unsafe { self.unpack::<4>(from, first) }
    }

    /// [`unpack_e2m1`](Self::unpack_e2m1) in the order [`NIBBLES`](Self::NIBBLES).
    #[inline(always)]
    unsafe fn nibbles_e2m1(self, from: *const u8, first: usize) -> Self::F {
        // SAFETY: the caller's promise.
        unsafe { self.unpack_e2m1(from, first) }
    }

    /// From each word of 32 bits, whole number `index` of 2, 4 or 8 bits, as a float.
    #[inline(always)]
    fn field<const BITS: usize>(self, words: Self::F, index: usize) -> Self::F {
        field_with::<Self, BITS>(self, words, index, f32::from)
    }

    /// From each word of 32 bits, number `index` of the format E2M1.
    #[inline(always)]
    fn field_e2m1(self, words: Self::F, index: usize) -> Self::F {
        field_with::<Self, 4>(self, words, index, |code| packing::E2M1[usize::from(code)])
    }

    /// From each word of 32 bits, number `index` of the format E4M3.
    #[inline(always)]
    fn field_e4m3(self, words: Self::F, index: usize) -> Self::F {
        field_with::<Self, 8>(self, words, index, packing::e4m3)
    }

    /// From each byte, whole number `index` of 2, 4 or 8 bits, as a byte.
    ///
    /// # Panics
    ///
    /// If there are no [products of bytes](Integers::MULTIPLIES_BYTES).
    fn field8<const BITS: usize>(self, _words: Self::I, _index: usize) -> Self::I {
        unreachable!("there are no products of bytes")
    }

    /// From each word of 16 bits, whole number `index` of 2, 4 or 8 bits, as a word.
    fn field16<const BITS: usize>(self, words: Self::I, index: usize) -> Self::I;

    /// From each word of 16 bits, twice number `index` of the format E2M1, as a word: twice, so that it is whole.
    fn field16_e2m1(self, words: Self::I, index: usize) -> Self::I;
}

/// From each word of 32 bits, what `number` returns for the code of `BITS` bits with this index.
#[inline(always)]
fn field_with<S: Arithmetic, const BITS: usize>(
    s: S,
    words: S::F,
    index: usize,
    number: impl Fn(u8) -> f32,
) -> S::F {
    let mut all = [0.0; MAX_LANES];
    // SAFETY: no instruction set has more than `MAX_LANES` lanes.
    unsafe {
        s.store_f32(all.as_mut_ptr(), words);
        for x in &mut all[..S::LANES] {
            *x = number((x.to_bits() >> (index * BITS) & ((1 << BITS) - 1)) as u8);
        }
        s.load_f32(all.as_ptr())
    }
}
