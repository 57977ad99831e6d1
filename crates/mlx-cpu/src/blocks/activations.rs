//! Rows of activations in the order of the codes of blocks.

use super::matrix::BlockMatrix;
use crate::quantized::fix;
use crate::{ActivationBits, Element, Integers, Kernel, Simd};

/// What rows of x become for products with codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Whole numbers of 16 bits and a unit for each group, as for other quantized matrices.
    Whole,
    Float32,
}

impl Form {
    /// The form for elements of this format: whole numbers for half precision.
    pub(super) const fn of<T: Element>() -> Self {
        if T::PRECISION <= 15 { Self::Whole } else { Self::Float32 }
    }
}

/// The layout of a row for products of a few rows.
///
/// As many groups as a vector has lanes lie together, and each has a lane. For them there are, one vector each:
///
/// - The numbers of the group. As floats: number 0 of each group, number 1 and so on. As whole numbers: for each four
///   numbers a vector of the upper bytes of all four and one of the lower bytes, if there are products of bytes (a
///   number is 256 times its upper byte plus its lower byte, both with a sign); else a vector of pairs of the first and
///   the third of them, and one of the second and the fourth.
/// - What sums begin with: the sum of the upper bytes times the code of zero, with the opposite sign, and that of the
///   lower bytes; or 0 and the sum of the numbers. So the sum of a group is that of the codes less zero.
/// - The unit of each group.
/// - The sum of its numbers, as they are multiplied.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    pub(super) groups: usize,
    pub(super) group: usize,
    pub(super) form: Form,
    /// The number of lanes of a vector.
    pub(super) lanes: usize,
}

impl Layout {
    #[inline(always)]
    pub(super) const fn new(w: &BlockMatrix<'_>, form: Form, lanes: usize) -> Self {
        Self { groups: w.groups(), group: w.format().group(), form, lanes }
    }

    /// The length of what belongs to a vector of groups.
    #[inline(always)]
    pub(super) const fn vector(&self) -> usize {
        self.start() + 4 * self.lanes
    }

    /// The length of the whole row.
    #[inline(always)]
    pub(super) const fn length(&self) -> usize {
        self.groups.div_ceil(self.lanes) * self.vector()
    }

    /// Where the first two vectors of sums are, counted from the beginning of a vector of groups.
    #[inline(always)]
    pub(super) const fn start(&self) -> usize {
        match self.form {
            Form::Whole => self.group / 2 * self.lanes,
            Form::Float32 => self.group * self.lanes,
        }
    }

    /// Where the units are.
    #[inline(always)]
    pub(super) const fn units(&self) -> usize {
        self.start() + 2 * self.lanes
    }

    /// Where the sums are.
    #[inline(always)]
    pub(super) const fn sums(&self) -> usize {
        self.start() + 3 * self.lanes
    }
}

/// Writes the numbers of each row behind the row, in a [`Layout`].
pub(super) struct Prepare<'a> {
    pub(super) x: &'a mut [f32],
    /// The distance of rows.
    pub(super) stride: usize,
    /// Where the layout of a row begins.
    pub(super) at: usize,
    pub(super) layout: Layout,
    /// The code of zero.
    pub(super) zero: u8,
}

impl Kernel for Prepare<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { x, stride, at, layout, zero } = self;
        assert!(layout.lanes == S::LANES && layout.group <= 32);
        for row in x.chunks_exact_mut(stride) {
            let (x, to) = row.split_at_mut(at);
            // Lanes without a group stay 0.
            let last = layout.groups / S::LANES * layout.vector();
            to[last..].fill(0.0);
            for (index, x) in x.chunks_exact(layout.group).take(layout.groups).enumerate() {
                let to = &mut to[index / S::LANES * layout.vector()..][..layout.vector()];
                let lane = index % S::LANES;
                match layout.form {
                    Form::Whole => whole(s, &layout, x, zero, lane, to),
                    Form::Float32 => floats(s, &layout, x, lane, to),
                }
            }
        }
    }
}

/// Writes a group as floats.
#[inline(always)]
fn floats<S: Simd>(s: S, layout: &Layout, x: &[f32], lane: usize, to: &mut [f32]) {
    let mut total = s.zero();
    for x in x.chunks_exact(S::LANES) {
        total = s.add(total, s.load(x));
    }
    for (x, to) in x.iter().zip(to.chunks_exact_mut(S::LANES)) {
        to[lane] = *x;
    }
    to[layout.sums() + lane] = s.sum(total);
}

