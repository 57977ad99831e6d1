//! Products of matrices.
#![expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "all have one reason: MLX's arrays hold what their format, shape and strides say, and live during the call"
)]

use mlx_cpu::{Cpu, Element, Matrix, MatrixMut};

use super::Answer;
use crate::abi::{AddmmSettings, Arrays, NoSettings, Tensor};
use crate::tensor::with_float;

/// Where each matrix of a batch begins, in elements. `batch` are the sizes of the dimensions before the last two; a
/// tensor without such dimensions is one matrix for all.
fn starts(x: &Tensor, batch: &[usize]) -> Vec<usize> {
    let dims = x.strides().len();
    let count = batch.iter().product();
    if dims <= 2 {
        return vec![0; count];
    }
    (0..count)
        .map(|mut index| {
            let mut start = 0;
            for i in (0..batch.len()).rev() {
                start += index % batch[i] * x.strides()[i] as usize;
                index /= batch[i];
            }
            start
        })
        .collect()
}

/// The last two dimensions of a tensor as a matrix, from the beginning of `data`.
fn matrix<'a, T>(x: &Tensor, data: &'a [T]) -> Matrix<'a, T> {
    let dims = x.strides().len();
    let stride = |i: usize| x.strides()[i] as usize;
    Matrix::new(data, x.size(dims - 2), x.size(dims - 1), stride(dims - 2), stride(dims - 1))
}

/// Calls `one` for each pair of matrices of a batch, with the place of their product. Where `b` is one matrix and the rows
/// of `a` can be taken as one matrix, calls it once.
///
/// # Safety
///
/// The tensors are two inputs and an output of one operation of MLX, of the format of `T`.
unsafe fn products<T: Element>(
    a: &Tensor,
    b: &Tensor,
    out: &Tensor,
    mut one: impl FnMut(Matrix<'_, T>, Matrix<'_, T>, MatrixMut<'_, T>),
) -> Answer {
    let [mut copy_a, mut copy_b] = [const { Vec::<T>::new() }; 2];
    // SAFETY: the caller's promise.
    let (a, b) = unsafe { (&a.forwards(&mut copy_a), &b.forwards(&mut copy_b)) };
    // SAFETY: the caller's promise.
    let (data_a, data_b, data_out) = unsafe { (a.reach::<T>()?, b.reach::<T>()?, out.output::<T>()) };
    let columns = out.last();
    if b.strides().len() == 2
        && let Some((rows, step)) = a.collapsed(1)
    {
        let stride = a.strides().last().map_or(1, |&stride| stride as usize);
        let a = Matrix::new(data_a, rows, a.last(), step, stride);
        one(a, matrix(b, data_b), MatrixMut::contiguous(data_out, rows, columns));
        return Ok(());
    }
    let batch: Vec<usize> = a.shape().take(a.strides().len() - 2).collect();
    let rows = a.size(batch.len());
    let places = data_out.chunks_exact_mut((rows * columns).max(1));
    for ((start_a, start_b), place) in starts(a, &batch).into_iter().zip(starts(b, &batch)).zip(places) {
        one(
            matrix(a, &data_a[start_a..]),
            matrix(b, &data_b[start_b..]),
            MatrixMut::contiguous(place, rows, columns),
        );
    }
    Ok(())
}

pub(crate) fn matmul(arrays: &Arrays, _: &NoSettings) -> Answer {
    let ([a, b, ..], [out, ..]) = (&arrays.inputs, &arrays.outputs);
    with_float!(out.format(), T => {
        // SAFETY: arrays of MLX, whose formats the offer has checked.
        unsafe { products::<T>(a, b, out, |a, b, out| mlx_cpu::matmul(Cpu::global(), a, b, out)) }
    })
}

pub(crate) fn addmm(arrays: &Arrays, settings: &AddmmSettings) -> Answer {
    let ([a, b, c, ..], [out, ..]) = (&arrays.inputs, &arrays.outputs);
    let AddmmSettings { alpha, beta } = *settings;
    with_float!(out.format(), T => {
        let mut copy = Vec::<T>::new();
        // SAFETY: arrays of MLX, whose formats the offer has checked.
        let c = unsafe { &c.forwards(&mut copy) };
        // SAFETY: as above.
        let data_c = unsafe { c.reach::<T>()? };
        // A dimension that c lacks or that has size 1 is repeated.
        let stride = |from_last: usize| {
            let i = c.strides().len().checked_sub(from_last);
            i.filter(|&i| c.size(i) > 1).map_or(0, |i| c.strides()[i] as usize)
        };
        let (row, column) = (stride(2), stride(1));
        // SAFETY: as above.
        unsafe {
            products::<T>(a, b, out, |a, b, out| {
                let c = Matrix::new(data_c, out.rows(), out.columns(), row, column);
                mlx_cpu::addmm(Cpu::global(), alpha, a, b, beta, c, out);
            })
        }
    })
}
