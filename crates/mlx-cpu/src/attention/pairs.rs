//! Attention of bfloat16 with instructions that multiply pairs of bfloat16 (AVX512-BF16).
//!
//! A *word* is a pair of bfloat16 in the memory of a float32. Scores sum over the words of a query and a key, in order.
//! Results sum over words that hold the numbers of two neighbouring values, or the weights of two neighbouring keys, in
//! order within a block of [`BLOCK`] keys, and then over the blocks. Few and many queries keep to the same orders, so
//! that a query gets the same bits however many share its call.
//!
//! With many queries, vectors run over queries: a word of a key meets the words of 32 queries. With few queries, keys
//! are transposed and vectors run over keys; a word of a query meets the words of 16 keys.

use half::bf16;

use super::heads::Heads;
use super::problem::Problem;
use crate::{Element, Isa, Matrix};

/// The number of keys whose products with weights are summed before they are added to a result.
pub(super) const BLOCK: usize = 128;
/// The number of queries in a panel.
pub(super) const LANES: usize = 32;
/// The number of keys that are transposed at a time for few queries.
pub(super) const TRANSPOSED: usize = 64;
/// The number of values that are interleaved at a time for few queries.
pub(super) const INTERLEAVED: usize = 32;
/// The numbers of results for few queries are computed this many at a time, in the order of [`places`].
pub(super) const STRIP: usize = 32;

/// Whether attention is computed with these kernels. They take whole words, so the size of a query is even.
pub(super) fn multiplies<T: Element, H: Heads<T>>(isa: Isa, problem: &Problem<'_, T, H>) -> bool {
    let is_bf16 = H::IN_MEMORY && H::Number::as_bf16(Matrix::contiguous(&[], 0, 0)).is_some();
    cfg!(all(target_arch = "x86_64", not(miri)))
        && isa.multiplies_bf16()
        && is_bf16
        && problem.queries.shape()[3].is_multiple_of(2)
}

/// Where number `i` of a strip of results lies: the order in which two rows of values are interleaved.
pub(super) const fn places() -> [usize; STRIP] {
    let mut all = [0; STRIP];
    let mut i = 0;
    while i < STRIP {
        let (quarter, rest) = (i / 8, i % 8);
        all[i] = rest / 4 * 16 + quarter * 4 + rest % 4;
        i += 1;
    }
    all
}

/// Where the words of few queries, or of their weights, and their scores or sums lie.
#[derive(Clone, Copy)]
#[cfg_attr(
    not(all(target_arch = "x86_64", not(miri))),
    expect(dead_code, reason = "read by the instructions of AVX512-BF16 alone")
)]
pub(super) struct Few {
    /// The words of the first query.
    pub(super) words: *const f32,
    /// The distance of the words of two queries.
    pub(super) words_stride: usize,
    /// The first score, or the first sum.
    pub(super) to: *mut f32,
    /// The distance of the scores or sums of two queries.
    pub(super) to_stride: usize,
    /// The number of queries.
    pub(super) rows: usize,
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
pub(super) use there::*;

#[cfg(not(all(target_arch = "x86_64", not(miri))))]
pub(super) use absent::*;

#[cfg(all(target_arch = "x86_64", not(miri)))]
mod there {
    use std::arch::x86_64::*;

    use super::{Few, INTERLEAVED, LANES, Matrix, STRIP, TRANSPOSED, bf16};
    use crate::simd::{Arithmetic, Avx512, MAX_LANES, prefetch, prefetch_far};

    /// Keys are multiplied with a panel of queries this many at a time, and numbers of values with a panel of weights.
    const STEP: usize = 8;

    /// Asserts once more what [`multiplies`](super::multiplies) has found out.
    fn assert_available() {
        assert!(crate::Isa::Avx512Bf16.is_available(), "this processor has no pairs of bfloat16");
    }

    /// The first `count` of 16 or 32 lanes.
    const fn first(count: usize) -> u32 {
        if count >= 32 { u32::MAX } else { (1 << count) - 1 }
    }

    /// Words as the instructions take them.
    #[inline(always)]
    fn pairs(x: __m512) -> __m512bh {
        // SAFETY: the two types of vectors differ in name only.
        unsafe { std::mem::transmute(x) }
    }

