//! The portable instruction set: arrays of eight numbers, for every processor and for Miri.

use half::{bf16, f16};

use super::arithmetic::{Arithmetic, Element};
use super::decoding::Decoding;
use super::integers::Integers;
use super::packing::E2M1_TWICE;

/// The portable instruction set.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Portable;

type F = [f32; 8];

/// The results of `f` for each lane. A plain loop, because Miri takes many times as long for `std::array::from_fn`.
#[inline(always)]
fn lanes<T: Copy + Default>(f: impl Fn(usize) -> T) -> [T; 8] {
    let mut all = [T::default(); 8];
    let mut i = 0;
    while i < 8 {
        all[i] = f(i);
        i += 1;
    }
    all
}

#[inline(always)]
fn each<T: Copy, U: Copy + Default>(a: [T; 8], f: impl Fn(T) -> U) -> [U; 8] {
    lanes(|i| f(a[i]))
}

#[inline(always)]
fn both(a: F, b: F, f: impl Fn(f32, f32) -> f32) -> F {
    lanes(|i| f(a[i], b[i]))
}

#[inline(always)]
unsafe fn load<T: Element>(from: *const T) -> F {
    // SAFETY: the caller's promise; tensors may be unaligned.
    each(unsafe { from.cast::<[T; 8]>().read_unaligned() }, T::widen)
}

#[inline(always)]
unsafe fn store<T: Element>(to: *mut T, x: F) {
    // SAFETY: the caller's promise.
    unsafe { to.cast::<[T; 8]>().write_unaligned(each(x, T::narrow)) }
}

impl Arithmetic for Portable {
    type F = F;
    const LANES: usize = 8;
    const REGISTERS: usize = 4;

