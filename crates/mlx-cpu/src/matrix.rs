//! Matrices with strides, in borrowed memory.

/// A matrix to read: element (i, j) lies at `i * row_stride + j * column_stride` of its slice.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a, T> {
    data: &'a [T],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// A matrix of `rows` by `columns` over `data`.
    ///
    /// # Panics
    ///
    /// If an element would lie outside `data`.
    pub fn new(data: &'a [T], rows: usize, columns: usize, row_stride: usize, column_stride: usize) -> Self {
        check(data.len(), rows, columns, row_stride, column_stride);
        Self { data, rows, columns, row_stride, column_stride }
    }

    /// A matrix whose rows follow each other.
    ///
    /// # Panics
    ///
    /// If `data` is too short.
    pub fn contiguous(data: &'a [T], rows: usize, columns: usize) -> Self {
        Self::new(data, rows, columns, columns, 1)
    }

    /// The number of rows.
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns.
    pub const fn columns(&self) -> usize {
        self.columns
    }

    /// The distance of neighbouring rows, in elements.
    pub const fn row_stride(&self) -> usize {
        self.row_stride
    }

    /// The distance of neighbouring columns, in elements.
    pub const fn column_stride(&self) -> usize {
        self.column_stride
    }

    /// A pointer to element (0, 0).
    pub const fn as_ptr(&self) -> *const T {
        self.data.as_ptr()
    }

    /// The memory, from element (0, 0) on.
    pub const fn data(&self) -> &'a [T] {
        self.data
    }

    /// Row `i`.
    ///
    /// # Panics
    ///
    /// If the elements of a row do not follow each other (`column_stride` is not 1), or there is no such row.
    pub fn row(&self, i: usize) -> &'a [T] {
        assert!(self.column_stride == 1 || self.columns <= 1, "the elements of a row lie apart");
        assert!(i < self.rows, "row {i} of {}", self.rows);
        if self.columns == 0 { &[] } else { &self.data[i * self.row_stride..][..self.columns] }
    }

    /// Pointers to the first elements of `N` rows from row `first` on. In place of rows behind the last one, the last
    /// row is repeated. [`columns`](Self::columns) elements follow each other from each pointer on.
    ///
    /// # Panics
    ///
    /// If the elements of a row do not follow each other, or there is no row.
    #[inline(always)]
    pub(crate) fn row_starts<const N: usize>(&self, first: usize) -> [*const T; N] {
        assert!(self.column_stride == 1 || self.columns <= 1, "the elements of a row lie apart");
        assert!(self.rows > 0, "there is no row");
        let mut starts = [self.data.as_ptr(); N];
        // Not a closure, which the compiler may make a function of its own.
        for (start, row) in starts.iter_mut().zip(first..) {
            // Within the memory, unless rows are empty; then nothing is read.
            *start = start.wrapping_add(row.min(self.rows - 1).wrapping_mul(self.row_stride));
        }
        starts
    }

    /// `count` rows from row `first` on.
    ///
    /// # Panics
    ///
    /// If there are fewer rows.
    pub fn part(&self, first: usize, count: usize) -> Self {
        assert!(first + count <= self.rows, "rows {first} to {} of {}", first + count, self.rows);
        let from = if count == 0 { 0 } else { first * self.row_stride };
        Self { data: &self.data[from.min(self.data.len())..], rows: count, ..*self }
    }

    /// The transpose, in the same memory.
    pub const fn transposed(self) -> Self {
        Self {
            data: self.data,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }
}

/// A matrix to write, row by row: element (i, j) lies at `i * row_stride + j` of its slice.
#[derive(Debug)]
pub struct MatrixMut<'a, T> {
    data: &'a mut [T],
    rows: usize,
    columns: usize,
    row_stride: usize,
}

impl<'a, T> MatrixMut<'a, T> {
    /// A matrix of `rows` by `columns` over `data`.
    ///
    /// # Panics
    ///
    /// If an element would lie outside `data`, or rows would overlap.
    pub fn new(data: &'a mut [T], rows: usize, columns: usize, row_stride: usize) -> Self {
        assert!(row_stride >= columns || rows <= 1, "rows of {columns} every {row_stride} overlap");
        check(data.len(), rows, columns, row_stride, 1);
        Self { data, rows, columns, row_stride }
    }

    /// A matrix whose rows follow each other.
    ///
    /// # Panics
    ///
    /// If `data` is too short.
    pub fn contiguous(data: &'a mut [T], rows: usize, columns: usize) -> Self {
        Self::new(data, rows, columns, columns)
    }

    /// The number of rows.
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns.
    pub const fn columns(&self) -> usize {
        self.columns
    }

    /// The distance of neighbouring rows, in elements.
    pub const fn row_stride(&self) -> usize {
        self.row_stride
    }

    /// The elements of a row.
    ///
    /// # Panics
    ///
    /// If there is no such row.
    pub fn row_mut(&mut self, row: usize) -> &mut [T] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        &mut self.data[row * self.row_stride..][..self.columns]
    }

    /// A pointer to element (0, 0).
    pub const fn as_mut_ptr(&mut self) -> *mut T {
        self.data.as_mut_ptr()
    }
}

fn check(length: usize, rows: usize, columns: usize, row_stride: usize, column_stride: usize) {
    if rows == 0 || columns == 0 {
        return;
    }
    let last = (rows - 1)
        .checked_mul(row_stride)
        .zip((columns - 1).checked_mul(column_stride))
        .and_then(|(row, column)| row.checked_add(column));
    assert!(
        last.is_some_and(|last| last < length),
        "a matrix of {rows} by {columns} with strides {row_stride} and {column_stride} does not fit into {length}"
    );
}
