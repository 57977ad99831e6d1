//! Key-value caches: the keys and values that attention keeps of the tokens that were read.
//!
//! API: usable without the rest of this workspace, but for `mlx-attn-masks` and `mlx-quantization`.
//!
//! [`KvCache`] is the cache of one layer, [`ModelCache`] the caches of all layers. A model uses three
//! methods of a cache: [`KvCache::offsets`] has the position of the next token, by which queries and keys
//! are rotated; [`KvCache::mask`] says what the next queries may see; [`KvCache::append`] takes their keys
//! and values and returns everything that they read. The other methods are for the program around the
//! model: to take tokens back, to quantize, to put caches together as a batch, and to save them.
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
//! Where tokens lie, and which of them stay, is the cache's [`Layout`]: [`Full`] or [`Ring`]. All that
//! differs between the layouts is in `src/layout`. A new layout, such as attention in chunks, is a new
//! file there, which implements the questions of the trait in `layout/mod.rs`, and a variant of [`Layout`]
//! and of the record that cache files have of it, in the same `mod.rs`.

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod buffers;
mod cache;
mod error;
mod file;
mod keys_values;
mod layout;
mod model_cache;
mod rows;

pub use cache::KvCache;
pub use error::CacheError;
pub use file::{CacheFileError, MadeBy, SavedCache, check_destination};
pub use keys_values::KeysValues;
pub use layout::{Full, Layout, Ring};
pub use mlx_attn_masks::{AttentionMask, MaskError};
pub use mlx_quantization::{Quantization, QuantizedArray, UnknownQuantization};
pub use model_cache::{CacheOptions, LayerKind, LayerSpec, Limit, ModelCache};
