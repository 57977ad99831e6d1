//! AVX2 with FMA and F16C: vectors of eight numbers.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::arithmetic::{Arithmetic, MAX_LANES};
use super::decoding::Decoding;
use super::integers::Integers;
use super::packing::{E2M1, E2M1_TWICE};

/// x86-64 with AVX2, FMA and F16C.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
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
unsafe fn bf16_bits(x: __m256) -> __m256i {
    // SAFETY: in all of this file, a value of `Avx2` exists only where the instructions do.
    unsafe {
        let bits = _mm256_castps_si256(x);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
        let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000));
        _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, nan))
    }
}

macro_rules! lanewise {
    ($($name:ident($($argument:ident),*) = $body:expr;)*) => {$(
        #[inline(always)]
        fn $name(self, $($argument: __m256),*) -> __m256 {
            // SAFETY: `self` is proof of the instructions.
            unsafe { $body }
        }
    )*};
}

impl Arithmetic for Avx2 {
    type F = __m256;
    const LANES: usize = 8;
    const REGISTERS: usize = 16;

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        // SAFETY: `self` is proof of the instructions.
        unsafe { _mm256_set1_ps(x) }
    }

    lanewise! {
        add(a, b) = _mm256_add_ps(a, b);
        sub(a, b) = _mm256_sub_ps(a, b);
        mul(a, b) = _mm256_mul_ps(a, b);
        div(a, b) = _mm256_div_ps(a, b);
        mul_add(a, b, c) = _mm256_fmadd_ps(a, b, c);
        max(a, b) = _mm256_max_ps(a, b);
        min(a, b) = _mm256_min_ps(a, b);
        round(a) = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a);
        scale(a, k) = _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(
            _mm256_add_epi32(_mm256_cvtps_epi32(k), _mm256_set1_epi32(127)))));
        where_less(a, b, then, other) = _mm256_blendv_ps(other, then, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b));
        unless_nan(x, a) = _mm256_blendv_ps(a, x, _mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
        round_f16(x) = _mm256_cvtph_ps(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x));
        round_bf16(x) = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bf16_bits(x)));
    }

    #[inline(always)]
    fn sum(self, a: __m256) -> f32 {
        // SAFETY: `self` is proof of the instructions.
        unsafe {
            let half = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
            _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)))
        }
    }

    #[inline(always)]
    fn sums(self, x: &[__m256]) -> __m256 {
        let x = &x[..8];
        // SAFETY: `self` is proof of the instructions.
        unsafe {
            // In both halves, the sums of four vectors.
            let mut fours = [_mm256_setzero_ps(); 2];
            for (four, x) in fours.iter_mut().zip(x.chunks_exact(4)) {
                *four = _mm256_hadd_ps(_mm256_hadd_ps(x[0], x[1]), _mm256_hadd_ps(x[2], x[3]));
            }
            let [a, b] = fours;
            _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b))
        }
    }

    #[inline(always)]
    fn largest(self, a: __m256) -> f32 {
        // SAFETY: `self` is proof of the instructions.
        unsafe {
            let half = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let pair = _mm_max_ps(half, _mm_movehl_ps(half, half));
            _mm_cvtss_f32(_mm_max_ss(pair, _mm_movehdup_ps(pair)))
        }
    }

    #[inline(always)]
    unsafe fn load_f32(self, from: *const f32) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const f16) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, from: *const bf16) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe {
            let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
        }
    }

    #[inline(always)]
    unsafe fn store_f32(self, to: *mut f32, x: __m256) {
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_ps(to, x) }
    }

    #[inline(always)]
    unsafe fn store_f16(self, to: *mut f16, x: __m256) {
        // SAFETY: the caller's promise.
        unsafe { _mm_storeu_si128(to.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x)) }
    }

    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16, x: __m256) {
        // SAFETY: the caller's promise.
        unsafe {
            let bits = bf16_bits(x);
            let packed = _mm_packus_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256::<1>(bits));
            _mm_storeu_si128(to.cast(), packed);
        }
    }

    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize, x: __m256) {
        // SAFETY: the caller's promise; what is masked out is not touched.
        unsafe {
            let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            _mm256_maskstore_ps(to, _mm256_cmpgt_epi32(_mm256_set1_epi32(count as i32), lanes), x);
        }
    }

    #[inline(always)]
    unsafe fn load_first(self, from: *const f32, count: usize) -> __m256 {
        // SAFETY: the caller's promise; what is masked out is not touched.
        unsafe {
            let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            _mm256_maskload_ps(from, _mm256_cmpgt_epi32(_mm256_set1_epi32(count as i32), lanes))
        }
    }

    #[inline(always)]
    fn transpose(self, r: &mut [__m256; MAX_LANES]) {
        // SAFETY: `self` is proof of the instructions.
        unsafe {
            let mut t = [_mm256_setzero_ps(); 8];
            for i in 0..4 {
                t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
                t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
            }
            for i in 0..2 {
                let four = [t[4 * i], t[4 * i + 1], t[4 * i + 2], t[4 * i + 3]].map(|x| _mm256_castps_pd(x));
                r[4 * i] = _mm256_castpd_ps(_mm256_unpacklo_pd(four[0], four[2]));
                r[4 * i + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(four[0], four[2]));
                r[4 * i + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(four[1], four[3]));
                r[4 * i + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(four[1], four[3]));
            }
            for i in 0..4 {
                let (low, high) = (r[i], r[i + 4]);
                r[i] = _mm256_permute2f128_ps::<0x20>(low, high);
                r[i + 4] = _mm256_permute2f128_ps::<0x31>(low, high);
            }
        }
    }
}

