//! Who sees whom in attention.
//!
//! API: usable without the rest of this workspace. [`AttentionMask`] is what a cache hands to a
//! model and a model hands to attention. The rule of causal attention is one line: query `i` sees
//! key `j` when `j <= i`, both counted in tokens from the start of the sequence. Where MLX's
//! attention can apply it by itself, nothing is built.
//!
//! ```
//! use mlx_attn_masks::AttentionMask;
//!
//! assert!(matches!(AttentionMask::causal(1), AttentionMask::None)); // the newest token sees all
//! assert!(matches!(AttentionMask::causal(7), AttentionMask::Causal));
//! ```

use mlx_rs::Array;
use mlx_rs::fast::ScaledDotProductAttentionMask;

/// Which keys each query may see.
#[derive(Debug, Clone)]
pub enum AttentionMask {
    /// Every query sees every key.
    None,
    /// The last query sees every key, the one before it all but the last, and so on: the queries
    /// are the newest tokens of the keys. Attention applies it without an array.
    Causal,
    /// True where the query sees the key: boolean, broadcastable to `[B, H, L, S]`.
    Array(Array),
}

impl AttentionMask {
    /// The mask for the next `queries` tokens, where each sees itself and all before it.
    ///
    /// A single query is the newest token, which sees everything, so it needs none.
    pub fn causal(queries: i32) -> Self {
        if queries == 1 { Self::None } else { Self::Causal }
    }

    /// The same as the argument of [`mlx_rs::fast::scaled_dot_product_attention`].
    pub fn to_sdpa(&self) -> Option<ScaledDotProductAttentionMask<'_>> {
        match self {
            Self::None => None,
            Self::Causal => Some(ScaledDotProductAttentionMask::Causal),
            Self::Array(visible) => Some(ScaledDotProductAttentionMask::Array(visible)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlx_rs::fast::scaled_dot_product_attention;

    /// The rule, pair by pair.
    fn naive(queries: i32, keys: i32) -> Array {
        let visible: Vec<bool> =
            (keys - queries..keys).flat_map(|i| (0..keys).map(move |j| j <= i)).collect();
        Array::from_slice(&visible, &[queries, keys])
    }

    fn attention(mask: &AttentionMask, queries: i32, keys: i32) -> Array {
        let fill = |rows: i32, step: usize| {
            let values: Vec<f32> =
                (0..rows * 4).map(|i| (i as usize * step % 17) as f32 / 8.0 - 1.0).collect();
            Array::from_slice(&values, &[1, 1, rows, 4])
        };
        let (q, k, v) = (fill(queries, 5), fill(keys, 7), fill(keys, 11));
        scaled_dot_product_attention(&q, &k, &v, 0.5, mask.to_sdpa(), None).unwrap()
    }

    #[test]
    fn causal_is_the_rule_for_queries_at_the_end_of_the_keys() {
        for (queries, keys) in [(1, 1), (1, 6), (2, 2), (3, 8), (8, 8)] {
            let short = attention(&AttentionMask::causal(queries), queries, keys);
            let long = attention(&AttentionMask::Array(naive(queries, keys)), queries, keys);
            assert!(short.all_close(&long, 1e-6, 1e-6, None).unwrap(), "{queries} {keys}");
        }
    }
}
