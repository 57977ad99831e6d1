//! Products with quantized matrices.
//!
//! A row of a quantized matrix is cut into groups; an element is a code of a few bits and stands for
//! `scale * code + bias` of its group (MLX's mode `affine`), or for a small float times the scale of
//! its group (`mxfp4`, `mxfp8`, `nvfp4`; *OCP Microscaling Formats Specification* 1.0, 2023).
//!
//! # Numbers
//!
//! Products take the code as it is and the scale and bias as the format of the tensor has them, all
//! in float32: an element is not rounded to that format, as it is where MLX multiplies with halves.
//! With e = 2^-24 and K the number of products that are summed the error of an element is at most
//! `(K + 8) e sum |x_k| (|scale_k code_k| + |bias_k|)`, beside the last rounding and what underflows.
//!
//! Where x has half precision, `x w^T` with codes of 2, 4 and 8 bits of the mode `affine`, of `mxfp4` and
//! `nvfp4` is computed in whole numbers: each group of x is brought to fixed point, 16 bits with a power of
//! two for the group, and what it sums up to with the codes is exact. A bfloat16 that is at least 1/127 of
//! the largest of its group loses nothing, nor does a float16 of at least 1/15; what is smaller is off by at
//! most 1/32640 of the largest. So with `m_g` the largest |x| of group g, or 2^-112 where that is larger, the
//! error is at most `1/32640 sum_g m_g sum |scale_k code_k|` more: a fraction of what rounding x to its format has cost, where
//! the numbers of a group are of similar size. `proptest` holds products to the first bound, against float64
//! sums of the fixed-point numbers.
//!
//! In whole numbers, and with a few rows of x, codes of a group are summed before they are scaled, and
//! biases are multiplied with sums of x. Where x or a scale is infinite the result then may be NaN where MLX
//! has infinity; it is never a finite number. And where x of bfloat16 or float32 is so large, from 2.6e36 on,
//! that the sum of a group, or of its products with codes, is no float32, the result may be infinite or NaN
//! although a small scale would bring it back.

mod decode;
mod dequantize;
mod few_rows;
mod fixed;
mod format;
mod panels;
mod quantize;

use std::fmt;

pub use dequantize::dequantize;
pub(crate) use dequantize::dequantize_row;
use panels::{Activations, Columns, Rows};
pub use quantize::quantize;

use crate::products::{FEW_ROWS, Output, blocked, widen};
use crate::simd::{packing, prefetch};
use crate::{Arithmetic, Cpu, Element, Matrix, MatrixMut};

/// Why memory cannot be a quantized matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum QuantizedLayoutError {
    /// The number of bits is none of 2, 3, 4, 5, 6 and 8.
    Bits(usize),
    /// The size of a group is none of 32, 64 and 128.
    Group(usize),
    /// The columns are no multiple of the size of a group.
    Columns {
        /// How many there are.
        columns: usize,
        /// The size of a group.
        group: usize,
    },
    /// A slice has the wrong length.
    Length {
        /// What it holds.
        what: &'static str,
        /// How many elements it has.
        found: usize,
        /// How many it should have.
        expected: usize,
    },
}

impl fmt::Display for QuantizedLayoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bits(bits) => write!(f, "weights of {bits} bits: there are 2, 3, 4, 5, 6 and 8"),
            Self::Group(group) => write!(f, "groups of {group}: there are 32, 64 and 128"),
            Self::Columns { columns, group } => {
                write!(f, "{columns} columns are no multiple of the group size {group}")
            }
            Self::Length { what, found, expected } => {
                write!(f, "{found} {what} where the shape asks for {expected}")
            }
        }
    }
}

impl std::error::Error for QuantizedLayoutError {}

/// A quantized matrix to read, as MLX lays it out: rows follow each other, codes lie from the low
/// bits of a 32-bit word to the high ones and go on in the next.
#[derive(Debug, Clone, Copy)]
pub struct QuantizedMatrix<'a, T> {
    rows: usize,
    columns: usize,
    codes: Codes,
    group: usize,
    weights: &'a [u32],
    scales: Scales<'a, T>,
}

/// What a code stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Codes {
    /// A whole number of so many bits.
    Whole(usize),
    E2m1,
    E4m3,
}

