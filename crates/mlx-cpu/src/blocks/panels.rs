//! Matrices of blocks in products with many rows: they are decoded while they are packed, into floats, or into whole
//! numbers if activations have half precision.

use super::activations::Paired;
use super::decode::{Decode, PART};
use super::format::{ForPlanes, MOST_WORDS, Many, Planes, Words, load};
use super::matrix::{BlockMatrix, Chunk};
use crate::products::{Lines, MOST_ROWS, Numbers, Panels, pack_transposing, widen_row};
use crate::{Element, Integers, Isa, Kernel, MAX_LANES, Matrix, Simd};

/// The left factor of a product in whole numbers. Its rows are the lines.
pub(super) struct Activations<'a, T> {
    x: Matrix<'a, T>,
    paired: Paired,
}

impl<'a, T: Element> Activations<'a, T> {
    pub(super) fn new(x: Matrix<'a, T>, w: &BlockMatrix<'_>) -> Self {
        Self { x, paired: Paired::new(w) }
    }
}

impl<T: Element> Panels for Activations<'_, T> {
    fn lines(&self) -> usize {
        self.x.rows()
    }

    fn depth(&self) -> usize {
        self.paired.length()
    }

    fn numbers(&self) -> Numbers {
        Numbers::Whole { group: self.paired.group_length() }
    }

    fn scratch(&self, _: usize) -> usize {
        self.x.columns() + MOST_ROWS * self.depth()
    }

    fn pack(&self, isa: Isa, lines: Lines, to: &mut [f32], scratch: &mut [f32]) {
        isa.run(PackActivations { from: self, lines, to, scratch });
    }
}

struct PackActivations<'a, T> {
    from: &'a Activations<'a, T>,
    lines: Lines,
    to: &'a mut [f32],
    scratch: &'a mut [f32],
}

impl<T: Element> Kernel for PackActivations<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { from: &Activations { x, paired }, lines, to, scratch } = self;
        let Lines { first, count, width } = lines;
        let (wide, rows) = scratch.split_at_mut(x.columns());
        let depth = paired.length();
        for (i, row) in rows.chunks_exact_mut(depth).enumerate().take(count) {
            widen_row(s, &x, first + i, wide);
            paired.write(s, wide, row);
        }
        let rows = &*rows;
        pack_transposing(s, 0, |i| &rows[i * depth..][..depth], count, depth, width, to);
    }
}

/// The right factor `w^T` in whole numbers: the rows of `w` are the lines.
pub(super) struct WholeRows<'a>(pub(super) &'a BlockMatrix<'a>);

impl Panels for WholeRows<'_> {
    fn lines(&self) -> usize {
        self.0.rows()
    }

    fn depth(&self) -> usize {
        Paired::new(self.0).length()
    }

    fn numbers(&self) -> Numbers {
        Numbers::Whole { group: Paired::new(self.0).group_length() }
    }

    fn scratch(&self, lanes: usize) -> usize {
        // The scales of a vector of rows and what is added, twice.
        4 * lanes * self.0.groups()
    }

    fn pack(&self, isa: Isa, lines: Lines, to: &mut [f32], scratch: &mut [f32]) {
        isa.run(PackWhole { w: self.0, lines, to, scratch });
    }
}

struct PackWhole<'a> {
    w: &'a BlockMatrix<'a>,
    lines: Lines,
    to: &'a mut [f32],
    scratch: &'a mut [f32],
}

