//! Why an operation on a cache failed.

use mlx_attn_masks::MaskError;
use mlx_quantization::Quantization;
use mlx_rs::Dtype;
use mlx_rs::error::Exception;

/// A list of numbers as messages show it: cut if it is very long.
fn list(numbers: &[impl std::fmt::Debug]) -> String {
    mlx_files::shortened(&format!("{numbers:?}"), 240).into_owned()
}

/// Why an operation on a cache failed. The cache is then unchanged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// Keys or values of a shape that the cache does not take.
    #[error("{what} of shape {found:?} do not fit this cache, which takes {expected}")]
    Shape {
        /// `keys` or `values`.
        what: &'static str,
        /// The shape that would fit, with `L` for the number of tokens.
        expected: String,
        /// The shape of the array.
        found: Vec<i32>,
    },
    /// Keys or values of a dtype that the cache does not hold.
    #[error("{what} of dtype {found:?} do not fit this cache, which holds {expected}")]
    Dtype {
        /// `keys` or `values`.
        what: &'static str,
        /// The dtype that would fit.
        expected: String,
        /// The dtype of the array.
        found: Dtype,
    },
    /// More tokens than a position can count.
    #[error("{tokens} more tokens after {offset} are over 2^31 - 1")]
    TooLong {
        /// Tokens that were appended before.
        offset: i32,
        /// Tokens of the call.
        tokens: i32,
    },
    /// A mask could not be built.
    #[error(transparent)]
    Mask(#[from] MaskError),
    /// Tokens that cannot be trimmed, because older tokens that would become visible again have been
    /// overwritten.
    #[error(
        "{tokens} tokens cannot be trimmed: this needs the newest {needed} tokens, and the cache holds {held}. A \
         cache with a larger `rewind` holds more"
    )]
    Trim {
        /// The number of tokens to trim.
        tokens: i32,
        /// How many of the newest tokens the cache holds, besides the sinks.
        held: i32,
        /// How many of the newest tokens the cache would have to hold.
        needed: i32,
    },
    /// A negative number of tokens to trim.
    #[error("{tokens} tokens to trim; the number must be 0 or more")]
    Negative {
        /// The number that was given.
        tokens: i32,
    },
    /// Sizes of a ring that contradict each other.
    #[error(
        "a ring with max_size {max_size}, keep {keep} and rewind {rewind}; these must satisfy \
         0 <= keep < max_size, 0 <= rewind, and max_size + rewind < 2^30"
    )]
    Sizes {
        /// The most tokens that a query sees.
        max_size: i32,
        /// The number of sinks.
        keep: i32,
        /// The number of tokens that can be trimmed at any time.
        rewind: i32,
    },
    /// A window that does not contain the query's own token.
    #[error("a window of {window} tokens; at least 1 is needed, for the token itself")]
    Window {
        /// The window that was given.
        window: i32,
    },
    /// A mode of quantization that caches do not support.
    #[error("a cache cannot be quantized as {found}; its mode must be affine")]
    Mode {
        /// The quantization that was asked for.
        found: Quantization,
    },
    /// Heads whose size is not a multiple of the quantization group.
    #[error(
        "{what} have {head_dim} features per head, which is not a multiple of the quantization group size {group_size}"
    )]
    Groups {
        /// `keys` or `values`.
        what: &'static str,
        /// Features of a head.
        head_dim: i32,
        /// Numbers that share a scale and a bias.
        group_size: i32,
    },
    /// A cache that is already quantized with other settings.
    #[error("the cache is already quantized as {found} and cannot be quantized as {asked}")]
    Quantized {
        /// The quantization of the cache.
        found: Quantization,
        /// The quantization that was asked for.
        asked: Quantization,
    },
    /// Left padding that no batch can have.
    #[error("left padding {}: the numbers must be from 0 to 2^30, and at least one must be 0", list(padding))]
    Padding {
        /// The padding that was given.
        padding: Vec<i32>,
    },
    /// Rows that the batch does not have, or an empty list of rows.
    #[error("rows {} of a batch of {batch} rows: each must exist, and at least one is needed", list(rows))]
    Rows {
        /// The rows that were asked for.
        rows: Vec<usize>,
        /// The number of rows of the batch.
        batch: usize,
    },
    /// Caches that cannot be merged into one batch.
    #[error("caches of different {what} cannot be merged into one batch: {first}, and {other}")]
    Merge {
        /// What differs.
        what: &'static str,
        /// What the first cache has.
        first: String,
        /// What the other has.
        other: String,
    },
    /// A setting that only an empty cache can get.
    #[error("{what} cannot be changed in a cache that holds {offset} tokens")]
    NotEmpty {
        /// `left padding`.
        what: &'static str,
        /// Tokens that were appended.
        offset: i32,
    },
    /// Layers that hold different numbers of tokens, because a call of the model failed halfway.
    #[error(
        "layer {layer} holds {found} tokens, and layer 0 holds {expected}: a call of the model failed between them. \
         `ModelCache::realign` trims the tokens that only some layers hold"
    )]
    Drift {
        /// The layer, from 0.
        layer: usize,
        /// Tokens of the first layer.
        expected: i32,
        /// Tokens of this layer.
        found: i32,
    },
    /// Caches of different numbers of layers.
    #[error("a cache of {found} layers, where one of {expected} is needed")]
    Layers {
        /// Layers of this cache.
        expected: usize,
        /// Layers of the other cache.
        found: usize,
    },
    /// An operation of MLX failed.
    #[error("{}", mlx_files::without_source_place(.0.what()))]
    Mlx(Exception),
}

impl From<Exception> for CacheError {
    fn from(error: Exception) -> Self {
        Self::Mlx(error)
    }
}

/// So that a model's `forward`, which returns MLX's error, can use `?` on a cache.
impl From<CacheError> for Exception {
    fn from(error: CacheError) -> Self {
        match error {
            CacheError::Mlx(exception) => exception,
            other => Exception::custom(other.to_string()),
        }
    }
}