    #[inline(always)]
    fn splat(self, x: f32) -> F {
        [x; 8]
    }

    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        both(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        both(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        both(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        both(a, b, |a, b| a / b)
    }

    #[inline(always)]
    fn mul_add(self, a: F, b: F, c: F) -> F {
        // Rounded twice: without the instruction, `f32::mul_add` would call a library.
        lanes(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        both(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        both(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn round(self, a: F) -> F {
        each(a, f32::round_ties_even)
    }

    #[inline(always)]
    fn scale(self, a: F, k: F) -> F {
        both(a, k, |a, k| a * f32::from_bits(((k as i32 + 127) as u32) << 23))
    }

    #[inline(always)]
    fn unless_nan(self, x: F, a: F) -> F {
        both(x, a, |x, a| if x.is_nan() { x } else { a })
    }

    #[inline(always)]
    fn where_less(self, a: F, b: F, then: F, other: F) -> F {
        lanes(|i| if a[i] < b[i] { then[i] } else { other[i] })
    }

    #[inline(always)]
    fn sum(self, a: F) -> f32 {
        ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]))
    }

    #[inline(always)]
    fn largest(self, a: F) -> f32 {
        a.into_iter().fold(f32::NEG_INFINITY, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    unsafe fn load_f32(self, from: *const f32) -> F {
        // SAFETY: the caller's promise.
        unsafe { load(from) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const f16) -> F {
        // SAFETY: the caller's promise.
        unsafe { load(from) }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, from: *const bf16) -> F {
        // SAFETY: the caller's promise.
        unsafe { load(from) }
    }

    #[inline(always)]
    unsafe fn store_f32(self, to: *mut f32, x: F) {
        // SAFETY: the caller's promise.
        unsafe { store(to, x) }
    }

    #[inline(always)]
    unsafe fn store_f16(self, to: *mut f16, x: F) {
        // SAFETY: the caller's promise.
        unsafe { store(to, x) }
    }

    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16, x: F) {
        // SAFETY: the caller's promise.
        unsafe { store(to, x) }
    }

    #[inline(always)]
    fn round_f16(self, x: F) -> F {
        each(x, |x| f16::narrow(x).widen())
    }

    #[inline(always)]
    fn round_bf16(self, x: F) -> F {
        each(x, |x| bf16::narrow(x).widen())
    }
}

impl Integers for Portable {
    type I = [i32; 8];
    const MULTIPLIES_BYTES: bool = true;

    #[inline(always)]
    fn bits(self, x: F) -> [i32; 8] {
        each(x, |x| x.to_bits() as i32)
    }

    #[inline(always)]
    fn floats(self, x: [i32; 8]) -> F {
        lanes(|i| f32::from_bits(x[i].cast_unsigned()))
    }

    #[inline(always)]
    fn plus(self, a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        lanes(|i| a[i].wrapping_add(b[i]))
    }

    #[inline(always)]
    unsafe fn store_bits(self, to: *mut f32, x: [i32; 8]) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[i32; 8]>().write_unaligned(x) }
    }

    #[inline(always)]
    fn and(self, a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        lanes(|i| a[i] & b[i])
    }

    #[inline(always)]
    fn or(self, a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        lanes(|i| a[i] | b[i])
    }

    #[inline(always)]
    fn shift_left(self, x: [i32; 8], by: u32) -> [i32; 8] {
        each(x, |x| x << by)
    }

    #[inline(always)]
    fn shift_right(self, x: [i32; 8], by: u32) -> [i32; 8] {
        each(x, |x| (x.cast_unsigned() >> by).cast_signed())
    }

    #[inline(always)]
    fn to_float(self, x: [i32; 8]) -> F {
        each(x, |x| x as f32)
    }

    #[inline(always)]
    fn dot(self, a: [i32; 8], b: [i32; 8], sums: [i32; 8]) -> [i32; 8] {
        let pair = |x: i32| (i32::from(x as i16), x >> 16);
        lanes(|i| {
            let (a, b) = (pair(a[i]), pair(b[i]));
            sums[i].wrapping_add(a.0 * b.0).wrapping_add(a.1 * b.1)
        })
    }

    #[inline(always)]
    fn dot_bytes(self, a: [i32; 8], b: [i32; 8], sums: [i32; 8]) -> [i32; 8] {
        lanes(|i| {
            let (a, b) = (a[i].to_le_bytes(), b[i].to_le_bytes());
            a.into_iter().zip(b).fold(sums[i], |sum, (a, b)| sum + i32::from(a) * i32::from(b as i8))
        })
    }

    #[inline(always)]
    fn times_256(self, x: [i32; 8]) -> [i32; 8] {
        each(x, |x| x << 8)
    }

    #[inline(always)]
    unsafe fn store_i16(self, to: *mut i16, x: F) {
        for (i, x) in x.into_iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { to.add(i).write(x.round_ties_even() as i16) }
        }
    }

    #[inline(always)]
    unsafe fn permute(self, from: *const f32, places: [i32; 8]) -> F {
        // SAFETY: the caller's promise.
        each(places, |place| unsafe { from.add(place as usize).read() })
    }
}

impl Decoding for Portable {
    #[inline(always)]
    fn field8<const BITS: usize>(self, words: [i32; 8], index: usize) -> [i32; 8] {
        let mask = i32::from_ne_bytes([((1_u32 << BITS) - 1) as u8; 4]);
        each(words, |word| word >> (index * BITS) & mask)
    }

    #[inline(always)]
    fn field16<const BITS: usize>(self, words: [i32; 8], index: usize) -> [i32; 8] {
        let mask = (1 << BITS) - 1;
        each(words, |word| word >> (index * BITS) & (mask << 16 | mask))
    }

    #[inline(always)]
    fn field16_e2m1(self, words: [i32; 8], index: usize) -> [i32; 8] {
        each(self.field16::<4>(words, index), |word| {
            let [low, high] = [word, word >> 16].map(|code| E2M1_TWICE[(code & 15) as usize]);
            i32::from(high) << 16 | i32::from(low) & 0xffff
        })
    }
}
