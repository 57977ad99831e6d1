//! What can be wrong with a rotation.

use mlx_rs::error::Exception;

/// Why a rotation cannot be built or applied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RopeError {
    /// The rotated features do not form pairs.
    #[error("rotary embedding over {dims} features: a positive even number is needed")]
    Dims {
        /// The number that was given.
        dims: i32,
    },
    /// More features are to be rotated than a head has.
    #[error("rotary embedding over {dims} features of a head that has {head_dim}")]
    BeyondHead {
        /// Features to rotate.
        dims: i32,
        /// Features of a head.
        head_dim: i32,
    },
    /// The base of the frequencies is below 1, where later pairs would turn faster than the first, or beyond what
    /// float32 holds.
    #[error("{key} is {base:?}, and must be a finite number from 1 on; released models have 10000 or more")]
    Base {
        /// The key that configs have for it.
        key: &'static str,
        /// The number that was given.
        base: f64,
    },
    /// The config does not say the base of the frequencies.
    #[error("rope_theta is missing")]
    NoBase,
    /// The config has settings for kinds of layers, and the model's layers are all of one kind.
    #[error("{key} is for models with two kinds of layers, and the layers of this one rotate alike")]
    TwoKinds {
        /// The key.
        key: &'static str,
    },
    /// The config has settings for kinds of layers, and none for this one.
    #[error("rope_parameters has no {kind}")]
    NoKind {
        /// The kind of layer.
        kind: &'static str,
    },
    /// The config names a kind of scaling that does not exist here.
    #[error("unknown rope_type {:.200}; known are {}", format!("{found:?}"), crate::scaling::known())]
    UnknownType {
        /// What the config says.
        found: String,
    },
    /// The config leaves out a key that its kind of scaling needs.
    #[error("{key} is missing, and rope_type {rope_type:?} needs it")]
    Missing {
        /// The key.
        key: &'static str,
        /// The kind of scaling.
        rope_type: &'static str,
    },
    /// The config has a key that its kind of scaling has no use for.
    #[error("{key} has no meaning for rope_type {rope_type:?}")]
    Unused {
        /// The key.
        key: &'static str,
        /// The kind of scaling.
        rope_type: &'static str,
    },
    /// A number of the config is outside of what makes sense.
    #[error("{key} is {found}, and must be {expected}")]
    Number {
        /// The key.
        key: &'static str,
        /// Its value.
        found: f64,
        /// What would make sense.
        expected: &'static str,
    },
    /// A list of the config has another length than the rotation has pairs.
    #[error("{key} has {found} entries, and {expected} are needed, one for each pair")]
    Length {
        /// The key.
        key: &'static str,
        /// Its length.
        found: usize,
        /// The length that would fit.
        expected: usize,
    },
    /// There are not three sections of pairs.
    #[error("mrope_section has {found} entries, and 3 are needed: time, height, width")]
    Sections {
        /// Their number.
        found: usize,
    },
    /// The range of YaRN's ramp is upside down.
    #[error("beta_fast is {beta_fast}, and must not be below beta_slow, which is {beta_slow}")]
    Betas {
        /// Rotations above which a pair keeps its frequency.
        beta_fast: f64,
        /// Rotations below which a pair is interpolated.
        beta_slow: f64,
    },
    /// Two places of the config say different things.
    #[error("the config contradicts itself about {key}: {first:.200} and {second:.200}")]
    Contradiction {
        /// The key.
        key: &'static str,
        /// What one place says.
        first: String,
        /// What the other says.
        second: String,
    },
    /// There is not one offset for each row of the batch.
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

/// So that a model's `forward`, which answers with MLX's error, can use `?` on a rotation.
impl From<RopeError> for Exception {
    fn from(error: RopeError) -> Self {
        match error {
            RopeError::Mlx(exception) => exception,
            other => Exception::custom(other.to_string()),
        }
    }
}
