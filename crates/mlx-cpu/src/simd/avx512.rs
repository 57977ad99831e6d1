//! AVX-512: vectors of sixteen numbers.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::arithmetic::{Arithmetic, MAX_LANES};
use super::decoding::Decoding;
use super::integers::{Integers, sums_of_transposed};
use super::packing::{E2M1, E2M1_TWICE};

/// x86-64 with AVX-512 F, BW, DQ, VL, VBMI and VNNI.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
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
unsafe fn bf16_bits(x: __m512) -> __m512i {
    // SAFETY: in all of this file, a value of `Avx512` exists only where the instructions do.
    unsafe {
        let bits = _mm512_castps_si512(x);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
        let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x40_0000));
        _mm512_srli_epi32::<16>(_mm512_mask_mov_epi32(rounded, nan, quiet))
    }
}

macro_rules! lanewise {
    ($($name:ident($($argument:ident),*) = $body:expr;)*) => {$(
        #[inline(always)]
        fn $name(self, $($argument: __m512),*) -> __m512 {
            // SAFETY: `self` is proof of the instructions.
            unsafe { $body }
        }
    )*};
}

impl Arithmetic for Avx512 {
    type F = __m512;
    const LANES: usize = MAX_LANES;
    const REGISTERS: usize = 32;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: `self` is proof of the instructions.
        unsafe { _mm512_set1_ps(x) }
    }

    lanewise! {
        add(a, b) = _mm512_add_ps(a, b);
        sub(a, b) = _mm512_sub_ps(a, b);
        mul(a, b) = _mm512_mul_ps(a, b);
        div(a, b) = _mm512_div_ps(a, b);
        mul_add(a, b, c) = _mm512_fmadd_ps(a, b, c);
        max(a, b) = _mm512_max_ps(a, b);
        min(a, b) = _mm512_min_ps(a, b);
        round(a) = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a);
        scale(a, k) = _mm512_scalef_ps(a, k);
        where_less(a, b, then, other) = _mm512_mask_mov_ps(other, _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), then);
        unless_nan(x, a) = _mm512_mask_mov_ps(a, _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x), x);
        round_f16(x) = _mm512_cvtph_ps(_mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x));
        round_bf16(x) = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bf16_bits(x)));
    }

    #[inline(always)]
    fn sum(self, a: __m512) -> f32 {
        // SAFETY: `self` is proof of the instructions.
        unsafe { _mm512_reduce_add_ps(a) }
    }

    #[inline(always)]
    fn sums(self, x: &[__m512]) -> __m512 {
        let x = &x[..16];
        // SAFETY: `self` is proof of the instructions.
        unsafe {
            // In each quarter of 128 bits: sums of two vectors, then sums of four.
            let mut twos = [_mm512_setzero_pd(); 8];
            for i in 0..8 {
                let (a, b) = (x[2 * i], x[2 * i + 1]);
                let sum = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
                twos[i] = _mm512_castps_pd(sum);
            }
            let mut fours = [_mm512_setzero_ps(); 4];
            for i in 0..4 {
                let (a, b) = (twos[2 * i], twos[2 * i + 1]);
                fours[i] = _mm512_add_ps(
                    _mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                    _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)),
                );
            }
            // Then the sums of the quarters.
            let mut eights = [_mm512_setzero_ps(); 2];
            for i in 0..2 {
                let (a, b) = (fours[2 * i], fours[2 * i + 1]);
                eights[i] =
                    _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
            }
            let [a, b] = eights;
            _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b))
        }
    }

    #[inline(always)]
    fn largest(self, a: __m512) -> f32 {
        // SAFETY: `self` is proof of the instructions.
        unsafe { _mm512_reduce_max_ps(a) }
    }

    #[inline(always)]
    unsafe fn load_f32(self, from: *const f32) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const f16) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, from: *const bf16) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        }
    }

    #[inline(always)]
    unsafe fn store_f32(self, to: *mut f32, x: __m512) {
        // SAFETY: the caller's promise.
        unsafe { _mm512_storeu_ps(to, x) }
    }

    #[inline(always)]
    unsafe fn store_f16(self, to: *mut f16, x: __m512) {
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_si256(to.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x)) }
    }

    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16, x: __m512) {
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(bf16_bits(x))) }
    }

    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize, x: __m512) {
        // SAFETY: the caller's promise; what is masked out is not touched.
        unsafe { _mm512_mask_storeu_ps(to, ((1_u32 << count) - 1) as __mmask16, x) }
    }

    #[inline(always)]
    unsafe fn load_first(self, from: *const f32, count: usize) -> __m512 {
        // SAFETY: the caller's promise; what is masked out is not touched.
        unsafe { _mm512_maskz_loadu_ps(((1_u32 << count) - 1) as __mmask16, from) }
    }

    #[inline(always)]
    fn transpose(self, r: &mut [__m512; MAX_LANES]) {
        // SAFETY: `self` is proof of the instructions.
        unsafe {
            let mut t = [_mm512_setzero_ps(); MAX_LANES];
            // Pairs of rows, then fours. After that each quarter of 128 bits is transposed.
            for i in 0..8 {
                t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
                t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
            }
            for i in 0..4 {
                let four = [t[4 * i], t[4 * i + 1], t[4 * i + 2], t[4 * i + 3]].map(|x| _mm512_castps_pd(x));
                r[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(four[0], four[2]));
                r[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(four[0], four[2]));
                r[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(four[1], four[3]));
                r[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(four[1], four[3]));
            }
            // Then the quarters themselves.
            for i in 0..4 {
                t[i] = _mm512_shuffle_f32x4::<0x88>(r[i], r[i + 4]);
                t[i + 4] = _mm512_shuffle_f32x4::<0xdd>(r[i], r[i + 4]);
                t[i + 8] = _mm512_shuffle_f32x4::<0x88>(r[i + 8], r[i + 12]);
                t[i + 12] = _mm512_shuffle_f32x4::<0xdd>(r[i + 8], r[i + 12]);
            }
            for i in 0..4 {
                r[i] = _mm512_shuffle_f32x4::<0x88>(t[i], t[i + 8]);
                r[i + 4] = _mm512_shuffle_f32x4::<0x88>(t[i + 4], t[i + 12]);
                r[i + 8] = _mm512_shuffle_f32x4::<0xdd>(t[i], t[i + 8]);
                r[i + 12] = _mm512_shuffle_f32x4::<0xdd>(t[i + 4], t[i + 12]);
            }
        }
    }
}

