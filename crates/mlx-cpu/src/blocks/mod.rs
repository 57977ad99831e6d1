//! Products with matrices in the block formats of GGUF files.
//!
//! A row consists of blocks of 32 or 256 elements, and a block of groups of 16 or 32. An element is a code of 2 to 8 bits,
//! and stands for `scale * (code - zero)` or `scale * code - minimum`, with the scale and the minimum of its group and a
//! zero that the format has. In the K formats, those of 256 elements, scales and minimums are small whole numbers times a
//! float16 of the block.
//!
//! [`split_blocks`] brings the bytes of a file into the order that kernels read fast: the codes as words, so that a vector
//! has a lane for each of 16 groups (`Planes` in `format.rs`), and apart from them the scales as the file has them.
//!
//! # Numbers
//!
//! All arithmetic with scales is exact in float32, so an element has one rounding at most: [`dequantize_blocks`] gives it
//! with the bits of ggml's own functions. It is not rounded to the format of x. With e = 2^-24 and K products in a sum, the
//! error of a product is at most `(K + 8) e sum |x_k| (|scale_k| (code_k + zero) + |minimum_k|)`. The rounding of the
//! result and underflow are not included.
//!
//! If x has half precision, `x w^T` is computed in *whole numbers*, as with [other quantized
//! matrices](super::quantized_matmul#numbers): a group of x becomes numbers of 16 bits and a power of two. Minimums are
//! multiplied by the sums of these numbers. With `m_g` the largest |x| of group g, or 2^-112 if that is larger, this adds
//! at most `1/32640 sum_g m_g sum |element_k|` to the error.
//!
//! | file | holds |
//! |---|---|
//! | `format.rs` | the formats, and how codes lie in words |
//! | `matrix.rs` | a matrix in memory |
//! | `split.rs` | the blocks of a file as codes and scales |
//! | `scales.rs` | scales and minimums as float32 |
//! | `decode.rs` | elements as float32 |
//! | `activations.rs` | rows of x in the order of the codes |
//! | `few_rows.rs`, `panels.rs` | products with few and with many rows |

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
/// # Numbers
///
/// Sums are float32. With e = 2^-24 and K products in a sum, the error is at most `(K + 8) e sum |x_k| (|scale_k| (code_k +
/// zero) + |minimum_k|)`, before the result is rounded.
///
/// If `x` has half precision and `transpose` is set, groups of `x` are multiplied as whole numbers of 16 bits and a power
/// of two. With `m_g` the largest number of group g (at least 2^-112) that adds at most `1/32640 sum_g m_g sum
/// |element_k|`.
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
