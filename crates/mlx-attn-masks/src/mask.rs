//! A mask in the smallest form that is correct.

use mlx_rs::Array;
use mlx_rs::fast::ScaledDotProductAttentionMask;

/// Which keys each query may see.
///
/// # Shapes
///
/// Legend: B batch, H heads, L queries, S keys. The last L keys are the queries' own.
#[derive(Debug, Clone)]
pub enum AttentionMask {
    /// Every query sees every key.
    None,
    /// The last query sees every key, the query before it all keys but the last, and so on: each query
    /// sees itself and all earlier tokens. Attention applies this without an array.
    Causal,
    /// Boolean, true where the query sees the key; broadcastable to `[B, H, L, S]`. This crate builds
    /// `[L, S]`, or `[B, 1, L, S]` if the rows of a batch differ.
    Array(Array),
}

impl AttentionMask {
    /// The mask for the next `queries` tokens, where each sees itself and all tokens before it.
    ///
    /// A single query is the newest token and sees every key, so it needs no mask.
    pub fn causal(queries: i32) -> Self {
        if queries == 1 { Self::None } else { Self::Causal }
    }

    /// The mask as the argument of [`mlx_rs::fast::scaled_dot_product_attention`].
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
    use crate::CausalMask;
    use approx::assert_relative_eq;
    use mlx_rs::Dtype;
    use mlx_rs::fast::scaled_dot_product_attention;
    use mlx_testing::tensor;

    fn attention(mask: &AttentionMask, queries: i32, keys: i32, dtype: Dtype) -> Array {
        let fill = |rows: i32, step: usize| {
            let values: Vec<f32> =
                (0..rows * 4).map(|i| (i as usize * step % 17) as f32 / 8.0 - 1.0).collect();
            Array::from_slice(&values, &[1, 1, rows, 4]).as_dtype(dtype).unwrap()
        };
        let (q, k, v) = (fill(queries, 5), fill(keys, 7), fill(keys, 11));
        scaled_dot_product_attention(&q, &k, &v, 0.5, mask.to_sdpa(), None).unwrap()
    }

    #[test]
    fn attention_reads_every_form_as_the_rule() {
        for (queries, keys) in [(1, 1), (1, 6), (2, 2), (3, 8), (8, 8)] {
            for dtype in [Dtype::Float32, Dtype::Bfloat16, Dtype::Float16] {
                let mask = CausalMask::new(queries).offset(keys - queries);
                let short = attention(&mask.build().unwrap(), queries, keys, dtype);
                let long = AttentionMask::Array(mask.to_array().unwrap());
                let long = attention(&long, queries, keys, dtype);
                let short = tensor(&short).named(format!("{queries} queries, {keys} keys"));
                assert_relative_eq!(short, tensor(&long), epsilon = 1e-6, max_relative = 1e-6);
            }
        }
    }

    #[test]
    fn a_window_hides_what_is_behind_it() {
        // With a window of 2, attention over 8 keys is attention over the last 2 of them.
        let mask = AttentionMask::sliding(1, 7, 2).unwrap();
        let keys: Vec<f32> = (0..8).map(|i| i as f32 / 4.0).collect();
        let all = Array::from_slice(&keys, &[1, 1, 8, 1]);
        let seen = Array::from_slice(&keys[6..], &[1, 1, 2, 1]);
        let query = Array::ones::<f32>(&[1, 1, 1, 1]).unwrap();
        let found = scaled_dot_product_attention(&query, &all, &all, 1.0, mask.to_sdpa(), None).unwrap();
        let expected = scaled_dot_product_attention(&query, &seen, &seen, 1.0, None, None).unwrap();
        assert_relative_eq!(tensor(&found), tensor(&expected), epsilon = 1e-6, max_relative = 1e-6);
    }

    #[test]
    fn a_query_that_sees_nothing_gets_a_finite_answer() {
        for dtype in [Dtype::Float32, Dtype::Bfloat16, Dtype::Float16] {
            for (queries, keys, padding) in [(1, 4, [4]), (4, 4, [4]), (4, 4, [2]), (3, 8, [6])] {
                let mask = CausalMask::new(queries).offset(keys - queries).left_padding(&padding);
                let answer = attention(&mask.build().unwrap(), queries, keys, dtype);
                let answer = answer.as_dtype(Dtype::Float32).unwrap();
                assert!(answer.as_slice::<f32>().iter().all(|value| value.is_finite()), "{answer:?}");
            }
        }
    }
}
