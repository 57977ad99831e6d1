//! Matrices of blocks in products with many rows: they are decoded while they are packed.

use super::decode::{Decode, PART};
use super::matrix::BlockMatrix;
use crate::products::{Lines, Panels, pack_transposing};
use crate::{Isa, Kernel, Simd};

/// The right factor `w^T`: the rows of `w` are the lines.
pub(super) struct Rows<'a>(pub(super) &'a BlockMatrix<'a>);

impl Panels for Rows<'_> {
    fn lines(&self) -> usize {
        self.0.rows()
    }

    fn depth(&self) -> usize {
        self.0.columns()
    }

    fn scratch(&self, lanes: usize) -> usize {
        2 * lanes * PART
    }

    fn pack(&self, isa: Isa, lines: Lines, to: &mut [f32], scratch: &mut [f32]) {
        isa.run(PackRows { w: self.0, isa, lines, to, scratch });
    }
}

struct PackRows<'a> {
    w: &'a BlockMatrix<'a>,
    isa: Isa,
    lines: Lines,
    to: &'a mut [f32],
    scratch: &'a mut [f32],
}

impl Kernel for PackRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { w, isa, lines: Lines { first, count, width }, to, scratch } = self;
        for (index, to) in to.chunks_mut(PART * width).enumerate() {
            let depth = to.len() / width;
            for (line, to) in scratch.chunks_exact_mut(PART).enumerate().take(count) {
                isa.run(Decode { w, row: first + line, first: index * PART, to: &mut to[..depth] });
            }
            let line = |i: usize| &scratch[i * PART..][..depth];
            pack_transposing(s, 0, line, count, depth, width, to);
        }
    }
}

/// The right factor `w`: the columns of `w` are the lines.
pub(super) struct Columns<'a>(pub(super) &'a BlockMatrix<'a>);

impl Panels for Columns<'_> {
    fn lines(&self) -> usize {
        self.0.columns()
    }

    fn depth(&self) -> usize {
        self.0.rows()
    }

    fn scratch(&self, _lanes: usize) -> usize {
        PART
    }

    fn pack(&self, isa: Isa, lines: Lines, to: &mut [f32], scratch: &mut [f32]) {
        let Lines { first, count, width } = lines;
        // A panel is narrower than a block may be: the block that it lies in is decoded.
        let block = self.0.format.block();
        let start = first / block * block;
        let length = (first + count - start).next_multiple_of(block);
        for (row, to) in to.chunks_exact_mut(width).enumerate() {
            let part = &mut scratch[..length];
            isa.run(Decode { w: self.0, row, first: start, to: part });
            to[..count].copy_from_slice(&part[first - start..][..count]);
            to[count..].fill(0.0);
        }
    }
}
