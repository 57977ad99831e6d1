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
//! let mask = cache.mask(1)?;
//! let read = cache.append(&token, &token)?;
//! let y = read.attention(&token, 0.25, &mask)?;
//! assert_eq!(y.shape(), [1, 2, 1, 16]);
//! assert_eq!(cache.offset(), 6);
//! # Ok(())
//! # }
//! ```

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod buffers;
mod error;
mod file;
mod full;
mod keys_values;
mod model_cache;
mod ring;
mod rotating;
mod rows;
mod state;

use std::fmt::Debug;

use mlx_rs::Array;

pub use error::CacheError;
pub use file::{CacheFileError, MadeBy, SavedCache, check_destination};
pub use full::FullKvCache;
pub use keys_values::KeysValues;
pub use mlx_attn_masks::{AttentionMask, MaskError};
pub use mlx_quantization::{Quantization, QuantizedArray, UnknownQuantization};
pub use model_cache::{CacheOptions, LayerKind, LayerSpec, Limit, ModelCache, Snapshot};
pub use rotating::RotatingKvCache;
pub use state::CacheState;

/// The memory of one attention layer.
///
/// An operation that fails leaves the cache as it was.
///
/// A cache may move to another thread once it is evaluated ([`ModelCache::eval`], or
/// [`arrays`](Self::arrays)); what MLX has not computed yet can be computed by the thread that asked for it
/// alone.
///
/// [`state`](Self::state) ties the trait to the kinds of this crate; a cache of one's own can wrap one of
/// them. A new kind, such as chunks, is a new variant of [`CacheState`].
///
/// # Shapes
///
/// Legend: B batch, H key-value heads, L tokens of this call, S tokens that attention reads, D
/// features of a head (keys and values may differ in D).
pub trait KvCache: Debug + Send {
    /// Tokens seen so far, which is the position of the next one. In a batch, those of the longest row.
    fn offset(&self) -> i32;

    /// The position of the next token: one number for all rows, or one for each. Where a row has more
    /// padding than was read so far, it is negative.
    fn offsets(&self) -> &[i32];

    /// Takes the keys and values of the next L tokens, each `[B, H, L, D]`, and answers with
    /// everything that these tokens' queries read.
    ///
    /// # Errors
    ///
    /// [`CacheError::Shape`] or [`CacheError::Dtype`] where the arrays do not fit each other or what is
    /// held, [`CacheError::Groups`] where they cannot be quantized as the cache is, and
    /// [`CacheError::TooLong`] after 2^31 - 1 tokens.
    fn append(&mut self, keys: &Array, values: &Array) -> Result<KeysValues, CacheError>;

    /// Which keys of the next [`append`](Self::append) each of its `queries` tokens may see, in the
    /// smallest form that is right.
    ///
    /// # Errors
    ///
    /// [`CacheError::Mask`] for fewer than one query, and for masks of more than 2^31 - 1 entries.
    fn mask(&self, queries: i32) -> Result<AttentionMask, CacheError>;

    /// How many tokens [`trim`](Self::trim) would forget.
    ///
    /// # Errors
    ///
    /// As [`trim`](Self::trim).
    fn can_trim(&self, tokens: i32) -> Result<i32, CacheError>;

    /// Forgets the newest `tokens` tokens, or all where there are fewer, and says how many went. It is
    /// then as if they had never come.
    ///
    /// # Errors
    ///
    /// [`CacheError::Trim`] where tokens that would become visible again are no longer held, and
    /// [`CacheError::Negative`] for fewer than none.
    fn trim(&mut self, tokens: i32) -> Result<i32, CacheError>;

    /// Quantizes what is held, and what will come.
    ///
    /// # Errors
    ///
    /// [`CacheError::Groups`] where heads cannot be cut into such groups, [`CacheError::Quantized`] where
    /// the cache is quantized in another way already.
    fn quantize(&mut self, quantization: Quantization) -> Result<(), CacheError>;

    /// All that the cache is, as a value that shares its arrays.
    fn state(&self) -> CacheState;

    /// The arrays that are held, for evaluating them together with others.
    fn arrays(&self) -> Vec<&Array>;

    /// Bytes held, free places included.
    fn nbytes(&self) -> usize {
        self.arrays().iter().map(|array| array.nbytes()).sum()
    }
}
