//! Decoding of rows into float32, and of whole matrices.

use super::format::{ForPlanes, One, Planes, words_of};
use super::matrix::{BlockMatrix, Chunk};
use crate::cpu::Shared;
use crate::{Cpu, Element, Isa, Kernel, MatrixMut, Simd};

/// Elements that one task decodes.
/// Small for Miri, whose cases are small and must still have several tasks.
const PIECE: usize = if cfg!(miri) { 1 << 7 } else { 1 << 16 };
/// Elements of a row that are decoded at a time.
pub(super) const PART: usize = 512;

/// Writes the elements of `w`. Each is computed in float32, with the bits of ggml's own function, and rounded to the
/// format of `out`.
///
/// # Panics
///
/// If the shapes differ.
pub fn dequantize_blocks<T: Element>(cpu: &Cpu, w: &BlockMatrix<'_>, mut out: MatrixMut<'_, T>) {
    assert_eq!((w.rows, w.columns), (out.rows(), out.columns()), "shape of a dequantized matrix");
    if w.rows == 0 || w.columns == 0 {
        return;
    }
    let size = (PIECE / w.columns).max(1);
    let (row_stride, to) = (out.row_stride(), Shared(out.as_mut_ptr()));
    cpu.parallel(w.rows.div_ceil(size), |index| {
        for row in index * size..w.rows.min((index + 1) * size) {
            // SAFETY: rows of the output do not overlap, and each belongs to one task.
            let to = unsafe { std::slice::from_raw_parts_mut(to.get().add(row * row_stride), w.columns) };
            cpu.run(Row { isa: cpu.isa(), w, row, to });
        }
    });
}

struct Row<'a, T> {
    isa: Isa,
    w: &'a BlockMatrix<'a>,
    row: usize,
    to: &'a mut [T],
}

impl<T: Element> Kernel for Row<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { isa, w, row, to } = self;
        let mut part = [0.0; PART];
        for (index, to) in to.chunks_mut(PART).enumerate() {
            let part = &mut part[..to.len()];
            isa.run(Decode { w, row, first: index * PART, to: part });
            // Rows are whole blocks, so a part is whole vectors.
            for (from, to) in part.chunks_exact(S::LANES).zip(to.chunks_exact_mut(S::LANES)) {
                s.store(to, s.load(from));
            }
        }
    }
}

/// Decodes elements `first..first + to.len()` of a row: whole blocks, at most [`PART`] elements.
pub(super) struct Decode<'a> {
    pub(super) w: &'a BlockMatrix<'a>,
    pub(super) row: usize,
    pub(super) first: usize,
    pub(super) to: &'a mut [f32],
}

impl Kernel for Decode<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (mut scales, mut added) = ([0.0; PART / 16], [-0.0; PART / 16]);
        let group = self.w.format.group();
        let count = self.to.len() / group;
        self.w.widen_some(s, self.row, self.first / group, &mut scales[..count], &mut added[..count]);
        self.w.format.with(Groups { task: self, scales: &scales, added: &added });
    }
}

struct Groups<'a, 'b> {
    task: Decode<'a>,
    scales: &'b [f32],
    /// -0 without minimums: adding it changes no number.
    added: &'b [f32],
}

impl ForPlanes<()> for Groups<'_, '_> {
    // Plain loops, of which the compiler makes vectors.
    #[inline(always)]
    fn run<P: Planes>(self, _: P) {
        let Self { task: Decode { w, row, first, to }, scales, added } = self;
        let codes = w.codes_of(row..row + 1);
        let zero = f32::from(w.format.zero());
        for (index, to) in to.chunks_exact_mut(P::GROUP).enumerate() {
            let group = first / P::GROUP + index;
            let chunk = Chunk::of(group, w.groups());
            let words =
                words_of::<P>(&codes[chunk.word(P::BITS, P::GROUP)..], chunk.lanes, group - chunk.first);
            let (scale, added) = (scales[index], added[index]);
            let mut bytes = [0_u8; 32];
            for (h, bytes) in bytes.chunks_exact_mut(4).enumerate().take(P::VECTORS) {
                bytes.copy_from_slice(&P::codes(One, &words, h).to_le_bytes());
            }
            for (code, to) in bytes.iter().zip(to) {
                // The product is exact, so it makes no difference whether the sum is rounded alone.
                *to = (f32::from(*code) - zero) * scale + added;
            }
        }
    }
}
