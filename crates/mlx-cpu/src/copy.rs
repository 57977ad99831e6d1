//! Copies between tensors with any strides.

use crate::cpu::Shared;
use crate::rows::parallel_ranges;
use crate::{Cpu, View, ViewMut};

/// The number of rows and columns of a tile of a transposition. The cache lines of a tile stay in the cache.
const TILE: usize = 32;

/// The largest number of elements of a row that one item of work copies.
const LONG: usize = 1 << 15;

/// Copies `from` to `to`. Rows whose elements follow each other in both tensors are copied as a whole. If the innermost
/// axes of the tensors differ, the copy goes tile by tile.
///
/// # Shapes
///
/// Both tensors have the same shape.
///
/// # Panics
///
/// If the shapes differ.
pub fn copy_strided<T: Copy + Send + Sync>(cpu: &Cpu, from: View<'_, T, 4>, mut to: ViewMut<'_, T, 4>) {
    assert!(from.shape() == to.shape(), "a copy of shape {:?} to shape {:?}", from.shape(), to.shape());
    if from.is_empty() {
        return;
    }
    let axes = merged(from.shape(), from.strides(), to.strides());
    let (source, target) = (from.data(), Shared(to.as_mut_ptr()));

    // The two innermost axes are done together, in pieces.
    let [outer, middle, row, column] = axes;
    let (pieces, lengths) = (row.size.div_ceil(TILE), column.size.div_ceil(LONG));
    let items = outer.size * middle.size * pieces * lengths;
    let elements = row.size.min(TILE) * column.size.min(LONG);
    let each = if column.from == 1 && column.to == 1 { elements * size_of::<T>() / 8 } else { elements };
    parallel_ranges(cpu, items, 5 + each, |range| {
        for index in range {
            let (length, index) = (index % lengths, index / lengths);
            let (piece, index) = (index % pieces, index / pieces);
            let (i, j) = (index / middle.size, index % middle.size);
            let (first, start) = (piece * TILE, length * LONG);
            let rows = Axis { size: TILE.min(row.size - first), ..row };
            let columns = Axis { size: LONG.min(column.size - start), ..column };
            let from = i * outer.from + j * middle.from + first * row.from + start * column.from;
            let to = i * outer.to + j * middle.to + first * row.to + start * column.to;
            // SAFETY: indices are below the sizes of the axes, which lie within both tensors; no two
            // indices write the same element, and both tensors are borrowed by the caller.
            unsafe { two_axes(source.as_ptr().add(from), target.get().add(to), rows, columns) };
        }
    });
}

/// An axis: its size and its stride in both tensors.
#[derive(Debug, Clone, Copy)]
struct Axis {
    size: usize,
    from: usize,
    to: usize,
}

/// The axes, ordered so that the smallest stride of the target comes last. Two axes become one if the outer one
/// continues where the inner one ends.
fn merged(shape: [usize; 4], from: [usize; 4], to: [usize; 4]) -> [Axis; 4] {
    let one = Axis { size: 1, from: 0, to: 0 };
    let mut axes: [Axis; 4] = std::array::from_fn(|i| {
        if shape[i] == 1 { one } else { Axis { size: shape[i], from: from[i], to: to[i] } }
    });
    axes.sort_by_key(|axis| std::cmp::Reverse(axis.to));
    let mut result = [one; 4];
    let mut last = 4;
    for axis in axes.into_iter().rev().filter(|axis| axis.size > 1) {
        if last < 4 {
            let inner = &mut result[last];
            if axis.from == inner.from * inner.size && axis.to == inner.to * inner.size {
                inner.size *= axis.size;
                continue;
            }
        }
        last -= 1;
        result[last] = axis;
    }
    // If the innermost axis of the source is another one, it becomes the second: both are then copied in tiles.
    let best = (0..4).filter(|&i| result[i].size > 1).min_by_key(|&i| result[i].from);
    if let Some(best) = best.filter(|&best| best < 2) {
        result.swap(best, 2);
    }
    result
}

/// Copies the elements of two axes.
///
/// # Safety
///
/// All their elements can be read and written.
unsafe fn two_axes<T: Copy>(from: *const T, to: *mut T, row: Axis, column: Axis) {
    if column.from == 1 && column.to == 1 {
        for i in 0..row.size {
            // SAFETY: the caller's promise; one tensor is borrowed for writing, so they do not overlap.
            unsafe {
                std::ptr::copy_nonoverlapping(from.add(i * row.from), to.add(i * row.to), column.size);
            }
        }
        return;
    }
    for first in (0..column.size).step_by(TILE) {
        for i in 0..row.size {
            // SAFETY: the caller's promise.
            unsafe {
                let (from, to) = (from.add(i * row.from), to.add(i * row.to));
                for j in first..column.size.min(first + TILE) {
                    *to.add(j * column.to) = *from.add(j * column.from);
                }
            }
        }
    }
}
