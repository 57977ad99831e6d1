//! Panels: a few lines of a matrix side by side, in the order in which the tile kernel reads them.

use crate::simd::prefetch;
use crate::{Arithmetic, Element, Isa, Kernel, MAX_LANES, Matrix, Simd};

/// How many steps of the depth ahead memory is prefetched if steps lie far apart.
pub(crate) const AHEAD: usize = 12;

/// A matrix that can be copied into panels. A panel has some *lines* side by side: rows of the left factor of a
/// product, columns of the right one. The *depth* is the dimension that is summed.
pub(crate) trait Panels: Sync {
    /// The number of lines.
    fn lines(&self) -> usize;

    /// The length of a line, in numbers of 4 bytes.
    fn depth(&self) -> usize;

    /// What the numbers of 4 bytes are. Both factors of a product have the same.
    fn numbers(&self) -> Numbers {
        Numbers::Float32
    }

    /// The amount of scratch memory that [`pack`](Self::pack) needs, in numbers.
    fn scratch(&self, _lanes: usize) -> usize {
        0
    }

    /// Writes element `p` of line `first + i` to `to[p * width + i]` for all `p` and `i < count`, and
    /// zeros for `i` in `count..width`.
    fn pack(&self, isa: Isa, lines: Lines, to: &mut [f32], scratch: &mut [f32]);
}

/// What the numbers of 4 bytes in panels are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Numbers {
    /// Elements.
    Float32,
    /// Pairs of 16-bit whole numbers, in groups, with two floats behind each group: its scale, by which its numbers are
    /// multiplied, and a summand. In the right factor the summand is the bias of the group, in the left one the sum of
    /// the group, by which the bias is multiplied.
    Whole {
        /// The length of a group with its two floats.
        group: usize,
    },
    /// Pairs of elements of bfloat16: the first in the lower half, the next one of its line in the upper half.
    Bfloat16,
}

/// The lines of a panel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lines {
    /// The first line.
    pub(crate) first: usize,
    /// The number of lines.
    pub(crate) count: usize,
    /// The number of lines of the panel, with those that are filled with zeros.
    pub(crate) width: usize,
}

/// The rows are the lines.
impl<T: Element> Panels for Matrix<'_, T> {
    fn lines(&self) -> usize {
        self.rows()
    }

    fn depth(&self) -> usize {
        self.columns()
    }

    fn pack(&self, isa: Isa, lines: Lines, to: &mut [f32], _scratch: &mut [f32]) {
        isa.run(Pack { from: self, lines, to });
    }
}

struct Pack<'a, T> {
    from: &'a Matrix<'a, T>,
    lines: Lines,
    to: &'a mut [f32],
}

impl<T: Element> Kernel for Pack<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { from, lines: Lines { first, count, width }, to } = self;
        let (data, depth) = (from.data(), from.columns());
        if from.column_stride() == 1 || depth == 1 {
            let line = |i: usize| &data[(first + i) * from.row_stride()..][..depth];
            pack_transposing(s, S::LANES * from.row_stride(), line, count, depth, width, to);
        } else if from.row_stride() == 1 {
            for (p, to) in to.chunks_exact_mut(width).enumerate() {
                let at = p * from.column_stride() + first;
                // Each step of the depth lies in another page.
                for line in (0..count).step_by(64 / size_of::<T>()) {
                    prefetch(data.as_ptr().wrapping_add(at + AHEAD * from.column_stride() + line));
                }
                widen(s, &data[at..][..count], to);
                to[count..].fill(0.0);
            }
        } else {
            for (p, to) in to.chunks_exact_mut(width).enumerate() {
                for (i, to) in to[..count].iter_mut().enumerate() {
                    *to = data[(first + i) * from.row_stride() + p * from.column_stride()].widen();
                }
                to[count..].fill(0.0);
            }
        }
    }
}

/// Writes `from`, widened to float32, to the beginning of `to`.
#[inline(always)]
pub(crate) fn widen<S: Arithmetic, T: Element>(s: S, from: &[T], to: &mut [f32]) {
    for (from, to) in from.chunks(S::LANES).zip(to.chunks_mut(S::LANES)) {
        if from.len() == S::LANES && to.len() == S::LANES {
            s.store(to, s.load(from));
        } else {
            for (from, to) in from.iter().zip(to) {
                *to = from.widen();
            }
        }
    }
}

/// [`Panels::pack`] for lines whose elements follow each other: square blocks, of as many lines and elements as a
/// vector has lanes, are transposed in registers. The lines that are packed next lie `ahead` elements further.
#[inline(always)]
pub(crate) fn pack_transposing<'a, S: Arithmetic, T: Element>(
    s: S,
    ahead: usize,
    line: impl Fn(usize) -> &'a [T],
    count: usize,
    depth: usize,
    width: usize,
    to: &mut [f32],
) {
    assert!(count <= width && to.len() == depth * width);
    for block in (0..width).step_by(S::LANES) {
        let lanes = S::LANES.min(width - block);
        let mut lines: [&[T]; MAX_LANES] = [&[]; MAX_LANES];
        let held = S::LANES.min(count.saturating_sub(block));
        for (i, to) in lines[..held].iter_mut().enumerate() {
            *to = &line(block + i)[..depth];
        }
        for p in (0..depth).step_by(S::LANES) {
            let some = S::LANES.min(depth - p);
            let mut rows = [s.zero(); MAX_LANES];
            if some == S::LANES {
                for (row, line) in rows[..S::LANES].iter_mut().zip(&lines[..held]) {
                    // SAFETY: `LANES` elements of the line are there from `p` on.
                    unsafe {
                        let from = line.as_ptr().add(p);
                        prefetch(from.wrapping_add(ahead));
                        *row = T::load(s, from);
                    }
                }
            } else {
                for (row, line) in rows[..S::LANES].iter_mut().zip(&lines[..held]) {
                    *row = s.load_some(&line[p..], 0.0);
                }
            }
            s.transpose(&mut rows);
            if lanes == S::LANES {
                for (j, row) in rows[..S::LANES].iter().enumerate().take(some) {
                    // SAFETY: `p + j < depth` and `block + LANES <= width`.
                    unsafe { s.store_f32(to.as_mut_ptr().add((p + j) * width + block), *row) };
                }
            } else {
                for (j, row) in rows[..S::LANES].iter().enumerate().take(some) {
                    // SAFETY: `p + j < depth` and `block + lanes <= width`.
                    unsafe { s.store_first(to.as_mut_ptr().add((p + j) * width + block), lanes, *row) };
                }
            }
        }
    }
}
