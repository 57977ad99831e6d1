//! Operations on quantized matrices.
#![expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "all have one reason: MLX's arrays hold what their format, shape and strides say, and live during the call"
)]

use mlx_cpu::{Cpu, Mask, MatrixMut, QuantizedHeads, QuantizedMatrix, Scores, ViewMut};

use super::Answer;
use super::attention::softcap;
use super::heads::{heads, mask_of};
use super::stacks::{Copies, QuantizedStack, places};
use crate::abi::{Arrays, Quantization, QuantizedAttentionSettings, QuantizedMatmulSettings};
use crate::tensor::with_float;

pub(crate) fn quantized_matmul(arrays: &Arrays, settings: &QuantizedMatmulSettings) -> Answer {
    let ([x, weights, scales, biases, ..], [out, ..]) = (&arrays.inputs, &arrays.outputs);
    let QuantizedMatmulSettings { quantization, is_transposed } = *settings;
    with_float!(out.format(), T => {
        let (mut copy, mut copies) = (Vec::<T>::new(), Copies::new());
        // SAFETY: arrays of MLX, whose formats the offer has checked.
        let (rows, stack, out) = unsafe {
            let stack = QuantizedStack::new([weights, scales, biases], quantization, &mut copies)?;
            (x.rows(&mut copy)?, stack, out.output::<T>())
        };
        // Along the last of the outer dimensions there may be one matrix for all, as several heads of queries share a
        // head of keys. Then all rows of x are multiplied with it at once.
        let own = stack.outer.iter().rposition(|&size| size != 1).map_or(0, |i| i + 1);
        let sizes: Vec<usize> = x.shape().take(own).collect();
        let count: usize = sizes.iter().product();
        let (each, columns) = (rows.rows() / count, out.len() / rows.rows());
        places(&sizes, |number, place| {
            let x = rows.part(number * each, each);
            let out = MatrixMut::contiguous(&mut out[number * each * columns..], each, columns);
            stack.at(place)?.multiply(x, is_transposed, out);
            Ok(())
        })
    })
}

pub(crate) fn quantized_attention(arrays: &Arrays, settings: &QuantizedAttentionSettings) -> Answer {
    let QuantizedAttentionSettings { quantization, softcap: cap } = *settings;
    let [queries, keys, key_scales, key_biases, values, value_scales, value_biases, mask] = &arrays.inputs;
    let [out, ..] = &arrays.outputs;
    with_float!(out.format(), T => {
        let [mut copy, mut copy_mask] = [const { Vec::<T>::new() }; 2];
        let (mut copy_bools, [mut copy_keys, mut copy_values]) = (Vec::new(), [const { Copies::<T>::new() }; 2]);
        let mut scores: Vec<usize> = queries.shape().collect();
        // SAFETY: arrays of MLX, whose formats the offer has checked.
        unsafe {
            let keys = QuantizedStack::new([keys, key_scales, key_biases], quantization, &mut copy_keys)?;
            let values = QuantizedStack::new([values, value_scales, value_biases], quantization, &mut copy_values)?;
            let (keys, values) = (keys.matrices()?, values.matrices()?);
            let queries = heads(queries, &mut copy)?;
            let [batch, count, length, _] = queries.shape();
            if let Some(last) = scores.last_mut() {
                *last = keys.first().map_or(0, QuantizedMatrix::rows);
            }
            let mask = match mask.given() {
                Some(mask) => mask_of(mask, &scores, &mut copy_bools, &mut copy_mask)?,
                None => Mask::None,
            };
            mlx_cpu::attention(
                Cpu::global(),
                queries,
                QuantizedHeads::new(&keys, batch),
                QuantizedHeads::new(&values, batch),
                Scores { scale: 1.0, softcap: softcap(cap) }, // the queries are already scaled
                mask,
                None,
                ViewMut::contiguous(out.output(), [batch, count, length, out.last()]),
            );
        }
        Ok(())
    })
}

pub(crate) fn dequantize(arrays: &Arrays, quantization: &Quantization) -> Answer {
    let ([weights, scales, biases, ..], [out, ..]) = (&arrays.inputs, &arrays.outputs);
    with_float!(out.format(), T => {
        let mut copies = Copies::<T>::new();
        // SAFETY: arrays of MLX, whose formats the offer has checked.
        let (stack, out) = unsafe {
            (QuantizedStack::new([weights, scales, biases], *quantization, &mut copies)?, out.output::<T>())
        };
        let size = stack.rows * stack.columns;
        places(&stack.outer, |number, place| {
            let out = MatrixMut::contiguous(&mut out[number * size..], stack.rows, stack.columns);
            stack.at(place)?.dequantize(out);
            Ok(())
        })
    })
}

pub(crate) fn quantize(arrays: &Arrays, quantization: &Quantization) -> Answer {
    let ([w, ..], [weights, scales, biases]) = (&arrays.inputs, &arrays.outputs);
    let (bits, group_size) = (quantization.bits as usize, quantization.group_size as usize);
    with_float!(w.format(), T => {
        let mut copy = Vec::<T>::new();
        // SAFETY: arrays of MLX, whose formats the offer has checked.
        let (w, weights, scales, biases) = unsafe {
            (w.rows(&mut copy)?, weights.output(), scales.output::<T>(), biases.output::<T>())
        };
        mlx_cpu::quantize(Cpu::global(), w, bits, group_size, weights, scales, biases).map_err(|e| e.to_string())
    })
}
