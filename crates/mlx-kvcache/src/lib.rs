//! Key-value caches: the keys and values of the tokens that a model has read.
//!
//! API: usable without the rest of this workspace, except for `mlx-attn-masks`, `mlx-files`, `mlx-quantization` and
//! `mlx-safetensors`.
//!
//! [`KvCache`] is the cache of one layer, [`ModelCache`] the caches of all layers. A model uses three
//! methods of a cache: [`KvCache::offsets`] returns the position of the next token, by which queries and keys
//! are rotated; [`KvCache::mask`] says which keys the next queries may see; [`KvCache::append`] adds their keys
//! and values and returns everything that they read. The other methods are for the program around the
//! model: to remove tokens, to quantize, to merge caches into a batch, and to save them.
//!
//! ```
//! use mlx_kvcache::{Full, KvCache};
//! use mlx_rs::Array;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut cache = KvCache::new(Full::new());
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
//!
//! # Layouts
//!
//! The cache's [`Layout`] decides where tokens lie and which of them stay: [`Full`] or [`Ring`]. All that
//! differs between the layouts is in `src/layout`. A new layout, such as attention in chunks, needs a new file
//! there, which implements the trait `TokenLayout`. In `layout/mod.rs` it needs a variant of [`Layout`], and a
//! variant of `LayoutRecord`, its entry in cache files.

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod buffers;
mod cache;
mod error;
mod file;
mod keys_values;
mod layer;
mod layout;
mod model_cache;
mod rows;

pub use cache::KvCache;
pub use error::CacheError;
pub use file::{CacheFileError, MadeBy, SavedCache, check_destination};
pub use keys_values::KeysValues;
pub use layer::{LayerKind, LayerSpec, Limit};
pub use layout::{Full, Layout, Ring};
pub use mlx_attn_masks::{AttentionMask, MaskError};
pub use mlx_quantization::{Quantization, QuantizedArray, UnknownQuantization};
pub use model_cache::{CacheOptions, ModelCache};
