//! The cache that keeps every token.

use mlx_attn_masks::AttentionMask;
use mlx_rs::Array;
use mlx_rs::ops::concatenate;
use mlx_rs::ops::indexing::{TryIndexMutOp, TryIndexOp};

use crate::{CacheError, KeysValues, KvCache};

/// Places are added this many at a time, so that most appends write into a buffer that is there.
/// mlx-lm uses the same number; with another, sums over a head could round differently.
const STEP: i32 = 256;

/// A cache of every token: full attention.
///
/// The buffers have room for a multiple of 256 tokens. An append writes into the next places: MLX
/// reuses the memory, since nobody else holds the buffer by then, and no token is copied again.
#[derive(Debug, Default)]
pub struct FullKvCache {
    buffers: Option<KeysValues>,
    offset: i32,
}

impl FullKvCache {
    /// An empty cache, which takes its shape and dtypes from the first append.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes room for `tokens` more tokens of the shape and dtype of `keys` and `values`.
    fn with_room(&self, keys: &Array, values: &Array, tokens: i32) -> Result<KeysValues, CacheError> {
        let Some(held) = &self.buffers else {
            return Ok(KeysValues { keys: places(keys, tokens)?, values: places(values, tokens)? });
        };
        let [_, _, room, _] = four(held.keys.shape());
        if self.offset + tokens <= room {
            return Ok(held.clone());
        }
        // What is held ends at the offset, so that the places stay in the order of the tokens.
        let grow = |held: &Array, like: &Array| -> Result<Array, CacheError> {
            let used = head(held, self.offset)?;
            Ok(concatenate(&[used, places(like, tokens)?], 2)?)
        };
        Ok(KeysValues { keys: grow(&held.keys, keys)?, values: grow(&held.values, values)? })
    }

    fn check(&self, keys: &Array, values: &Array) -> Result<(), CacheError> {
        let shape = |what, expected: String, found: &Array| {
            Err(CacheError::Shape { what, expected, found: found.shape().to_vec() })
        };
        if keys.ndim() != 4 {
            return shape("keys", "[B, H, L, D]".to_owned(), keys);
        }
        let [batch, heads, length, _] = four(keys.shape());
        if values.ndim() != 4 || values.shape()[..3] != [batch, heads, length] {
            return shape("values", format!("[{batch}, {heads}, {length}, D], like the keys"), values);
        }
        if let Some(held) = &self.buffers {
            for (what, held, new) in [("keys", &held.keys, keys), ("values", &held.values, values)] {
                let ([batch, heads, _, dim], [b, h, _, d]) = (four(held.shape()), four(new.shape()));
                if (b, h, d) != (batch, heads, dim) {
                    return shape(what, format!("[{batch}, {heads}, L, {dim}]"), new);
                }
                if new.dtype() != held.dtype() {
                    return Err(CacheError::Dtype { what, expected: held.dtype(), found: new.dtype() });
                }
            }
        }
        Ok(())
    }
}

impl KvCache for FullKvCache {
    fn offset(&self) -> i32 {
        self.offset
    }

    fn append(&mut self, keys: &Array, values: &Array) -> Result<KeysValues, CacheError> {
        self.check(keys, values)?;
        let [_, _, length, _] = four(keys.shape());
        let end = self.offset + length;

        let mut room = self.with_room(keys, values, length)?;
        // The cache must not hold the old buffers any longer when the new ones are evaluated:
        // only then does MLX write in place.
        room.keys.try_index_mut((.., .., self.offset..end, ..), keys)?;
        room.values.try_index_mut((.., .., self.offset..end, ..), values)?;
        let read = KeysValues { keys: head(&room.keys, end)?, values: head(&room.values, end)? };

        self.buffers = Some(room);
        self.offset = end;
        Ok(read)
    }

    fn mask(&self, queries: i32) -> AttentionMask {
        AttentionMask::causal(queries)
    }

    fn trim(&mut self, tokens: i32) -> i32 {
        let gone = tokens.clamp(0, self.offset);
        self.offset -= gone;
        gone
    }

    fn arrays(&self) -> Vec<&Array> {
        self.buffers.iter().flat_map(|held| [&held.keys, &held.values]).collect()
    }
}

/// Zeros of the dtype and shape of `like`, with room for at least `tokens` tokens.
fn places(like: &Array, tokens: i32) -> Result<Array, CacheError> {
    let [batch, heads, _, dim] = four(like.shape());
    let tokens = (tokens + STEP - 1) / STEP * STEP;
    Ok(mlx_rs::ops::zeros_dtype(&[batch, heads, tokens, dim], like.dtype())?)
}

