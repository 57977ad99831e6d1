//! Rows of a table, by their numbers.

use crate::quantized::dequantize_row;
use crate::rows::{Rows, assert_rows, parallel_ranges};
use crate::{Cpu, Element, Matrix, MatrixMut, QuantizedMatrix};

/// Copies row `ids[i]` of `table` to row `i` of `out`; of any type, so that the packed words of a quantized
/// table can be looked up too. A number beyond the table means its last row. (MLX reads beyond it.)
///
/// # Shapes
///
/// `table` `[V, D]`, `ids` `[N]`, `out` `[N, D]`; the elements of a row follow each other.
///
/// # Panics
///
/// Where the shapes do not agree, or an empty table is asked for a row.
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

/// Row `ids[i]` of a quantized table, as [`dequantize`](crate::dequantize) has it, for each `i`. A number
/// beyond the table means its last row.
///
/// # Shapes
///
/// `table` `[V, D]`, `ids` `[N]`, `out` `[N, D]`.
///
/// # Panics
///
/// Where the shapes do not agree, or an empty table is asked for a row.
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

/// The last row of the table.
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
