//! Activations as whole numbers: of 16 bits, in units of a power of two for each group, or of 8 bits.
//!
//! Codes are whole numbers. If activations are whole numbers, too, a processor multiplies two or four times as many at a
//! time as in float32, does not have to convert codes, and sums a group exactly.
//!
//! With 16 bits, the unit of a group is the smallest power of two for which its largest number is less than 32640 =
//! 127 * 256 + 128 units: 32640 is the first number that is not an upper and a lower byte with signs. No unit is below
//! 2^-126, the smallest normal number. The significand of a bfloat16 has 8 bits. It keeps all of them if the number is at
//! least 1/127 of the largest in its group; a float16 keeps its 11 bits from 1/15 on. A smaller number is off by at most
//! 1/32640 of the largest.
//!
//! With 8 bits, the unit is 1/127 of the largest number, and a number is off by at most half a unit.

use super::format::Codes;
use super::matrix::QuantizedMatrix;
use crate::{ActivationBits, Integers, Isa, Kernel, MAX_LANES, Simd};

/// Added to the bits of a float32, this raises the exponent by one if the number is at least 255/256 of the next power
/// of two, as 32640 is.
const UP: u32 = 1 << 16;
/// 2^-112: the largest number of a group counts as at least this.
const SMALLEST: f32 = f32::from_bits((127 - 112) << 23);

/// Writes a group as whole numbers, and returns its unit and the sum of its numbers times the unit.
///
/// If an element is infinite or NaN, the unit is NaN.
#[inline(always)]
pub(crate) fn fix<S: Integers>(s: S, bits: ActivationBits, x: &[f32], to: &mut [i16]) -> (f32, f32) {
    let (unit, inverse) = unit_of(s, bits, x);
    for (x, to) in x.chunks_exact(S::LANES).zip(to.chunks_exact_mut(S::LANES)) {
        // SAFETY: a chunk of `LANES`.
        unsafe { s.store_i16(to.as_mut_ptr(), s.mul(s.load(x), s.splat(inverse))) };
    }
    let sum: i32 = to[..x.len()].iter().map(|x| i32::from(*x)).sum();
    (unit, sum as f32 * unit)
}

/// [`fix`] for bytes: writes the lower bytes and, if there are two planes, the upper ones, in the order in which the codes of
/// words of `CODES` codes are decoded.
#[inline(always)]
fn fix_bytes<S: Integers, const CODES: usize>(
    s: S,
    bits: ActivationBits,
    x: &[f32],
    upper: &mut [u8],
    lower: &mut [u8],
) -> (f32, f32) {
    assert!(x.len() <= MOST && x.len().is_multiple_of(16) && lower.len() == x.len());
    assert!(upper.is_empty() || upper.len() == x.len());
    let (unit, inverse) = unit_of(s, bits, x);
    let (mut high, mut low, mut sums) = ([0_u8; MOST], [0_u8; MOST], s.bits(s.zero()));
    for (index, x) in x.chunks_exact(S::LANES).enumerate() {
        let at = index * S::LANES;
        // SAFETY: `LANES` bytes are there from `at` on, because a group has at most `MOST` numbers.
        let whole = unsafe {
            let x = s.mul(s.load(x), s.splat(inverse));
            s.store_bytes(high.as_mut_ptr().add(at), low.as_mut_ptr().add(at), x)
        };
        sums = s.plus(sums, whole);
    }
    for at in (0..x.len()).step_by(16) {
        // SAFETY: a group is a multiple of sixteen numbers, and the slices are as long, as was asserted.
        unsafe {
            s.order_bytes(low.as_ptr().add(at), order::<CODES>(), lower.as_mut_ptr().add(at));
            if !upper.is_empty() {
                s.order_bytes(high.as_ptr().add(at), order::<CODES>(), upper.as_mut_ptr().add(at));
            }
        }
    }
    let mut lanes = [0_i32; MAX_LANES];
    // SAFETY: no instruction set has more than `MAX_LANES` lanes.
    unsafe { s.store_bits(lanes.as_mut_ptr().cast(), sums) };
    // It wraps only in a group with an infinite number or a NaN, whose unit is NaN.
    let sum = lanes.into_iter().fold(0_i32, i32::wrapping_add);
    (unit, sum as f32 * unit)
}

/// The most numbers of a group.
const MOST: usize = 128;

/// In what order sixteen numbers are multiplied by the codes of words of `CODES` codes: for each word first every
/// `CODES / 4`th number, then every one behind these, and so on.
const fn order<const CODES: usize>() -> [u8; 16] {
    let (mut order, mut i) = ([0; 16], 0);
    while i < 16 {
        order[i] = (i / CODES * CODES + i % CODES / 4 + i % 4 * (CODES / 4)) as u8;
        i += 1;
    }
    order
}

