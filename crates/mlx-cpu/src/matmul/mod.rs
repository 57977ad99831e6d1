//! Products of plain matrices.

mod dots;
mod pairs;
mod strips;

use pairs::Pairs;

use crate::products::{Output, blocked};
use crate::{Cpu, Element, Isa, Matrix, MatrixMut};

/// Up to this many rows are multiplied without panels on every instruction set, and have the bits of single rows.
///
/// With more rows, panels of float32 are up to a tenth faster where rows are long, and the tiles of AMX multiply eight
/// times as many numbers at a time. With AVX512-BF16, panels are slower for any number of rows.
const SAME_BITS: usize = 64;

/// `out = a b`.
///
/// # Shapes
///
/// `a` [M, K], `b` [K, N], `out` [M, N]; any strides. The fastest `b` is the transpose of a matrix with contiguous
/// rows, such as weights [N, K]. K = 0 gives zeros.
///
/// # Numbers
///
/// Sums are float32. Their order depends on the shapes and the instruction set alone. If `b` is the transpose of a matrix
/// with contiguous rows, a row of `a` has the same bits whichever rows share the call: among up to 64 rows, and among
/// any number of rows of bfloat16 with [`Isa::Avx512Bf16`](crate::Isa::Avx512Bf16). With more rows, other instruction
/// sets add in another order. Each result is rounded once, to the format of the output. With e = 2^-24 the error of an element before that is at most `(K + 2) e sum |a_k b_k|`;
/// underflow is not included.
///
/// [`Isa::Avx512Bf16`](crate::Isa::Avx512Bf16) and [`Isa::Amx`](crate::Isa::Amx) multiply bfloat16 with the same bound, except below 2^-126: an element that small counts as zero, and so does an intermediate
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
    let has_rows = w.column_stride() == 1 || w.columns() == 1;
    let any_number = cpu.isa() == Isa::Avx512Bf16 && T::as_bf16(w).is_some();
    if has_rows && (any_number || a.rows() <= SAME_BITS) {
        strips::rows_by_rows(cpu, a, w, out);
    } else if let (true, Some(a), Some(w)) = (cpu.isa().multiplies_bf16(), T::as_bf16(a), T::as_bf16(w)) {
        blocked(cpu, &Pairs::left(a, cpu.isa()), &Pairs::right(w, cpu.isa()), out);
    } else {
        blocked(cpu, &a, &w, out);
    }
}

#[cfg(test)]
pub(crate) mod tests;