impl Integers for Avx512 {
    type I = __m512i;
    const MULTIPLIES_BYTES: bool = true;

    #[inline(always)]
    fn bits(self, x: __m512) -> __m512i {
        // SAFETY: `self` is proof of the instructions.
        unsafe { _mm512_castps_si512(x) }
    }

    #[inline(always)]
    fn floats(self, x: __m512i) -> __m512 {
        // SAFETY: `self` is proof of the instructions.
        unsafe { _mm512_castsi512_ps(x) }
    }

    #[inline(always)]
    fn plus(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: `self` is proof of the instructions.
        unsafe { _mm512_add_epi32(a, b) }
    }

    #[inline(always)]
    fn sums_of_groups<const N: usize>(self, x: &mut [__m512i; MAX_LANES]) {
        if N < 4 {
            return sums_of_transposed::<Self, N>(self, x);
        }
        // SAFETY: `self` is proof of the instructions.
        unsafe {
            let low = |a, b| _mm512_shuffle_i32x4::<0x88>(a, b);
            let high = |a, b| _mm512_shuffle_i32x4::<0xdd>(a, b);
            // In each quarter of 128 bits: sums of two lanes of two vectors, then of four lanes of four.
            let mut fours = [_mm512_setzero_si512(); 4];
            let mut twos = [_mm512_setzero_si512(); 8];
            for (two, x) in twos.iter_mut().zip(x.chunks_exact(2)) {
                *two = _mm512_add_epi32(_mm512_unpacklo_epi32(x[0], x[1]), _mm512_unpackhi_epi32(x[0], x[1]));
            }
            for (four, x) in fours.iter_mut().zip(twos.chunks_exact(2)) {
                *four =
                    _mm512_add_epi32(_mm512_unpacklo_epi64(x[0], x[1]), _mm512_unpackhi_epi64(x[0], x[1]));
            }
            let (a, b) = (low(fours[0], fours[1]), low(fours[2], fours[3]));
            let (c, d) = (high(fours[0], fours[1]), high(fours[2], fours[3]));
            // Each vector of four has a quarter for each of four vectors: here they are by quarters.
            if N == 4 {
                [x[0], x[1], x[2], x[3]] = [low(a, b), low(c, d), high(a, b), high(c, d)];
                return;
            }
            let (a, b) = (_mm512_add_epi32(a, c), _mm512_add_epi32(b, d));
            if N == 8 {
                [x[0], x[1]] = [low(a, b), high(a, b)];
            } else {
                x[0] = _mm512_add_epi32(low(a, b), high(a, b));
            }
        }
    }

