//! The errors of a rotation.

use mlx_rs::error::Exception;

/// Why a rotation cannot be built or applied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RopeError {
    /// The number of rotated features is not positive and even.
    #[error("rotary embedding over {dims} features: a positive even number is needed")]
    Dims {
        /// The number that was given.
        dims: i32,
    },
    /// The rotation is over more features than a head has.
    #[error("rotary embedding over {dims} features of a head that has {head_dim}")]
    BeyondHead {
        /// Features to rotate.
        dims: i32,
        /// Features of a head.
        head_dim: i32,
    },
    /// The base of the frequencies is below 1, so that later pairs would turn faster than the first, or too large for
    /// float32.
    #[error("{key} is {base:?}, and must be a finite number from 1 on; released models have 10000 or more")]
    Base {
        /// The config's key.
        key: &'static str,
        /// The number that was given.
        base: f64,
    },
    /// The config does not state the base of the frequencies.
    #[error("rope_theta is missing")]
    NoBase,
    /// The config has settings for two kinds of layers, and the model's layers are all of one kind.
    #[error("{key} is for models with two kinds of layers, and the layers of this one rotate alike")]
    TwoKinds {
        /// The key.
        key: &'static str,
    },
    /// The config has settings by kind of layer, but none for this kind.
    #[error("rope_parameters has no {kind}")]
    NoKind {
        /// The kind of layer.
        kind: &'static str,
    },
    /// The config names an unknown kind of scaling.
    #[error("unknown rope_type {:.200}; known are {}", format!("{found:?}"), crate::names::known())]
    UnknownType {
        /// The config's value.
        found: String,
    },
    /// The config lacks a key that its kind of scaling needs.
    #[error("{key} is missing, and rope_type {rope_type:?} needs it")]
    Missing {
        /// The key.
        key: &'static str,
        /// The kind of scaling.
        rope_type: &'static str,
    },
    /// The config lacks a key that another of its keys needs.
    #[error("{key} is missing, and {beside} needs it")]
    NeededBeside {
        /// The missing key.
        key: &'static str,
        /// The key that needs it.
        beside: &'static str,
    },
    /// The config has a key that its kind of scaling does not use.
    #[error("{key} has no meaning for rope_type {rope_type:?}")]
    Unused {
        /// The key.
        key: &'static str,
        /// The kind of scaling.
        rope_type: &'static str,
    },
    /// A number of the config is outside of its range.
    #[error("{key} is {found}, and must be {expected}")]
    Number {
        /// The key.
        key: &'static str,
        /// Its value.
        found: f64,
        /// The range.
        expected: &'static str,
    },
    /// The length of a list in the config is not the number of pairs.
    #[error("{key} has {found} entries, and {expected} are needed, one for each pair")]
    Length {
        /// The key.
        key: &'static str,
        /// Its length.
        found: usize,
        /// The number of pairs.
        expected: usize,
    },
    /// The number of sections is not 3.
    #[error("mrope_section has {found} entries, and 3 are needed: time, height, width")]
    Sections {
        /// Their number.
        found: usize,
    },
    /// The ends of YaRN's ramp are in the wrong order.
    #[error("beta_fast is {beta_fast}, and must not be below beta_slow, which is {beta_slow}")]
    Betas {
        /// Turns above which a pair keeps its frequency.
        beta_fast: f64,
        /// Turns below which the frequency of a pair is divided by the whole factor.
        beta_slow: f64,
    },
    /// Two places of the config say different things.
    #[error("the config contradicts itself about {key}: {first:.200} and {second:.200}")]
    Contradiction {
        /// The key.
        key: &'static str,
        /// The value in one place.
        first: String,
        /// The value in the other.
        second: String,
    },
    /// The number of offsets is not the number of rows in the batch.
    #[error("{found} offsets for a batch of {batch} rows")]
    Offsets {
        /// Number of offsets.
        found: usize,
        /// Rows of the batch.
        batch: i32,
    },
    /// MLX refused an operation.
    #[error(transparent)]
    Mlx(#[from] Exception),
}

/// For `?` in a model's `forward`, which returns MLX's error.
impl From<RopeError> for Exception {
    fn from(error: RopeError) -> Self {
        match error {
            RopeError::Mlx(exception) => exception,
            other => Exception::custom(other.to_string()),
        }
    }
}
