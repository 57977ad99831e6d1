//! Work on the rows of a matrix, on all processors.

use std::thread;

/// The elements for which another thread is worth its start.
const WORTH: usize = 1 << 16;

/// Calls `fill` with each row and its number. Rows are filled on several threads.
pub(super) fn fill_rows<T: Send>(matrix: &mut [T], columns: usize, fill: impl Fn(usize, &mut [T]) + Sync) {
    if columns == 0 {
        return;
    }
    let rows = matrix.len() / columns;
    let threads = thread::available_parallelism().map_or(1, usize::from).min(matrix.len() / WORTH + 1);
    let rows_each = rows.div_ceil(threads).max(1);
    let fill_part = |part: usize, matrix: &mut [T]| {
        let rows = matrix.chunks_exact_mut(columns).enumerate();
        rows.for_each(|(row, to)| fill(part * rows_each + row, to));
    };
    thread::scope(|scope| {
        let fill_part = &fill_part;
        let mut parts = matrix.chunks_mut(rows_each * columns).enumerate();
        let first = parts.next();
        parts.for_each(|(part, matrix)| drop(scope.spawn(move || fill_part(part, matrix))));
        first.into_iter().for_each(|(part, matrix)| fill_part(part, matrix));
    });
}
