//! Each operation: from MLX's arrays to the slices of `mlx-cpu`.
//!
//! What the tensors and settings of an operation are is said by the function of the same name in
//! `native/cpu_kernels.cpp`, which has checked shapes and formats.
#![expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "all are the same: MLX's arrays hold what their format, shape and strides say, and live during the call"
)]

use mlx_cpu::{Cpu, Element, Frequencies, Matrix, MatrixMut, Rope, RopeLayout, View};

use super::Settings;
use super::operations::{Answer, TENSORS};
use super::tensor::{Format, Tensor, with_float};

type Tensors = [Tensor; TENSORS];

/// An output whose rows are its last dimension's.
unsafe fn rows_of<'a, T: Element>(out: &Tensor) -> MatrixMut<'a, T> {
    let columns = out.last();
    // SAFETY: the caller gives an output.
    MatrixMut::contiguous(unsafe { out.output() }, out.len() / columns.max(1), columns)
}

/// A function from rows to rows of the same length.
macro_rules! on_rows {
    ($($name:ident = $kernel:path;)*) => {$(
        pub(super) fn $name([x, out, ..]: &Tensors, _: &Settings) -> Answer {
            with_float!(out.format(), T => {
                let mut copy = Vec::<T>::new();
                // SAFETY: MLX's arrays, of these formats.
                unsafe { $kernel(Cpu::global(), x.rows(&mut copy)?, rows_of(out)) };
                Ok(())
            })
        }
    )*};
}

/// A function of two arrays of the same shape.
macro_rules! on_two {
    ($($name:ident = $kernel:path;)*) => {$(
        pub(super) fn $name([a, b, out, ..]: &Tensors, _: &Settings) -> Answer {
            with_float!(out.format(), T => {
                let mut copies = [Vec::<T>::new(), Vec::<T>::new()];
                let [copy_a, copy_b] = &mut copies;
                // SAFETY: MLX's arrays, of these formats.
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
}

on_two! {
    swiglu = mlx_cpu::swiglu;
    geglu = mlx_cpu::geglu;
}

pub(super) fn rms_norm([x, second, third, ..]: &Tensors, settings: &Settings) -> Answer {
    let (weight, out) = if settings.i != 0 { (Some(second), third) } else { (None, second) };
    with_float!(out.format(), T => {
        let (mut copy, mut copy_of_weight) = (Vec::<T>::new(), Vec::<T>::new());
        // SAFETY: MLX's arrays, of these formats.
        unsafe {
            let x = x.rows(&mut copy)?;
            let weight = weight.map(|weight| weight.rows(&mut copy_of_weight)).transpose()?;
            mlx_cpu::rms_norm(Cpu::global(), x, weight.as_ref().map(|weight| weight.row(0)), settings.a, rows_of(out));
        }
        Ok(())
    })
}

/// A tensor of four dimensions whose last one's elements follow each other: where they do not, a copy.
///
/// # Safety
///
/// The tensor is an input of MLX's, of the format of `T`.
unsafe fn heads<'a, T: Copy>(x: &Tensor, copy: &'a mut Vec<T>) -> Result<View<'a, T, 4>, String> {
    let shape = std::array::from_fn(|i| x.size(i));
    let strides = x.strides();
    if strides.iter().all(|&stride| stride >= 0) && (strides[3] == 1 || shape[3] == 1) {
        // SAFETY: the caller's promise.
        return Ok(View::new(unsafe { x.reach()? }, shape, std::array::from_fn(|i| strides[i] as usize)));
    }
    // SAFETY: the caller's promise.
    unsafe { x.gather(copy) };
    Ok(View::contiguous(copy, shape))
}

pub(super) fn rope(tensors: &Tensors, settings: &Settings) -> Answer {
    let mut tensors = tensors.iter();
    let mut next = || tensors.next().ok_or("an array is missing");
    let x = next()?;
    let offsets = if settings.k & 1 != 0 { Some(next()?) } else { None };
    let periods = if settings.k & 2 != 0 { Some(next()?) } else { None };
    let out = next()?;

    let (mut copy_offsets, mut copy_periods) = (Vec::new(), Vec::new());
    let offsets: &[i32] = match offsets {
        Some(offsets) => {
            // SAFETY: an input of int32.
            unsafe { offsets.gather(&mut copy_offsets) };
            &copy_offsets
        }
        None => &[settings.j],
    };
    let frequencies = match periods {
        Some(periods) => {
            // SAFETY: an input of float32.
            unsafe { periods.gather(&mut copy_periods) };
            Frequencies::Periods(&copy_periods)
        }
        None => Frequencies::Base(settings.a),
    };
    let rope = Rope {
        dims: settings.i as usize,
        layout: if settings.k & 4 != 0 { RopeLayout::Interleaved } else { RopeLayout::Halves },
        frequencies,
        scale: settings.b,
    };
    with_float!(out.format(), T => {
        let mut copy = Vec::<T>::new();
        // SAFETY: MLX's arrays, of these formats.
        unsafe { mlx_cpu::rope(Cpu::global(), heads(x, &mut copy)?, &rope, offsets, out.output()) };
        Ok(())
    })
}

