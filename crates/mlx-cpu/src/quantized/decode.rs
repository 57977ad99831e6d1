//! Codes into numbers.

use super::format::{ForFormat, Format};
use super::{Codes, QuantizedMatrix};
use crate::{Element, Isa, Kernel, Simd};

/// How many groups are decoded with one call; the smallest group has 16 elements.
const GROUPS: usize = 64;

impl<T: Element> QuantizedMatrix<'_, T> {
    /// Decodes elements `first..first + to.len()` of a row; both numbers are multiples of 8, or of 16
    /// where a vector is as long, and no more than 1024 elements.
    #[inline(always)]
    pub(super) fn decode<S: Simd>(&self, s: S, isa: Isa, row: usize, first: usize, to: &mut [f32]) {
        let end = first + to.len();
        let groups = first / self.group..end.div_ceil(self.group);
        let (mut scales, mut biases) = ([0.0; GROUPS], [0.0; GROUPS]);
        let (scales, biases) = (&mut scales[..groups.len()], &mut biases[..groups.len()]);
        self.widen_scales(s, row * self.groups() + groups.start, scales, biases);
        isa.run(Decode {
            format: self.codes,
            codes: &self.bytes()[row * self.row_bytes()..][..self.row_bytes()],
            group: self.group,
            first,
            scales,
            biases: self.is_affine().then_some(&*biases),
            to,
        });
    }
}

impl<T> QuantizedMatrix<'_, T> {
    /// Codes `first..first + to.len()` of a row as numbers, without scale and bias; both numbers are
    /// multiples of 16.
    pub(super) fn codes(&self, isa: Isa, row: usize, first: usize, to: &mut [f32]) {
        let length = self.columns * self.codes.bits() / 8;
        let all = to.len() + first;
        isa.run(Decode {
            format: self.codes,
            codes: &self.bytes()[row * length..][..length],
            group: all,
            first,
            scales: &[1.0],
            biases: None,
            to,
        });
    }
}

/// Part of a row. It is compiled once for each instruction set and format of codes, whatever format
/// the scales had.
struct Decode<'a> {
    format: Codes,
    codes: &'a [u8],
    group: usize,
    first: usize,
    /// From the group on that `first` lies in.
    scales: &'a [f32],
    biases: Option<&'a [f32]>,
    to: &'a mut [f32],
}

impl Kernel for Decode<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.format.with(Row { task: self, s });
    }
}

struct Row<'a, S> {
    task: Decode<'a>,
    s: S,
}

impl<S: Simd> ForFormat for Row<'_, S> {
    #[inline(always)]
    fn run<F: Format>(self, _: F) {
        let Self { task: Decode { codes, group, first, scales, biases, to, .. }, s } = self;
        let end = first + to.len();
        assert!(first.is_multiple_of(S::LANES) && end.is_multiple_of(S::LANES));
        assert!(end * F::BITS <= codes.len() * 8);
        let mut at = first;
        for (index, scale) in scales.iter().enumerate() {
            let scale = s.splat(*scale);
            let bias = biases.map(|biases| s.splat(biases[index]));
            let last = ((first / group + index + 1) * group).min(end);
            while at < last {
                // SAFETY: a multiple of `LANES` within the row.
                let code = unsafe { F::unpack(s, codes.as_ptr(), at) };
                let x = match bias {
                    Some(bias) => s.mul_add(code, scale, bias),
                    None => s.mul(code, scale),
                };
                s.store(&mut to[at - first..], x);
                at += S::LANES;
            }
        }
    }
}