impl Integers for Avx2 {
    type I = __m256i;

    #[inline(always)]
    fn bits(self, x: __m256) -> __m256i {
        // SAFETY: `self` is proof of the instructions.
        unsafe { _mm256_castps_si256(x) }
    }

    #[inline(always)]
    fn floats(self, x: __m256i) -> __m256 {
        // SAFETY: `self` is proof of the instructions.
        unsafe { _mm256_castsi256_ps(x) }
    }

    #[inline(always)]
    fn plus(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: `self` is proof of the instructions.
        unsafe { _mm256_add_epi32(a, b) }
    }

    #[inline(always)]
    unsafe fn store_bits(self, to: *mut f32, x: __m256i) {
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_si256(to.cast(), x) }
    }

    #[inline(always)]
    fn and(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: `self` is proof of the instructions.
        unsafe { _mm256_and_si256(a, b) }
    }

    #[inline(always)]
    fn or(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: `self` is proof of the instructions.
        unsafe { _mm256_or_si256(a, b) }
    }

    #[inline(always)]
    fn shift_left(self, x: __m256i, by: u32) -> __m256i {
        // SAFETY: `self` is proof of the instructions.
        unsafe { _mm256_sll_epi32(x, _mm_cvtsi32_si128(by as i32)) }
    }

    #[inline(always)]
    fn shift_right(self, x: __m256i, by: u32) -> __m256i {
        // SAFETY: `self` is proof of the instructions.
        unsafe { _mm256_srl_epi32(x, _mm_cvtsi32_si128(by as i32)) }
    }

    #[inline(always)]
    fn to_float(self, x: __m256i) -> __m256 {
        // SAFETY: `self` is proof of the instructions.
        unsafe { _mm256_cvtepi32_ps(x) }
    }

    #[inline(always)]
    fn dot(self, a: __m256i, b: __m256i, sums: __m256i) -> __m256i {
        // SAFETY: `self` is proof of the instructions.
        unsafe { _mm256_add_epi32(sums, _mm256_madd_epi16(a, b)) }
    }

    #[inline(always)]
    unsafe fn store_i16(self, to: *mut i16, x: __m256) {
        // SAFETY: the caller's promise.
        unsafe {
            let whole = _mm256_cvtps_epi32(x);
            let (low, high) = (_mm256_castsi256_si128(whole), _mm256_extracti128_si256::<1>(whole));
            _mm_storeu_si128(to.cast(), _mm_packs_epi32(low, high));
        }
    }

    #[inline(always)]
    unsafe fn permute(self, from: *const f32, places: __m256i) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_permutevar8x32_ps(_mm256_loadu_ps(from), places) }
    }
}

impl Decoding for Avx2 {
    #[inline(always)]
    fn field16<const BITS: usize>(self, words: __m256i, index: usize) -> __m256i {
        // SAFETY: `self` is proof of the instructions.
        unsafe {
            let fields = _mm256_srl_epi16(words, _mm_cvtsi32_si128((index * BITS) as i32));
            _mm256_and_si256(fields, _mm256_set1_epi16((1 << BITS) - 1))
        }
    }

