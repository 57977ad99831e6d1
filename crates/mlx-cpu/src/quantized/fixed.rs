//! Activations as whole numbers of 16 bits.
//!
//! Codes are whole numbers. Where activations are whole numbers too, a processor multiplies twice as
//! many of them at a time as of float32, without converting codes, and the sum of a group is exact.
//! So a group of halves is brought to fixed point, with the smallest power of two for each group that lets its
//! largest number be less than 32640 = 127 * 256 + 128 units, the first that is no two bytes with signs. A
//! bfloat16 has 8 bits: it keeps all of them where it is at least 1/127 of the largest, a float16 of 11 bits where
//! it is at least 1/15; what is smaller is off by at most 1/32640 of the largest. No unit is below 2^-126, the
//! smallest normal number.

use super::Codes;
use crate::Integers;

/// Added to the bits of a float32, makes its exponent the next one where it is at least 255/256 of the next power of
/// two, as 32640 is.
const UP: u32 = 1 << 16;

/// Brings a group to fixed point: gives the power of two that one unit is, and the sum of the group.
///
/// Where a number is infinite or NaN, the power is NaN.
#[inline(always)]
fn fix<S: Integers>(s: S, x: &[f32], to: &mut [i16]) -> (f32, f32) {
    let (mut largest, mut total, mut poison) = (s.zero(), s.zero(), s.zero());
    for x in x.chunks_exact(S::LANES) {
        let x = s.load(x);
        largest = s.max(largest, s.max(x, s.sub(s.zero(), x)));
        total = s.add(total, x);
        // 0 for every finite number.
        poison = s.mul_add(x, s.zero(), poison);
    }
    // The largest is below 32640 units. Both this power and its inverse are normal numbers.
    let exponent = (s.largest(largest).to_bits().wrapping_add(UP) >> 23 & 0xff).max(15) - 14;
    let (unit, inverse) = (f32::from_bits(exponent << 23), f32::from_bits((254 - exponent) << 23));
    for (x, to) in x.chunks_exact(S::LANES).zip(to.chunks_exact_mut(S::LANES)) {
        // SAFETY: a chunk of `LANES`.
        unsafe { s.store_i16(to.as_mut_ptr(), s.mul(s.load(x), s.splat(inverse))) };
    }
    (unit + s.sum(poison), s.sum(total))
}

/// How many numbers of 4 bytes the whole numbers of a row take.
pub(super) const fn halved(columns: usize) -> usize {
    columns / 2
}

/// Numbers of 4 bytes as twice as many of 2.
#[inline(always)]
fn as_whole(numbers: &mut [f32]) -> &mut [i16] {
    // SAFETY: the same memory; a whole number has any bits.
    unsafe { std::slice::from_raw_parts_mut(numbers.as_mut_ptr().cast(), 2 * numbers.len()) }
}

/// Numbers of 4 bytes as these bytes.
#[inline(always)]
fn as_bytes(numbers: &mut [f32]) -> &mut [i8] {
    // SAFETY: the same memory; a byte has any bits.
    unsafe { std::slice::from_raw_parts_mut(numbers.as_mut_ptr().cast(), 4 * numbers.len()) }
}

/// How a row of activations is laid out in whole numbers.
pub(super) trait Layout {
    /// Bits of the codes beside them: 2, 4 or 8.
    fn bits(&self) -> usize;

    /// [`write`](Self::write) where a word of 16 bits has `FIELDS` codes.
    fn write_fields<S: Integers, const FIELDS: usize>(
        &self,
        s: S,
        unit: f32,
        x: &[f32],
        scratch: &mut [f32],
        to: &mut [f32],
    );

    /// Writes a row; `unit` is that of the codes. `scratch` has [`halved`] numbers.
    #[inline(always)]
    fn write<S: Integers>(&self, s: S, unit: f32, x: &[f32], scratch: &mut [f32], to: &mut [f32]) {
        match self.bits() {
            2 => self.write_fields::<S, 8>(s, unit, x, scratch, to),
            4 => self.write_fields::<S, 4>(s, unit, x, scratch, to),
            _ => self.write_fields::<S, 2>(s, unit, x, scratch, to),
        }
    }
}

/// A row beside codes in memory, as few rows are multiplied: vector after vector.
///
/// A word of 32 bits has two times `fields` codes, and a vector of words is taken apart into `fields`
/// vectors of pairs; in lane `i` of the `j`-th are codes `j` and `fields + j` of word `i`. Activations
/// lie in the same order.
///
/// Where products of bytes are used ([`Integers::MULTIPLIES_BYTES`], [`Codes::are_plain`]), a vector of words is taken apart into half as
/// many vectors of bytes; in lane `i` of the `j`-th are codes `j`, `fields / 2 + j` and so on of word `i`.
/// Activations lie in the same order, first the upper bytes of all these vectors, then the lower ones: a
/// number is 256 times the one and the other, both with a sign.
///
/// Behind them the power of two for each lane of each vector of words, then the sum of each group.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    columns: usize,
    group: usize,
    codes: Codes,
    /// Where the powers of two begin.
    pub(super) units: usize,
    /// Where the sums begin.
    pub(super) sums: usize,
    /// The length of all.
    pub(super) length: usize,
}

