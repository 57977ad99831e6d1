//! Decoding of rows into float32, for panels and attention.

use std::ops::Range;

use super::format::{Codes, ForFormat, Format};
use super::matrix::QuantizedMatrix;
use crate::{Arithmetic, Decoding, Element, Isa, Kernel, Simd};

/// The largest number of groups that are decoded with one call.
/// Small for Miri, whose cases are small and must still take several calls.
const GROUPS: usize = if cfg!(miri) { 4 } else { 64 };

impl<T: Element> QuantizedMatrix<'_, T> {
    /// Decodes elements `first..first + to.len()` of a row, at most 1024. Both ends are multiples of the number of
    /// lanes.
    #[inline(always)]
    pub(super) fn decode<S: Arithmetic>(&self, s: S, isa: Isa, row: usize, first: usize, to: &mut [f32]) {
        self.decode_some(s, isa, row..row + 1, first..first + to.len(), to, 0);
    }

    /// Decodes whole rows. In `to` each begins `stride` numbers behind the one before.
    #[inline(always)]
    pub(crate) fn decode_rows<S: Arithmetic>(
        &self,
        s: S,
        isa: Isa,
        rows: Range<usize>,
        to: &mut [f32],
        stride: usize,
    ) {
        // With one call: some whole rows, or a part of one row.
        let count = (GROUPS / self.groups().max(1)).max(1);
        let size = self.columns.min(GROUPS * self.group).max(1);
        for first in rows.clone().step_by(count) {
            for column in (0..self.columns).step_by(size) {
                let to = &mut to[(first - rows.start) * stride + column..];
                let columns = column..self.columns.min(column + size);
                self.decode_some(s, isa, first..rows.end.min(first + count), columns, to, stride);
            }
        }
    }

    /// Decodes some columns of one row, or all columns of several rows: at most [`GROUPS`] groups.
    #[inline(always)]
    fn decode_some<S: Arithmetic>(
        &self,
        s: S,
        isa: Isa,
        rows: Range<usize>,
        columns: Range<usize>,
        to: &mut [f32],
        stride: usize,
    ) {
        let groups = columns.start / self.group..columns.end.div_ceil(self.group);
        let (mut scales, mut biases) = ([0.0; GROUPS], [0.0; GROUPS]);
        let count = rows.len() * groups.len();
        let (scales, biases) = (&mut scales[..count], &mut biases[..count]);
        self.widen_scales(s, rows.start * self.groups() + groups.start, scales, biases);
        isa.run(Decode {
            format: self.codes,
            codes: &self.bytes()[rows.start * self.row_bytes()..][..rows.len() * self.row_bytes()],
            rows: rows.len(),
            columns,
            group: self.group,
            scales,
            biases: self.is_affine().then_some(&*biases),
            to,
            stride,
        });
    }
}

impl<T> QuantizedMatrix<'_, T> {
    /// Unpacks codes `first..first + to.len()` of a row, without scale and bias. Both ends are multiples of
    /// [`MAX_LANES`](crate::MAX_LANES).
    pub(super) fn unpack(&self, isa: Isa, row: usize, first: usize, to: &mut [f32]) {
        let length = self.columns * self.codes.bits() / 8;
        let columns = first..first + to.len();
        isa.run(Decode {
            format: self.codes,
            codes: &self.bytes()[row * length..][..length],
            rows: 1,
            group: columns.end,
            columns,
            scales: &[1.0],
            biases: None,
            to,
            stride: 0,
        });
    }
}

/// Decodes parts of rows. It is compiled once for each instruction set and format of codes, not for each format of
/// scales.
struct Decode<'a> {
    format: Codes,
    /// Of whole rows.
    codes: &'a [u8],
    rows: usize,
    columns: Range<usize>,
    group: usize,
    /// For each row, from the group of the first column on.
    scales: &'a [f32],
    biases: Option<&'a [f32]>,
    to: &'a mut [f32],
    stride: usize,
}

impl Kernel for Decode<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.format.with(Rows { task: self, s });
    }
}

struct Rows<'a, S> {
    task: Decode<'a>,
    s: S,
}

impl<S: Decoding> ForFormat for Rows<'_, S> {
    #[inline(always)]
    fn run<F: Format>(self, _: F) {
        let Self { task: Decode { codes, rows, columns, group, scales, biases, to, stride, .. }, s } = self;
        let Range { start: first, end } = columns;
        assert!(first.is_multiple_of(S::LANES) && end.is_multiple_of(S::LANES));
        let (row_bytes, groups) = (codes.len() / rows, scales.len() / rows);
        assert!(end * F::BITS <= row_bytes * 8);
        for row in 0..rows {
            let codes = &codes[row * row_bytes..][..row_bytes];
            let to = &mut to[row * stride..][..end - first];
            let mut at = first;
            for (index, scale) in scales[row * groups..][..groups].iter().enumerate() {
                let scale = s.splat(*scale);
                // Adding -0 changes no number.
                let bias = s.splat(biases.map_or(-0.0, |biases| biases[row * groups + index]));
                let last = ((first / group + index + 1) * group).min(end);
                // Four vectors at a time, unrolled, as far as possible.
                while at + 4 * S::LANES <= last {
                    for i in 0..4 {
                        let at = at + i * S::LANES;
                        // SAFETY: `at` is a multiple of `LANES` within the row, and `at - first` within the output.
                        unsafe {
                            let code = F::unpack(s, codes.as_ptr(), at);
                            s.store_f32(to.as_mut_ptr().add(at - first), s.mul_add(code, scale, bias));
                        }
                    }
                    at += 4 * S::LANES;
                }
                while at < last {
                    // SAFETY: as above.
                    unsafe {
                        let code = F::unpack(s, codes.as_ptr(), at);
                        s.store_f32(to.as_mut_ptr().add(at - first), s.mul_add(code, scale, bias));
                    }
                    at += S::LANES;
                }
            }
        }
    }
}