    #[inline(always)]
    unsafe fn store_bits(self, to: *mut f32, x: __m512i) {
        // SAFETY: the caller's promise.
        unsafe { _mm512_storeu_si512(to.cast(), x) }
    }

    #[inline(always)]
    fn and(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: `self` is proof of the instructions.
        unsafe { _mm512_and_si512(a, b) }
    }

    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: `self` is proof of the instructions.
        unsafe { _mm512_or_si512(a, b) }
    }

    #[inline(always)]
    fn shift_left(self, x: __m512i, by: u32) -> __m512i {
        // SAFETY: `self` is proof of the instructions.
        unsafe { _mm512_sll_epi32(x, _mm_cvtsi32_si128(by as i32)) }
    }

    #[inline(always)]
    fn shift_right(self, x: __m512i, by: u32) -> __m512i {
        // SAFETY: `self` is proof of the instructions.
        unsafe { _mm512_srl_epi32(x, _mm_cvtsi32_si128(by as i32)) }
    }

    #[inline(always)]
    fn to_float(self, x: __m512i) -> __m512 {
        // SAFETY: `self` is proof of the instructions.
        unsafe { _mm512_cvtepi32_ps(x) }
    }

    #[inline(always)]
    fn dot(self, a: __m512i, b: __m512i, sums: __m512i) -> __m512i {
        // SAFETY: `self` is proof of the instructions.
        unsafe { dot(a, b, sums) }
    }

    #[inline(always)]
    fn dot_bytes(self, a: __m512i, b: __m512i, sums: __m512i) -> __m512i {
        // SAFETY: `self` is proof of the instructions.
        unsafe { _mm512_dpbusd_epi32(sums, a, b) }
    }

    #[inline(always)]
    fn times_256(self, x: __m512i) -> __m512i {
        // SAFETY: `self` is proof of the instructions.
        unsafe { _mm512_slli_epi32::<8>(x) }
    }

    #[inline(always)]
    unsafe fn store_i16(self, to: *mut i16, x: __m512) {
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_si256(to.cast(), _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(x))) }
    }

    #[inline(always)]
    unsafe fn store_bytes(self, upper: *mut u8, lower: *mut u8, x: __m512) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe {
            let whole = _mm512_cvtps_epi32(x);
            let above = _mm512_srai_epi32::<8>(_mm512_add_epi32(whole, _mm512_set1_epi32(128)));
            _mm_storeu_si128(lower.cast(), _mm512_cvtepi32_epi8(whole));
            _mm_storeu_si128(upper.cast(), _mm512_cvtepi32_epi8(above));
            whole
        }
    }

    #[inline(always)]
    unsafe fn order_bytes(self, from: *const u8, order: [u8; 16], to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe {
            let order = _mm_loadu_si128(order.as_ptr().cast());
            _mm_storeu_si128(to.cast(), _mm_shuffle_epi8(_mm_loadu_si128(from.cast()), order));
        }
    }

    #[inline(always)]
    unsafe fn permute(self, from: *const f32, places: __m512i) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_permutexvar_ps(places, _mm512_loadu_ps(from)) }
    }
}

