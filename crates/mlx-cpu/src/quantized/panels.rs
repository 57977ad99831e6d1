//! Quantized matrices in products with many rows: decoded while they are packed.

use super::QuantizedMatrix;
use crate::matmul::{Lines, Panels, pack_transposing};
use crate::{Element, Isa, Kernel, Simd};

/// So much of a row is decoded before it is packed: all rows of a panel stay in the first-level cache.
const DEPTH: usize = 256;

/// Its rows are the lines.
pub(super) struct Rows<'a, T>(pub(super) &'a QuantizedMatrix<'a, T>);

impl<T: Element> Panels for Rows<'_, T> {
    fn lines(&self) -> usize {
        self.0.rows
    }

    fn depth(&self) -> usize {
        self.0.columns
    }

    fn scratch(&self, lanes: usize) -> usize {
        2 * lanes * DEPTH
    }

    fn pack(&self, isa: Isa, lines: Lines, to: &mut [f32], scratch: &mut [f32]) {
        isa.run(PackRows { w: self.0, isa, lines, to, scratch });
    }
}

struct PackRows<'a, T> {
    w: &'a QuantizedMatrix<'a, T>,
    isa: Isa,
    lines: Lines,
    to: &'a mut [f32],
    scratch: &'a mut [f32],
}

impl<T: Element> Kernel for PackRows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { w, isa, lines: Lines { first, count, width }, to, scratch } = self;
        for (index, to) in to.chunks_mut(DEPTH * width).enumerate() {
            let depth = to.len() / width;
            for (line, to) in scratch.chunks_exact_mut(DEPTH).enumerate().take(count) {
                w.decode(s, isa, first + line, index * DEPTH, &mut to[..depth]);
            }
            let line = |i: usize| &scratch[i * DEPTH..][..depth];
            pack_transposing(s, line, count, depth, width, to);
        }
    }
}

/// Its columns are the lines.
pub(super) struct Columns<'a, T>(pub(super) &'a QuantizedMatrix<'a, T>);

impl<T: Element> Panels for Columns<'_, T> {
    fn lines(&self) -> usize {
        self.0.columns
    }

    fn depth(&self) -> usize {
        self.0.rows
    }

    fn pack(&self, isa: Isa, lines: Lines, to: &mut [f32], _scratch: &mut [f32]) {
        isa.run(PackColumns { w: self.0, isa, lines, to });
    }
}

struct PackColumns<'a, T> {
    w: &'a QuantizedMatrix<'a, T>,
    isa: Isa,
    lines: Lines,
    to: &'a mut [f32],
}

impl<T: Element> Kernel for PackColumns<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { w, isa, lines: Lines { first, count, width }, to } = self;
        for (row, to) in to.chunks_exact_mut(width).enumerate() {
            // A multiple of a vector: columns are whole groups.
            w.decode(s, isa, row, first, &mut to[..count]);
            to[count..].fill(0.0);
        }
    }
}
