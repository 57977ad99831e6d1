//! Tensors with strides, in borrowed memory.

/// A tensor to read: element (i, j, ...) lies at `i * strides[0] + j * strides[1] + ...` of its slice.
#[derive(Debug, Clone, Copy)]
pub struct View<'a, T, const N: usize> {
    data: &'a [T],
    shape: [usize; N],
    strides: [usize; N],
}

impl<'a, T, const N: usize> View<'a, T, N> {
    /// A tensor over `data`. A stride of 0 repeats its axis.
    ///
    /// # Panics
    ///
    /// If an element would lie outside `data`.
    pub fn new(data: &'a [T], shape: [usize; N], strides: [usize; N]) -> Self {
        check(data.len(), &shape, &strides);
        Self { data, shape, strides }
    }

    /// A tensor whose elements follow each other, the last axis fastest.
    ///
    /// # Panics
    ///
    /// If `data` is too short.
    pub fn contiguous(data: &'a [T], shape: [usize; N]) -> Self {
        Self::new(data, shape, row_major(&shape))
    }

    /// The sizes of the axes.
    pub const fn shape(&self) -> [usize; N] {
        self.shape
    }

    /// For each axis the distance of neighbouring elements, in elements.
    pub const fn strides(&self) -> [usize; N] {
        self.strides
    }

    /// The memory, from the first element on.
    pub const fn data(&self) -> &'a [T] {
        self.data
    }

    /// The index of an element in [`data`](Self::data).
    #[inline(always)]
    pub(crate) fn at(&self, index: [usize; N]) -> usize {
        index.iter().zip(&self.strides).map(|(index, stride)| index * stride).sum()
    }

    /// Whether the elements of the last axis follow each other.
    pub(crate) const fn has_rows(&self) -> bool {
        self.strides[N - 1] == 1 || self.shape[N - 1] <= 1
    }

    /// Whether it has no element.
    pub(crate) fn is_empty(&self) -> bool {
        self.shape.contains(&0)
    }
}

/// A tensor to write. No two elements lie in the same place.
#[derive(Debug)]
pub struct ViewMut<'a, T, const N: usize> {
    data: &'a mut [T],
    shape: [usize; N],
    strides: [usize; N],
}

impl<'a, T, const N: usize> ViewMut<'a, T, N> {
    /// A tensor over `data`.
    ///
    /// # Panics
    ///
    /// If an element would lie outside `data`, or two in the same place. Some strides of axes that interleave are
    /// refused although no two elements lie in the same place.
    pub fn new(data: &'a mut [T], shape: [usize; N], strides: [usize; N]) -> Self {
        check(data.len(), &shape, &strides);
        let mut axes: Vec<_> = shape.into_iter().zip(strides).filter(|&(size, _)| size > 1).collect();
        axes.sort_by_key(|&(_, stride)| stride);
        let mut end = 0;
        for (size, stride) in axes {
            assert!(stride > end, "strides {strides:?} of shape {shape:?} overlap");
            end += (size - 1) * stride;
        }
        Self { data, shape, strides }
    }

    /// A tensor whose elements follow each other, the last axis fastest.
    ///
    /// # Panics
    ///
    /// If `data` is too short.
    pub fn contiguous(data: &'a mut [T], shape: [usize; N]) -> Self {
        let strides = row_major(&shape);
        check(data.len(), &shape, &strides);
        Self { data, shape, strides }
    }

    /// The sizes of the axes.
    pub const fn shape(&self) -> [usize; N] {
        self.shape
    }

    /// For each axis the distance of neighbouring elements, in elements.
    pub const fn strides(&self) -> [usize; N] {
        self.strides
    }

    /// A pointer to the first element.
    pub const fn as_mut_ptr(&mut self) -> *mut T {
        self.data.as_mut_ptr()
    }

    /// Whether the elements of the last axis follow each other.
    pub(crate) const fn has_rows(&self) -> bool {
        self.strides[N - 1] == 1 || self.shape[N - 1] <= 1
    }
}

fn row_major<const N: usize>(shape: &[usize; N]) -> [usize; N] {
    let mut strides = [1_usize; N];
    for axis in (0..N.saturating_sub(1)).rev() {
        strides[axis] = strides[axis + 1].saturating_mul(shape[axis + 1]);
    }
    strides
}

fn check(length: usize, shape: &[usize], strides: &[usize]) {
    if shape.contains(&0) {
        return;
    }
    let last = shape
        .iter()
        .zip(strides)
        .try_fold(0_usize, |sum, (size, stride)| sum.checked_add((size - 1).checked_mul(*stride)?));
    assert!(
        last.is_some_and(|last| last < length),
        "a tensor of shape {shape:?} with strides {strides:?} does not fit into {length}"
    );
}
