//! Operations on heads: rotation and attention.
#![expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "all have one reason: MLX's arrays hold what their format, shape and strides say, and live during the call"
)]

use mlx_cpu::{Cpu, Frequencies, Mask, Rope, RopeLayout, Scores, ViewMut};

use super::Answer;
use super::heads::{heads, mask_of};
use crate::abi::{self, Arrays, AttentionSettings, RopeSettings};
use crate::tensor::with_float;

pub(crate) fn rope(arrays: &Arrays, settings: &RopeSettings) -> Answer {
    let ([x, offsets, periods, ..], [out, ..]) = (&arrays.inputs, &arrays.outputs);
    let (mut copy_offsets, mut copy_periods) = (Vec::new(), Vec::new());
    let offsets: &[i32] = match offsets.given() {
        Some(offsets) => {
            // SAFETY: an input of int32.
            unsafe { offsets.gather(&mut copy_offsets) };
            &copy_offsets
        }
        None => &[settings.offset],
    };
    let frequencies = match periods.given() {
        Some(periods) => {
            // SAFETY: an input of float32.
            unsafe { periods.gather(&mut copy_periods) };
            Frequencies::Periods(&copy_periods)
        }
        None => Frequencies::Base(settings.base),
    };
    let rope = Rope {
        dims: settings.dims as usize,
        layout: match settings.layout {
            abi::RopeLayout::Halves => RopeLayout::Halves,
            abi::RopeLayout::Interleaved => RopeLayout::Interleaved,
        },
        frequencies,
        scale: settings.scale,
    };
    with_float!(out.format(), T => {
        let mut copy = Vec::<T>::new();
        // SAFETY: arrays of MLX, whose formats the offer has checked.
        unsafe { mlx_cpu::rope(Cpu::global(), heads(x, &mut copy)?, &rope, offsets, out.output()) };
        Ok(())
    })
}

/// The soft cap that settings name.
pub(super) fn softcap(cap: f32) -> Option<f32> {
    (cap > 0.0).then_some(cap)
}

pub(crate) fn attention(arrays: &Arrays, settings: &AttentionSettings) -> Answer {
    let ([queries, keys, values, mask, sinks, ..], [out, ..]) = (&arrays.inputs, &arrays.outputs);
    let mut scores: Vec<usize> = queries.shape().collect();
    with_float!(out.format(), T => {
        let [mut copy_q, mut copy_k, mut copy_v, mut copy_sinks] = [const { Vec::<T>::new() }; 4];
        let (mut copy_bools, mut copy_mask) = (Vec::<bool>::new(), Vec::<T>::new());
        // SAFETY: arrays of MLX, whose formats the offer has checked.
        unsafe {
            let keys = heads(keys, &mut copy_k)?;
            if let Some(last) = scores.last_mut() {
                *last = keys.shape()[2];
            }
            let mask = match mask.given() {
                Some(mask) => mask_of(mask, &scores, &mut copy_bools, &mut copy_mask)?,
                None if settings.is_causal => Mask::Causal,
                None => Mask::None,
            };
            let sinks = sinks.given().map(|sinks| {
                sinks.gather(&mut copy_sinks);
                &copy_sinks[..]
            });
            // The C++ side lays out heads so that one stride reaches all of them.
            let out = out.with_merged_heads().ok_or("its output has heads that lie apart")?;
            let strides = std::array::from_fn(|i| out.strides()[i] as usize);
            mlx_cpu::attention(
                Cpu::global(),
                heads(queries, &mut copy_q)?,
                keys,
                heads(values, &mut copy_v)?,
                Scores { scale: settings.scale, softcap: softcap(settings.softcap) },
                mask,
                sinks,
                ViewMut::new(out.output(), std::array::from_fn(|i| out.size(i)), strides),
            );
        }
        Ok(())
    })
}