/// Writes a group as whole numbers.
#[inline(always)]
fn whole<S: Integers>(s: S, layout: &Layout, x: &[f32], zero: u8, lane: usize, to: &mut [f32]) {
    let mut numbers = [0_i16; 32];
    let numbers = &mut numbers[..x.len()];
    let (unit, _) = fix(s, ActivationBits::Sixteen, x, numbers);
    let [first, second] = if const { S::MULTIPLIES_BYTES } { as_bytes(numbers) } else { as_pairs(numbers) };
    let vectors = to.chunks_exact_mut(2 * S::LANES);
    for (to, (first, second)) in vectors.zip(first.iter().zip(&second)).take(x.len() / 4) {
        to[lane] = f32::from_bits(*first);
        to[S::LANES + lane] = f32::from_bits(*second);
    }
    let sum: i32 = numbers.iter().map(|x| i32::from(*x)).sum();
    let lower =
        if const { S::MULTIPLIES_BYTES } { numbers.iter().map(|x| i32::from(*x as i8)).sum() } else { sum };
    // Whole: a number is 256 times its upper byte plus its lower byte.
    let upper = (sum - lower) / 256;
    let start = layout.start();
    let begin = |sum: i32| f32::from_bits((-i32::from(zero) * sum).cast_unsigned());
    to[start + lane] = begin(upper);
    to[start + S::LANES + lane] = begin(lower);
    to[layout.units() + lane] = unit;
    to[layout.sums() + lane] = sum as f32 * unit;
}

/// For each four numbers their upper and their lower bytes.
#[inline(always)]
fn as_bytes(numbers: &[i16]) -> [[u32; 8]; 2] {
    let mut words = [[0; 8]; 2];
    for (i, four) in numbers.as_chunks::<4>().0.iter().enumerate() {
        let (mut upper, mut lower) = ([0; 4], [0; 4]);
        for b in 0..4 {
            lower[b] = four[b] as u8;
            // It wraps only in a group with an infinite number or a NaN, whose unit is NaN.
            upper[b] = (four[b].wrapping_sub(i16::from(four[b] as i8)) >> 8) as u8;
        }
        words[0][i] = u32::from_le_bytes(upper);
        words[1][i] = u32::from_le_bytes(lower);
    }
    words
}

/// For each four numbers the pair of the first and the third, and that of the second and the fourth.
#[inline(always)]
fn as_pairs(numbers: &[i16]) -> [[u32; 8]; 2] {
    let mut words = [[0; 8]; 2];
    for (i, four) in numbers.as_chunks::<4>().0.iter().enumerate() {
        words[0][i] = pair(four[0], four[2]);
        words[1][i] = pair(four[1], four[3]);
    }
    words
}

#[inline(always)]
const fn pair(low: i16, high: i16) -> u32 {
    (high.cast_unsigned() as u32) << 16 | low.cast_unsigned() as u32
}

/// The layout of a row for panels, in products with many rows: for each four numbers the pairs of
/// [`as_pairs`]. The unit of a group and the sum of its numbers follow the group.
#[derive(Debug, Clone, Copy)]
pub(super) struct Paired {
    pub(super) groups: usize,
    pub(super) group: usize,
}

impl Paired {
    #[inline(always)]
    pub(super) const fn new(w: &BlockMatrix<'_>) -> Self {
        Self { groups: w.groups(), group: w.format().group() }
    }

    /// The length of a group.
    #[inline(always)]
    pub(super) const fn group_length(&self) -> usize {
        self.group / 2 + 2
    }

    /// The length of a row.
    #[inline(always)]
    pub(super) const fn length(&self) -> usize {
        self.groups * self.group_length()
    }

    /// Writes a row.
    #[inline(always)]
    pub(super) fn write<S: Integers>(&self, s: S, x: &[f32], to: &mut [f32]) {
        let mut numbers = [0_i16; 32];
        let numbers = &mut numbers[..self.group];
        for (x, to) in x.chunks_exact(self.group).zip(to.chunks_exact_mut(self.group_length())) {
            let (unit, _) = fix(s, ActivationBits::Sixteen, x, numbers);
            let [first, second] = as_pairs(numbers);
            for (to, (first, second)) in
                to.chunks_exact_mut(2).zip(first.iter().zip(&second)).take(self.group / 4)
            {
                to[0] = f32::from_bits(*first);
                to[1] = f32::from_bits(*second);
            }
            let sum: i32 = numbers.iter().map(|x| i32::from(*x)).sum();
            to[self.group / 2] = unit;
            to[self.group / 2 + 1] = sum as f32 * unit;
        }
    }
}
