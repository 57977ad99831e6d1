//! Copies of rows of a table, by their indices.

use crate::quantized::dequantize_row;
use crate::rows::{Rows, assert_rows, parallel_ranges};
use crate::{Cpu, Element, Matrix, MatrixMut, QuantizedMatrix};

/// Copies row `ids[i]` of `table` to row `i` of `out`. Elements may have any type, for example the words of a quantized
/// table. An index behind the end of the table means its last row; MLX reads behind the end.
///
/// # Shapes
///
/// `table` `[V, D]`, `ids` `[N]`, `out` `[N, D]`; the elements of a row follow each other.
///
/// # Panics
///
/// If the shapes do not agree, or the table is empty and `ids` is not.
pub fn lookup<T: Copy + Send + Sync>(
    cpu: &Cpu,
    table: Matrix<'_, T>,
    ids: &[u32],
    mut out: MatrixMut<'_, T>,
) {
    assert_rows(&table, "the table");
    let last = check((table.rows(), table.columns()), ids, &out);
    let out = Rows::new(&mut out);
    let bytes = table.columns() * size_of::<T>();
    parallel_ranges(cpu, ids.len(), 20 + bytes / 8, |range| {
        for i in range {
            // SAFETY: the output is borrowed by the caller, and ranges do not overlap.
            let to = unsafe { out.row(i) };
            to.copy_from_slice(table.row((ids[i] as usize).min(last)));
        }
    });
}

/// Writes row `ids[i]` of a quantized table to row `i` of `out`, with the bits of [`dequantize`](crate::dequantize). An
/// index behind the end of the table means its last row.
///
/// # Shapes
///
/// `table` `[V, D]`, `ids` `[N]`, `out` `[N, D]`.
///
/// # Panics
///
/// If the shapes do not agree, or the table is empty and `ids` is not.
pub fn lookup_quantized<T: Element>(
    cpu: &Cpu,
    table: &QuantizedMatrix<'_, T>,
    ids: &[u32],
    mut out: MatrixMut<'_, T>,
) {
    let last = check((table.rows(), table.columns()), ids, &out);
    let out = Rows::new(&mut out);
    parallel_ranges(cpu, ids.len(), 50 + table.columns(), |range| {
        for i in range {
            // SAFETY: the output is borrowed by the caller, and ranges do not overlap.
            let to = unsafe { out.row(i) };
            dequantize_row(cpu, table, (ids[i] as usize).min(last), to);
        }
    });
}

/// Asserts that the shapes agree, and returns the index of the last row of the table.
fn check<T>((rows, columns): (usize, usize), ids: &[u32], out: &MatrixMut<'_, T>) -> usize {
    assert!(
        (out.rows(), out.columns()) == (ids.len(), columns),
        "an output of {} by {} for {} rows of {columns}",
        out.rows(),
        out.columns(),
        ids.len()
    );
    assert!(rows > 0 || ids.is_empty(), "an empty table has no row");
    rows.saturating_sub(1)
}
