//! Vectors of float32, one implementation for each instruction set.

#[cfg(all(target_arch = "x86_64", not(miri)))]
mod avx2;
#[cfg(all(target_arch = "x86_64", not(miri)))]
mod avx512;
mod math;
#[cfg(all(target_arch = "aarch64", not(miri)))]
mod neon;
pub(crate) mod packing;
mod portable;

#[cfg(all(target_arch = "x86_64", not(miri)))]
pub use avx2::Avx2;
#[cfg(all(target_arch = "x86_64", not(miri)))]
pub use avx512::Avx512;
#[cfg(all(target_arch = "aarch64", not(miri)))]
pub use neon::Neon;
pub use portable::Portable;

use crate::Element;

/// Asks for the cache line at `at`, which may be any address: a hint.
#[inline(always)]
pub(crate) fn prefetch<T>(at: *const T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: nothing is read that a program could see; SSE is part of the architecture.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = at;
}

/// As [`prefetch`], but only as near as the second cache.
#[inline(always)]
fn prefetch_far<T>(at: *const T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: as above.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(at.cast());
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = at;
}

/// Asks for the memory behind `at` that a stream of reads will come to, for each cache line of the stream: a hint.
///
/// What is far away goes to the second cache, which waits for more lines at a time than the first; from there
/// it comes to the first in time. With both, products of one row read as much as a loop that only reads, with the near
/// one alone a sixth less.
#[inline(always)]
pub(crate) fn prefetch_stream<T>(at: *const T) {
    let at = at.cast::<u8>();
    prefetch(at.wrapping_add(5 << 10));
    prefetch_far(at.wrapping_add(16 << 10));
}

