//! Operations on numbers and on rows: sums, products, gates, norms, softmax and reductions.
#![expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "all have one reason: MLX's arrays hold what their format, shape and strides say, and live during the call"
)]

use mlx_cpu::{Cpu, Element, MatrixMut};

use super::Answer;
use crate::abi::{Arrays, NoSettings, RmsNormSettings, Tensor};
use crate::tensor::with_float;

/// An output as a matrix whose rows are the last dimension.
///
/// # Safety
///
/// The conditions of [`Tensor::output`].
unsafe fn rows_of<'a, T: Element>(out: &Tensor) -> MatrixMut<'a, T> {
    let columns = out.last();
    // SAFETY: the caller's promise.
    MatrixMut::contiguous(unsafe { out.output() }, out.len() / columns.max(1), columns)
}

/// Operations from rows to rows of the same length.
macro_rules! on_rows {
    ($($name:ident = $kernel:path;)*) => {$(
        pub(crate) fn $name(arrays: &Arrays, _: &NoSettings) -> Answer {
            let ([x, ..], [out, ..]) = (&arrays.inputs, &arrays.outputs);
            with_float!(out.format(), T => {
                let mut copy = Vec::<T>::new();
                // SAFETY: arrays of MLX, whose formats the offer has checked.
                unsafe { $kernel(Cpu::global(), x.rows(&mut copy)?, rows_of(out)) };
                Ok(())
            })
        }
    )*};
}

/// Operations on two arrays of the same shape.
macro_rules! on_two {
    ($($name:ident = $kernel:path;)*) => {$(
        pub(crate) fn $name(arrays: &Arrays, _: &NoSettings) -> Answer {
            let ([a, b, ..], [out, ..]) = (&arrays.inputs, &arrays.outputs);
            with_float!(out.format(), T => {
                let mut copies = [Vec::<T>::new(), Vec::<T>::new()];
                let [copy_a, copy_b] = &mut copies;
                // SAFETY: arrays of MLX, whose formats the offer has checked.
                let (a, b) = unsafe { (a.rows(copy_a)?, b.rows(copy_b)?) };
                // SAFETY: as above.
                $kernel(Cpu::global(), a, b, unsafe { rows_of(out) });
                Ok(())
            })
        }
    )*};
}

on_rows! {
    silu = mlx_cpu::silu;
    gelu = mlx_cpu::gelu_tanh;
    softmax = mlx_cpu::softmax;
}

on_two! {
    add = mlx_cpu::add;
    multiply = mlx_cpu::multiply;
    swiglu = mlx_cpu::swiglu;
    geglu = mlx_cpu::geglu;
}

pub(crate) fn subtract_from_rows(arrays: &Arrays, _: &NoSettings) -> Answer {
    let ([x, numbers, ..], [out, ..]) = (&arrays.inputs, &arrays.outputs);
    with_float!(x.format(), T => {
        let (mut copy, mut copy_of_numbers) = (Vec::<T>::new(), Vec::<T>::new());
        // SAFETY: arrays of MLX, whose formats the offer has checked.
        unsafe {
            numbers.gather(&mut copy_of_numbers);
            mlx_cpu::subtract_from_rows(Cpu::global(), x.rows(&mut copy)?, &copy_of_numbers, rows_of(out));
        }
        Ok(())
    })
}

pub(crate) fn logsumexp(arrays: &Arrays, _: &NoSettings) -> Answer {
    let ([x, ..], [out, ..]) = (&arrays.inputs, &arrays.outputs);
    with_float!(x.format(), T => {
        let mut copy = Vec::<T>::new();
        // SAFETY: arrays of MLX, whose formats the offer has checked.
        unsafe { mlx_cpu::logsumexp(Cpu::global(), x.rows(&mut copy)?, out.output()) };
        Ok(())
    })
}

pub(crate) fn argmax(arrays: &Arrays, _: &NoSettings) -> Answer {
    let ([x, ..], [out, ..]) = (&arrays.inputs, &arrays.outputs);
    with_float!(x.format(), T => {
        let mut copy = Vec::<T>::new();
        // SAFETY: arrays of MLX, whose formats the offer has checked.
        unsafe { mlx_cpu::argmax(Cpu::global(), x.rows(&mut copy)?, out.output()) };
        Ok(())
    })
}

pub(crate) fn rms_norm(arrays: &Arrays, settings: &RmsNormSettings) -> Answer {
    let ([x, weight, ..], [out, ..]) = (&arrays.inputs, &arrays.outputs);
    with_float!(out.format(), T => {
        let (mut copy, mut copy_of_weight) = (Vec::<T>::new(), Vec::<T>::new());
        // SAFETY: arrays of MLX, whose formats the offer has checked.
        unsafe {
            let x = x.rows(&mut copy)?;
            let weight = weight.given().map(|weight| weight.rows(&mut copy_of_weight)).transpose()?;
            let weight = weight.as_ref().map(|weight| weight.row(0));
            mlx_cpu::rms_norm(Cpu::global(), x, weight, settings.eps, rows_of(out));
        }
        Ok(())
    })
}
