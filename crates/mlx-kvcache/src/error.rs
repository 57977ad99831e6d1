//! Why a cache refused.

use mlx_attn_masks::MaskError;
use mlx_quantization::Quantization;
use mlx_rs::Dtype;
use mlx_rs::error::Exception;

/// Numbers of the rows of a batch, as messages show them.
fn list(numbers: &[impl std::fmt::Debug]) -> String {
    mlx_files::shortened(&format!("{numbers:?}"), 240).into_owned()
}

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
    #[error("{what} of dtype {found:?} do not fit this cache, which holds {expected}")]
    Dtype {
        /// `keys` or `values`.
        what: &'static str,
        /// The dtype that would fit.
        expected: String,
        /// The dtype that came.
        found: Dtype,
    },
    /// More tokens than positions can count.
    #[error("{tokens} more tokens after {offset} are over 2^31 - 1")]
    TooLong {
        /// Tokens seen before.
        offset: i32,
        /// Tokens of the call.
        tokens: i32,
    },
    /// Queries for which there is no mask.
    #[error(transparent)]
    Mask(#[from] MaskError),
    /// Tokens that cannot be taken back, since what came before them is no longer held.
    #[error(
        "{tokens} tokens cannot be taken back: of the {held} that are held, {needed} would be needed. A cache \
         with a larger `rewind` holds more"
    )]
    Trim {
        /// How many were to be taken back.
        tokens: i32,
        /// How many of the newest tokens are held, besides the sinks.
        held: i32,
        /// How many of the newest tokens would have to be held for it.
        needed: i32,
    },
    /// A number of tokens below zero.
    #[error("{tokens} tokens to take back, and a number from 0 on is needed")]
    Negative {
        /// What was asked for.
        tokens: i32,
    },
    /// Sizes of a rotating cache that contradict each other.
    #[error(
        "a rotating cache of max_size {max_size} with {keep} sinks and a rewind of {rewind}: needed are \
         0 <= keep < max_size, 0 <= rewind, and a sum below 2^30"
    )]
    Sizes {
        /// Tokens that are visible at most.
        max_size: i32,
        /// Sinks.
        keep: i32,
        /// Tokens that can be taken back.
        rewind: i32,
    },
    /// A window that leaves out the token itself.
    #[error("a window of {window} tokens, and at least 1 is needed: the token itself")]
    Window {
        /// What was asked for.
        window: i32,
    },
    /// A mode of quantization that caches do not have.
    #[error("a cache cannot be quantized as {found}; its mode must be affine")]
    Mode {
        /// What was asked for.
        found: Quantization,
    },
    /// Heads that cannot be cut into groups.
    #[error("{what} of {head_dim} features a head cannot be cut into quantization groups of {group_size}")]
    Groups {
        /// `keys` or `values`.
        what: &'static str,
        /// Features of a head.
        head_dim: i32,
        /// Numbers that share a scale and a bias.
        group_size: i32,
    },
    /// A cache that is quantized already, and in another way.
    #[error("the cache is quantized as {found}, and cannot become {asked}")]
    Quantized {
        /// How it is quantized.
        found: Quantization,
        /// What was asked for.
        asked: Quantization,
    },
    /// Left padding that is no padding of a batch.
    #[error("left padding {}: needed are numbers from 0 to 2^30, and 0 for the longest row", list(padding))]
    Padding {
        /// What was asked for.
        padding: Vec<i32>,
    },
    /// Rows that the batch does not have, or no rows.
    #[error("rows {} of a batch of {batch}", list(rows))]
    Rows {
        /// What was asked for.
        rows: Vec<usize>,
        /// Rows of the batch.
        batch: usize,
    },
    /// Caches that cannot be rows of one batch.
    #[error("caches of different {what} cannot become one batch: {first}, and {other}")]
    Merge {
        /// What differs.
        what: &'static str,
        /// What the first cache has.
        first: String,
        /// What the other has.
        other: String,
    },
    /// A size or padding that only an empty cache can be given.
    #[error("{what} cannot be changed in a cache that has seen {offset} tokens")]
    NotEmpty {
        /// `keep` or `left padding`.
        what: &'static str,
        /// Tokens seen so far.
        offset: i32,
    },
    /// Layers that have seen different numbers of tokens: a call of the model has failed halfway.
    #[error(
        "layer {layer} has seen {found} tokens, and layer 0 {expected}: a call of the model has failed between them. \
         `ModelCache::realign` takes back what only some layers have seen"
    )]
    Drift {
        /// The layer, from 0.
        layer: usize,
        /// Tokens that the first layer has seen.
        expected: i32,
        /// Tokens that this layer has seen.
        found: i32,
    },
    /// Caches or snapshots of another number of layers.
    #[error("{found} layers, where {expected} are needed")]
    Layers {
        /// Layers of this cache.
        expected: usize,
        /// Layers of the other.
        found: usize,
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
