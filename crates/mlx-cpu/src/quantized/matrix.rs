//! A quantized matrix in memory.

use std::fmt;

use super::format::Codes;
use std::ops::Range;

use crate::products::{pack_transposing, widen};
use crate::simd::{packing, prefetch};
use crate::{Arithmetic, Element, Integers, MAX_LANES};

/// Why slices are not a quantized matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum QuantizedLayoutError {
    /// The number of bits is not 2, 3, 4, 5, 6 or 8.
    Bits(usize),
    /// The size of a group is not 32, 64 or 128.
    Group(usize),
    /// The number of columns is not a multiple of the size of a group.
    Columns {
        /// The number of columns.
        columns: usize,
        /// The size of a group.
        group: usize,
    },
    /// A slice has the wrong length.
    Length {
        /// The name of its elements.
        what: &'static str,
        /// Its length.
        found: usize,
        /// The length that the shape asks for.
        expected: usize,
    },
}

impl fmt::Display for QuantizedLayoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bits(bits) => write!(f, "weights have {bits} bits; they can have 2, 3, 4, 5, 6 or 8"),
            Self::Group(group) => write!(f, "groups have {group} elements; they can have 32, 64 or 128"),
            Self::Columns { columns, group } => {
                write!(f, "{columns} columns are not a multiple of the group size {group}")
            }
            Self::Length { what, found, expected } => {
                write!(f, "{found} {what} where the shape asks for {expected}")
            }
        }
    }
}

impl std::error::Error for QuantizedLayoutError {}

/// A quantized matrix to read, in MLX's layout: rows follow each other, and codes lie in 32-bit words, from the low
/// bits to the high ones; a code may continue in the next word.
#[derive(Debug, Clone, Copy)]
pub struct QuantizedMatrix<'a, T> {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) codes: Codes,
    /// Elements of a group.
    pub(super) group: usize,
    pub(super) weights: &'a [u32],
    scales: Scales<'a, T>,
}

/// The scales of all groups, and their biases.
#[derive(Debug, Clone, Copy)]
enum Scales<'a, T> {
    Affine { scales: &'a [T], biases: &'a [T] },
    E8m0(&'a [u8]),
    E4m3(&'a [u8]),
}

impl<'a, T> QuantizedMatrix<'a, T> {
    /// The codes of all rows.
    pub(super) const fn bytes(&self) -> &'a [u8] {
        // SAFETY: the same memory; a byte has any value and alignment.
        unsafe { std::slice::from_raw_parts(self.weights.as_ptr().cast(), self.weights.len() * 4) }
    }
}

impl<'a, T: Element> QuantizedMatrix<'a, T> {
    /// Mode `affine`: `bits` is 2, 3, 4, 5, 6 or 8, `group` 32, 64 or 128.
    ///
    /// # Shapes
    ///
    /// `weights` [rows, columns * bits / 32], `scales` and `biases` [rows, columns / group].
    ///
    /// # Errors
    ///
    /// If `bits` or `group` is another number, `columns` is not a multiple of `group`, or a slice has another length.
    pub fn affine(
        weights: &'a [u32],
        scales: &'a [T],
        biases: &'a [T],
        rows: usize,
        columns: usize,
        bits: usize,
        group: usize,
    ) -> Result<Self, QuantizedLayoutError> {
        if !matches!(bits, 2 | 3 | 4 | 5 | 6 | 8) {
            return Err(QuantizedLayoutError::Bits(bits));
        }
        if !matches!(group, 32 | 64 | 128) {
            return Err(QuantizedLayoutError::Group(group));
        }
        let matrix = Self {
            rows,
            columns,
            codes: Codes::Whole(bits),
            group,
            weights,
            scales: Scales::Affine { scales, biases },
        };
        matrix.check(&[("scales", scales.len()), ("biases", biases.len())])
    }

    /// Mode `mxfp4`: codes E2M1, a scale E8M0 for 32 elements.
    ///
    /// # Shapes
    ///
    /// `weights` [rows, columns / 8], `scales` [rows, columns / 32].
    ///
    /// # Errors
    ///
    /// If `columns` is not a multiple of 32, or a slice has another length.
    pub fn mxfp4(
        weights: &'a [u32],
        scales: &'a [u8],
        rows: usize,
        columns: usize,
    ) -> Result<Self, QuantizedLayoutError> {
        Self { rows, columns, codes: Codes::E2m1, group: 32, weights, scales: Scales::E8m0(scales) }
            .check(&[("scales", scales.len())])
    }

