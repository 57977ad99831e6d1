//! Each operation: from MLX's arrays to the slices of `mlx-cpu`.

use mlx_cpu::Element;

use super::Settings;
use super::operations::{Answer, TENSORS};
use super::tensor::{Tensor, with_float};

pub(super) fn add([a, b, out, ..]: &[Tensor; TENSORS], _: &Settings) -> Answer {
    with_float!(out.format(), T => {
        let (mut copy_a, mut copy_b) = (Vec::<T>::new(), Vec::<T>::new());
        let (a, b) = unsafe { (a.rows(&mut copy_a)?, b.rows(&mut copy_b)?) };
        let out = unsafe { out.output::<T>() };
        for i in 0..a.rows() {
            for ((to, a), b) in out[i * a.columns()..].iter_mut().zip(a.row(i)).zip(b.row(i)) {
                *to = T::narrow(a.widen() + b.widen());
            }
        }
        Ok(())
    })
}
