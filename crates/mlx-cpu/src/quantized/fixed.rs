//! Activations as fixed-point numbers: whole numbers of 16 bits, in units of a power of two for each group.
//!
//! Codes are whole numbers. If activations are whole numbers, too, a processor multiplies twice as many at a time as in
//! float32, does not have to convert codes, and sums a group exactly. The unit of a group is the smallest power of two
//! for which its largest number is less than 32640 = 127 * 256 + 128 units: 32640 is the first number that is not an
//! upper and a lower byte with signs. No unit is below 2^-126, the smallest normal number.
//!
//! The significand of a bfloat16 has 8 bits. It keeps all of them if the number is at least 1/127 of the largest in its
//! group; a float16 keeps its 11 bits from 1/15 on. A smaller number is off by at most 1/32640 of the largest.

use super::format::Codes;
use crate::Integers;

/// Added to the bits of a float32, this raises the exponent by one if the number is at least 255/256 of the next power
/// of two, as 32640 is.
const UP: u32 = 1 << 16;

/// Writes a group as whole numbers, and returns its unit and the sum of its elements.
///
/// If an element is infinite or NaN, the unit is NaN.
#[inline(always)]
pub(crate) fn fix<S: Integers>(s: S, x: &[f32], to: &mut [i16]) -> (f32, f32) {
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

/// The length of a slice of float32 that has room for the whole numbers of a row.
pub(super) const fn halved(columns: usize) -> usize {
    columns / 2
}

/// The memory of float32 as twice as many numbers of 16 bits.
#[inline(always)]
fn as_whole(numbers: &mut [f32]) -> &mut [i16] {
    // SAFETY: the same memory; a whole number has any bits.
    unsafe { std::slice::from_raw_parts_mut(numbers.as_mut_ptr().cast(), 2 * numbers.len()) }
}

/// The memory of float32 as bytes.
#[inline(always)]
fn as_bytes(numbers: &mut [f32]) -> &mut [i8] {
    // SAFETY: the same memory; a byte has any bits.
    unsafe { std::slice::from_raw_parts_mut(numbers.as_mut_ptr().cast(), 4 * numbers.len()) }
}

/// A layout of a row of activations as whole numbers.
pub(super) trait Layout {
    /// The bits of the codes that they are multiplied by: 2, 4 or 8.
    fn bits(&self) -> usize;

    /// [`write`](Self::write) for `FIELDS` codes in a word of 16 bits.
    fn write_fields<S: Integers, const FIELDS: usize>(
        &self,
        s: S,
        unit: f32,
        x: &[f32],
        scratch: &mut [f32],
        to: &mut [f32],
    );

    /// Writes a row. `unit` is [`Codes::unit`]; `scratch` has room for [`halved`] numbers.
    #[inline(always)]
    fn write<S: Integers>(&self, s: S, unit: f32, x: &[f32], scratch: &mut [f32], to: &mut [f32]) {
        match self.bits() {
            2 => self.write_fields::<S, 8>(s, unit, x, scratch, to),
            4 => self.write_fields::<S, 4>(s, unit, x, scratch, to),
            _ => self.write_fields::<S, 2>(s, unit, x, scratch, to),
        }
    }
}

/// The layout for products of a few rows, which read codes where they lie in memory: vector after vector.
///
/// A word of 32 bits holds two times `fields` codes. A vector of words is split into `fields` vectors of pairs: lane
/// `i` of vector `j` holds codes `j` and `fields + j` of word `i`. Activations have the same order.
///
/// If there are products of bytes ([`Integers::MULTIPLIES_BYTES`], [`Codes::are_plain`]), a vector of words is split
/// into half as many vectors of bytes: lane `i` of vector `j` holds codes `j`, `fields / 2 + j` and so on of word `i`.
/// Activations have the same order, first the upper bytes of all these vectors, then the lower bytes. A number is 256
/// times its upper byte plus its lower byte, both with a sign.
///
/// The unit of each lane of each vector of words follows, then the sum of each group.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    columns: usize,
    group: usize,
    codes: Codes,
    /// Where the units begin.
    pub(super) units: usize,
    /// Where the sums begin.
    pub(super) sums: usize,
    /// The whole length.
    pub(super) length: usize,
}

impl Row {
    /// The layout for rows of `columns` codes, in vectors of `lanes` words.
    pub(super) const fn new(columns: usize, group: usize, codes: Codes, lanes: usize) -> Self {
        let bits = codes.bits();
        let words = (columns * bits / 32).next_multiple_of(lanes);
        let units = words * (16 / bits);
        let sums = units + words;
        Self { columns, group, codes, units, sums, length: sums + columns / group }
    }

    /// The number of codes in a row.
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
            // Of the upper or the lower bytes of a block.
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
                        // It wraps only in a group with an infinite number or a NaN, whose unit is NaN.
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

/// The layout for panels, in products with many rows: for each word of codes, `fields` pairs of the activations of
/// codes `j` and `fields + j`. The unit and the sum of each group follow the group.
#[derive(Debug, Clone, Copy)]
pub(super) struct Paired {
    pub(super) columns: usize,
    pub(super) group: usize,
    pub(super) bits: usize,
}

impl Paired {
    /// The length of a group, in numbers of 4 bytes.
    pub(super) const fn group_length(&self) -> usize {
        self.group / 2 + 2
    }

    /// The length of a row, in numbers of 4 bytes.
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