/// The first `tokens` tokens.
fn head(buffer: &Array, tokens: i32) -> Result<Array, CacheError> {
    let [_, _, room, _] = four(buffer.shape());
    if tokens == room {
        return Ok(buffer.clone());
    }
    Ok(buffer.try_index((.., .., ..tokens, ..))?)
}

/// A shape that is known to have four axes.
fn four(shape: &[i32]) -> [i32; 4] {
    match *shape {
        [batch, heads, length, dim] => [batch, heads, length, dim],
        // `check` has refused every other shape.
        _ => [0; 4],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Keys that say which token and feature they are, so that any mix-up shows.
    fn tokens(from: i32, count: i32) -> (Array, Array) {
        let values: Vec<f32> = (0..2)
            .flat_map(|head| (from..from + count).flat_map(move |t| [t as f32, (100 * head + t) as f32]))
            .collect();
        let keys = Array::from_slice(&values, &[1, 2, count, 2]);
        let values = keys.negative().unwrap();
        (keys, values)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn reads_back_every_token_whatever_the_chunks(chunks in prop::collection::vec((1_i32..300, 0_i32..40), 1..6)) {
            let mut cache = FullKvCache::new();
            for (count, forget) in chunks {
                let (keys, values) = tokens(cache.offset(), count);
                let read = cache.append(&keys, &values).unwrap();
                let (expected_keys, expected_values) = tokens(0, cache.offset());
                prop_assert!(read.keys.eq_values(&expected_keys).unwrap());
                prop_assert!(read.values.eq_values(&expected_values).unwrap());
                let before = cache.offset();
                prop_assert_eq!(cache.trim(forget), forget.min(before));
                prop_assert_eq!(cache.offset(), before - forget.min(before));
            }
        }
    }

    #[test]
    fn grows_in_steps_of_256_places() {
        let mut cache = FullKvCache::new();
        let (keys, values) = tokens(0, 1);
        cache.append(&keys, &values).unwrap();
        // keys and values, 2 heads, 256 places, 2 features, 4 bytes
        assert_eq!(cache.nbytes(), 2 * 2 * 256 * 2 * 4);
        let (keys, values) = tokens(1, 256);
        cache.append(&keys, &values).unwrap();
        assert_eq!(cache.nbytes(), 2 * 2 * (1 + 256) * 2 * 4);
    }

    #[test]
    fn a_trim_never_takes_more_than_there_is() {
        let mut cache = FullKvCache::new();
        assert_eq!(cache.trim(3), 0);
        let (keys, values) = tokens(0, 2);
        cache.append(&keys, &values).unwrap();
        assert_eq!(cache.trim(-1), 0);
        assert_eq!(cache.trim(9), 2);
    }

    #[test]
    fn shapes_that_do_not_fit_change_nothing() {
        let mut cache = FullKvCache::new();
        let (keys, values) = tokens(0, 3);
        cache.append(&keys, &values).unwrap();
        let ones = |shape: &[i32]| Array::ones::<f32>(shape).unwrap();
        for (keys, values, what) in [
            (ones(&[2, 1, 2]), ones(&[1, 2, 1, 2]), "keys"),
            (ones(&[1, 2, 1, 2]), ones(&[1, 2, 2, 2]), "values"),
            (ones(&[1, 3, 1, 2]), ones(&[1, 3, 1, 2]), "keys"),
            (ones(&[1, 2, 1, 2]), ones(&[1, 2, 1, 4]), "values"),
        ] {
            let error = cache.append(&keys, &values).unwrap_err();
            assert!(matches!(error, CacheError::Shape { what: found, .. } if found == what), "{error}");
            assert_eq!(cache.offset(), 3);
        }
    }

    #[test]
    fn a_dtype_that_does_not_fit_changes_nothing() {
        let mut cache = FullKvCache::new();
        let (keys, values) = tokens(0, 3);
        cache.append(&keys, &values).unwrap();
        let half = values.as_dtype(mlx_rs::Dtype::Float16).unwrap();
        let error = cache.append(&keys, &half).unwrap_err();
        assert_eq!(error.to_string(), "values of dtype Float16 do not fit this cache, which holds Float32");
        assert_eq!(cache.offset(), 3);
    }
}
