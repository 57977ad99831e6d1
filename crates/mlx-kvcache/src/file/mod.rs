//! Caches on disk. A cache file is a safetensors file that mlx-lm can read if it has classes for the layers.
//!
//! mlx-lm's `save_prompt_cache` writes the state of layer `i` as the tensors `i.0`, `i.1`, and so on; numbers of
//! the state are tensors too. The metadata holds the user's entries under `0.`, the class of each layer under `1.`,
//! and the list of tensors that stand for numbers under `2.`. Files of this crate have two more entries:
//!
//! | entry | holds |
//! |---|---|
//! | `0.mlx_models` | JSON: the version, the model that made the cache, token ids, and the numbers of each layer |
//! | `0.mlx_models_crc32` | a checksum of all tensors and all other entries |

mod entries;
mod error;
mod made_by;
mod mlx_lm;
mod record;
mod save;
mod saved;
mod tensors;

use std::path::Path;

pub use error::CacheFileError;
pub use made_by::MadeBy;
pub use saved::SavedCache;

/// Checks that a cache may be written to this path: that there is no file, an empty file, or a cache file.
///
/// Saving checks this again. Call it to find the problem before the cache is computed.
///
/// # Errors
///
/// [`CacheFileError::NotReplaced`] for a file that is not a cache, and [`CacheFileError::Io`] if the path cannot be
/// read as a file.
pub fn check_destination(file: impl AsRef<Path>) -> Result<(), CacheFileError> {
    tensors::check_replaceable(file.as_ref())
}
