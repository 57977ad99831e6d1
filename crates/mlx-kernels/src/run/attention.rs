//! Operations on heads: rotation and attention.
#![expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "all have one reason: MLX's arrays hold what their format, shape and strides say, and live during the call"
)]

use mlx_cpu::{Cpu, Frequencies, Mask, Rope, RopeLayout, View, ViewMut};

use super::Answer;
use super::heads::heads;
use crate::abi::{self, Arrays, AttentionSettings, Format, RopeSettings, Tensor};
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

/// A mask `[.., L, S]` broadcast to `shape`.
///
/// # Safety
///
/// The tensor is an input from MLX, of the format of `T`.
unsafe fn mask_view<'a, T>(mask: &Tensor, shape: [usize; 4]) -> Result<View<'a, T, 4>, String> {
    let missing = 4 - mask.strides().len();
    let strides = std::array::from_fn(|i| {
        let own = i.checked_sub(missing).filter(|&own| mask.size(own) > 1);
        own.map_or(0, |own| mask.strides()[own] as usize)
    });
    // SAFETY: the caller's promise.
    Ok(View::new(unsafe { mask.reach()? }, shape, strides))
}

pub(crate) fn attention(arrays: &Arrays, settings: &AttentionSettings) -> Answer {
    let ([queries, keys, values, mask, sinks, ..], [out, ..]) = (&arrays.inputs, &arrays.outputs);
    with_float!(out.format(), T => {
        let [mut copy_q, mut copy_k, mut copy_v, mut copy_sinks] = [const { Vec::<T>::new() }; 4];
        let (mut copy_bools, mut copy_mask) = (Vec::<bool>::new(), Vec::<T>::new());
        // SAFETY: arrays of MLX, whose formats the offer has checked.
        unsafe {
            let queries = heads(queries, &mut copy_q)?;
            let keys = heads(keys, &mut copy_k)?;
            let [batch, count, length, _] = queries.shape();
            let scores = [batch, count, length, keys.shape()[2]];
            let mask = match mask.given() {
                Some(mask) if mask.format() == Format::Bool => {
                    Mask::Bool(mask_view(&mask.forwards(&mut copy_bools), scores)?)
                },
                Some(mask) => Mask::Additive(mask_view(&mask.forwards(&mut copy_mask), scores)?),
                None if settings.is_causal => Mask::Causal,
                None => Mask::None,
            };
            let sinks = sinks.given().map(|sinks| {
                sinks.gather(&mut copy_sinks);
                &copy_sinks[..]
            });
            let strides = std::array::from_fn(|i| out.strides()[i] as usize);
            let out = ViewMut::new(out.output(), std::array::from_fn(|i| out.size(i)), strides);
            mlx_cpu::attention(
                Cpu::global(),
                queries,
                keys,
                heads(values, &mut copy_v)?,
                settings.scale,
                mask,
                sinks,
                out,
            );
        }
        Ok(())
    })
}
