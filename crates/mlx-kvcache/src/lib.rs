//! Key-value caches: what attention remembers of the tokens that were read.
//!
//! API: usable without the rest of this workspace, but for `mlx-attn-masks`. A model asks a cache
//! three questions and no others: where am I ([`KvCache::offset`]), what may the next queries see
//! ([`KvCache::mask`]), and what do they read after my keys and values were appended
//! ([`KvCache::append`]).
//!
//! ```
//! use mlx_kvcache::{FullKvCache, KvCache};
//! use mlx_rs::Array;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut cache = FullKvCache::new();
//! let prompt = Array::ones::<f32>(&[1, 2, 5, 16])?; // B = 1, two heads, five tokens of 16 features
//! cache.append(&prompt, &prompt)?;
//! let token = Array::ones::<f32>(&[1, 2, 1, 16])?;
//! let read = cache.append(&token, &token)?;
//! assert_eq!(read.keys.shape(), [1, 2, 6, 16]);
//! assert_eq!(cache.offset(), 6);
//! # Ok(())
//! # }
//! ```

mod full;
mod model_cache;

use std::fmt::Debug;

use mlx_attn_masks::AttentionMask;
use mlx_rs::error::Exception;
use mlx_rs::{Array, Dtype};

pub use full::FullKvCache;
pub use model_cache::ModelCache;

/// Why a cache refused an operation. The cache is then as it was before.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// Keys or values of another shape than the cache holds.
    #[error("{what} of shape {found:?} do not fit this cache, which takes {expected}")]
    Shape {
        /// `keys` or `values`.
        what: &'static str,
        /// The shape that would fit, with `L` for the number of tokens.
        expected: String,
        /// The shape that came.
        found: Vec<i32>,
    },
    /// Keys or values of another dtype than the cache holds.
    #[error("{what} of dtype {found:?} do not fit this cache, which holds {expected:?}")]
    Dtype {
        /// `keys` or `values`.
        what: &'static str,
        /// The dtype that would fit.
        expected: Dtype,
        /// The dtype that came.
        found: Dtype,
    },
    /// MLX refused an operation.
    #[error(transparent)]
    Mlx(#[from] Exception),
}

/// So that a model's `forward`, which answers with MLX's error, can use `?` on a cache.
impl From<CacheError> for Exception {
    fn from(error: CacheError) -> Self {
        match error {
            CacheError::Mlx(exception) => exception,
            other => Exception::custom(other.to_string()),
        }
    }
}

/// What attention reads.
#[derive(Debug, Clone)]
pub struct KeysValues {
    /// `[B, H, S, D]`, rotated, oldest token first.
    pub keys: Array,
    /// `[B, H, S, D]`, in the same order.
    pub values: Array,
}

/// The memory of one attention layer.
///
/// # Shapes
///
/// Legend: B batch, H key-value heads, L tokens of this call, S tokens that attention reads, D
/// features of a head (keys and values may differ in D).
pub trait KvCache: Debug + Send {
    /// Tokens seen so far, which is the position of the next one.
    fn offset(&self) -> i32;

    /// Takes the keys and values of the next L tokens, each `[B, H, L, D]`, and answers with
    /// everything that these tokens' queries read.
    ///
    /// # Errors
    ///
    /// [`CacheError::Shape`] or [`CacheError::Dtype`] where the arrays do not fit each other or what is
    /// held.
    fn append(&mut self, keys: &Array, values: &Array) -> Result<KeysValues, CacheError>;

    /// Which keys of the next [`append`](Self::append) each of its `queries` tokens may see.
    fn mask(&self, queries: i32) -> AttentionMask;

    /// Forgets the newest `tokens` tokens, or all where there are fewer, and says how many went.
    fn trim(&mut self, tokens: i32) -> i32;

    /// The arrays that are held, for evaluating them together with others.
    fn arrays(&self) -> Vec<&Array>;

    /// Bytes held, free places included.
    fn nbytes(&self) -> usize {
        self.arrays().iter().map(|array| array.nbytes()).sum()
    }
}