    /// The same vector as bits.
    #[inline(always)]
    fn bits(x: __m512bh) -> __m512i {
        // SAFETY: the two types of vectors differ in name only.
        unsafe { std::mem::transmute(x) }
    }

    /// Rounds to bfloat16 and widens again.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn rounded(x: __m512) -> __m512 {
        // SAFETY: the two types of vectors differ in name only.
        let narrow: __m256i = unsafe { std::mem::transmute(_mm512_cvtneps_pbh(x)) };
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(narrow)))
    }

    /// Fills a panel of queries, word by word, and for each word, query by query: the numbers times `scale`, rounded.
    /// Missing queries become zeros.
    pub(in crate::attention) fn pack_queries(rows: &[&[bf16]], scale: f32, panel: &mut [f32]) {
        assert_available();
        let size = rows.first().map_or(0, |row| row.len());
        assert!(rows.len() <= LANES && rows.iter().all(|row| row.len() == size));
        assert!(size.is_multiple_of(2) && panel.len() == size / 2 * LANES);
        // SAFETY: the processor has the instructions; the lengths are as asserted.
        unsafe { pack_queries_with(rows, size, scale, panel.as_mut_ptr()) }
    }

    /// # Safety
    ///
    /// There are at most [`LANES`] rows of `size` numbers, and `size / 2` times [`LANES`] words can be written.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn pack_queries_with(rows: &[&[bf16]], size: usize, scale: f32, panel: *mut f32) {
        // SAFETY: this function is entered only where the instructions are there.
        let s = unsafe { Avx512::new() };
        let scale = _mm512_set1_ps(scale);
        for half in 0..LANES / 16 {
            for word in (0..size / 2).step_by(16) {
                let count = 16.min(size / 2 - word);
                let mut block = [_mm512_setzero_ps(); MAX_LANES];
                for (to, row) in block.iter_mut().zip(rows.iter().skip(16 * half)) {
                    // SAFETY: `count` words of the row.
                    let x = unsafe {
                        _mm512_maskz_loadu_epi32(first(count) as __mmask16, row.as_ptr().add(2 * word).cast())
                    };
                    let low = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(x));
                    let high =
                        _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(0xffff_0000_u32 as i32)));
                    *to = _mm512_castsi512_ps(joined(_mm512_mul_ps(low, scale), _mm512_mul_ps(high, scale)));
                }
                s.transpose(&mut block);
                for (i, block) in block.iter().enumerate().take(count) {
                    // SAFETY: within the panel.
                    unsafe { _mm512_storeu_ps(panel.add((word + i) * LANES + 16 * half), *block) };
                }
            }
        }
    }

    /// Words of two vectors of float32, rounded: those of `low` in the lower halves.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn joined(low: __m512, high: __m512) -> __m512i {
        let order = _mm512_loadu_words(&JOINED);
        _mm512_permutexvar_epi16(order, bits(_mm512_cvtne2ps_pbh(high, low)))
    }

    /// Numbers 0, 16, 1, 17 and so on.
    static JOINED: [u16; 32] = {
        let mut all = [0; 32];
        let mut i = 0;
        while i < 32 {
            all[i] = (i / 2 + i % 2 * 16) as u16;
            i += 1;
        }
        all
    };

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn _mm512_loadu_words(from: &[u16; 32]) -> __m512i {
        // SAFETY: 64 bytes.
        unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
    }

    /// Writes the scores of keys for a panel of queries, rounded to bfloat16: key by key. `to` has room for a multiple
    /// of 8 keys.
    pub(in crate::attention) fn scores(keys: Matrix<'_, bf16>, queries: &[f32], to: &mut [f32]) {
        assert_available();
        let words = keys.columns() / 2;
        assert!(queries.len() == words * LANES && keys.columns().is_multiple_of(2));
        assert!(to.len() >= keys.rows().next_multiple_of(STEP) * LANES);
        for (from, to) in (0..keys.rows()).step_by(STEP).zip(to.chunks_exact_mut(STEP * LANES)) {
            let rows = keys.row_starts::<STEP>(from).map(|row| row.cast::<f32>());
            // SAFETY: the processor has the instructions; each key has `words` words, and the lengths are as asserted.
            unsafe { products::<true>(rows, 1, words, queries.as_ptr(), to.as_mut_ptr()) };
        }
    }

    /// Interleaves neighbouring values: each word holds a number of one value and of the next one. The words of two
    /// values begin `stride` words behind those of the two before. Behind an odd number of values there are zeros.
    pub(in crate::attention) fn interleave(values: Matrix<'_, bf16>, to: &mut [f32], stride: usize) {
        assert_available();
        let size = values.columns();
        assert!(stride >= size.next_multiple_of(STRIP) && to.len() >= values.rows().div_ceil(2) * stride);
        for (i, to) in (0..values.rows()).step_by(2).zip(to.chunks_mut(stride)) {
            let [a, b] = values.row_starts::<2>(i);
            // SAFETY: the processor has the instructions; the lengths are as asserted.
            unsafe { interleave_two::<true>(a, b, i + 1 < values.rows(), size, to.as_mut_ptr()) };
        }
    }

    /// Interleaves two values, or one and zeros. With `ORDERED`, number by number; else strip by strip, each in the
    /// order of [`places`](super::places).
    ///
    /// # Safety
    ///
    /// `size` numbers can be read at `a` and `b`, and as many words, in whole strips, can be written at `to`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn interleave_two<const ORDERED: bool>(
        a: *const bf16,
        b: *const bf16,
        both: bool,
        size: usize,
        to: *mut f32,
    ) {
        for at in (0..size).step_by(STRIP) {
            let some = first(size - at);
            // SAFETY: the caller's promise; what is masked out is not touched.
            unsafe {
                let a = _mm512_maskz_loadu_epi16(some, a.add(at).cast());
                let b = _mm512_maskz_loadu_epi16(if both { some } else { 0 }, b.add(at).cast());
                let (low, high) = (_mm512_unpacklo_epi16(a, b), _mm512_unpackhi_epi16(a, b));
                let [low, high] = if ORDERED {
                    let order = |first| {
                        let quarters = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
                        _mm512_add_epi64(quarters, _mm512_set1_epi64(first))
                    };
                    [0, 4].map(|first| _mm512_permutex2var_epi64(low, order(first), high))
                } else {
                    [low, high]
                };
                _mm512_storeu_si512(to.add(at).cast(), low);
                _mm512_storeu_si512(to.add(at + 16).cast(), high);
            }
        }
    }

    /// Replaces exponentials, key by key for a panel of queries, by words of weights: products with the factors of the
    /// queries, rounded, of two keys each. Behind an odd number of keys there are zeros. Returns the words.
    pub(in crate::attention) fn weights<'a>(powers: &'a mut [f32], factors: &[f32]) -> &'a [f32] {
        assert_available();
        assert!(powers.len().is_multiple_of(LANES) && factors.len() == LANES);
        let keys = powers.len() / LANES;
        // SAFETY: the processor has the instructions; the lengths are as asserted.
        unsafe { weights_with(powers.as_mut_ptr(), keys, factors.as_ptr()) };
        &powers[..keys.div_ceil(2) * LANES]
    }

    /// # Safety
    ///
    /// `keys` times [`LANES`] numbers can be read and written at `powers`, and [`LANES`] read at `factors`.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn weights_with(powers: *mut f32, keys: usize, factors: *const f32) {
        for half in [0, 16] {
            // SAFETY: the caller's promise. Words lie before the exponentials that are still to be read.
            unsafe {
                let factor = _mm512_loadu_ps(factors.add(half));
                let weight =
                    |key: usize| _mm512_mul_ps(_mm512_loadu_ps(powers.add(key * LANES + half)), factor);
                for pair in 0..keys / 2 {
                    let words = joined(weight(2 * pair), weight(2 * pair + 1));
                    _mm512_storeu_si512(powers.add(pair * LANES + half).cast(), words);
                }
                if keys % 2 == 1 {
                    let words = joined(weight(keys - 1), _mm512_setzero_ps());
                    _mm512_storeu_si512(powers.add(keys / 2 * LANES + half).cast(), words);
                }
            }
        }
    }

    /// Adds the sums of a block to the results of a panel of queries, number by number: products of interleaved values
    /// and words of weights.
    pub(in crate::attention) fn sums(values: &[f32], stride: usize, weights: &[f32], to: &mut [f32]) {
        assert_available();
        let (pairs, numbers) = (weights.len() / LANES, to.len() / LANES);
        assert!(numbers.is_multiple_of(STEP) && numbers <= stride && values.len() >= pairs * stride);
        for (i, to) in to.chunks_exact_mut(STEP * LANES).enumerate() {
            let rows = std::array::from_fn(|row| values[i * STEP + row..].as_ptr());
            // SAFETY: the processor has the instructions, and the lengths are as asserted.
            unsafe { products::<false>(rows, stride, pairs, weights.as_ptr(), to.as_mut_ptr()) };
        }
    }

    /// The products of 8 rows of words, which lie `of_step` apart, with a panel of words. Rounds and writes them, or
    /// adds them to `to`.
    ///
    /// # Safety
    ///
    /// `steps` words can be read of each row, as many times [`LANES`] at `panel`, and 8 times [`LANES`] numbers can be
    /// read and written at `to`.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn products<const SCORES: bool>(
        rows: [*const f32; STEP],
        of_step: usize,
        steps: usize,
        panel: *const f32,
        to: *mut f32,
    ) {
        let mut sums = [[_mm512_setzero_ps(); 2]; STEP];
        for step in 0..steps {
            // SAFETY: the caller's promise.
            unsafe {
                let at = panel.add(step * LANES);
                let two = [pairs(_mm512_loadu_ps(at)), pairs(_mm512_loadu_ps(at.add(16)))];
                for (row, sums) in rows.iter().zip(&mut sums) {
                    let word = pairs(_mm512_set1_ps(row.add(step * of_step).read_unaligned()));
                    sums[0] = _mm512_dpbf16_ps(sums[0], word, two[0]);
                    sums[1] = _mm512_dpbf16_ps(sums[1], word, two[1]);
                }
            }
        }
        for (i, sums) in sums.into_iter().enumerate() {
            for (sum, half) in sums.into_iter().zip([0, 16]) {
                // SAFETY: the caller's promise.
                unsafe {
                    let to = to.add(i * LANES + half);
                    let sum = if SCORES { rounded(sum) } else { _mm512_add_ps(_mm512_loadu_ps(to), sum) };
                    _mm512_storeu_ps(to, sum);
                }
            }
        }
    }

    /// [`formula::weight`](crate::formula::weight) of numbers that are not above 0, bit for bit: without the steps that
    /// only larger numbers need.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn weight(x: __m512) -> __m512 {
        let power = _mm512_mul_ps(x, _mm512_set1_ps(std::f32::consts::LOG2_E));
        // The sum is exact where it matters: its result lies nearer to 0.
        let half = _mm512_add_ps(power, _mm512_set1_ps(0.5));
        let whole = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(half);
        let part = _mm512_sub_ps(power, whole);
        let mut y = _mm512_set1_ps(1.535_336_2e-4);
        for coefficient in
            [1.339_887_4e-3, 9.618_437e-3, 5.550_332_5e-2, 2.402_264_8e-1, 6.931_472e-1, 1.0_f32]
        {
            y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(coefficient));
        }
        let low = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(x, _mm512_set1_ps(-69.0));
        _mm512_mask_mov_ps(_mm512_scalef_ps(y, whole), low, _mm512_setzero_ps())
    }

    /// Replaces each score of a panel by its exponential, less the largest score of its query, and the largest scores by
    /// one over the sum of the exponentials. `sinks` are scores without a key.
    ///
    /// Sums in the order in which few queries are summed: keys 16 apart together, then these sums in halves.
    pub(in crate::attention) fn powers(scores: &mut [f32], largest: &mut [f32], sinks: Option<[f32; LANES]>) {
        assert_available();
        assert!(scores.len().is_multiple_of(LANES) && largest.len() == LANES);
        let keys = scores.len() / LANES;
        for half in [0, 16] {
            let sinks = sinks.as_ref().map(|sinks| &sinks[half..]);
            let (scores, largest) = (scores.as_mut_ptr(), &mut largest[half..]);
            // SAFETY: the processor has the instructions; the lengths are as asserted.
            unsafe { powers_of_half(scores.add(half), keys, largest, sinks) };
        }
    }

    /// # Safety
    ///
    /// A vector can be read and written for each key, [`LANES`] numbers apart; the slices have a vector each.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn powers_of_half(scores: *mut f32, keys: usize, largest: &mut [f32], sinks: Option<&[f32]>) {
        let mut sums = [_mm512_setzero_ps(); 16];
        // SAFETY: the caller's promise.
        unsafe {
            let top = _mm512_loadu_ps(largest.as_ptr());
            let one = |key: usize| {
                let at = scores.add(key * LANES);
                let power = weight(_mm512_sub_ps(_mm512_loadu_ps(at), top));
                _mm512_storeu_ps(at, power);
                power
            };
            for key in (0..keys / 16 * 16).step_by(16) {
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm512_add_ps(*sum, one(key + i));
                }
            }
            for (key, sum) in (keys / 16 * 16..keys).zip(&mut sums) {
                *sum = _mm512_add_ps(*sum, one(key));
            }
            for width in [8, 4, 2, 1] {
                for i in 0..width {
                    sums[i] = _mm512_add_ps(sums[i], sums[i + width]);
                }
            }
            if let Some(sinks) = sinks {
                let s = Avx512::new();
                let power = crate::formula::exp(s, _mm512_sub_ps(_mm512_loadu_ps(sinks.as_ptr()), top));
                sums[0] = _mm512_add_ps(sums[0], power);
            }
            _mm512_storeu_ps(largest.as_mut_ptr(), _mm512_div_ps(_mm512_set1_ps(1.0), sums[0]));
        }
    }

    /// Calls a function with the number of queries that are left, at most 4, as a constant.
    macro_rules! by_four {
        ($few:expr, $function:ident, $($argument:expr),*) => {
            let mut few = $few;
            while few.rows > 0 {
                let rows = few.rows.min(4);
                match rows {
                    1 => $function::<1>(few, $($argument),*),
                    2 => $function::<2>(few, $($argument),*),
                    3 => $function::<3>(few, $($argument),*),
                    _ => $function::<4>(few, $($argument),*),
                }
                few.words = few.words.wrapping_add(rows * few.words_stride);
                few.to = few.to.wrapping_add(rows * few.to_stride);
                few.rows -= rows;
            }
        };
    }

    /// Writes the scores of up to [`TRANSPOSED`] keys, rounded to bfloat16. Transposes the keys, to `scratch` unless one
    /// step of [`by_four`] takes all queries.
    ///
    /// # Safety
    ///
    /// The words of the queries can be read, as many as a key has, and the scores written.
    pub(in crate::attention) unsafe fn few_scores(keys: Matrix<'_, bf16>, few: Few, scratch: &mut [f32]) {
        assert_available();
        let words = keys.columns() / 2;
        assert!(keys.rows() <= TRANSPOSED && scratch.len() >= TRANSPOSED * words);
        let scratch = scratch.as_mut_ptr();
        let at_once = if few.rows <= 4 { keys.rows() / 16 * 16 } else { 0 };
        // SAFETY: the processor has the instructions; the caller's promise and the lengths that were just asserted.
        unsafe {
            for from in (0..at_once).step_by(16) {
                let few = Few { to: few.to.add(from), ..few };
                by_four!(few, few_at_once, keys.row_starts::<1>(from)[0], keys.row_stride(), words);
            }
            let rest = keys.part(at_once, keys.rows() - at_once);
            for (group, from) in (0..TRANSPOSED).step_by(16).zip((0..rest.rows()).step_by(16)) {
                transpose(rest.row_starts::<16>(from), keys.row_stride(), words, scratch.add(group * words));
            }
            if rest.rows() > 0 {
                let few = Few { to: few.to.add(at_once), ..few };
                let behind = keys.as_ptr().wrapping_add(TRANSPOSED * keys.row_stride());
                by_four!(few, few_products, scratch, words, rest.rows(), behind);
            }
        }
    }

    /// Cache lines that are prefetched in the order of memory: rows of `lines` lines, which begin `stride` numbers apart.
    struct Stream {
        at: *const bf16,
        line: usize,
        lines: usize,
        skip: usize,
    }

    impl Stream {
        /// From a row on.
        #[inline(always)]
        fn new(at: *const bf16, stride: usize, lines: usize) -> Self {
            Self { at, line: 0, lines, skip: stride.wrapping_sub(lines * STRIP) }
        }

        #[inline(always)]
        fn prefetch(&mut self, count: usize) {
            for _ in 0..count {
                prefetch(self.at);
                self.line += 1;
                let is_last = self.line == self.lines;
                self.line = if is_last { 0 } else { self.line };
                self.at = self.at.wrapping_add(STRIP).wrapping_add(if is_last { self.skip } else { 0 });
            }
        }
    }

    /// The distance of prefetched keys and values from those that are read, where they are read once.
    const AHEAD: usize = 32;

    /// The scores of `ROWS` queries and 16 keys, which are transposed in registers.
    ///
    /// # Safety
    ///
    /// As for [`few_scores`]; 16 keys, `stride` numbers apart, have `words` words.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn few_at_once<const ROWS: usize>(few: Few, keys: *const bf16, stride: usize, words: usize) {
        // SAFETY: this function is entered only where the instructions are there.
        let s = unsafe { Avx512::new() };
        let mut stream = Stream::new(keys.wrapping_add(AHEAD * stride), stride, words.div_ceil(16));
        let mut sums = [_mm512_setzero_ps(); ROWS];
        let mut block = [_mm512_setzero_ps(); MAX_LANES];
        let whole = words / 16 * 16;
        // SAFETY: the caller's promise; what is masked out is not touched.
        unsafe {
            let add = |sums: &mut [__m512; ROWS], word: usize, keys: __m512| {
                for (row, sum) in sums.iter_mut().enumerate() {
                    let query = _mm512_set1_ps(*few.words.add(row * few.words_stride + word));
                    *sum = _mm512_dpbf16_ps(*sum, pairs(query), pairs(keys));
                }
            };
            for at in (0..whole).step_by(16) {
                for (i, to) in block.iter_mut().enumerate() {
                    *to = _mm512_loadu_ps(keys.add(i * stride + 2 * at).cast());
                }
                stream.prefetch(16);
                s.transpose(&mut block);
                for (i, keys) in block.iter().enumerate() {
                    add(&mut sums, at + i, *keys);
                }
            }
            if whole < words {
                let some = first(words - whole) as __mmask16;
                for (i, to) in block.iter_mut().enumerate() {
                    *to = _mm512_maskz_loadu_ps(some, keys.add(i * stride + 2 * whole).cast());
                }
                stream.prefetch(16);
                s.transpose(&mut block);
                for (i, keys) in block.iter().enumerate().take(words - whole) {
                    add(&mut sums, whole + i, *keys);
                }
            }
            for (row, sum) in sums.into_iter().enumerate() {
                _mm512_storeu_ps(few.to.add(row * few.to_stride), rounded(sum));
            }
        }
    }

    /// Writes word by word the words of 16 keys.
    ///
    /// # Safety
    ///
    /// `words` words can be read of each row, and 16 times as many written at `to`.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn transpose(rows: [*const bf16; 16], stride: usize, words: usize, to: *mut f32) {
        // SAFETY: this function is entered only where the instructions are there.
        let s = unsafe { Avx512::new() };
        let mut stream = Stream::new(rows[0].wrapping_add(16 * stride), stride, words.div_ceil(16));
        for at in (0..words).step_by(16) {
            let count = 16.min(words - at);
            // SAFETY: the caller's promise; what is masked out is not touched.
            unsafe {
                let mut block = [_mm512_setzero_ps(); MAX_LANES];
                for (to, row) in block.iter_mut().zip(rows) {
                    *to = _mm512_maskz_loadu_ps(first(count) as __mmask16, row.add(2 * at).cast());
                }
                stream.prefetch(16);
                s.transpose(&mut block);
                if count == 16 {
                    for (i, block) in block.iter().enumerate() {
                        _mm512_storeu_ps(to.add((at + i) * 16), *block);
                    }
                } else {
                    for (i, block) in block.iter().enumerate().take(count) {
                        _mm512_storeu_ps(to.add((at + i) * 16), *block);
                    }
                }
            }
        }
    }

    /// The scores of `ROWS` queries and up to [`TRANSPOSED`] transposed keys.
    ///
    /// # Safety
    ///
    /// As for [`few_scores`]; there are `words` words for each of [`TRANSPOSED`] keys. Any memory may lie `behind` them.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn few_products<const ROWS: usize>(
        few: Few,
        keys: *const f32,
        words: usize,
        count: usize,
        behind: *const bf16,
    ) {
        const GROUPS: usize = TRANSPOSED / 16;
        // The keys behind these, a line for each 32 of their numbers.
        let mut sums = [[_mm512_setzero_ps(); GROUPS]; ROWS];
        for word in 0..words {
            // SAFETY: the caller's promise. Memory behind the last key has any value, and its scores are not written.
            unsafe {
                for line in 0..TRANSPOSED / 16 {
                    prefetch_far(behind.wrapping_add((word * TRANSPOSED / 16 + line) * STRIP));
                }
                let mut groups = [_mm512_setzero_ps(); GROUPS];
                for (i, group) in groups.iter_mut().enumerate() {
                    *group = _mm512_loadu_ps(keys.add((i * words + word) * 16));
                }
                for (row, sums) in sums.iter_mut().enumerate() {
                    let query = pairs(_mm512_set1_ps(*few.words.add(row * few.words_stride + word)));
                    for (sum, group) in sums.iter_mut().zip(groups) {
                        *sum = _mm512_dpbf16_ps(*sum, query, pairs(group));
                    }
                }
            }
        }
        for (row, sums) in sums.into_iter().enumerate() {
            for (sum, at) in sums.into_iter().zip((0..count).step_by(16)) {
                let some = first(16.min(count - at)) as __mmask16;
                // SAFETY: the caller's promise; what is masked out is not touched.
                unsafe {
                    _mm512_mask_storeu_ps(few.to.add(row * few.to_stride + at), some, rounded(sum));
                }
            }
        }
    }

    /// Adds up to [`INTERLEAVED`] values times weights to the sums of queries, strip by strip in the order of
    /// [`places`](super::places). Interleaves the values in `scratch`.
    ///
    /// # Safety
    ///
    /// The words of the weights can be read, and the sums read and written, in whole strips.
    pub(in crate::attention) unsafe fn few_sums(values: Matrix<'_, bf16>, few: Few, scratch: &mut [f32]) {
        assert_available();
        let (size, count) = (values.columns(), values.rows());
        let stride = size.next_multiple_of(STRIP);
        assert!(count <= INTERLEAVED && scratch.len() >= INTERLEAVED / 2 * stride);
        let scratch = scratch.as_mut_ptr();
        let values_stride = values.row_stride();
        // SAFETY: the processor has the instructions; the caller's promise and the lengths that were just asserted.
        unsafe {
            let [start] = values.row_starts::<1>(0);
            if few.rows <= 4 && count == INTERLEAVED {
                by_four!(few, few_weighted_at_once, start, values_stride, size);
                return;
            }
            let mut stream =
                Stream::new(start.wrapping_add(AHEAD * values_stride), values_stride, size.div_ceil(STRIP));
            for i in (0..count).step_by(2) {
                let [a, b] = values.row_starts::<2>(i);
                stream.prefetch(2 * size.div_ceil(STRIP));
                interleave_two::<false>(a, b, i + 1 < count, size, scratch.add(i / 2 * stride));
            }
            by_four!(few, few_weighted, scratch, stride, count.div_ceil(2));
        }
    }

    /// [`few_sums`] for `ROWS` queries and [`INTERLEAVED`] values, which are interleaved in registers.
    ///
    /// # Safety
    ///
    /// As for [`few_sums`]; the values, `stride` numbers apart, have `size` numbers.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn few_weighted_at_once<const ROWS: usize>(
        few: Few,
        values: *const bf16,
        stride: usize,
        size: usize,
    ) {
        let mut stream = Stream::new(values.wrapping_add(AHEAD * stride), stride, size.div_ceil(STRIP));
        for strip in (0..size).step_by(STRIP) {
            let some = first(size - strip);
            let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
            // SAFETY: the caller's promise; what is masked out is not touched.
            unsafe {
                for (row, sums) in sums.iter_mut().enumerate() {
                    let from = few.to.add(row * few.to_stride + strip);
                    *sums = [_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(16))];
                }
                for step in 0..INTERLEAVED / 2 {
                    let from = values.add(2 * step * stride + strip);
                    let a = _mm512_maskz_loadu_epi16(some, from.cast());
                    let b = _mm512_maskz_loadu_epi16(some, from.add(stride).cast());
                    stream.prefetch(2);
                    let two = [_mm512_unpacklo_epi16(a, b), _mm512_unpackhi_epi16(a, b)];
                    let two = two.map(|x| pairs(_mm512_castsi512_ps(x)));
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let weights = pairs(_mm512_set1_ps(*few.words.add(row * few.words_stride + step)));
                        sums[0] = _mm512_dpbf16_ps(sums[0], weights, two[0]);
                        sums[1] = _mm512_dpbf16_ps(sums[1], weights, two[1]);
                    }
                }
                for (row, sums) in sums.into_iter().enumerate() {
                    let to = few.to.add(row * few.to_stride + strip);
                    _mm512_storeu_ps(to, sums[0]);
                    _mm512_storeu_ps(to.add(16), sums[1]);
                }
            }
        }
    }

    /// [`few_sums`] for `ROWS` queries and values that are interleaved.
    ///
    /// # Safety
    ///
    /// As for [`few_sums`]; there are `pairs` times `stride` words of values.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn few_weighted<const ROWS: usize>(few: Few, values: *const f32, stride: usize, steps: usize) {
        for strip in (0..stride).step_by(STRIP) {
            let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
            // SAFETY: the caller's promise.
            unsafe {
                for (row, sums) in sums.iter_mut().enumerate() {
                    let from = few.to.add(row * few.to_stride + strip);
                    *sums = [_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(16))];
                }
                for step in 0..steps {
                    let from = values.add(step * stride + strip);
                    let two = [pairs(_mm512_loadu_ps(from)), pairs(_mm512_loadu_ps(from.add(16)))];
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let weights = pairs(_mm512_set1_ps(*few.words.add(row * few.words_stride + step)));
                        sums[0] = _mm512_dpbf16_ps(sums[0], weights, two[0]);
                        sums[1] = _mm512_dpbf16_ps(sums[1], weights, two[1]);
                    }
                }
                for (row, sums) in sums.into_iter().enumerate() {
                    let to = few.to.add(row * few.to_stride + strip);
                    _mm512_storeu_ps(to, sums[0]);
                    _mm512_storeu_ps(to.add(16), sums[1]);
                }
            }
        }
    }
}