/// The unit of a group, which is NaN if an element is infinite or NaN, and what elements are multiplied by to become
/// multiples of it.
#[inline(always)]
fn unit_of<S: Integers>(s: S, bits: ActivationBits, x: &[f32]) -> (f32, f32) {
    let (mut largest, mut poison) = (s.zero(), s.zero());
    for x in x.chunks_exact(S::LANES) {
        let x = s.load(x);
        largest = s.max(largest, s.max(x, s.sub(s.zero(), x)));
        // 0 for every finite number.
        poison = s.mul_add(x, s.zero(), poison);
    }
    let (largest, poison) = (s.largest(largest), s.sum(poison));
    match bits {
        ActivationBits::Sixteen => {
            // The largest is below 32640 units. Both this power and its inverse are normal numbers.
            let exponent = (largest.to_bits().wrapping_add(UP) >> 23 & 0xff).max(15) - 14;
            (f32::from_bits(exponent << 23) + poison, f32::from_bits((254 - exponent) << 23))
        }
        ActivationBits::Eight => {
            let largest = if largest > SMALLEST { largest } else { SMALLEST };
            (largest / 127.0 + poison, 127.0 / largest)
        }
    }
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

/// What the whole numbers of activations are multiplied as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Pairs of numbers of 16 bits.
    Pairs,
    /// Four bytes at a time. A number of 16 bits is 256 times its upper byte plus its lower byte, both with a sign: two
    /// *planes* of bytes. A number of 8 bits has one.
    Bytes {
        /// 1 or 2.
        planes: usize,
    },
}

impl Form {
    /// Bytes if the processor multiplies them and codes are bytes without a sign.
    pub(super) fn of(isa: Isa, bits: ActivationBits, codes: Codes) -> Self {
        if !codes.are_plain() || !isa.run(MultipliesBytes) {
            return Self::Pairs;
        }
        Self::Bytes { planes: if bits == ActivationBits::Eight { 1 } else { 2 } }
    }

    /// The numbers of 4 bytes that a group of activations takes.
    pub(super) const fn length(self, group: usize) -> usize {
        match self {
            Self::Pairs => group / 2,
            Self::Bytes { planes } => group / 4 * planes,
        }
    }
}

struct MultipliesBytes;

impl Kernel for MultipliesBytes {
    type Output = bool;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> bool {
        S::MULTIPLIES_BYTES
    }
}

/// What both layouts of a row are made for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fixing {
    pub(super) columns: usize,
    pub(super) group: usize,
    pub(super) codes: Codes,
    pub(super) bits: ActivationBits,
    pub(super) form: Form,
}

impl Fixing {
    pub(super) fn new<T>(w: &QuantizedMatrix<'_, T>, isa: Isa, bits: ActivationBits) -> Self {
        let form = Form::of(isa, bits, w.codes);
        Self { columns: w.columns, group: w.group, codes: w.codes, bits, form }
    }
}

/// A pair of numbers that lie `step` apart.
#[inline(always)]
fn pair(numbers: &[i16], field: usize, step: usize) -> f32 {
    let (low, high) = (numbers[field].cast_unsigned(), numbers[field + step].cast_unsigned());
    f32::from_bits(u32::from(high) << 16 | u32::from(low))
}

/// The memory of float32 as bytes.
#[inline(always)]
fn as_bytes(numbers: &mut [f32]) -> &mut [u8] {
    // SAFETY: the same memory; a byte has any bits.
    unsafe { std::slice::from_raw_parts_mut(numbers.as_mut_ptr().cast(), 4 * numbers.len()) }
}

/// The layout for one or a few rows, which read codes where they lie in memory: vector after vector.
///
/// A word of 32 bits holds several codes, and a vector of words is split into vectors of pairs or bytes. As pairs of 16
/// bits: lane `i` of vector `j` holds codes `j` and `f + j` of word `i`, if a word has `2 f` codes. As bytes: codes `j`,
/// `f + j`, `2 f + j` and `3 f + j`, if it has `4 f` codes. Activations have the same order; of bytes first come the upper
/// ones of all these vectors, then the lower ones.
///
/// The unit of each group follows, then the sum of each group.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    pub(super) fixing: Fixing,
    /// The vectors that belong to a vector of words.
    pub(super) vectors: usize,
    /// Where the units begin.
    pub(super) units: usize,
    /// Where the sums begin.
    pub(super) sums: usize,
    /// The whole length.
    pub(super) length: usize,
}

impl Row {
    /// The layout for vectors of `lanes` words.
    pub(super) const fn new(fixing: Fixing, lanes: usize) -> Self {
        let Fixing { columns, group, codes, form, .. } = fixing;
        let bits = codes.bits();
        let words = (columns * bits / 32).next_multiple_of(lanes);
        let vectors = form.length(32 / bits);
        let units = words * vectors;
        let sums = units + columns / group;
        Self { fixing, vectors, units, sums, length: sums + columns / group }
    }

    /// Writes a row. `unit` is [`Codes::unit`]; `scratch` has room for [`halved`] numbers.
    #[inline(always)]
    pub(super) fn write<S: Integers>(&self, s: S, x: &[f32], scratch: &mut [f32], to: &mut [f32]) {
        match self.fixing.codes.bits() {
            2 => self.write_codes::<S, 16>(s, x, scratch, to),
            4 => self.write_codes::<S, 8>(s, x, scratch, to),
            _ => self.write_codes::<S, 4>(s, x, scratch, to),
        }
    }

