//! Arrays of MLX as slices and matrices.

use mlx_cpu::{Element, Matrix};

use crate::abi::{self, Format, Tensor};

pub(super) const MAX_DIMS: usize = abi::MAX_DIMS as usize;

/// Runs the body with `$T` as the Rust type of a float format.
macro_rules! with_float {
    ($format:expr, $T:ident => $body:expr) => {
        match $format {
            $crate::abi::Format::F32 => {
                type $T = f32;
                $body
            }
            $crate::abi::Format::F16 => {
                type $T = half::f16;
                $body
            }
            $crate::abi::Format::Bf16 => {
                type $T = half::bf16;
                $body
            }
            other => Err(format!("a kernel for floats was given {other:?}")),
        }
    };
}
pub(super) use with_float;

impl Tensor {
    /// The tensor, unless its slot is empty.
    pub(crate) fn given(&self) -> Option<&Self> {
        (self.dims != abi::ABSENT).then_some(self)
    }

    pub(crate) const fn format(&self) -> Format {
        self.format
    }

    /// Sizes of the dimensions.
    pub(crate) fn shape(&self) -> impl DoubleEndedIterator<Item = usize> + ExactSizeIterator + '_ {
        self.shape[..self.dims.max(0) as usize].iter().map(|&size| size as usize)
    }

    /// How many elements apart two neighbours lie, in each dimension.
    pub(crate) fn strides(&self) -> &[i64] {
        &self.strides[..self.dims.max(0) as usize]
    }

    /// The size of dimension `i`.
    pub(crate) fn size(&self, i: usize) -> usize {
        self.shape[i] as usize
    }

    /// The number of elements.
    pub(crate) fn len(&self) -> usize {
        self.shape().product()
    }

    /// The size of the last dimension; 1 where there is none.
    pub(crate) fn last(&self) -> usize {
        self.shape().next_back().unwrap_or(1)
    }

    /// The memory from the first element to the last.
    ///
    /// # Errors
    ///
    /// Where a dimension runs backwards (see [`forwards`](Self::forwards)).
    ///
    /// # Safety
    ///
    /// The tensor is an input from MLX, of the format of `T`, and lives as long as the slice is used.
    pub(crate) unsafe fn reach<'a, T>(&self) -> Result<&'a [T], String> {
        if self.len() == 0 {
            return Ok(&[]);
        }
        let mut last = 0;
        for (size, &stride) in self.shape().zip(self.strides()) {
            if size > 1 && stride < 0 {
                return Err("it was given an array with a negative stride".to_owned());
            }
            last += (size - 1) * stride.max(0) as usize;
        }
        // SAFETY: MLX's arrays hold all the elements that their shape and strides name.
        Ok(unsafe { std::slice::from_raw_parts(self.data.cast(), last + 1) })
    }

    /// The elements of an output, which lie in one piece of memory.
    ///
    /// # Safety
    ///
    /// The tensor is an output for MLX, of the format of `T`, and no other code uses it at the same time.
    pub(crate) unsafe fn output<'a, T>(&self) -> &'a mut [T] {
        // SAFETY: allocated for this many elements by the C++ side.
        unsafe { std::slice::from_raw_parts_mut(self.data.cast(), self.len()) }
    }

    /// All dimensions before the last `keep` as one dimension: its size and its stride. `None` where one stride cannot
    /// reach all elements.
    pub(crate) fn collapsed(&self, keep: usize) -> Option<(usize, usize)> {
        let dims = self.strides().len().checked_sub(keep)?;
        let mut count = 1;
        let mut step: Option<i64> = None;
        for i in (0..dims).rev() {
            let (size, stride) = (self.size(i), self.strides[i]);
            if size == 1 {
                continue;
            }
            match step {
                None => step = Some(stride),
                Some(step) if stride == step * count as i64 => {}
                Some(_) => return None,
            }
            count *= size;
        }
        Some((count, step.unwrap_or(0).try_into().ok()?))
    }

    /// The tensor broadcast to these sizes: repeated along dimensions that it lacks or that have size 1.
    pub(crate) fn broadcast(&self, sizes: &[usize]) -> Self {
        let mut whole = Self { dims: sizes.len() as i32, ..*self };
        let missing = sizes.len() - self.strides().len();
        for (i, &size) in sizes.iter().enumerate() {
            let own = i.checked_sub(missing).filter(|&own| self.size(own) > 1);
            whole.shape[i] = size as i32;
            whole.strides[i] = own.map_or(0, |own| self.strides[own]);
        }
        whole
    }

    /// `[B, H, G, L, D]` as `[B, H * G, L, D]`; four dimensions as they are. `None` where one stride cannot reach all
    /// heads.
    pub(crate) fn with_merged_heads(&self) -> Option<Self> {
        if self.dims == 4 {
            return Some(*self);
        }
        let ([batch, heads, group, length, size, _], [of_batch, of_head, of_group, of_length, of_number, _]) =
            (self.shape, self.strides);
        let of_head = match (heads, group) {
            (_, 1) => of_head,
            (1, _) => of_group,
            _ if of_head == of_group * i64::from(group) => of_group,
            _ => return None,
        };
        let shape = [batch, heads * group, length, size, 0, 0];
        Some(Self { dims: 4, shape, strides: [of_batch, of_head, of_length, of_number, 0, 0], ..*self })
    }

    /// The tensor, or where a stride is negative, as in a reversed array, a copy of it in `copy`.
    ///
    /// # Safety
    ///
    /// The tensor is an input from MLX, of the format of `T`, and is used no longer than `copy` lives.
    pub(crate) unsafe fn forwards<T: Copy>(&self, copy: &mut Vec<T>) -> Self {
        if self.strides().iter().all(|&stride| stride >= 0) {
            return *self;
        }
        // SAFETY: the caller's promise.
        unsafe { self.gather(copy) };
        let mut straight = Self { data: copy.as_mut_ptr().cast(), ..*self };
        let mut stride = 1;
        for i in (0..self.strides().len()).rev() {
            straight.strides[i] = stride;
            stride *= i64::from(self.shape[i]);
        }
        straight
    }

    /// The tensor as a matrix whose rows are the last dimension, with the elements of a row next to each other. Where
    /// the tensor lies differently in memory, a copy of it in `copy`.
    ///
    /// # Safety
    ///
    /// The conditions of [`reach`](Self::reach).
    pub(crate) unsafe fn rows<'a, T: Element>(&self, copy: &'a mut Vec<T>) -> Result<Matrix<'a, T>, String> {
        let columns = self.last();
        let follows = self.strides().last().is_none_or(|&stride| stride == 1 || columns == 1);
        let backwards = self.strides().iter().any(|&stride| stride < 0);
        if let (true, false, Some((rows, step))) = (follows, backwards, self.collapsed(1)) {
            // SAFETY: the caller's promise.
            return Ok(Matrix::new(unsafe { self.reach()? }, rows, columns, step, 1));
        }
        // SAFETY: the caller's promise.
        unsafe { self.gather(copy) };
        Ok(Matrix::contiguous(copy, self.len() / columns.max(1), columns))
    }

    /// Copies the elements, row by row, to `into`.
    ///
    /// # Safety
    ///
    /// The tensor is an input from MLX, of the format of `T`.
    pub(crate) unsafe fn gather<T: Copy>(&self, into: &mut Vec<T>) {
        into.clear();
        into.reserve(self.len());
        let data: *const T = self.data.cast_const().cast();
        let dims = self.strides().len();
        let (columns, stride) =
            if dims == 0 { (1, 0) } else { (self.last(), self.strides[dims - 1] as isize) };
        for row in 0..self.len() / columns.max(1) {
            let (mut rest, mut from) = (row, 0_isize);
            for i in (0..dims.saturating_sub(1)).rev() {
                from += (rest % self.size(i)) as isize * self.strides[i] as isize;
                rest /= self.size(i);
            }
            for column in 0..columns {
                // SAFETY: an element of the array.
                into.push(unsafe { *data.offset(from + column as isize * stride) });
            }
        }
    }
}