impl Kernel for PackWhole<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { w, lines: Lines { first, count, width }, to, scratch } = self;
        let groups = w.groups();
        let (scales, rest) = scratch.split_at_mut(groups * S::LANES);
        let (added, rest) = rest.split_at_mut(groups * S::LANES);
        let (scales_by_row, rest) = rest.split_at_mut(groups * S::LANES);
        let added_by_row = &mut rest[..groups * S::LANES];
        for from in (0..width).step_by(S::LANES) {
            // Scales of a group side by side. Zeros for rows behind the last.
            let held = count.saturating_sub(from).min(S::LANES);
            let start = first + from.min(count);
            w.widen_scales(s, start..start + held, scales_by_row, added_by_row);
            let by_row = &*scales_by_row;
            pack_transposing(s, 0, |i| &by_row[i * groups..][..groups], held, groups, S::LANES, scales);
            if w.format().has_minimums() {
                let by_row = &*added_by_row;
                pack_transposing(s, 0, |i| &by_row[i * groups..][..groups], held, groups, S::LANES, added);
            } else {
                // A group's sum of codes is that of the codes less zero, and zero times the sum of its numbers.
                let zero = -f32::from(w.format().zero());
                for (added, scale) in added.iter_mut().zip(&*scales) {
                    *added = zero * scale;
                }
            }
            // At least one row. If its scale is 0, its codes do not matter.
            let start = first + from.min(count - 1);
            let words = w.codes_of(start..start + held.max(1));
            w.format().with(WholeWords {
                s,
                words,
                rows: held.max(1),
                groups,
                scales,
                added,
                width,
                to: &mut to[from..],
            });
        }
    }
}

/// As many rows as a vector has lanes.
struct WholeWords<'a, S> {
    s: S,
    words: &'a [u32],
    rows: usize,
    groups: usize,
    scales: &'a [f32],
    added: &'a [f32],
    width: usize,
    to: &'a mut [f32],
}

impl<S: Integers> ForPlanes<()> for WholeWords<'_, S> {
    #[inline(always)]
    fn run<P: Planes>(self, _: P) {
        let Self { s, words, rows, groups, scales, added, width, to } = self;
        let row_words = groups * P::GROUP * P::BITS / 32;
        let length = P::GROUP / 2 + 2;
        assert!(words.len() == rows * row_words && rows <= S::LANES);
        assert!(to.len() >= (groups * length - 1) * width + S::LANES);
        for first in (0..groups).step_by(S::LANES) {
            let chunk = Chunk::of(first, groups);
            let count = S::LANES.min(chunk.first + chunk.lanes - first);
            // For each word of a group, and each group, a vector with a lane for each row.
            let mut block = [[s.zero(); MAX_LANES]; MOST_WORDS];
            for row in 0..S::LANES {
                // Lanes behind the last row read that row again; their scale is 0.
                let start = row.min(rows - 1) * row_words + chunk.word(P::BITS, P::GROUP);
                // SAFETY: the words of the chunk lie within the row, which is within `words`.
                let loaded = unsafe {
                    load::<S, P>(s, words.as_ptr().add(start), chunk.lanes, first - chunk.first, count)
                };
                for (block, word) in block.iter_mut().zip(loaded) {
                    block[row] = word;
                }
            }
            for block in &mut block[..P::WORDS + usize::from(P::HALF)] {
                s.transpose(block);
            }
            for (lane, group) in (first..first + count).enumerate() {
                let mut words = [s.bits(s.zero()); MOST_WORDS];
                for (word, block) in words.iter_mut().zip(&block) {
                    *word = s.bits(block[lane]);
                }
                let to = &mut to[group * length * width..];
                for h in 0..P::VECTORS {
                    let codes = P::codes(Many(s), &words, h);
                    // SAFETY: the steps of this group were asserted to be there.
                    unsafe {
                        let to = to.as_mut_ptr().add(2 * h * width);
                        s.store_bits(to, Many(s).field(codes, 0, 0x00ff_00ff));
                        s.store_bits(to.add(width), Many(s).field(codes, 8, 0x00ff_00ff));
                    }
                }
                let at = group * S::LANES;
                s.store(&mut to[P::GROUP / 2 * width..], s.load(&scales[at..]));
                s.store(&mut to[(P::GROUP / 2 + 1) * width..], s.load(&added[at..]));
            }
        }
    }
}

/// The right factor `w^T` in float32: the rows of `w` are the lines.
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