/// What other processors have: nothing. [`multiplies`] is false there.
#[cfg(not(all(target_arch = "x86_64", not(miri))))]
mod absent {
    use super::{Few, LANES, Matrix, bf16};

    const MESSAGE: &str = "this processor has no pairs of bfloat16";

    pub(in crate::attention) fn pack_queries(_: &[&[bf16]], _: f32, _: &mut [f32]) {
        unreachable!("{MESSAGE}")
    }

    pub(in crate::attention) fn scores(_: Matrix<'_, bf16>, _: &[f32], _: &mut [f32]) {
        unreachable!("{MESSAGE}")
    }

    pub(in crate::attention) fn interleave(_: Matrix<'_, bf16>, _: &mut [f32], _: usize) {
        unreachable!("{MESSAGE}")
    }

    pub(in crate::attention) fn weights<'a>(_: &'a mut [f32], _: &[f32]) -> &'a [f32] {
        unreachable!("{MESSAGE}")
    }

    pub(in crate::attention) fn sums(_: &[f32], _: usize, _: &[f32], _: &mut [f32]) {
        unreachable!("{MESSAGE}")
    }

    pub(in crate::attention) fn powers(_: &mut [f32], _: &mut [f32], _: Option<[f32; LANES]>) {
        unreachable!("{MESSAGE}")
    }

    pub(in crate::attention) unsafe fn few_scores(_: Matrix<'_, bf16>, _: Few, _: &mut [f32]) {
        unreachable!("{MESSAGE}")
    }

    pub(in crate::attention) unsafe fn few_sums(_: Matrix<'_, bf16>, _: Few, _: &mut [f32]) {
        unreachable!("{MESSAGE}")
    }
}