impl Decoding for Avx512 {
    /// Codes of one word and of the next in turns: the order after a broadcast of 8 bytes and one shift.
    const NIBBLES: [usize; MAX_LANES] = [0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15];

    #[inline(always)]
    fn field8<const BITS: usize>(self, words: __m512i, index: usize) -> __m512i {
        if BITS == 8 {
            return words;
        }
        // SAFETY: `self` is proof of the instructions.
        unsafe {
            let fields = _mm512_srl_epi16(words, _mm_cvtsi32_si128((index * BITS) as i32));
            _mm512_and_si512(fields, _mm512_set1_epi8((1 << BITS) - 1))
        }
    }

    #[inline(always)]
    fn field16<const BITS: usize>(self, words: __m512i, index: usize) -> __m512i {
        // SAFETY: `self` is proof of the instructions.
        unsafe {
            let fields = _mm512_srl_epi16(words, _mm_cvtsi32_si128((index * BITS) as i32));
            _mm512_and_si512(fields, _mm512_set1_epi16((1 << BITS) - 1))
        }
    }

    #[inline(always)]
    fn field16_e2m1(self, words: __m512i, index: usize) -> __m512i {
        // SAFETY: `self` is proof of the instructions. The permutation uses the five low bits only, and the table has
        // its 16 numbers twice.
        unsafe {
            let fields = _mm512_srl_epi16(words, _mm_cvtsi32_si128((index * 4) as i32));
            let table = _mm256_loadu_si256(E2M1_TWICE.as_ptr().cast());
            _mm512_permutexvar_epi16(fields, _mm512_broadcast_i64x4(table))
        }
    }

    #[inline(always)]
    unsafe fn unpack<const BITS: usize>(self, from: *const u8, first: usize) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe {
            let from = from.add(first / 8 * BITS);
            if BITS == 8 {
                return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast())));
            }
            let mask = _mm512_set1_epi32((1 << BITS) - 1);
            _mm512_cvtepi32_ps(_mm512_and_si512(fields::<BITS>(from), mask))
        }
    }

    #[inline(always)]
    unsafe fn unpack_e2m1(self, from: *const u8, first: usize) -> __m512 {
        // SAFETY: the caller's promise. The permutation uses the four low bits only.
        unsafe {
            let table = _mm512_loadu_ps(E2M1.as_ptr());
            _mm512_permutexvar_ps(fields::<4>(from.add(first / 2)), table)
        }
    }

    #[inline(always)]
    unsafe fn nibbles(self, from: *const u8, first: usize) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { table(from.add(first / 2), &WHOLE) }
    }

    #[inline(always)]
    unsafe fn nibbles_e2m1(self, from: *const u8, first: usize) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { table(from.add(first / 2), &E2M1) }
    }

    #[inline(always)]
    unsafe fn unpack_e4m3(self, from: *const u8, first: usize) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe {
            let codes = _mm256_cvtepi8_epi16(_mm_loadu_si128(from.add(first).cast()));
            let rest = _mm256_slli_epi16::<7>(_mm256_and_si256(codes, _mm256_set1_epi16(0x7f)));
            let sign = _mm256_and_si256(codes, _mm256_set1_epi16(i16::MIN));
            _mm512_mul_ps(_mm512_cvtph_ps(_mm256_or_si256(sign, rest)), _mm512_set1_ps(256.0))
        }
    }

    #[inline(always)]
    fn field<const BITS: usize>(self, words: __m512, index: usize) -> __m512 {
        // SAFETY: `self` is proof of the instructions.
        unsafe {
            let count = _mm_cvtsi32_si128((index * BITS) as i32);
            let fields = _mm512_srl_epi32(_mm512_castps_si512(words), count);
            if BITS == 4 {
                return _mm512_permutexvar_ps(fields, _mm512_loadu_ps(WHOLE.as_ptr()));
            }
            _mm512_cvtepi32_ps(_mm512_and_si512(fields, _mm512_set1_epi32((1 << BITS) - 1)))
        }
    }

    #[inline(always)]
    fn field_e2m1(self, words: __m512, index: usize) -> __m512 {
        // SAFETY: `self` is proof of the instructions.
        unsafe {
            let count = _mm_cvtsi32_si128((index * 4) as i32);
            let fields = _mm512_srl_epi32(_mm512_castps_si512(words), count);
            _mm512_permutexvar_ps(fields, _mm512_loadu_ps(E2M1.as_ptr()))
        }
    }
}

