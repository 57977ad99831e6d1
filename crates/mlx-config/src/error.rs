//! The errors of a config.

use mlx_rope::RopeError;

/// Why a config describes no model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A size is too small, such as 0, or beyond the limit.
    #[error("{key} is {found}, and must be between {min} and {max}")]
    Size {
        /// The config's key.
        key: &'static str,
        /// Its value.
        found: i64,
        /// The smallest value that is accepted.
        min: i32,
        /// The largest value that is accepted.
        max: i32,
    },
    /// One number must be a multiple of another.
    #[error("{key} is {found}, and must be a multiple of {of}, which is {divisor}")]
    Multiple {
        /// The key of the number.
        key: &'static str,
        /// Its value.
        found: i32,
        /// The key of the divisor.
        of: &'static str,
        /// Its value.
        divisor: i32,
    },
    /// A number is outside of its range.
    // `{:?}` writes a very small number with an exponent, as JSON does, and not with three hundred zeros.
    #[error("{key} is {found:?}, and must be {expected}")]
    Number {
        /// The config's key.
        key: &'static str,
        /// Its value.
        found: f64,
        /// The range.
        expected: &'static str,
    },
    /// The config asks for a variant that this architecture does not have.
    #[error("{key} is {found:.200}, and this architecture knows {only} only")]
    Unsupported {
        /// The config's key.
        key: &'static str,
        /// Its value.
        found: String,
        /// The values that the architecture supports.
        only: &'static str,
    },
    /// A key is missing that other keys make necessary.
    #[error("{key} is missing, and {needed_for} need it")]
    Missing {
        /// The config's key.
        key: &'static str,
        /// What it is needed for.
        needed_for: &'static str,
    },
    /// Two places of the config say different things.
    #[error("the config contradicts itself: {first_key} is {first:.200}, and {second_key} is {second:.200}")]
    Contradiction {
        /// One key.
        first_key: &'static str,
        /// Its value.
        first: String,
        /// The other key.
        second_key: &'static str,
        /// Its value.
        second: String,
    },
    /// The length of a list with an entry for each layer is not the number of layers.
    #[error("{key} has {found} entries, and num_hidden_layers is {layers}")]
    LayerCount {
        /// The list's key.
        key: &'static str,
        /// The length of the list.
        found: usize,
        /// Layers of the model.
        layers: usize,
    },
    /// A layer is of a kind that does not exist here.
    #[error("layer_types[{layer}] is {:.200}, and must be \"full_attention\" or \"sliding_attention\"", format!("{found:?}"))]
    LayerType {
        /// The index of the layer, from 0.
        layer: usize,
        /// The config's name for its kind.
        found: String,
    },
    /// The rotation cannot be built.
    #[error(transparent)]
    Rope(#[from] RopeError),
}
