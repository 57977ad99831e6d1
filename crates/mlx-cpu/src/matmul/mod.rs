//! Products of plain matrices.

mod few_rows;
mod pairs;

use pairs::Pairs;

use crate::products::{FEW_ROWS, Output, blocked};
use crate::{Cpu, Element, Matrix, MatrixMut};

/// `out = a b`.
///
/// # Shapes
///
/// `a` [M, K], `b` [K, N], `out` [M, N]; any strides. The fastest `b` is the transpose of a matrix with contiguous
/// rows, such as weights [N, K]. K = 0 gives zeros.
///
/// # Numbers
///
/// Sums are float32. Their order depends on the shapes and the instruction set alone. Each result is rounded once, to
/// the format of the output. With e = 2^-24 the error of an element before that is at most `(K + 2) e sum |a_k b_k|`;
/// underflow is not included.
///
/// [`Isa::Avx512Bf16`](crate::Isa::Avx512Bf16) and [`Isa::Amx`](crate::Isa::Amx) multiply bfloat16 with more than a few
/// rows with the same bound, except below 2^-126: an element that small counts as zero, and so does an intermediate
/// sum. That adds at most `2 K 2^-126` to the error.
///
/// # Panics
///
/// If the shapes do not fit.
pub fn matmul<T: Element>(cpu: &Cpu, a: Matrix<'_, T>, b: Matrix<'_, T>, mut out: MatrixMut<'_, T>) {
    product(cpu, a, b, &Output::new(&mut out));
}

/// `out = alpha a b + beta c`, computed in float32 and rounded once.
///
/// If `beta` is 0, `c` is not read, as in BLAS. MLX's own CPU device does the same for float32 (with BLAS) and for
/// half-precision numbers (sums in float32, `c` in the format of the output). Only the order of the sums differs.
///
/// # Shapes
///
/// `a` [M, K], `b` [K, N], `c` and `out` [M, N]; any strides. A row stride of 0 adds the same row of `c` to all rows.
///
/// # Panics
///
/// If the shapes do not fit.
pub fn addmm<T: Element>(
    cpu: &Cpu,
    alpha: f32,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    beta: f32,
    c: Matrix<'_, T>,
    mut out: MatrixMut<'_, T>,
) {
    product(cpu, a, b, &Output::with_sum(&mut out, alpha, beta, c));
}

fn product<T: Element>(cpu: &Cpu, a: Matrix<'_, T>, b: Matrix<'_, T>, out: &Output<'_, T>) {
    assert_eq!(
        (a.rows(), b.columns(), a.columns()),
        (out.rows(), out.columns(), b.rows()),
        "rows, columns and depth of a product"
    );
    if a.rows() == 0 || b.columns() == 0 {
        return;
    }
    if a.columns() == 0 {
        return out.put_zeros();
    }
    let w = b.transposed();
    if a.rows() <= FEW_ROWS && (w.column_stride() == 1 || w.columns() == 1) {
        few_rows::rows_by_rows(cpu, a, w, out);
    } else if let (true, Some(a), Some(w)) = (cpu.isa().multiplies_bf16(), T::as_bf16(a), T::as_bf16(w)) {
        blocked(cpu, &Pairs::left(a, cpu.isa()), &Pairs::right(w, cpu.isa()), out);
    } else {
        blocked(cpu, &a, &w, out);
    }
}

#[cfg(test)]
pub(crate) mod tests;
