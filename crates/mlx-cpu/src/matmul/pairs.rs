//! Panels of bfloat16, for instructions that multiply bfloat16.

use half::bf16;

use crate::products::{AHEAD, Lines, Numbers, Panels, TILE, pack_transposing};
use crate::simd::prefetch;
use crate::{Isa, Kernel, Matrix, Simd};

/// The number of pairs of each line that are copied before they are packed: all lines of a panel stay in the
/// first-level cache.
const DEPTH: usize = 256;

/// A matrix in panels of pairs; its rows are the lines. A number of 4 bytes is an element of a line (lower half) and
/// the next one, or zero behind the end (upper half).
pub(super) struct Pairs<'a> {
    matrix: Matrix<'a, bf16>,
    depth: usize,
    order: Order,
}

/// The order of pairs in a panel.
#[derive(Debug, Clone, Copy)]
enum Order {
    /// That of [`Panels::pack`].
    Steps,
    /// [`TILE`] pairs of the first line, of the second line and so on, then the next [`TILE`] pairs of each line: pair
    /// `p` of line `i` lies at `((p / TILE) * width + i) * TILE + p % TILE`.
    Tiles,
}

impl<'a> Pairs<'a> {
    /// The left factor.
    pub(super) fn left(matrix: Matrix<'a, bf16>, isa: Isa) -> Self {
        let order = if isa == Isa::Amx { Order::Tiles } else { Order::Steps };
        Self { order, ..Self::right(matrix, isa) }
    }

    /// The right factor, transposed.
    pub(super) fn right(matrix: Matrix<'a, bf16>, isa: Isa) -> Self {
        let pairs = matrix.columns().div_ceil(2);
        let depth = if isa == Isa::Amx { pairs.next_multiple_of(TILE) } else { pairs };
        Self { matrix, depth, order: Order::Steps }
    }
}

impl Panels for Pairs<'_> {
    fn lines(&self) -> usize {
        self.matrix.rows()
    }

    fn depth(&self) -> usize {
        self.depth
    }

    fn numbers(&self) -> Numbers {
        Numbers::Bfloat16
    }

    fn scratch(&self, lanes: usize) -> usize {
        2 * lanes * DEPTH
    }

    fn pack(&self, isa: Isa, lines: Lines, to: &mut [f32], scratch: &mut [f32]) {
        isa.run(PackPairs { from: self, lines, to, scratch });
    }
}

struct PackPairs<'a> {
    from: &'a Pairs<'a>,
    lines: Lines,
    to: &'a mut [f32],
    scratch: &'a mut [f32],
}

impl Kernel for PackPairs<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { from: &Pairs { matrix, order, .. }, lines: Lines { first, count, width }, to, scratch } =
            self;
        match order {
            Order::Tiles => {
                for (index, to) in to.chunks_exact_mut(TILE).enumerate() {
                    let line = index % width;
                    if line < count {
                        copy(&matrix, first + line, index / width * TILE, to);
                    } else {
                        to.fill(0.0);
                    }
                }
            }
            Order::Steps if matrix.row_stride() == 1 && matrix.column_stride() != 1 => {
                let zeros = [bf16::ZERO; 32];
                let step = |k: usize| {
                    if k >= matrix.columns() {
                        return &zeros[..count];
                    }
                    let at = k * matrix.column_stride() + first;
                    // Each step of the depth lies in another page.
                    prefetch(matrix.as_ptr().wrapping_add(at + 2 * AHEAD * matrix.column_stride()));
                    &matrix.data()[at..][..count]
                };
                for (p, to) in to.chunks_exact_mut(width).enumerate() {
                    let (to, rest) = to.split_at_mut(count);
                    rest.fill(0.0);
                    let (to, _) = halves(to).as_chunks_mut::<2>();
                    for ((to, low), high) in to.iter_mut().zip(step(2 * p)).zip(step(2 * p + 1)) {
                        *to = [*low, *high];
                    }
                }
            }
            Order::Steps => {
                for (index, to) in to.chunks_mut(DEPTH * width).enumerate() {
                    let depth = to.len() / width;
                    for (line, to) in scratch.chunks_exact_mut(DEPTH).enumerate().take(count) {
                        copy(&matrix, first + line, index * DEPTH, &mut to[..depth]);
                    }
                    let line = |i: usize| &scratch[i * DEPTH..][..depth];
                    pack_transposing(s, 0, line, count, depth, width, to);
                }
            }
        }
    }
}

/// Copies the pairs of a line from pair `first` on; zeros behind the end of the line.
#[inline(always)]
fn copy(matrix: &Matrix<'_, bf16>, line: usize, first: usize, to: &mut [f32]) {
    let (from, to) = ((2 * first).min(matrix.columns()), halves(to));
    let (to, rest) = to.split_at_mut(to.len().min(matrix.columns() - from));
    rest.fill(bf16::ZERO);
    if matrix.column_stride() == 1 {
        return to.copy_from_slice(&matrix.row(line)[from..][..to.len()]);
    }
    for (k, to) in to.iter_mut().enumerate() {
        *to = matrix.data()[line * matrix.row_stride() + (from + k) * matrix.column_stride()];
    }
}

/// The elements of pairs.
#[inline(always)]
fn halves(pairs: &mut [f32]) -> &mut [bf16] {
    // SAFETY: the same memory. Any bits are a value of either type, and a pair is aligned as its elements need.
    unsafe { std::slice::from_raw_parts_mut(pairs.as_mut_ptr().cast(), 2 * pairs.len()) }
}