    #[inline(always)]
    fn field16_e2m1(self, words: __m256i, index: usize) -> __m256i {
        // SAFETY: `self` is proof of the instructions.
        unsafe {
            // The numbers fit into bytes; the two shifts fill the upper byte with the sign.
            let mut bytes = [0_i8; 16];
            for (byte, number) in bytes.iter_mut().zip(E2M1_TWICE) {
                *byte = number as i8;
            }
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(bytes.as_ptr().cast()));
            let found = _mm256_shuffle_epi8(table, self.field16::<4>(words, index));
            _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(found))
        }
    }

    #[inline(always)]
    unsafe fn unpack<const BITS: usize>(self, from: *const u8, first: usize) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe {
            let from = from.add(first / 8 * BITS);
            if BITS == 8 {
                return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast())));
            }
            _mm256_cvtepi32_ps(fields::<BITS>(from))
        }
    }

    #[inline(always)]
    unsafe fn unpack_e2m1(self, from: *const u8, first: usize) -> __m256 {
        // SAFETY: the caller's promise. The permutation uses the three low bits only; the fourth is the sign.
        unsafe {
            let codes = fields::<4>(from.add(first / 2));
            let sizes = _mm256_permutevar8x32_ps(_mm256_loadu_ps(E2M1.as_ptr()), codes);
            let signs = _mm256_slli_epi32::<31>(_mm256_srli_epi32::<3>(codes));
            _mm256_or_ps(sizes, _mm256_castsi256_ps(signs))
        }
    }

    #[inline(always)]
    unsafe fn unpack_e4m3(self, from: *const u8, first: usize) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe {
            let codes = _mm_cvtepi8_epi16(_mm_loadl_epi64(from.add(first).cast()));
            let rest = _mm_slli_epi16::<7>(_mm_and_si128(codes, _mm_set1_epi16(0x7f)));
            let sign = _mm_and_si128(codes, _mm_set1_epi16(i16::MIN));
            _mm256_mul_ps(_mm256_cvtph_ps(_mm_or_si128(sign, rest)), _mm256_set1_ps(256.0))
        }
    }

    #[inline(always)]
    fn field<const BITS: usize>(self, words: __m256, index: usize) -> __m256 {
        // SAFETY: `self` is proof of the instructions.
        unsafe {
            let count = _mm_cvtsi32_si128((index * BITS) as i32);
            let fields = _mm256_srl_epi32(_mm256_castps_si256(words), count);
            _mm256_cvtepi32_ps(_mm256_and_si256(fields, _mm256_set1_epi32((1 << BITS) - 1)))
        }
    }
}

/// For each of eight fields of `BITS` bits, the two bytes that hold it, and its first bit in them.
struct Fields<const BITS: usize>;

impl<const BITS: usize> Fields<BITS> {
    const BYTES: [u8; 32] = {
        // 0x80 is a zero byte.
        let mut bytes = [0x80; 32];
        let mut i = 0;
        while i < 8 {
            bytes[4 * i] = (i * BITS / 8) as u8;
            bytes[4 * i + 1] = (i * BITS / 8 + 1) as u8;
            i += 1;
        }
        bytes
    };
    const SHIFTS: [i32; 8] = {
        let mut shifts = [0; 8];
        let mut i = 0;
        while i < 8 {
            shifts[i] = (i * BITS % 8) as i32;
            i += 1;
        }
        shifts
    };
}

/// Eight fields of `BITS` bits, fewer than 8.
#[inline(always)]
unsafe fn fields<const BITS: usize>(from: *const u8) -> __m256i {
    // SAFETY: the caller's promise: `BITS` bytes.
    unsafe {
        let mask = _mm256_set1_epi32((1 << BITS) - 1);
        if BITS == 4 {
            let word = _mm256_set1_epi32(from.cast::<i32>().read_unaligned());
            let shifts = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
            return _mm256_and_si256(_mm256_srlv_epi32(word, shifts), mask);
        }
        let mut bytes = [0_u8; 8];
        std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), BITS);
        let bytes = _mm256_set1_epi64x(i64::from_le_bytes(bytes));
        let pairs = _mm256_shuffle_epi8(bytes, _mm256_loadu_si256(Fields::<BITS>::BYTES.as_ptr().cast()));
        let shifts = _mm256_loadu_si256(Fields::<BITS>::SHIFTS.as_ptr().cast());
        _mm256_and_si256(_mm256_srlv_epi32(pairs, shifts), mask)
    }
}