/// The instruction `vpdpwssd`. The compiler turns `_mm512_dpwssd_epi32` into a product and a sum. These have half the
/// latency, but half the throughput, too.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn dot(a: __m512i, b: __m512i, mut sums: __m512i) -> __m512i {
    // SAFETY: registers only.
    unsafe {
        std::arch::asm!(
            "vpdpwssd {sums}, {a}, {b}",
            sums = inout(zmm_reg) sums,
            a = in(zmm_reg) a,
            b = in(zmm_reg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sums
}

/// The whole numbers of 4 bits.
const WHOLE: [f32; 16] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];

/// Looks the 16 codes in 8 bytes up in a table, in the order [`Decoding::NIBBLES`]. A permutation of 16 numbers uses
/// the four low bits of a lane only, so it needs no mask and no conversion.
#[inline(always)]
unsafe fn table(from: *const u8, numbers: &[f32; 16]) -> __m512 {
    // SAFETY: the caller's promise: 8 bytes.
    unsafe {
        let words = _mm512_set1_epi64(from.cast::<i64>().read_unaligned());
        let shifts = _mm512_setr_epi32(0, 0, 4, 4, 8, 8, 12, 12, 16, 16, 20, 20, 24, 24, 28, 28);
        _mm512_permutexvar_ps(_mm512_srlv_epi32(words, shifts), _mm512_loadu_ps(numbers.as_ptr()))
    }
}

/// For pairs of fields of `BITS` bits, the bytes that hold a pair, moved into 8 bytes of their own, and the first bit
/// of each field in these.
struct Fields<const BITS: usize>;

impl<const BITS: usize> Fields<BITS> {
    const BYTES: [u8; 64] = {
        let mut bytes = [0; 64];
        let mut i = 0;
        while i < 64 {
            // No field lies behind byte 15.
            let byte = i / 8 * 2 * BITS / 8 + i % 8;
            bytes[i] = if byte < 16 { byte as u8 } else { 15 };
            i += 1;
        }
        bytes
    };
    const SHIFTS: [u8; 64] = {
        let mut shifts = [0; 64];
        let mut i = 0;
        while i < 16 {
            // With 4 bits each group of 8 bytes holds all 16 fields.
            let begin = if BITS == 4 { 0 } else { i / 2 * 2 * BITS / 8 * 8 };
            shifts[4 * i] = (i * BITS - begin) as u8;
            i += 1;
        }
        shifts
    };
}

/// Sixteen fields of `BITS` bits, each in the low bits of its lane. The other bits of a lane have any value.
#[inline(always)]
unsafe fn fields<const BITS: usize>(from: *const u8) -> __m512i {
    // SAFETY: the caller's promise: 2 `BITS` bytes.
    unsafe {
        let pairs = if BITS == 4 {
            _mm512_broadcastq_epi64(_mm_loadl_epi64(from.cast()))
        } else {
            let bytes = _mm_maskz_loadu_epi8(((1_u32 << (2 * BITS)) - 1) as __mmask16, from.cast());
            let windows = _mm512_loadu_si512(Fields::<BITS>::BYTES.as_ptr().cast());
            _mm512_permutexvar_epi8(windows, _mm512_castsi128_si512(bytes))
        };
        _mm512_multishift_epi64_epi8(_mm512_loadu_si512(Fields::<BITS>::SHIFTS.as_ptr().cast()), pairs)
    }
}