    /// [`write`](Self::write) for `CODES` codes in a word.
    #[inline(always)]
    fn write_codes<S: Integers, const CODES: usize>(
        &self,
        s: S,
        x: &[f32],
        scratch: &mut [f32],
        to: &mut [f32],
    ) {
        let Fixing { columns, group, codes, bits, form } = self.fixing;
        let (numbers, rest) = to.split_at_mut(self.units);
        let (units, sums) = rest.split_at_mut(self.sums - self.units);
        let floats = x.chunks_exact(group).zip(units.iter_mut().zip(sums));
        let blocks = numbers.chunks_exact_mut(self.vectors * S::LANES);
        match form {
            Form::Pairs => {
                let whole = &mut as_whole(scratch)[..columns];
                for ((x, (unit, sum)), whole) in floats.zip(whole.chunks_exact_mut(group)) {
                    let (power, total) = fix(s, bits, x, whole);
                    (*unit, *sum) = (power * codes.unit(), total);
                }
                for (to, whole) in blocks.zip(whole.chunks(CODES * S::LANES)) {
                    if whole.len() < CODES * S::LANES {
                        to.fill(0.0);
                    }
                    for (lane, word) in whole.as_chunks::<CODES>().0.iter().enumerate() {
                        for field in 0..CODES / 2 {
                            to[field * S::LANES + lane] = pair(word, field, CODES / 2);
                        }
                    }
                }
            }
            Form::Bytes { planes } => {
                // A row of each plane.
                let (lower, upper) = scratch[..planes * columns / 4].split_at_mut(columns / 4);
                let groups = as_bytes(lower).chunks_exact_mut(group);
                let mut uppers = as_bytes(upper).chunks_exact_mut(group);
                for ((x, (unit, sum)), lower) in floats.zip(groups) {
                    let upper = uppers.next().unwrap_or_default();
                    let (power, total) = fix_bytes::<S, CODES>(s, bits, x, upper, lower);
                    (*unit, *sum) = (power * codes.unit(), total);
                }
                for (block, to) in blocks.enumerate() {
                    let (length, fields) = (CODES / 4 * S::LANES, CODES / 4);
                    let mut planes = to.chunks_exact_mut(length);
                    let rows = if upper.is_empty() { [&*lower, &[]] } else { [&*upper, &*lower] };
                    for (row, to) in rows.iter().zip(&mut planes) {
                        let row = &row[block * length..row.len().min((block + 1) * length)];
                        if row.len() < length {
                            to.fill(0.0);
                        }
                        for (lane, word) in row.chunks_exact(fields).enumerate() {
                            for (field, word) in word.iter().enumerate() {
                                to[field * S::LANES + lane] = *word;
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The layout for panels, in products with many rows. For each group: its words, in the order in which the codes of a word
/// are decoded (see [`Row`]), of bytes first the upper plane and then the lower one; its unit; the sum of its numbers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grouped(pub(super) Fixing);

impl Grouped {
    /// The length of a group, in numbers of 4 bytes.
    pub(super) const fn group_length(&self) -> usize {
        self.0.form.length(self.0.group) + 2
    }

    /// The length of a row, in numbers of 4 bytes.
    pub(super) const fn length(&self) -> usize {
        self.0.columns / self.0.group * self.group_length()
    }

    /// Writes a row. `scratch` has room for [`halved`] numbers.
    #[inline(always)]
    pub(super) fn write<S: Integers>(&self, s: S, x: &[f32], scratch: &mut [f32], to: &mut [f32]) {
        match self.0.codes.bits() {
            2 => self.write_codes::<S, 16>(s, x, scratch, to),
            4 => self.write_codes::<S, 8>(s, x, scratch, to),
            _ => self.write_codes::<S, 4>(s, x, scratch, to),
        }
    }

    /// [`write`](Self::write) for `CODES` codes in a word.
    #[inline(always)]
    fn write_codes<S: Integers, const CODES: usize>(
        &self,
        s: S,
        x: &[f32],
        scratch: &mut [f32],
        to: &mut [f32],
    ) {
        let Fixing { group, codes, bits, form, .. } = self.0;
        for (x, to) in x.chunks_exact(group).zip(to.chunks_exact_mut(self.group_length())) {
            let (numbers, floats) = to.split_at_mut(form.length(group));
            let (power, sum) = match form {
                Form::Pairs => {
                    let whole = &mut as_whole(scratch)[..group];
                    let fixed = fix(s, bits, x, whole);
                    let words = whole.as_chunks::<CODES>().0.iter();
                    for (to, word) in numbers.chunks_exact_mut(CODES / 2).zip(words) {
                        for (field, to) in to.iter_mut().enumerate() {
                            *to = pair(word, field, CODES / 2);
                        }
                    }
                    fixed
                }
                Form::Bytes { planes } => {
                    let (upper, lower) = numbers.split_at_mut(group / 4 * (planes - 1));
                    fix_bytes::<S, CODES>(s, bits, x, as_bytes(upper), as_bytes(lower))
                }
            };
            floats.copy_from_slice(&[power * codes.unit(), sum]);
        }
    }
}
