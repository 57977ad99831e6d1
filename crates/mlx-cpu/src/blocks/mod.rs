//! Products with matrices in the block formats of GGUF files.
//!
//! # Numbers
//!
//! An element is `scale * code + added` in float32, without another rounding: [`dequantize_blocks`] gives it with the
//! bits of ggml's own functions.

mod activations;
mod decode;
mod few_rows;
mod format;
mod matrix;
mod panels;
mod scales;
mod split;

pub use decode::dequantize_blocks;
pub use format::BlockFormat;
pub use matrix::BlockMatrix;
pub use split::split_blocks;

use activations::Form;
use panels::{Activations, Columns, Rows, WholeRows};

use crate::products::{FEW_ROWS, Output, blocked};
use crate::{Cpu, Element, Matrix, MatrixMut};

/// `out = x w`, or `out = x w^T` if `transpose` is set. The weights of a layer are transposed.
///
/// # Shapes
///
/// `x` [M, K], `w` [K, N] or transposed [N, K], `out` [M, N]. K = 0 gives zeros.
///
/// # Panics
///
/// If the shapes do not fit.
pub fn matmul_blocks<T: Element>(
    cpu: &Cpu,
    x: Matrix<'_, T>,
    w: &BlockMatrix<'_>,
    transpose: bool,
    mut out: MatrixMut<'_, T>,
) {
    let (depth, columns) = if transpose { (w.columns, w.rows) } else { (w.rows, w.columns) };
    assert_eq!(
        (x.rows(), columns, x.columns()),
        (out.rows(), out.columns(), depth),
        "rows, columns and depth of a product with a matrix of blocks"
    );
    let out = Output::new(&mut out);
    if x.rows() == 0 || columns == 0 {
        return;
    }
    if depth == 0 {
        return out.put_zeros();
    }
    match (transpose, Form::of::<T>()) {
        (true, _) if x.rows() <= FEW_ROWS => few_rows::rows_by_rows(cpu, x, w, &out),
        (true, Form::Whole) => blocked(cpu, &Activations::new(x, w), &WholeRows(w), &out),
        (true, Form::Float32) => blocked(cpu, &x, &Rows(w), &out),
        (false, _) => blocked(cpu, &x, &Columns(w), &out),
    }
}

#[cfg(test)]
mod tests;
