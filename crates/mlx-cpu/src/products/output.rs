//! The output of a product.

use crate::cpu::Shared;
use crate::{Arithmetic, Element, MAX_LANES, Matrix, MatrixMut};

/// A matrix that several threads write, with what is added to a number before it is rounded.
pub(crate) struct Output<'a, T> {
    to: Shared<T>,
    rows: usize,
    columns: usize,
    row_stride: usize,
    sum: Option<Sum<'a, T>>,
}

/// Replaces a product `x` by `alpha x + beta c`.
struct Sum<'a, T> {
    alpha: f32,
    beta: f32,
    c: Matrix<'a, T>,
}

impl<'a, T: Element> Output<'a, T> {
    /// Products are written to `out` as they are.
    pub(crate) fn new(out: &'a mut MatrixMut<'_, T>) -> Self {
        Self {
            rows: out.rows(),
            columns: out.columns(),
            row_stride: out.row_stride(),
            to: Shared(out.as_mut_ptr()),
            sum: None,
        }
    }

    /// `alpha x + beta c` is written to `out` for a product `x`. If `beta` is 0, `c` is not read.
    pub(crate) fn with_sum(out: &'a mut MatrixMut<'_, T>, alpha: f32, beta: f32, c: Matrix<'a, T>) -> Self {
        assert_eq!((c.rows(), c.columns()), (out.rows(), out.columns()), "the shapes of c and of the output");
        Self { sum: Some(Sum { alpha, beta, c }), ..Self::new(out) }
    }

    /// The number of rows.
    pub(crate) const fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns.
    pub(crate) const fn columns(&self) -> usize {
        self.columns
    }

    /// Writes the first `count` numbers of `x` to row `i`, from column `j` on.
    ///
    /// # Safety
    ///
    /// These elements are within the matrix, `count` is at most `S::LANES`, and no other thread writes them.
    #[inline(always)]
    pub(crate) unsafe fn put<S: Arithmetic>(&self, s: S, i: usize, j: usize, count: usize, x: S::F) {
        debug_assert!(i < self.rows && j + count <= self.columns && count <= S::LANES);
        let x = match &self.sum {
            None => x,
            Some(sum) => {
                let scaled = s.mul(s.splat(sum.alpha), x);
                if sum.beta == 0.0 {
                    scaled
                } else {
                    let mut c = [0.0; MAX_LANES];
                    for (l, c) in c[..count].iter_mut().enumerate() {
                        *c = sum.c.data()[i * sum.c.row_stride() + (j + l) * sum.c.column_stride()].widen();
                    }
                    // SAFETY: no instruction set has more than `MAX_LANES` lanes.
                    s.mul_add(s.splat(sum.beta), unsafe { s.load_f32(c.as_ptr()) }, scaled)
                }
            }
        };
        // SAFETY: the caller's promise.
        unsafe {
            let to = self.to.get().add(i * self.row_stride + j);
            if count == S::LANES {
                T::store(s, to, x);
            } else {
                s.store_some(std::slice::from_raw_parts_mut(to, count), x);
            }
        }
    }

    /// Writes `x` to element (`i`, `j`).
    ///
    /// # Safety
    ///
    /// The element is within the matrix, and no other thread writes it.
    #[inline(always)]
    pub(crate) unsafe fn put_one(&self, i: usize, j: usize, x: f32) {
        debug_assert!(i < self.rows && j < self.columns);
        let x = match &self.sum {
            None => x,
            Some(sum) if sum.beta == 0.0 => sum.alpha * x,
            Some(sum) => {
                let c = sum.c.data()[i * sum.c.row_stride() + j * sum.c.column_stride()].widen();
                sum.beta.mul_add(c, sum.alpha * x)
            }
        };
        // SAFETY: the caller's promise.
        unsafe { self.to.get().add(i * self.row_stride + j).write(T::narrow(x)) }
    }

    /// Writes the product of a depth of 0.
    pub(crate) fn put_zeros(&self) {
        for i in 0..self.rows {
            for j in 0..self.columns {
                // SAFETY: within the matrix, which no other thread writes at this time.
                unsafe { self.put_one(i, j, 0.0) };
            }
        }
    }
}
