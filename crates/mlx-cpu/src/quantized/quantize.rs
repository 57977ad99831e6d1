//! Quantizing of matrices.

use super::matrix::{QuantizedLayoutError, QuantizedMatrix};
use crate::cpu::Shared;
use crate::{Cpu, Element, Matrix};

/// Elements that one task quantizes.
/// Small for Miri, whose cases are small and must still have several tasks.
const PIECE: usize = if cfg!(miri) { 1 << 8 } else { 1 << 14 };
/// The smallest absolute value of a scale, so that nothing is divided by 0.
const SMALLEST: f32 = 1e-7;

/// Quantizes the rows of `w` in mode `affine`, with the bits of MLX's CPU device.
///
/// Of the smallest and the largest element of a group, the one with the larger absolute value becomes the bias, and the
/// scale is adjusted so that it is a multiple of the scale. If it is nearer to 0 than half a scale, the bias is 0.
/// Codes are computed with the scale and bias in float32, before those are rounded to `T`.
///
/// # Shapes
///
/// `w` [rows, columns], `weights` [rows, columns * bits / 32], `scales` and `biases` [rows, columns /
/// group].
///
/// # Errors
///
/// As [`QuantizedMatrix::affine`].
pub fn quantize<T: Element>(
    cpu: &Cpu,
    w: Matrix<'_, T>,
    bits: usize,
    group: usize,
    weights: &mut [u32],
    scales: &mut [T],
    biases: &mut [T],
) -> Result<(), QuantizedLayoutError> {
    let (rows, columns) = (w.rows(), w.columns());
    QuantizedMatrix::affine(weights, scales, biases, rows, columns, bits, group)?;
    if rows == 0 || columns == 0 {
        return Ok(());
    }
    let (words, groups) = (group * bits / 32, columns / group);
    let size = PIECE.div_ceil(group);
    let (weights, scales, biases) =
        (Shared(weights.as_mut_ptr()), Shared(scales.as_mut_ptr()), Shared(biases.as_mut_ptr()));
    cpu.parallel((rows * groups).div_ceil(size), |piece| {
        let mut elements = [0.0; 128];
        let elements = &mut elements[..group];
        for index in piece * size..(rows * groups).min((piece + 1) * size) {
            let from = &w.data()[index / groups * w.row_stride()..];
            for (i, to) in elements.iter_mut().enumerate() {
                *to = from[(index % groups * group + i) * w.column_stride()].widen();
            }
            // SAFETY: there are as many words, scales and biases as the shape asks for; those of this
            // group belong to this task alone.
            unsafe {
                let words = std::slice::from_raw_parts_mut(weights.get().add(index * words), words);
                let (scale, bias) = one_group(elements, bits, words);
                scales.get().add(index).write(T::narrow(scale));
                biases.get().add(index).write(T::narrow(bias));
            }
        }
    });
    Ok(())
}

/// Writes the codes of a group to `words`, and returns its scale and bias.
fn one_group(elements: &[f32], bits: usize, words: &mut [u32]) -> (f32, f32) {
    let most = ((1_u32 << bits) - 1) as f32;
    let (mut smallest, mut largest) = (f32::INFINITY, f32::NEG_INFINITY);
    for &x in elements {
        // A NaN passes neither comparison.
        if largest < x {
            largest = x;
        }
        if x < smallest {
            smallest = x;
        }
    }
    let below = smallest.abs() > largest.abs();
    let step = (largest - smallest) / most;
    let step = if step < SMALLEST { SMALLEST } else { step };
    let mut scale = if below { step } else { -step };
    let edge = if below { smallest } else { largest };
    let steps = (edge / scale).round_ties_even();
    let mut bias = 0.0;
    if steps != 0.0 {
        scale = edge / steps;
        bias = edge;
    }
    words.fill(0);
    for (i, &x) in elements.iter().enumerate() {
        let code = ((x - bias) / scale).round_ties_even();
        // A NaN becomes 0 here.
        let code = if 0.0 < code { code } else { 0.0 };
        let code = (if most < code { most } else { code }) as u32;
        let place = i * bits;
        words[place / 32] |= code << (place % 32);
        if place % 32 + bits > 32 {
            words[place / 32 + 1] |= code >> (32 - place % 32);
        }
    }
    (scale, bias)
}
