//! The keys and values that attention reads, and attention over them.

use mlx_attn_masks::{AttentionMask, CausalMask};
use mlx_quantization::{dequantize, quantized_matmul};
use mlx_rs::error::Exception;
use mlx_rs::fast::scaled_dot_product_attention;
use mlx_rs::ops::{select, softmax_axis, tanh};
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
            Self::Quantized { .. } => self.written_out(queries, scale, None, mask),
        }
    }

    /// [`attention`](Self::attention) with soft-capped scores: `softmax(cap * tanh(scale * Q Kᵀ / cap) + mask) V`. All
    /// scores lie between `-cap` and `cap`, and small ones hardly change.
    ///
    /// Shapes, dtypes and errors are those of [`attention`](Self::attention). The cap is a positive number.
    ///
    /// # Errors
    ///
    /// An MLX error if the shapes do not fit each other or the mask.
    ///
    /// # Reference
    ///
    /// Gemma Team, *Gemma 2*, section 2 (<https://arxiv.org/abs/2408.00118>); Bello et al., *Neural Combinatorial
    /// Optimization*, appendix A.1 (<https://arxiv.org/abs/1611.09940>).
    pub fn softcapped_attention(
        &self,
        queries: &Array,
        scale: f32,
        cap: f32,
        mask: &AttentionMask,
    ) -> Result<Array, Exception> {
        self.written_out(queries, scale, Some(cap), mask)
    }

    /// Attention as single operations, in mlx-lm's order and dtypes, since MLX has no kernel for it. On the CPU of Linux,
    /// `mlx-sys` replaces these operations by one kernel.
    fn written_out(
        &self,
        queries: &Array,
        scale: f32,
        softcap: Option<f32>,
        mask: &AttentionMask,
    ) -> Result<Array, Exception> {
        let keys = match self {
            Self::Dense { keys, .. } => keys,
            Self::Quantized { keys, .. } => &keys.packed,
        };
        let ([batch, query_heads, length, dim], [_, heads, tokens, _]) =
            (four(queries.shape())?, four(keys.shape())?);
        let group = query_heads.checked_div(heads).unwrap_or(0); // query heads that share a key-value head
        if group * heads != query_heads {
            return Err(Exception::custom(format!("{query_heads} query heads for {heads} key-value heads")));
        }
        // [B, H_q, L, D] -> [B, H, group, L, D], against [B, H, 1, S, D]
        let grouped = group > 1;
        let (queries, read) = if grouped {
            (&queries.reshape(&[batch, heads, group, length, dim])?, &self.for_group()?)
        } else {
            (queries, self)
        };
        let queries = queries.multiply(number(scale, queries.dtype())?)?;
        let mut scores = read.scores(&queries)?;
        if let Some(cap) = softcap {
            let cap = number(cap, scores.dtype())?;
            scores = tanh(scores.divide(&cap)?)?.multiply(&cap)?;
        }
        let scores = hide(scores, mask, [length, tokens], grouped)?;
        let out = read.weighted(&softmax_axis(scores, -1, true)?)?;
        if grouped { out.reshape(&[batch, query_heads, length, -1]) } else { Ok(out) }
    }

    /// `[B, H, S, _]` to `[B, H, 1, S, _]`, which broadcasts to every query head of a group.
    fn for_group(&self) -> Result<Self, Exception> {
        Ok(match self {
            Self::Dense { keys, values } => {
                Self::Dense { keys: keys.expand_dims(-3)?, values: values.expand_dims(-3)? }
            }
            Self::Quantized { keys, values } => {
                Self::Quantized { keys: packed_for_group(keys)?, values: packed_for_group(values)? }
            }
        })
    }

    /// The product of each query with each key, `[.., L, S]`.
    fn scores(&self, queries: &Array) -> Result<Array, Exception> {
        match self {
            Self::Dense { keys, .. } => queries.matmul(keys.swap_axes(-1, -2)?),
            Self::Quantized { keys, .. } => quantized_matmul(queries, keys, true),
        }
    }

    /// The sums of values times weights, `[.., L, D_v]`.
    fn weighted(&self, weights: &Array) -> Result<Array, Exception> {
        match self {
            Self::Dense { values, .. } => weights.matmul(values),
            Self::Quantized { values, .. } => quantized_matmul(weights, values, false),
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

fn packed_for_group(x: &QuantizedArray) -> Result<QuantizedArray, Exception> {
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
    select(&visible, &scores, number(lowest, scores.dtype())?)
}

/// A number as an array that does not change the dtype of what it is combined with.
fn number(x: f32, dtype: Dtype) -> Result<Array, Exception> {
    Array::from_f32(x).as_dtype(dtype)
}

fn four(shape: &[i32]) -> Result<[i32; 4], Exception> {
    shape.try_into().map_err(|_| Exception::custom(format!("[B, H, L, D] is needed, not {shape:?}")))
}
