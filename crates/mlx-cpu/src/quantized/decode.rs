//! Codes into numbers.

use std::ops::Range;

use super::format::{ForFormat, Format};
use super::{Codes, QuantizedMatrix};
use crate::{Arithmetic, Decoding, Element, Isa, Kernel, Simd};

/// How many groups are decoded with one call; the smallest group has 16 elements.
/// Miri's cases are small, and more than one call is what it is to see.
const GROUPS: usize = if cfg!(miri) { 4 } else { 64 };

impl<T: Element> QuantizedMatrix<'_, T> {
    /// Decodes elements `first..first + to.len()` of a row; both numbers are multiples of 8, or of 16
    /// where a vector is as long, and no more than 1024 elements.
    #[inline(always)]
    pub(super) fn decode<S: Arithmetic>(&self, s: S, isa: Isa, row: usize, first: usize, to: &mut [f32]) {
        self.decode_some(s, isa, row..row + 1, first..first + to.len(), to, 0);
    }

    /// Decodes whole rows, each to `stride` numbers behind the one before.
    #[inline(always)]
    pub(crate) fn decode_rows<S: Arithmetic>(
        &self,
        s: S,
        isa: Isa,
        rows: Range<usize>,
        to: &mut [f32],
        stride: usize,
    ) {
        // So many have all their scales decoded with one call; or a part of one.
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

    /// Decodes some columns of a row or all of some rows, of no more than [`GROUPS`] groups.
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
    /// Codes `first..first + to.len()` of a row as numbers, without scale and bias; both numbers are
    /// multiples of 16.
    pub(super) fn codes(&self, isa: Isa, row: usize, first: usize, to: &mut [f32]) {
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

/// Parts of rows. It is compiled once for each instruction set and format of codes, whatever format
/// the scales had.
struct Decode<'a> {
    format: Codes,
    /// Of whole rows.
    codes: &'a [u8],
    rows: usize,
    columns: Range<usize>,
    group: usize,
    /// Of each row, from the group on that the first column lies in.
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
                // A sum with -0 changes nothing.
                let bias = s.splat(biases.map_or(-0.0, |biases| biases[row * groups + index]));
                let last = ((first / group + index + 1) * group).min(end);
                // Without a loop as far as there are four vectors.
                while at + 4 * S::LANES <= last {
                    for i in 0..4 {
                        let at = at + i * S::LANES;
                        // SAFETY: a multiple of `LANES` within the row, and as far from the first to write.
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