/// The vector instructions of one instruction set. A value of such a type is proof that the
/// processor has them.
///
/// Half-precision numbers are widened by loads and rounded to nearest even by stores.
#[expect(clippy::missing_safety_doc, reason = "said once: the pointers of loads and stores")]
pub trait Simd: Copy + Send + Sync + 'static {
    /// [`LANES`](Self::LANES) float32.
    type F: Copy;
    /// The same number of whole numbers of 32 bits, or twice as many of 16 bits, in pairs.
    type I: Copy;

    /// How many numbers a vector has.
    const LANES: usize;
    /// How many vectors the registers hold.
    const REGISTERS: usize;
    /// The order of [`nibbles`](Self::nibbles); the first `LANES` count.
    const NIBBLES: [usize; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

    /// The same number everywhere.
    fn splat(self, x: f32) -> Self::F;
    /// Sum.
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// Difference.
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// Product.
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// Quotient.
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once where the instruction set can.
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The larger; of a NaN and a number, either.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// The smaller; of a NaN and a number, either.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// The nearest whole number, ties to even.
    fn round(self, a: Self::F) -> Self::F;
    /// `a * 2^k` for whole `k` in -126 to 127, given as a float.
    fn scale(self, a: Self::F, k: Self::F) -> Self::F;
    /// `a` where `x` is a number, `x` where it is NaN.
    fn unless_nan(self, x: Self::F, a: Self::F) -> Self::F;
    /// `then` where `a < b`, else `other`.
    fn where_less(self, a: Self::F, b: Self::F, then: Self::F, other: Self::F) -> Self::F;
    /// Sum of all lanes, in pairs: halves, quarters and so on.
    fn sum(self, a: Self::F) -> f32;
    /// In lane `i`, the sum of all lanes of vector `i`, of `LANES` vectors; in pairs, in an order of its own.
    ///
    /// # Panics
    ///
    /// Where there are fewer.
    #[inline(always)]
    fn sums(self, x: &[Self::F]) -> Self::F {
        let mut all = [0.0; 16];
        for (to, x) in all.iter_mut().zip(&x[..Self::LANES]) {
            *to = self.sum(*x);
        }
        // SAFETY: no instruction set has more than 16 lanes.
        unsafe { self.load_f32(all.as_ptr()) }
    }
    /// The largest of all lanes.
    fn largest(self, a: Self::F) -> f32;

    /// `LANES` float32.
    unsafe fn load_f32(self, from: *const f32) -> Self::F;
    /// `LANES` float16, widened.
    unsafe fn load_f16(self, from: *const half::f16) -> Self::F;
    /// `LANES` bfloat16, widened.
    unsafe fn load_bf16(self, from: *const half::bf16) -> Self::F;
    /// Writes `LANES` float32.
    unsafe fn store_f32(self, to: *mut f32, x: Self::F);
    /// Writes `LANES` float16.
    unsafe fn store_f16(self, to: *mut half::f16, x: Self::F);
    /// Writes `LANES` bfloat16.
    unsafe fn store_bf16(self, to: *mut half::bf16, x: Self::F);
    /// Writes the first `count` of the numbers; `count` is at most `LANES`.
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize, x: Self::F) {
        let mut all = [0.0; 16];
        // SAFETY: no instruction set has more than 16 lanes; `count` is the caller's promise.
        unsafe {
            self.store_f32(all.as_mut_ptr(), x);
            std::ptr::copy_nonoverlapping(all.as_ptr(), to, count);
        }
    }
    /// The first `count` numbers at `from`, zeros in the other lanes; `count` is at most `LANES`.
    #[inline(always)]
    unsafe fn load_first(self, from: *const f32, count: usize) -> Self::F {
        let mut all = [0.0; 16];
        // SAFETY: no instruction set has more than 16 lanes; `count` is the caller's promise.
        unsafe {
            std::ptr::copy_nonoverlapping(from, all.as_mut_ptr(), count);
            self.load_f32(all.as_ptr())
        }
    }
    /// `LANES` codes of `BITS` bits as numbers 0 to 2^`BITS` - 1. Codes lie one after the other from
    /// the low bits of the first byte on; the first to read is number `first`, a multiple of `LANES`.
    /// Reads only the bytes that they lie in. `BITS` is 2, 3, 4, 5, 6 or 8.
    #[inline(always)]
    unsafe fn unpack<const BITS: usize>(self, from: *const u8, first: usize) -> Self::F {
        let mut all = [0.0; 16];
        for (i, to) in all[..Self::LANES].iter_mut().enumerate() {
            // SAFETY: the bytes that the code lies in are the caller's promise.
            *to = f32::from(unsafe { packing::code::<BITS>(from, first + i) });
        }
        // SAFETY: no instruction set has more than 16 lanes.
        unsafe { self.load_f32(all.as_ptr()) }
    }
    /// As [`unpack`](Self::unpack) for 4 bits of the format E2M1 (OCP Microscaling Formats 1.0).
    #[inline(always)]
    unsafe fn unpack_e2m1(self, from: *const u8, first: usize) -> Self::F {
        let mut all = [0.0; 16];
        for (i, to) in all[..Self::LANES].iter_mut().enumerate() {
            // SAFETY: the bytes that the code lies in are the caller's promise.
            *to = packing::E2M1[usize::from(unsafe { packing::code::<4>(from, first + i) })];
        }
        // SAFETY: no instruction set has more than 16 lanes.
        unsafe { self.load_f32(all.as_ptr()) }
    }
    /// As [`unpack`](Self::unpack) for 4 bits, in the order that takes the fewest instructions: lane
    /// `i` has code `NIBBLES[i]`.
    #[inline(always)]
    unsafe fn nibbles(self, from: *const u8, first: usize) -> Self::F {
        // SAFETY: the caller's promise.
        unsafe { self.unpack::<4>(from, first) }
    }
    /// As [`unpack_e2m1`](Self::unpack_e2m1), in the order [`NIBBLES`](Self::NIBBLES).
    #[inline(always)]
    unsafe fn nibbles_e2m1(self, from: *const u8, first: usize) -> Self::F {
        // SAFETY: the caller's promise.
        unsafe { self.unpack_e2m1(from, first) }
    }
    /// As [`unpack`](Self::unpack) for 8 bits of the format E4M3. What the specification calls NaN is
    /// 480 here, as in MLX.
    #[inline(always)]
    unsafe fn unpack_e4m3(self, from: *const u8, first: usize) -> Self::F {
        let mut all = [0.0; 16];
        for (i, to) in all[..Self::LANES].iter_mut().enumerate() {
            // SAFETY: the bytes are the caller's promise.
            *to = packing::e4m3(unsafe { *from.add(first + i) });
        }
        // SAFETY: no instruction set has more than 16 lanes.
        unsafe { self.load_f32(all.as_ptr()) }
    }
    /// Of each lane as a word of 32 bits, the field of `BITS` bits with this index, as a number; `BITS`
    /// is 2, 4 or 8.
    #[inline(always)]
    fn field<const BITS: usize>(self, words: Self::F, index: usize) -> Self::F {
        self.field_with::<BITS>(words, index, f32::from)
    }
    /// As [`field`](Self::field) for 4 bits of the format E2M1.
    #[inline(always)]
    fn field_e2m1(self, words: Self::F, index: usize) -> Self::F {
        self.field_with::<4>(words, index, |code| packing::E2M1[usize::from(code)])
    }
    /// As [`field`](Self::field) for 8 bits of the format E4M3.
    #[inline(always)]
    fn field_e4m3(self, words: Self::F, index: usize) -> Self::F {
        self.field_with::<8>(words, index, packing::e4m3)
    }
    /// As [`field`](Self::field), with a function that says what a code stands for.
    #[inline(always)]
    fn field_with<const BITS: usize>(
        self,
        words: Self::F,
        index: usize,
        number: impl Fn(u8) -> f32,
    ) -> Self::F {
        let mut all = [0.0; 16];
        // SAFETY: no instruction set has more than 16 lanes.
        unsafe {
            self.store_f32(all.as_mut_ptr(), words);
            for x in &mut all[..Self::LANES] {
                *x = number((x.to_bits() >> (index * BITS) & ((1 << BITS) - 1)) as u8);
            }
            self.load_f32(all.as_ptr())
        }
    }
    /// Rows and columns of the first `LANES` vectors exchanged.
    ///
    /// # Panics
    ///
    /// Where there are fewer.
    #[inline(always)]
    fn transpose(self, rows: &mut [Self::F; 16]) {
        let mut all = [[0.0; 16]; 16];
        for (row, to) in rows[..Self::LANES].iter().zip(&mut all) {
            // SAFETY: no instruction set has more than 16 lanes.
            unsafe { self.store_f32(to.as_mut_ptr(), *row) };
        }
        for (i, row) in rows[..Self::LANES].iter_mut().enumerate() {
            let mut column = [0.0; 16];
            for (to, row) in column.iter_mut().zip(&all[..Self::LANES]) {
                *to = row[i];
            }
            // SAFETY: as above.
            *row = unsafe { self.load_f32(column.as_ptr()) };
        }
    }
    /// The same bits.
    fn bits(self, x: Self::F) -> Self::I;
    /// Writes `LANES` numbers of 4 bytes.
    unsafe fn store_bits(self, to: *mut f32, x: Self::I);
    /// Whole numbers of 32 bits, rounded to the nearest float32.
    fn to_float(self, x: Self::I) -> Self::F;
    /// The sum of the products of the two numbers of each pair, added to `sums` of 32 bits.
    fn dot(self, a: Self::I, b: Self::I, sums: Self::I) -> Self::I;
    /// Whether products of bytes are there: [`dot_bytes`](Self::dot_bytes) and the two functions behind it.
    const BYTES: bool = false;
    /// The sum of the products of the four bytes of each lane, added to `sums` of 32 bits. Those of `a` are from 0 to
    /// 255, those of `b` from -128 to 127.
    fn dot_bytes(self, _a: Self::I, _b: Self::I, _sums: Self::I) -> Self::I {
        unreachable!("there are no products of bytes")
    }
    /// Of each byte, the field of `BITS` bits with this index, as a byte; `BITS` is 2, 4 or 8.
    fn field8<const BITS: usize>(self, _words: Self::I, _index: usize) -> Self::I {
        unreachable!("there are no products of bytes")
    }
    /// Whole numbers of 32 bits times 256.
    fn times_256(self, _x: Self::I) -> Self::I {
        unreachable!("there are no products of bytes")
    }
    /// Of each word of 16 bits, the field of `BITS` bits with this index, as a word; `BITS` is 2, 4 or 8.
    fn field16<const BITS: usize>(self, words: Self::I, index: usize) -> Self::I;
    /// As [`field16`](Self::field16) for 4 bits of the format E2M1: twice the number.
    fn field16_e2m1(self, words: Self::I, index: usize) -> Self::I;
    /// Writes `LANES` whole numbers of 16 bits: the nearest, ties to even.
    unsafe fn store_i16(self, to: *mut i16, x: Self::F);
    /// In lane `i`, number `places[i]` of the `LANES` at `from`.
    unsafe fn spread(self, from: *const f32, places: Self::I) -> Self::F;
    /// Rounded to float16.
    fn round_f16(self, x: Self::F) -> Self::F;
    /// Rounded to bfloat16.
    fn round_bf16(self, x: Self::F) -> Self::F;

    /// Zero everywhere.
    #[inline(always)]
    fn zero(self) -> Self::F {
        self.splat(0.0)
    }

    /// The first `LANES` elements of a slice, as float32.
    ///
    /// # Panics
    ///
    /// Where it is shorter.
    #[inline(always)]
    fn load<T: Element>(self, from: &[T]) -> Self::F {
        assert!(from.len() >= Self::LANES);
        // SAFETY: long enough, as was just asserted; `self` is proof of the instructions.
        unsafe { T::load(self, from.as_ptr()) }
    }

    /// Up to `LANES` elements of a slice, as float32, and `fill` in the other lanes.
    #[inline(always)]
    fn load_some<T: Element>(self, from: &[T], fill: f32) -> Self::F {
        let mut all = [fill; 16];
        for (to, from) in all[..Self::LANES].iter_mut().zip(from) {
            *to = from.widen();
        }
        // SAFETY: no instruction set has more than 16 lanes.
        unsafe { self.load_f32(all.as_ptr()) }
    }

    /// Rounds to the format of the slice and writes its first `LANES` elements.
    ///
    /// # Panics
    ///
    /// Where it is shorter.
    #[inline(always)]
    fn store<T: Element>(self, to: &mut [T], x: Self::F) {
        assert!(to.len() >= Self::LANES);
        // SAFETY: long enough, as was just asserted; `self` is proof of the instructions.
        unsafe { T::store(self, to.as_mut_ptr(), x) }
    }

    /// Rounds to the format of the slice and writes up to `LANES` elements.
    #[inline(always)]
    fn store_some<T: Element>(self, to: &mut [T], x: Self::F) {
        let mut all = [T::default(); 16];
        // SAFETY: no instruction set has more than 16 lanes.
        unsafe { T::store(self, all.as_mut_ptr(), x) }
        for (to, from) in to.iter_mut().zip(&all[..Self::LANES]) {
            *to = *from;
        }
    }

    /// The hyperbolic tangent, within 5 units in the last place.
    #[inline(always)]
    fn tanh(self, x: Self::F) -> Self::F {
        math::tanh(self, x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Isa, Kernel};
    use half::{bf16, f16};

    struct Map<'a>(&'a [f32], fn(f32) -> f64, &'static str);

    impl Kernel for Map<'_> {
        /// The largest error in units in the last place, and where.
        type Output = (f64, f32);

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> (f64, f32) {
            let mut worst = (0.0, 0.0);
            for chunk in self.0.chunks(S::LANES) {
                let x = s.load_some(chunk, 0.0);
                let y = match self.2 {
                    "exp" => math::exp(s, x),
                    _ => s.tanh(x),
                };
                let mut all = [0.0_f32; 16];
                s.store_some(&mut all[..chunk.len()], y);
                for (&x, &y) in chunk.iter().zip(&all) {
                    let exact = self.1(x);
                    let unit = f64::from(f32::from_bits((exact as f32).abs().to_bits() & 0x7f80_0000))
                        .max(f64::from(f32::MIN_POSITIVE))
                        * f64::from(f32::EPSILON);
                    let error = (f64::from(y) - exact).abs() / unit;
                    if error > worst.0 || error.is_nan() {
                        worst = (error, x);
                    }
                }
            }
            worst
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "takes long there")]
    fn functions_are_as_exact_as_documented() {
        let x: Vec<f32> = (-880_000..=880_000).map(|i| i as f32 * 1e-4).collect();
        for isa in Isa::available() {
            for (name, exact, units) in [
                ("exp", (|x| f64::from(x).exp()) as fn(f32) -> f64, 2.0),
                ("tanh", |x| f64::from(x).tanh(), 5.0),
            ] {
                let (worst, at) = isa.run(Map(&x, exact, name));
                assert!(worst <= units, "{} {name}: {worst} units at {at}", isa.name());
            }
        }
    }

    struct Each<'a>(&'a [f32], &'static str, &'a mut [f32]);

    impl Kernel for Each<'_> {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for (from, to) in self.0.chunks(S::LANES).zip(self.2.chunks_mut(S::LANES)) {
                let x = s.load_some(from, 0.0);
                let y = match self.1 {
                    "exp" => math::exp(s, x),
                    "tanh" => s.tanh(x),
                    "bf16" => s.round_bf16(x),
                    _ => s.round_f16(x),
                };
                s.store_some(to, y);
            }
        }
    }

    #[test]
    fn functions_at_the_ends() {
        let inf = f32::INFINITY;
        for isa in Isa::available() {
            for (name, cases) in [
                (
                    "exp",
                    [
                        (inf, inf),
                        (-inf, 0.0),
                        (89.0, inf),
                        (-105.0, 0.0),
                        (0.0, 1.0),
                        (-100.0, (-100_f64).exp() as f32),
                    ],
                ),
                ("tanh", [(inf, 1.0), (-inf, -1.0), (100.0, 1.0), (0.0, 0.0), (-50.0, -1.0), (1e-30, 1e-30)]),
            ] {
                let x = cases.map(|(x, _)| x);
                let mut y = [0.0; 6];
                isa.run(Each(&x, name, &mut y));
                for ((x, expected), y) in cases.into_iter().zip(y) {
                    assert!(
                        y == expected || (y - expected).abs() < expected.abs() * 1e-2,
                        "{} {name}({x}) = {y}",
                        isa.name()
                    );
                }
                let mut y = [0.0];
                isa.run(Each(&[f32::NAN], name, &mut y));
                assert!(y[0].is_nan(), "{} {name}", isa.name());
            }
        }
    }

    /// An operation on as many pairs as there are.
    struct Pairs<'a>(&'a [(f32, f32)], &'static str, &'a mut [f32]);

    impl Kernel for Pairs<'_> {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for (pairs, to) in self.0.chunks(S::LANES).zip(self.2.chunks_mut(S::LANES)) {
                let (mut a, mut b) = ([0.0_f32; 16], [0.0_f32; 16]);
                for (i, pair) in pairs.iter().enumerate() {
                    (a[i], b[i]) = *pair;
                }
                let (a, b) = (s.load(&a), s.load(&b));
                let y = match self.1 {
                    "div" => s.div(a, b),
                    "round" => s.round(a),
                    "scale" => s.scale(a, b),
                    "unless_nan" => s.unless_nan(a, b),
                    "where_less" => s.where_less(a, b, s.splat(1.0), s.splat(2.0)),
                    "max" => s.max(a, b),
                    _ => s.min(a, b),
                };
                s.store_some(to, y);
            }
        }
    }

    #[test]
    fn operations_on_two_numbers_are_as_described() {
        /// Two numbers and the result.
        type Cases = [(f32, f32, f32)];
        let (inf, nan, large) = (f32::INFINITY, f32::NAN, 8_388_607.5);
        let cases: [(&str, &Cases); 7] = [
            // The first three are off by one unit where the inverse is rounded too.
            (
                "div",
                &[
                    (5.0, 3.0, 5.0 / 3.0),
                    (-7.0, 49.0, -1.0 / 7.0),
                    (9.0, 11.0, 9.0 / 11.0),
                    (1.0, 0.0, inf),
                    (-6.0, 2.0, -3.0),
                    (0.0, 0.0, nan),
                ],
            ),
            (
                "round",
                &[
                    (0.5, 0.0, 0.0),
                    (1.5, 0.0, 2.0),
                    (2.5, 0.0, 2.0),
                    (-0.5, 0.0, 0.0),
                    (-1.5, 0.0, -2.0),
                    (-2.5, 0.0, -2.0),
                    (0.499_999_97, 0.0, 0.0),
                    (-2.75, 0.0, -3.0),
                    (3.25, 0.0, 3.0),
                    (large, 0.0, 8_388_608.0),
                    (-2e9, 0.0, -2e9),
                ],
            ),
            (
                "scale",
                &[
                    (1.5, 0.0, 1.5),
                    (-1.5, 3.0, -12.0),
                    (3.0, -2.0, 0.75),
                    (1.0, 127.0, f32::from_bits(254 << 23)),
                    (1.0, -126.0, f32::MIN_POSITIVE),
                    (0.75, -126.0, f32::from_bits(0x60_0000)),
                    (2.0, 127.0, inf),
                    (0.0, 5.0, 0.0),
                    (-inf, -5.0, -inf),
                ],
            ),
            (
                "unless_nan",
                &[(1.0, 2.0, 2.0), (nan, 2.0, nan), (0.0, nan, nan), (inf, -3.0, -3.0), (-nan, 5.0, nan)],
            ),
            (
                "where_less",
                &[
                    (1.0, 2.0, 1.0),
                    (2.0, 1.0, 2.0),
                    (2.0, 2.0, 2.0),
                    (-0.0, 0.0, 2.0),
                    (nan, 1.0, 2.0),
                    (1.0, nan, 2.0),
                    (-inf, inf, 1.0),
                    (-2.0, -1.0, 1.0),
                    (inf, inf, 2.0),
                ],
            ),
            (
                "max",
                &[(1.0, 2.0, 2.0), (2.0, 1.0, 2.0), (-inf, -5.0, -5.0), (-1.0, -2.0, -1.0), (inf, 3.0, inf)],
            ),
            (
                "min",
                &[(1.0, 2.0, 1.0), (2.0, 1.0, 1.0), (inf, 5.0, 5.0), (-1.0, -2.0, -2.0), (3.0, -inf, -inf)],
            ),
        ];
        for isa in Isa::available() {
            for (name, cases) in cases {
                let pairs: Vec<_> = cases.iter().map(|&(a, b, _)| (a, b)).collect();
                let mut y = vec![0.0; pairs.len()];
                isa.run(Pairs(&pairs, name, &mut y));
                for (&(a, b, expected), y) in cases.iter().zip(y) {
                    let same = y == expected || y.is_nan() && expected.is_nan();
                    assert!(same, "{} {name} of {a} and {b} is {y}, expected {expected}", isa.name());
                }
            }
        }
    }

    struct All<'a>(&'a [f32]);

    impl Kernel for All<'_> {
        /// The largest and the sum.
        type Output = (f32, f32);

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> (f32, f32) {
            let x = s.load(self.0);
            (s.largest(x), s.sum(x))
        }
    }

    #[test]
    fn the_largest_and_the_sum_are_of_all_lanes() {
        for isa in Isa::available() {
            for lane in 0..isa.lanes() {
                let mut x = [-3.0; 16];
                x[lane] = 2.0;
                let expected = (2.0, 2.0 - 3.0 * (isa.lanes() as f32 - 1.0));
                assert_eq!(isa.run(All(&x)), expected, "{} lane {lane}", isa.name());
            }
        }
    }

    /// Numbers, in the opposite order.
    struct Spread<'a>(&'a [f32], &'a mut [f32]);

    impl Kernel for Spread<'_> {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let places: [u32; 16] = std::array::from_fn(|lane| S::LANES.saturating_sub(lane + 1) as u32);
            assert!(self.0.len() >= S::LANES);
            // SAFETY: no instruction set has more than 16 lanes, and `LANES` numbers are there.
            let y = unsafe { s.spread(self.0.as_ptr(), s.bits(s.load_f32(places.as_ptr().cast()))) };
            s.store(self.1, y);
        }
    }

    #[test]
    fn numbers_are_spread_to_all_lanes() {
        let x: [f32; 16] = std::array::from_fn(|i| i as f32);
        for isa in Isa::available() {
            let mut y = vec![-1.0; isa.lanes()];
            isa.run(Spread(&x, &mut y));
            let expected: Vec<_> = x[..isa.lanes()].iter().rev().copied().collect();
            assert_eq!(y, expected, "{}", isa.name());
        }
    }

    /// Codes of `BITS` bits, beside bytes with a sign: for each lane the sum of the products, and 256 times that and it.
    struct Bytes<'a, const BITS: usize>(&'a [u8; 64], &'a [i8; 64], &'a mut Vec<i32>);

    impl<const BITS: usize> Kernel for Bytes<'_, BITS> {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            if const { !S::BYTES } {
                return;
            }
            // SAFETY: no vector has more than 64 bytes.
            let (words, x) =
                unsafe { (s.load_f32(self.0.as_ptr().cast()), s.load_f32(self.1.as_ptr().cast())) };
            let mut sums = s.bits(s.zero());
            for field in 0..8 / BITS {
                sums = s.dot_bytes(s.field8::<BITS>(s.bits(words), field), s.bits(x), sums);
            }
            for sums in [sums, s.times_256(sums)] {
                let mut all = [0_i32; 16];
                // SAFETY: no vector has more than 64 bytes.
                unsafe { s.store_bits(all.as_mut_ptr().cast(), sums) };
                self.2.extend(&all[..S::LANES]);
            }
        }
    }

    #[test]
    fn products_of_bytes_are_summed_in_fours() {
        let codes: [u8; 64] = std::array::from_fn(|i| [255, 0x1b, 128, 0, 0xe4][i % 5]);
        let x: [i8; 64] = std::array::from_fn(|i| [127, -128, -1, 77, 0, -128, 3][i % 7]);
        for isa in Isa::available().filter(|isa| !matches!(isa, Isa::Avx2 | Isa::Neon)) {
            for bits in [2, 4, 8] {
                let mut y = Vec::new();
                match bits {
                    2 => isa.run(Bytes::<2>(&codes, &x, &mut y)),
                    4 => isa.run(Bytes::<4>(&codes, &x, &mut y)),
                    _ => isa.run(Bytes::<8>(&codes, &x, &mut y)),
                }
                let product = |(code, x): (&u8, &i8)| {
                    let fields =
                        (0..8 / bits).map(|field| i32::from(*code) >> (field * bits) & ((1 << bits) - 1));
                    i32::from(*x) * fields.sum::<i32>()
                };
                let sums: Vec<i32> = codes
                    .chunks_exact(4)
                    .zip(x.chunks_exact(4))
                    .map(|(codes, x)| codes.iter().zip(x).map(product).sum())
                    .take(isa.lanes())
                    .collect();
                let expected: Vec<i32> =
                    sums.iter().copied().chain(sums.iter().map(|sum| sum * 256)).collect();
                assert_eq!(y, expected, "{} {bits}", isa.name());
            }
        }
    }

    struct Sums<'a>(&'a [f32], &'a mut Vec<f32>);

    impl Kernel for Sums<'_> {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let mut vectors = [s.zero(); 16];
            for (vector, from) in vectors.iter_mut().zip(self.0.chunks_exact(S::LANES)) {
                *vector = s.load(from);
            }
            self.1.resize(S::LANES, 0.0);
            s.store(self.1, s.sums(&vectors));
        }
    }

    #[test]
    fn sums_of_many_vectors_are_in_their_order() {
        // Small whole numbers: exact in any order.
        let x: Vec<f32> = (0..256).map(|i| ((i * i) % 211) as f32).collect();
        for isa in Isa::available() {
            let mut y = Vec::new();
            isa.run(Sums(&x, &mut y));
            let expected: Vec<f32> =
                x.chunks_exact(isa.lanes()).map(|x| x.iter().sum()).take(isa.lanes()).collect();
            assert_eq!(y, expected, "{}", isa.name());
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "takes long there")]
    fn half_precision_rounds_as_the_half_crate_does() {
        // All the patterns of the upper half, with lower halves around the tie.
        let x: Vec<f32> = (0..=u16::MAX)
            .flat_map(|upper| {
                [0, 1, 0x0fff, 0x1000, 0x1001, 0x7fff, 0x8000, 0x8001, 0xffff]
                    .map(|lower| (u32::from(upper) << 16 | lower, ()))
            })
            .map(|(bits, ())| f32::from_bits(bits))
            .collect();
        for isa in Isa::available() {
            let mut y = vec![0.0; x.len()];
            isa.run(Each(&x, "bf16", &mut y));
            for (&x, &y) in x.iter().zip(&y) {
                let expected = bf16::from_f32(x).to_f32();
                assert!(
                    expected.to_bits() == y.to_bits() || x.is_nan() && y.is_nan(),
                    "{} {x:e}: {y:e} {expected:e}",
                    isa.name()
                );
            }
            isa.run(Each(&x, "f16", &mut y));
            for (&x, &y) in x.iter().zip(&y) {
                let expected = f16::from_f32(x).to_f32();
                assert!(
                    expected.to_bits() == y.to_bits() || x.is_nan() && y.is_nan(),
                    "{} {x:e}: {y:e} {expected:e}",
                    isa.name()
                );
            }
        }
    }
}