    /// Mode `mxfp8`: codes E4M3, a scale E8M0 for 32 elements.
    ///
    /// # Shapes
    ///
    /// `weights` [rows, columns / 4], `scales` [rows, columns / 32].
    ///
    /// # Errors
    ///
    /// If `columns` is not a multiple of 32, or a slice has another length.
    pub fn mxfp8(
        weights: &'a [u32],
        scales: &'a [u8],
        rows: usize,
        columns: usize,
    ) -> Result<Self, QuantizedLayoutError> {
        Self { rows, columns, codes: Codes::E4m3, group: 32, weights, scales: Scales::E8m0(scales) }
            .check(&[("scales", scales.len())])
    }

    /// Mode `nvfp4`: codes E2M1, a scale E4M3 for 16 elements.
    ///
    /// # Shapes
    ///
    /// `weights` [rows, columns / 8], `scales` [rows, columns / 16].
    ///
    /// # Errors
    ///
    /// If `columns` is not a multiple of 16, or a slice has another length.
    pub fn nvfp4(
        weights: &'a [u32],
        scales: &'a [u8],
        rows: usize,
        columns: usize,
    ) -> Result<Self, QuantizedLayoutError> {
        Self { rows, columns, codes: Codes::E2m1, group: 16, weights, scales: Scales::E4m3(scales) }
            .check(&[("scales", scales.len())])
    }

