//! Keys and values, plain or quantized.

use std::ops::Range;

use crate::{Arithmetic, Element, Isa, Matrix, QuantizedMatrix, View};

/// Keys or values `[B, H, S, D]`: a [`View`] or [`QuantizedHeads`].
pub trait Heads<T: Element>: Rows<T> {}

impl<T: Element, H: Rows<T>> Heads<T> for H {}

/// What attention needs of [`Heads`]. Not public, so that other crates cannot implement it.
pub trait Rows<T: Element>: Copy + Sync {
    /// The format in which [`rows`](Self::rows) come: that of the memory, or float32 after decoding.
    type Number: Element;
    /// Whether [`rows`](Self::rows) come as they lie in memory, without decoding.
    const IN_MEMORY: bool;

    /// The shape `[B, H, S, D]`.
    fn shape(&self) -> [usize; 4];

    /// Whether the numbers of each row follow each other.
    fn has_rows(&self) -> bool;

    /// The cost of a row, as the number of bytes that could be read in the same time.
    fn row_bytes(&self) -> usize;

    /// The largest number of rows to ask for at a time, so that decoded rows stay in the first-level cache.
    fn at_once(&self) -> usize;

    /// The amount of scratch memory that [`rows`](Self::rows) needs, in numbers.
    fn scratch(&self) -> usize;

    /// Up to [`at_once`](Self::at_once) rows of head `[b, h]`, as they lie in memory or decoded to `scratch`.
    fn rows<'b, S: Arithmetic>(
        &'b self,
        s: S,
        isa: Isa,
        head: [usize; 2],
        rows: Range<usize>,
        scratch: &'b mut [f32],
    ) -> Matrix<'b, Self::Number>;

    /// Writes rows of head `[b, h]` as float32; in `to` each begins `stride` numbers behind the one before. Up to a
    /// vector behind each row may be overwritten.
    fn widen<S: Arithmetic>(
        &self,
        s: S,
        isa: Isa,
        head: [usize; 2],
        rows: Range<usize>,
        to: &mut [f32],
        stride: usize,
    );
}

impl<T: Element> Rows<T> for View<'_, T, 4> {
    type Number = T;
    const IN_MEMORY: bool = true;

    fn shape(&self) -> [usize; 4] {
        View::shape(self)
    }

    fn has_rows(&self) -> bool {
        View::has_rows(self) || self.is_empty()
    }

    fn row_bytes(&self) -> usize {
        View::shape(self)[3] * size_of::<T>()
    }

    fn at_once(&self) -> usize {
        usize::MAX
    }

    fn scratch(&self) -> usize {
        0
    }

    #[inline(always)]
    fn rows<'b, S: Arithmetic>(
        &'b self,
        _: S,
        _: Isa,
        [batch, head]: [usize; 2],
        rows: Range<usize>,
        _: &'b mut [f32],
    ) -> Matrix<'b, T> {
        let data = &self.data()[self.at([batch, head, rows.start, 0])..];
        Matrix::new(data, rows.len(), View::shape(self)[3], self.strides()[2], 1)
    }

    #[inline(always)]
    fn widen<S: Arithmetic>(
        &self,
        s: S,
        isa: Isa,
        head: [usize; 2],
        rows: Range<usize>,
        to: &mut [f32],
        stride: usize,
    ) {
        let rows = self.rows(s, isa, head, rows, &mut []);
        for (i, to) in to.chunks_mut(stride).enumerate().take(rows.rows()) {
            for (from, to) in rows.row(i).chunks(S::LANES).zip(to.chunks_mut(S::LANES)) {
                let x = crate::rows::load(s, from, 0.0);
                crate::rows::store(s, to, x);
            }
        }
    }
}

/// Quantized keys or values: a matrix `[S, D]` for each head.
#[derive(Debug, Clone, Copy)]
pub struct QuantizedHeads<'a, T> {
    matrices: &'a [QuantizedMatrix<'a, T>],
    shape: [usize; 4],
}

/// The number of float32 that are decoded at a time: 16 KiB, a third or half of a first-level cache.
/// Small for Miri, whose cases are small and must still have several parts.
const DECODED: usize = if cfg!(miri) { 256 } else { 4096 };

impl<'a, T: Element> QuantizedHeads<'a, T> {
    /// A matrix for each head: all heads of the first of `batch` rows, then those of the next row.
    ///
    /// # Panics
    ///
    /// If matrices differ in shape, or their number is not a multiple of `batch`.
    pub fn new(matrices: &'a [QuantizedMatrix<'a, T>], batch: usize) -> Self {
        let heads = matrices.len().checked_div(batch).unwrap_or(0);
        assert!(batch * heads == matrices.len(), "{} heads in {batch} rows", matrices.len());
        let size = |matrix: &QuantizedMatrix<'_, T>| (matrix.rows(), matrix.columns());
        let (count, columns) = matrices.first().map_or((0, 0), size);
        assert!(
            matrices.iter().all(|matrix| size(matrix) == (count, columns)),
            "quantized heads of different shapes"
        );
        Self { matrices, shape: [batch, heads, count, columns] }
    }

    fn matrix(&self, [batch, head]: [usize; 2]) -> &QuantizedMatrix<'a, T> {
        &self.matrices[batch * self.shape[1] + head]
    }
}

impl<T: Element> Rows<T> for QuantizedHeads<'_, T> {
    type Number = f32;
    const IN_MEMORY: bool = false;

    fn shape(&self) -> [usize; 4] {
        self.shape
    }

    fn has_rows(&self) -> bool {
        true
    }

    fn row_bytes(&self) -> usize {
        // Decoding takes as long as reading the decoded numbers.
        self.shape[3] * size_of::<f32>()
    }

    fn at_once(&self) -> usize {
        // A multiple of eight: values are summed eight at a time.
        (DECODED / self.shape[3].max(1) / 8 * 8).max(8)
    }

    fn scratch(&self) -> usize {
        self.at_once() * self.shape[3]
    }

    #[inline(always)]
    fn rows<'b, S: Arithmetic>(
        &'b self,
        s: S,
        isa: Isa,
        head: [usize; 2],
        rows: Range<usize>,
        scratch: &'b mut [f32],
    ) -> Matrix<'b, f32> {
        let (count, size) = (rows.len(), self.shape[3]);
        self.matrix(head).decode_rows(s, isa, rows, scratch, size);
        Matrix::contiguous(scratch, count, size)
    }

    #[inline(always)]
    fn widen<S: Arithmetic>(
        &self,
        s: S,
        isa: Isa,
        head: [usize; 2],
        rows: Range<usize>,
        to: &mut [f32],
        stride: usize,
    ) {
        self.matrix(head).decode_rows(s, isa, rows, to, stride);
    }
}
