//! Codes of a few bits, one by one.

use half::f16;

/// The numbers of the format E2M1 (OCP Microscaling Formats 1.0, section 5.3.3).
pub(crate) const E2M1: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Twice the numbers of [`E2M1`], which are whole.
pub(crate) const E2M1_TWICE: [i16; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// A number of the format E4M3: a float16 with other exponents. The codes that the specification calls NaN are 480, as
/// in MLX.
#[inline(always)]
pub(crate) fn e4m3(code: u8) -> f32 {
    let bits = u16::from(code & 0x80) << 8 | u16::from(code & 0x7f) << 7;
    f16::from_bits(bits).to_f32() * 256.0
}

/// A number of the format E8M0, a power of two. 0xff is infinity, as in MLX.
#[inline(always)]
pub(crate) fn e8m0(code: u8) -> f32 {
    f32::from_bits(if code == 0 { 0x40_0000 } else { u32::from(code) << 23 })
}

/// Code number `index` of the codes of `BITS` bits at `from`.
///
/// # Safety
///
/// The bytes that hold the code can be read.
#[inline(always)]
pub(crate) unsafe fn code<const BITS: usize>(from: *const u8, index: usize) -> u8 {
    let (byte, shift) = (index * BITS / 8, index * BITS % 8);
    // SAFETY: the caller's promise; the second byte is read only if the code continues in it.
    let (low, high) = unsafe { (*from.add(byte), if shift + BITS > 8 { *from.add(byte + 1) } else { 0 }) };
    ((u16::from(high) << 8 | u16::from(low)) >> shift) as u8 & ((1_u16 << BITS) - 1) as u8
}