impl Row {
    /// The layout beside rows of so many codes of this kind, in vectors of so many words.
    pub(super) const fn new(columns: usize, group: usize, codes: Codes, lanes: usize) -> Self {
        let bits = codes.bits();
        let words = (columns * bits / 32).next_multiple_of(lanes);
        let units = words * (16 / bits);
        let sums = units + words;
        Self { columns, group, codes, units, sums, length: sums + columns / group }
    }

    /// Codes in a row.
    pub(super) const fn columns(&self) -> usize {
        self.columns
    }
}

impl Layout for Row {
    fn bits(&self) -> usize {
        self.codes.bits()
    }

    #[inline(always)]
    fn write_fields<S: Integers, const FIELDS: usize>(
        &self,
        s: S,
        unit: f32,
        x: &[f32],
        scratch: &mut [f32],
        to: &mut [f32],
    ) {
        let (pairs, rest) = to.split_at_mut(self.units);
        let (units, sums) = rest.split_at_mut(self.sums - self.units);
        let whole = as_whole(scratch);
        let lanes = self.group * self.bits() / 32;
        for (index, (x, whole)) in
            x.chunks_exact(self.group).zip(whole.chunks_exact_mut(self.group)).enumerate()
        {
            let (power, sum) = fix(s, x, whole);
            units[index * lanes..][..lanes].fill(power * unit);
            sums[index] = sum;
        }
        let used = self.columns / self.group * lanes;
        units[used..].fill(0.0);
        if const { S::MULTIPLIES_BYTES } && self.codes.are_plain() {
            // Of each half.
            let (bytes, fields) = (S::LANES * FIELDS * 2, FIELDS / 2);
            let blocks = as_bytes(pairs).chunks_exact_mut(2 * bytes);
            for (to, whole) in blocks.zip(whole[..self.columns].chunks(bytes)) {
                if whole.len() < bytes {
                    to.fill(0);
                }
                let (upper, lower) = to.split_at_mut(bytes);
                let vectors = upper.chunks_exact_mut(4 * S::LANES).zip(lower.chunks_exact_mut(4 * S::LANES));
                for (field, (upper, lower)) in vectors.enumerate() {
                    for ((upper, lower), x) in upper.iter_mut().zip(lower).zip(whole.chunks_exact(fields)) {
                        *lower = x[field] as i8;
                        // Around where a number was infinite or NaN, which the power says.
                        *upper = (x[field].wrapping_sub(i16::from(*lower)) >> 8) as i8;
                    }
                }
            }
            return;
        }
        let blocks = as_whole(pairs).chunks_exact_mut(S::LANES * FIELDS * 2);
        for (to, whole) in blocks.zip(whole[..self.columns].chunks(S::LANES * FIELDS * 2)) {
            if whole.len() < to.len() {
                to.fill(0);
            }
            for (lane, word) in whole.chunks_exact(2 * FIELDS).enumerate() {
                for field in 0..FIELDS {
                    to[(field * S::LANES + lane) * 2] = word[field];
                    to[(field * S::LANES + lane) * 2 + 1] = word[FIELDS + field];
                }
            }
        }
    }
}

/// A row as a panel has it, where many rows are multiplied: for each word of codes, `fields` pairs of
/// codes `j` and `fields + j`. Behind each group its power of two and its sum.
#[derive(Debug, Clone, Copy)]
pub(super) struct Paired {
    pub(super) columns: usize,
    pub(super) group: usize,
    pub(super) bits: usize,
}

impl Paired {
    /// What a group takes, in numbers of 4 bytes.
    pub(super) const fn group_length(&self) -> usize {
        self.group / 2 + 2
    }

    /// What a row takes.
    pub(super) const fn length(&self) -> usize {
        self.columns / self.group * self.group_length()
    }
}

impl Layout for Paired {
    fn bits(&self) -> usize {
        self.bits
    }

    #[inline(always)]
    fn write_fields<S: Integers, const FIELDS: usize>(
        &self,
        s: S,
        unit: f32,
        x: &[f32],
        scratch: &mut [f32],
        to: &mut [f32],
    ) {
        let whole = &mut as_whole(scratch)[..self.group];
        for (x, to) in x.chunks_exact(self.group).zip(to.chunks_exact_mut(self.group_length())) {
            let (power, sum) = fix(s, x, whole);
            let (pairs, floats) = to.split_at_mut(self.group / 2);
            for (to, word) in as_whole(pairs).chunks_exact_mut(2 * FIELDS).zip(whole.chunks_exact(2 * FIELDS))
            {
                for field in 0..FIELDS {
                    to[2 * field] = word[field];
                    to[2 * field + 1] = word[FIELDS + field];
                }
            }
            floats.copy_from_slice(&[power * unit, sum]);
        }
    }
}
