//! Attention heads: cutting features into heads, attention over a cache, and merging the heads.

use mlx_attn_masks::AttentionMask;
use mlx_kvcache::KvCache;
use mlx_rope::Rope;
use mlx_rs::Array;
use mlx_rs::error::{Exception, Result};

/// The input of a block or of its attention.
#[derive(Debug)]
pub struct AttentionInput<'a> {
    /// The residual stream or its normalized copy, `[B, L, D]`.
    pub x: &'a Array,
    /// Which keys each query may attend to, from the cache.
    pub mask: &'a AttentionMask,
    /// The keys and values of this layer.
    pub cache: &'a mut KvCache,
}

/// Cuts the features of each token into heads: `[B, L, H * D]` to `[B, H, L, D]`.
///
/// # Errors
///
/// Where the last axis cannot be cut into `heads` equal parts.
pub fn split(x: &Array, heads: i32) -> Result<Array> {
    let [batch, length, _] = *x.shape() else {
        return Err(Exception::custom(format!("heads are cut from [B, L, features], not {:?}", x.shape())));
    };
    if length == 1 {
        // With one token the order of the elements stays the same. This saves a transposition for each generated token.
        return x.reshape(&[batch, heads, 1, -1]);
    }
    x.reshape(&[batch, length, heads, -1])?.transpose_axes(&[0, 2, 1, 3])
}

/// Cuts the output of a fused projection, `[B, L, (H + 2 H_kv) D]`, into the heads of queries `[B, H, L, D]`, of keys and
/// of values, `[B, H_kv, L, D]` each.
///
/// A fused projection is one product for all three, which reads its input once.
///
/// # Errors
///
/// Where the last axis cannot be cut into `query_heads + 2 * key_heads` equal parts.
pub fn split_fused(qkv: &Array, query_heads: i32, key_heads: i32) -> Result<[Array; 3]> {
    let [_, _, features] = *qkv.shape() else {
        return Err(Exception::custom(format!("heads are cut from [B, L, features], not {:?}", qkv.shape())));
    };
    let heads = query_heads + 2 * key_heads;
    if heads <= 0 || features % heads != 0 {
        return Err(Exception::custom(format!("{features} features cannot be cut into {heads} heads")));
    }
    // One transposition for all heads, and not one for each part.
    let [queries, keys, values] = cut(&split(qkv, heads)?, &[query_heads, query_heads + key_heads])?;
    Ok([queries, keys, values])
}

/// Cuts `[B, H, L, D]` into N parts along the heads; `at` holds the first head of each part but the first.
fn cut<const N: usize>(x: &Array, at: &[i32]) -> Result<[Array; N]> {
    let parts = x.split_at_indices(at, 1)?;
    parts.try_into().map_err(|_| Exception::custom(format!("MLX did not cut an axis into {N} parts")))
}

/// Concatenates the heads of each token: `[B, H, L, D]` to `[B, L, H * D]`.
///
/// # Errors
///
/// Where `x` does not have four axes.
pub fn merge(x: &Array) -> Result<Array> {
    let [batch, _, length, _] = *x.shape() else {
        return Err(Exception::custom(format!("heads are merged from [B, H, L, D], not {:?}", x.shape())));
    };
    if length == 1 {
        return x.reshape(&[batch, 1, -1]);
    }
    x.transpose_axes(&[0, 2, 1, 3])?.reshape(&[batch, length, -1])
}

/// What scores are usually multiplied by, `1 / sqrt(d)`: a product of d features then has the variance of one feature.
///
/// # Reference
///
/// Vaswani et al., *Attention Is All You Need*, section 3.2.1 (<https://arxiv.org/abs/1706.03762>).
pub fn scale(head_dim: i32) -> f32 {
    f64::from(head_dim).powf(-0.5) as f32
}

/// Attention over a cache: rotates queries and keys if there is a rotation, appends keys and values to the cache, and attends
/// to the keys and values that the cache then holds for these queries. Rotated queries are multiplied by the factor of their
/// positions where the model has one ([`Rope::scale_queries`]). With a `softcap`, scores are soft-capped
/// ([`KeysValues::softcapped_attention`](mlx_kvcache::KeysValues::softcapped_attention)).
///
/// # Shapes
///
/// Queries `[B, H, L, D]`, keys and values `[B, H_kv, L, D]`, as [`split`] makes them; the result is
/// `[B, L, H * D]`, as [`merge`] makes it.
///
/// # Errors
///
/// Where the shapes do not fit each other, the mask or the content of the cache.
pub fn attend<'a>(
    [queries, keys, values]: [&Array; 3],
    rope: impl Into<Option<&'a Rope>>,
    scale: f32,
    softcap: Option<f32>,
    mask: &AttentionMask,
    cache: &mut KvCache,
) -> Result<Array> {
    let rotated = match rope.into() {
        Some(rope) => {
            let queries = rope.rotate(queries, cache.offsets())?;
            mlx_tap::step("rotated queries", &queries);
            let queries = rope.scale_queries(&queries, cache.offsets())?;
            let keys = rope.rotate(keys, cache.offsets())?;
            mlx_tap::step("rotated keys", &keys);
            Some([queries, keys])
        }
        None => None,
    };
    let [queries, keys] = rotated.as_ref().map_or([queries, keys], |rotated| rotated.each_ref());
    let read = cache.append(keys, values)?; // [B, H_kv, S, D]
    let attended = match softcap {
        None => read.attention(queries, scale, mask)?,
        Some(cap) => read.softcapped_attention(queries, scale, cap, mask)?,
    };
    mlx_tap::step("attention", &attended);
    merge(&attended)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_neighbouring_features() {
        let x = Array::from_slice(&(0..12).collect::<Vec<i32>>(), &[1, 2, 6]);
        let split = split(&x, 3).unwrap();
        assert_eq!(split.shape(), [1, 3, 2, 2]);
        // Head 1 of both tokens: features 2 and 3.
        let head = split.split_equal(3, 1).unwrap().remove(1);
        assert_eq!(head.flatten(None, None).unwrap().as_slice::<i32>(), [2, 3, 8, 9]);
        assert_eq!(merge(&split).unwrap().as_slice::<i32>(), x.as_slice::<i32>());
    }

    #[test]
    fn fused_heads_are_queries_then_keys_then_values() {
        // Two query heads and one key-value head of two features.
        let qkv = Array::from_slice(&(0..16).collect::<Vec<i32>>(), &[1, 2, 8]);
        let [queries, keys, values] = split_fused(&qkv, 2, 1).unwrap();
        assert_eq!((queries.shape(), keys.shape()), (&[1, 2, 2, 2][..], &[1, 1, 2, 2][..]));
        let numbers = |x: &Array| x.flatten(None, None).unwrap().as_slice::<i32>().to_vec();
        assert_eq!(numbers(&queries), [0, 1, 8, 9, 2, 3, 10, 11]);
        assert_eq!((numbers(&keys), numbers(&values)), (vec![4, 5, 12, 13], vec![6, 7, 14, 15]));
        assert!(split_fused(&qkv, 3, 1).unwrap_err().what().contains("8 features"));
        assert!(split_fused(&qkv, 0, 0).is_err());
    }

    #[test]
    fn shapes_without_heads_are_errors() {
        let x = Array::ones::<f32>(&[2, 6]).unwrap();
        assert!(split(&x, 3).unwrap_err().what().contains("[2, 6]"));
        assert!(merge(&x).unwrap_err().what().contains("[2, 6]"));
        assert!(split(&Array::ones::<f32>(&[1, 2, 6]).unwrap(), 4).is_err());
    }
}