#[derive(Debug, Clone, Copy)]
enum Scales<'a, T> {
    Affine { scales: &'a [T], biases: &'a [T] },
    E8m0(&'a [u8]),
    E4m3(&'a [u8]),
}

impl Codes {
    /// The size of a code.
    const fn bits(self) -> usize {
        match self {
            Self::Whole(bits) => bits,
            Self::E2m1 => 4,
            Self::E4m3 => 8,
        }
    }
}

impl<'a, T> QuantizedMatrix<'a, T> {
    /// Bytes of the codes of all rows.
    const fn bytes(&self) -> &'a [u8] {
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
    /// Other bits and groups, columns that are no multiple of the group, slices of another length.
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

    /// Mode `mxfp4`: codes E2M1, a scale E8M0 for 32.
    ///
    /// # Shapes
    ///
    /// `weights` [rows, columns / 8], `scales` [rows, columns / 32].
    ///
    /// # Errors
    ///
    /// Columns that are no multiple of 32, slices of another length.
    pub fn mxfp4(
        weights: &'a [u32],
        scales: &'a [u8],
        rows: usize,
        columns: usize,
    ) -> Result<Self, QuantizedLayoutError> {
        Self { rows, columns, codes: Codes::E2m1, group: 32, weights, scales: Scales::E8m0(scales) }
            .check(&[("scales", scales.len())])
    }

    /// Mode `mxfp8`: codes E4M3, a scale E8M0 for 32.
    ///
    /// # Shapes
    ///
    /// `weights` [rows, columns / 4], `scales` [rows, columns / 32].
    ///
    /// # Errors
    ///
    /// Columns that are no multiple of 32, slices of another length.
    pub fn mxfp8(
        weights: &'a [u32],
        scales: &'a [u8],
        rows: usize,
        columns: usize,
    ) -> Result<Self, QuantizedLayoutError> {
        Self { rows, columns, codes: Codes::E4m3, group: 32, weights, scales: Scales::E8m0(scales) }
            .check(&[("scales", scales.len())])
    }

    /// Mode `nvfp4`: codes E2M1, a scale E4M3 for 16.
    ///
    /// # Shapes
    ///
    /// `weights` [rows, columns / 8], `scales` [rows, columns / 16].
    ///
    /// # Errors
    ///
    /// Columns that are no multiple of 16, slices of another length.
    pub fn nvfp4(
        weights: &'a [u32],
        scales: &'a [u8],
        rows: usize,
        columns: usize,
    ) -> Result<Self, QuantizedLayoutError> {
        Self { rows, columns, codes: Codes::E2m1, group: 16, weights, scales: Scales::E4m3(scales) }
            .check(&[("scales", scales.len())])
    }

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

    /// The number of bits of a code.
    pub const fn bits(&self) -> usize {
        self.codes.bits()
    }

    /// Groups in a row.
    const fn groups(&self) -> usize {
        self.columns / self.group
    }

    /// Bytes of a row of codes.
    const fn row_bytes(&self) -> usize {
        self.columns * self.bits() / 8
    }

    /// Widens scales and, in mode `affine`, biases; groups are counted over all rows from `first` on.
    #[inline(always)]
    fn widen_scales<S: Arithmetic>(&self, s: S, first: usize, to: &mut [f32], biases_to: &mut [f32]) {
        let groups = first..first + to.len();
        match self.scales {
            Scales::Affine { scales, biases } => {
                widen(s, &scales[groups.clone()], to);
                widen(s, &biases[groups], biases_to);
            }
            Scales::E8m0(scales) => {
                for (scale, to) in scales[groups].iter().zip(to) {
                    // 0 or infinity where `T` does not have the power of two; MLX rounds here too.
                    *to = T::narrow(packing::e8m0(*scale)).widen();
                }
            }
            Scales::E4m3(scales) => {
                for (scale, to) in scales[groups].iter().zip(to) {
                    *to = packing::e4m3(*scale);
                }
            }
        }
    }

    /// Asks for the memory of `count` scales from `first` on, and of their biases. They may lie beyond
    /// the last.
    #[inline(always)]
    fn prefetch_scales(&self, first: usize, count: usize) {
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

    /// Whether products are sums of whole numbers.
    const fn is_whole(&self) -> bool {
        T::PRECISION <= 15 && self.codes.are_whole()
    }

    /// Whether there are biases.
    const fn is_affine(&self) -> bool {
        matches!(self.scales, Scales::Affine { .. })
    }
}

/// `out = x w`, or `out = x w^T` where `transpose` is set, as layers have their weights.
///
/// # Numbers
///
/// The scale and bias of a group are those of the format of the tensor, and sums are float32: with e = 2^-24 and K
/// products to sum, the error is at most `(K + 8) e sum |x_k| (|scale_k code_k| + |bias_k|)`, beside the last
/// rounding. Where `x` has half precision, `transpose` is set, and codes are whole numbers of 2, 4 or 8 bits or
/// floats of 4, groups of `x` are multiplied as whole numbers of 16 bits and a power of two; with `m_g` the largest
/// of group g (at least 2^-112) that adds at most `1/32640 sum_g m_g sum |scale_k code_k|`.
///
/// # Shapes
///
/// `x` [M, K], `w` [K, N] or transposed [N, K], `out` [M, N]. K = 0 gives zeros.
///
/// # Panics
///
/// Where the shapes do not fit.
pub fn quantized_matmul<T: Element>(
    cpu: &Cpu,
    x: Matrix<'_, T>,
    w: &QuantizedMatrix<'_, T>,
    transpose: bool,
    mut out: MatrixMut<'_, T>,
) {
    let (depth, columns) = if transpose { (w.columns, w.rows) } else { (w.rows, w.columns) };
    assert_eq!(
        (x.rows(), columns, x.columns()),
        (out.rows(), out.columns(), depth),
        "rows, columns and depth of a product with a quantized matrix"
    );
    let out = Output::new(&mut out);
    if x.rows() == 0 || columns == 0 {
        return;
    }
    if depth == 0 {
        return out.put_zeros();
    }
    if transpose && x.rows() <= FEW_ROWS {
        few_rows::rows_by_rows(cpu, x, w, &out);
    } else {
        match (transpose, w.is_whole()) {
            (true, true) => blocked(cpu, &Activations::new(x, w), &Rows { w, whole: true }, &out),
            (true, false) => blocked(cpu, &x, &Rows { w, whole: false }, &out),
            (false, _) => blocked(cpu, &x, &Columns(w), &out),
        }
    }
}

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
