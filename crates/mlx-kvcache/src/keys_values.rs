//! The keys and values that attention reads, and attention over them.

use mlx_attn_masks::{AttentionMask, CausalMask};
use mlx_quantization::{dequantize, quantized_matmul};
use mlx_rs::error::Exception;
use mlx_rs::fast::scaled_dot_product_attention;
use mlx_rs::ops::{select, softmax_axis};
use mlx_rs::{Array, Dtype};

use crate::QuantizedArray;

/// The keys and values that attention reads. Both have the same tokens in the same order.
///
/// # Shapes
///
/// Keys `[B, H, S, D]`, values `[B, H, S, D_v]`. S counts all slots, those that the mask hides included.
#[derive(Debug, Clone)]
pub enum KeysValues {
    /// Keys and values in the dtype in which they were appended.
    Dense {
        /// `[B, H, S, D]`.
        keys: Array,
        /// `[B, H, S, D_v]`.
        values: Array,
    },
    /// Quantized keys and values.
    Quantized {
        /// `[B, H, S, D]` before quantization.
        keys: QuantizedArray,
        /// `[B, H, S, D_v]` before quantization.
        values: QuantizedArray,
    },
}

impl KeysValues {
    /// Scaled dot-product attention: `softmax(scale * Q Kᵀ + mask) V`, head by head.
    ///
    /// If there are fewer key-value heads than query heads, each is shared by a group of neighbouring
    /// query heads (grouped-query attention, <https://arxiv.org/abs/2305.13245>). Quantized keys and
    /// values are multiplied in their packed form; they are not unpacked into memory.
    ///
    /// # Shapes
    ///
    /// Queries `[B, H_q, L, D]` with `H_q` a multiple of `H`; the result is `[B, H_q, L, D_v]`.
    ///
    /// # Dtypes
    ///
    /// Any float dtype; the softmax is computed in float32.
    ///
    /// # Errors
    ///
    /// An MLX error if the shapes do not fit each other or the mask.
    ///
    /// # Reference
    ///
    /// Vaswani et al., *Attention Is All You Need*, equation 1 (<https://arxiv.org/abs/1706.03762>).
    pub fn attention(&self, queries: &Array, scale: f32, mask: &AttentionMask) -> Result<Array, Exception> {
        match self {
            Self::Dense { keys, values } => {
                scaled_dot_product_attention(queries, keys, values, scale, mask.to_sdpa(), None)
            }
            Self::Quantized { keys, values } => quantized_attention(queries, keys, values, scale, mask),
        }
    }

    /// Keys and values as dense arrays; quantized ones are dequantized.
    ///
    /// # Errors
    ///
    /// An MLX error from the dequantization.
    pub fn to_dense(&self) -> Result<(Array, Array), Exception> {
        match self {
            Self::Dense { keys, values } => Ok((keys.clone(), values.clone())),
            Self::Quantized { keys, values } => Ok((dequantize(keys)?, dequantize(values)?)),
        }
    }
}

/// Attention over quantized keys and values. MLX has no kernel for it, so it is written out with mlx-lm's
/// operations and dtypes. On the CPU of Linux, `mlx-sys` replaces these operations by one kernel.
fn quantized_attention(
    queries: &Array,
    keys: &QuantizedArray,
    values: &QuantizedArray,
    scale: f32,
    mask: &AttentionMask,
) -> Result<Array, Exception> {
    let ([batch, query_heads, length, dim], [_, heads, tokens, _]) =
        (four(queries.shape())?, four(keys.packed.shape())?);
    let group = query_heads.checked_div(heads).unwrap_or(0); // query heads that share a key-value head
    if group * heads != query_heads {
        return Err(Exception::custom(format!("{query_heads} query heads for {heads} key-value heads")));
    }
    let queries = queries.multiply(Array::from_f32(scale).as_dtype(queries.dtype())?)?;

    // [B, H_q, L, D] -> [B, H, group, L, D], against [B, H, 1, S, D]
    let grouped = group > 1;
    let (queries, keys, values) = if grouped {
        (queries.reshape(&[batch, heads, group, length, dim])?, for_group(keys)?, for_group(values)?)
    } else {
        (queries, keys.clone(), values.clone())
    };
    let scores = hide(quantized_matmul(&queries, &keys, true)?, mask, [length, tokens], grouped)?;
    let weights = softmax_axis(scores, -1, true)?;
    let out = quantized_matmul(&weights, &values, false)?;
    if grouped { out.reshape(&[batch, query_heads, length, -1]) } else { Ok(out) }
}

/// `[B, H, S, _]` to `[B, H, 1, S, _]`, which broadcasts to every query head of a group.
fn for_group(x: &QuantizedArray) -> Result<QuantizedArray, Exception> {
    Ok(QuantizedArray {
        packed: x.packed.expand_dims(-3)?,
        scales: x.scales.expand_dims(-3)?,
        biases: x.biases.as_ref().map(|biases| biases.expand_dims(-3)).transpose()?,
        quantization: x.quantization,
    })
}

/// Replaces scores by the lowest number of the dtype where the mask is false. Minus infinity would make
/// the scores of a query that sees no key NaN.
fn hide(
    scores: Array,
    mask: &AttentionMask,
    [queries, keys]: [i32; 2],
    grouped: bool,
) -> Result<Array, Exception> {
    let visible = match mask {
        AttentionMask::None => return Ok(scores),
        AttentionMask::Causal => CausalMask::new(queries).offset(keys - queries).to_array()?,
        // [B, 1, L, S] -> [B, 1, 1, L, S]
        AttentionMask::Array(visible) if grouped && visible.ndim() > 3 => visible.expand_dims(-3)?,
        AttentionMask::Array(visible) => visible.clone(),
    };
    let lowest = match scores.dtype() {
        Dtype::Float16 => -65_504.0,
        Dtype::Bfloat16 => f32::from_bits(0xff7f_0000), // sign, largest exponent, largest mantissa
        _ => f32::MIN,
    };
    select(&visible, &scores, Array::from_f32(lowest).as_dtype(scores.dtype())?)
}

fn four(shape: &[i32]) -> Result<[i32; 4], Exception> {
    shape.try_into().map_err(|_| Exception::custom(format!("[B, H, L, D] is needed, not {shape:?}")))
}
