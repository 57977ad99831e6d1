//! Decoding of whole matrices and rows.

use super::matrix::QuantizedMatrix;
use crate::cpu::Shared;
use crate::{Cpu, Element, Isa, Kernel, MatrixMut, Simd};

/// Elements that one task decodes.
/// Small for Miri, whose cases are small and must still have several tasks and chunks.
const PIECE: usize = if cfg!(miri) { 1 << 7 } else { 1 << 16 };
/// Codes that are unpacked before they are scaled.
const CHUNK: usize = if cfg!(miri) { 128 } else { 512 };

/// Writes the elements of `w` with the bits of MLX's CPU device: the product of scale and code is rounded to the format
/// of `out`, and then its sum with the bias.
///
/// # Panics
///
/// If the shapes differ.
pub fn dequantize<T: Element>(cpu: &Cpu, w: &QuantizedMatrix<'_, T>, mut out: MatrixMut<'_, T>) {
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
            cpu.run(Row { w, isa: cpu.isa(), row, to });
        }
    });
}

/// Writes the elements of one row of `w`, as [`dequantize`] does.
pub(crate) fn dequantize_row<T: Element>(cpu: &Cpu, w: &QuantizedMatrix<'_, T>, row: usize, to: &mut [T]) {
    assert!(row < w.rows && to.len() == w.columns, "row {row} of {}", w.rows);
    cpu.run(Row { w, isa: cpu.isa(), row, to });
}

struct Row<'a, T> {
    w: &'a QuantizedMatrix<'a, T>,
    isa: Isa,
    row: usize,
    to: &'a mut [T],
}

impl<T: Element> Kernel for Row<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { w, isa, row, to } = self;
        let mut codes = [0.0; CHUNK];
        let (mut scales, mut biases) = ([0.0; CHUNK / 16], [0.0; CHUNK / 16]);
        for (index, to) in to.chunks_mut(CHUNK).enumerate() {
            let codes = &mut codes[..to.len()];
            w.unpack(isa, row, index * CHUNK, codes);
            let groups = to.len() / w.group;
            let (scales, biases) = (&mut scales[..groups], &mut biases[..groups]);
            w.widen_scales(s, row * w.groups() + index * CHUNK / w.group, scales, biases);
            let groups = codes.chunks_exact(w.group).zip(to.chunks_exact_mut(w.group));
            for ((codes, to), (scale, bias)) in groups.zip(scales.iter().zip(&*biases)) {
                let (scale, bias) = (s.splat(*scale), s.splat(*bias));
                for (codes, to) in codes.chunks_exact(S::LANES).zip(to.chunks_exact_mut(S::LANES)) {
                    let x = s.mul(s.load(codes), scale);
                    let x = if w.is_affine() { s.add(T::rounded(s, x), bias) } else { x };
                    s.store(to, x);
                }
            }
        }
    }
}
