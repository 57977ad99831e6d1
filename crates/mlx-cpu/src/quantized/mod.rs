//! Products with quantized matrices.
//!
//! A row of a quantized matrix is cut into groups. An element is a code of a few bits. In MLX's mode `affine` it stands
//! for `scale * code + bias`, with the scale and bias of its group; in the modes `mxfp4`, `mxfp8` and `nvfp4` it is a
//! small float times the scale of its group (*OCP Microscaling Formats Specification* 1.0, 2023).
//!
//! # Numbers
//!
//! An element is not rounded to the format of the tensor, as it is where MLX multiplies half-precision numbers:
//! products take the code as it is, and the scale and bias as the format has them, all in float32. With e = 2^-24 and K
//! products in a sum, the error of a result is at most `(K + 8) e sum |x_k| (|scale_k code_k| + |bias_k|)`. The
//! rounding of the result and underflow are not included.
//!
//! `x w^T` is computed in *whole numbers* if x has half precision and the codes are those of `mxfp4` or `nvfp4`, or of
//! `affine` with 2, 4 or 8 bits. Each group of x becomes fixed-point numbers, of which all is computed, biases too: their
//! products with codes are summed exactly, and so are they themselves. The sums of the groups are added in order, in
//! float32: `total + (scale unit) sum of products`, then `+ bias (unit sum)`.
//!
//! - With 16 bits ([`ActivationBits::Sixteen`](crate::ActivationBits)), the unit is a power of two for each group. A
//!   bfloat16 that is at least 1/127 of the largest number of its group is exact, and so is a float16 of at least 1/15; a
//!   smaller number is off by at most 1/32640 of the largest. With `m_g` the largest |x| of group g, or 2^-112 if that is
//!   larger, this adds at most `1/32640 sum_g m_g sum |element_k|` to the error: a fraction of what the rounding of x has
//!   cost, if the numbers of a group are of similar size.
//! - With 8 bits ([`ActivationBits::Eight`](crate::ActivationBits)), the unit is 1/127 of the largest number of the group,
//!   in float32. This adds at most `(1/254 + 2^-22) sum_g m_g sum |element_k|`.
//!
//! # The bits of a row
//!
//! A row of a product in whole numbers has the same bits however many rows x has: the sum of a group is exact, and all
//! kernels add the groups in the same order. So a batch, a prompt in pieces and the check of a draft answer as one row
//! after the other does. In float32 (x in float32, codes of 3, 5 and 6 bits, `mxfp8`) this holds for up to 64 rows. With
//! more rows an element is decoded before it is multiplied, which is three times as fast and rounds elsewhere.
//!
//! The bits depend on the instruction set in float32 only, and where it has no fused multiplication and addition.
//!
//! # Not finite
//!
//! In whole numbers, and with a few rows of x, the codes of a group are summed before they are scaled, and biases are
//! multiplied by sums of x. If x or a scale is infinite, the result may therefore be NaN where MLX has infinity; it is
//! never finite. If x is bfloat16 or float32 and so large (from 2.6e36 on) that the sum of a group overflows float32,
//! the result may be infinite or NaN although a small scale would bring it back.

mod decode;
mod dequantize;
mod few_rows;
mod fixed;
mod format;
mod matrix;
mod panels;
mod quantize;
mod whole_rows;

pub use dequantize::dequantize;
pub(crate) use dequantize::dequantize_row;
pub(crate) use fixed::fix;
pub use matrix::{QuantizedLayoutError, QuantizedMatrix};
pub use quantize::quantize;

use fixed::{Fixing, Form};
use panels::{Activations, Columns, Rows};

use crate::products::{FEW_ROWS, Groups, Output, blocked, whole};
use crate::{Cpu, Element, Matrix, MatrixMut};

/// Up to this many rows of x, bytes are multiplied where the codes lie in memory. With more rows, panels pay.
const UNPACKED: usize = 2;
/// Up to this many rows of x, products in float32 have one kernel, and so each row has the bits that it has alone.
const ALIKE: usize = 64;

/// `out = x w`, or `out = x w^T` if `transpose` is set. The weights of a layer are transposed.
///
/// # Numbers
///
/// The scale and bias of a group are those of the format of the tensor, and sums are float32. With e = 2^-24 and K
/// products in a sum, the error is at most `(K + 8) e sum |x_k| (|scale_k code_k| + |bias_k|)`, before the result is
/// rounded.
///
/// If `x` has half precision, `transpose` is set, and codes are whole numbers of 2, 4 or 8 bits or floats of 4 bits,
/// groups of `x` are multiplied as whole numbers of 16 or 8 bits ([`Cpu::activations`]). With `m_g` the largest number of
/// group g (at least 2^-112) that adds at most `1/32640 sum_g m_g sum |element_k|` with 16 bits, and `(1/254 + 2^-22) sum_g
/// m_g sum |element_k|` with 8. A row then has the same bits however many rows share the call; otherwise for up to 64.
///
/// # Shapes
///
/// `x` [M, K], `w` [K, N] or transposed [N, K], `out` [M, N]. K = 0 gives zeros.
///
/// # Panics
///
/// If the shapes do not fit.
pub fn quantized_matmul<T: Element>(
    cpu: &Cpu,
    x: Matrix<'_, T>,
    w: &QuantizedMatrix<'_, T>,
    transpose: bool,
    mut out: MatrixMut<'_, T>,
) {
    let (depth, columns) = if transpose { (w.columns, w.rows) } else { (w.rows, w.columns) };
    assert_eq!(
        (x.rows(), columns, x.columns()),
        (out.rows(), out.columns(), depth),
        "rows, columns and depth of a product with a quantized matrix"
    );
    let out = Output::new(&mut out);
    if x.rows() == 0 || columns == 0 {
        return;
    }
    if depth == 0 {
        return out.put_zeros();
    }
    match (transpose, w.is_whole()) {
        (true, true) => whole_product(cpu, x, w, &out),
        (true, false) if x.rows() <= ALIKE => few_rows::rows_by_rows(cpu, x, w, &out),
        (true, false) => blocked(cpu, &x, &Rows { w, whole: None }, &out),
        (false, _) => blocked(cpu, &x, &Columns(w), &out),
    }
}

/// `out = x w^T` in whole numbers. All kernels add the same numbers in the same order.
fn whole_product<T: Element>(cpu: &Cpu, x: Matrix<'_, T>, w: &QuantizedMatrix<'_, T>, out: &Output<'_, T>) {
    let fixing = Fixing::new(w, cpu.isa(), cpu.activations());
    let (left, right) = (Activations::new(x, fixing), Rows { w, whole: Some(fixing.form) });
    match fixing.form {
        Form::Bytes { planes } if x.rows() > UNPACKED => {
            whole(cpu, &left, &right, Groups { count: w.groups(), words: w.group / 4, planes }, out);
        }
        Form::Pairs if x.rows() > FEW_ROWS => blocked(cpu, &left, &right, out),
        _ => whole_rows::rows_by_rows(cpu, x, w, fixing, out),
    }
}

#[cfg(test)]
mod reference;
#[cfg(test)]
pub(crate) mod tests;