    /// Checks the lengths of the slices.
    fn check(self, scales: &[(&'static str, usize)]) -> Result<Self, QuantizedLayoutError> {
        let Self { rows, columns, group, .. } = self;
        if !columns.is_multiple_of(group) {
            return Err(QuantizedLayoutError::Columns { columns, group });
        }
        let weights = rows.saturating_mul(columns).saturating_mul(self.bits()) / 32;
        let groups = rows.saturating_mul(columns / group);
        for &(what, found, expected) in [("words of weights", self.weights.len(), weights)]
            .iter()
            .chain(&scales.iter().map(|&(what, found)| (what, found, groups)).collect::<Vec<_>>())
        {
            if found != expected {
                return Err(QuantizedLayoutError::Length { what, found, expected });
            }
        }
        Ok(self)
    }

    /// The number of rows.
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns, in elements.
    pub const fn columns(&self) -> usize {
        self.columns
    }

    /// The size of a code in bits.
    pub const fn bits(&self) -> usize {
        self.codes.bits()
    }

    /// The number of groups in a row.
    pub(super) const fn groups(&self) -> usize {
        self.columns / self.group
    }

    /// The size of the codes of a row in bytes.
    pub(super) const fn row_bytes(&self) -> usize {
        self.columns * self.bits() / 8
    }

    /// Widens the scales of groups `first..first + to.len()` and, in mode `affine`, their biases. Groups are counted
    /// over all rows.
    #[inline(always)]
    pub(super) fn widen_scales<S: Arithmetic>(
        &self,
        s: S,
        first: usize,
        to: &mut [f32],
        biases_to: &mut [f32],
    ) {
        let groups = first..first + to.len();
        match self.scales {
            Scales::Affine { scales, biases } => {
                widen(s, &scales[groups.clone()], to);
                widen(s, &biases[groups], biases_to);
            }
            Scales::E8m0(scales) => {
                for (scale, to) in scales[groups].iter().zip(to) {
                    *to = power::<T>(*scale);
                }
            }
            Scales::E4m3(scales) => {
                for (scale, to) in scales[groups].iter().zip(to) {
                    *to = packing::e4m3(*scale);
                }
            }
        }
    }

    /// Writes the scales of some groups of up to `S::LANES` rows, and their biases (0 if there are none): for each group a
    /// vector with a lane for each row. Lanes behind the last row are 0.
    #[inline(always)]
    pub(super) fn scales_across<S: Integers>(
        &self,
        s: S,
        rows: Range<usize>,
        groups: Range<usize>,
        to: &mut [f32],
        biases_to: &mut [f32],
    ) {
        let (row, length) = (self.groups(), groups.len() * S::LANES);
        let (to, biases_to) = (&mut to[..length], &mut biases_to[..length]);
        let number = |byte: fn(u8) -> f32, scales: &[u8], to: &mut [f32]| {
            to.fill(0.0);
            for (lane, i) in rows.clone().enumerate() {
                for (to, scale) in to.chunks_exact_mut(S::LANES).zip(&scales[i * row..][groups.clone()]) {
                    to[lane] = byte(*scale);
                }
            }
        };
        if !self.is_affine() {
            biases_to.fill(0.0);
        }
        match self.scales {
            Scales::Affine { scales, biases } => {
                across(s, &scales[rows.start * row..rows.end * row], row, groups.clone(), to);
                across(s, &biases[rows.start * row..rows.end * row], row, groups, biases_to);
            }
            Scales::E8m0(scales) => number(power::<T>, scales, to),
            Scales::E4m3(scales) => number(packing::e4m3, scales, to),
        }
    }

    /// Prefetches `count` scales from number `first` on, and their biases. They may lie behind the last one.
    #[inline(always)]
    pub(super) fn prefetch_scales(&self, first: usize, count: usize) {
        match self.scales {
            Scales::Affine { scales, biases } => {
                let each = 64 / size_of::<T>();
                for at in (first..first + count).step_by(each) {
                    prefetch(scales.as_ptr().wrapping_add(at));
                    prefetch(biases.as_ptr().wrapping_add(at));
                }
            }
            Scales::E8m0(scales) | Scales::E4m3(scales) => {
                for at in (first..first + count).step_by(64) {
                    prefetch(scales.as_ptr().wrapping_add(at));
                }
            }
        }
    }

    /// Whether `x w^T` is computed in whole numbers.
    pub(super) const fn is_whole(&self) -> bool {
        T::PRECISION <= 15 && self.codes.are_whole()
    }

    /// Whether there are biases.
    pub(super) const fn is_affine(&self) -> bool {
        matches!(self.scales, Scales::Affine { .. })
    }
}

/// A scale of the format E8M0. It is 0 or infinity if `T` does not have the power of two. MLX rounds here, too.
#[inline(always)]
fn power<T: Element>(scale: u8) -> f32 {
    T::narrow(packing::e8m0(scale)).widen()
}

/// Writes elements `columns` of each row of `from`, which has rows of `row` elements: for each column a vector with a lane
/// for each row.
#[inline(always)]
fn across<S: Integers, T: Element>(s: S, from: &[T], row: usize, columns: Range<usize>, to: &mut [f32]) {
    let rows = from.len() / row;
    let is_bf16 = T::PRECISION == 8 && size_of::<T>() == 2;
    let are_words = [row, columns.start, columns.end].iter().all(|x| x.is_multiple_of(2));
    if !is_bf16 || !are_words || !from.as_ptr().cast::<u32>().is_aligned() {
        let line = |i: usize| &from[i * row..][columns.clone()];
        return pack_transposing(s, 0, line, rows, columns.len(), S::LANES, to);
    }
    // A pair of numbers of bfloat16 is a word, and either half of a word with zeros behind it is a float32.
    assert!(columns.end <= row && rows <= S::LANES && to.len() == columns.len() * S::LANES);
    let words = columns.len() / 2;
    for word in (0..words).step_by(S::LANES) {
        let some = S::LANES.min(words - word);
        let mut block = [s.zero(); MAX_LANES];
        for (i, block) in block[..S::LANES].iter_mut().enumerate().take(rows) {
            // SAFETY: each row has `some` words from here on. They are loaded as floats, but there is no arithmetic with
            // them.
            unsafe {
                let at = from.as_ptr().add(i * row + columns.start + 2 * word).cast();
                *block = if some == S::LANES { s.load_f32(at) } else { s.load_first(at, some) };
            }
        }
        s.transpose(&mut block);
        for (pair, words) in block[..S::LANES].iter().enumerate().take(some) {
            let words = s.bits(*words);
            // SAFETY: two vectors for each word, as was asserted.
            unsafe {
                let to = to.as_mut_ptr().add(2 * (word + pair) * S::LANES);
                s.store_bits(to, s.shift_left(words, 16));
                s.store_bits(to.add(S::LANES), s.and(words, s.splat_bits(0xffff_0000)));
            }
        }
    }
}
