//! Checks of the values in a model's config.
//!
//! Implementation: for authors of architectures. An architecture reads its keys into a struct of its own and computes
//! from it the numbers that its model is built from. This crate has the checks and derivations that several
//! architectures need: sizes, multiples, features that an architecture does not have, which layers have a window, and
//! how the layers of each kind rotate. Each error names the key at fault.
//!
//! ```
//! use mlx_config::{ConfigError, multiple, size};
//!
//! let heads = size("num_attention_heads", 8, 1 << 12)?;
//! let kv_heads = size("num_key_value_heads", 3, 1 << 12)?;
//! let error = multiple("num_attention_heads", heads, "num_key_value_heads", kv_heads).unwrap_err();
//! assert_eq!(
//!     error.to_string(),
//!     "num_attention_heads is 8, and must be a multiple of num_key_value_heads, which is 3"
//! );
//! # Ok::<_, ConfigError>(())
//! ```

mod error;
mod layers;
mod windows;

pub use error::ConfigError;
pub use layers::{Bases, Layer, LayerTypes, layers, layers_alike, rotating, specs};
pub use windows::{MistralWindows, SwitchedWindows};

use mlx_rope::RopeKeys;
use serde::{Deserialize, Deserializer};

/// The largest sizes that a config may state. They are far beyond released models: they keep a typing error from filling
/// the memory, and the features of fused projections within what an `i32` can count.
pub mod limits {
    /// Features of the residual stream.
    pub const HIDDEN_SIZE: i32 = 1 << 17;
    /// Features inside a feed-forward network.
    pub const INTERMEDIATE_SIZE: i32 = 1 << 20;
    /// Layers of a model.
    pub const LAYERS: i32 = 1 << 12;
    /// Heads of a layer.
    pub const HEADS: i32 = 1 << 12;
    /// Features of a head.
    pub const HEAD_DIM: i32 = 1 << 14;
    /// Tokens in a vocabulary.
    pub const VOCABULARY: i32 = 1 << 24;
    /// Tokens in a context or a window.
    pub const TOKENS: i32 = 1 << 28;
}

/// Reads a key so that `null` is another value than a missing key: `Some(None)` and `None`. It is for fields with
/// `#[serde(default, deserialize_with = "stated")]`.
///
/// # Errors
///
/// Where the value is neither `null` nor a `T`.
pub fn stated<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    value: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(value).map(Some)
}

/// A size that a config states, which must be between 1 and `max`, one of the [`limits`].
///
/// # Errors
///
/// [`ConfigError::Size`].
pub fn size(key: &'static str, found: i64, max: i32) -> Result<i32, ConfigError> {
    within(key, found, 1, max)
}

/// A whole number that a config states, which must be between `min` and `max`.
fn within(key: &'static str, found: i64, min: i32, max: i32) -> Result<i32, ConfigError> {
    match i32::try_from(found) {
        Ok(number) if (min..=max).contains(&number) => Ok(number),
        _ => Err(ConfigError::Size { key, found, min, max }),
    }
}

/// Checks that the first number is a multiple of the second.
///
/// # Errors
///
/// [`ConfigError::Multiple`].
pub fn multiple(key: &'static str, found: i32, of: &'static str, divisor: i32) -> Result<(), ConfigError> {
    if found % divisor == 0 { Ok(()) } else { Err(ConfigError::Multiple { key, found, of, divisor }) }
}

/// The context length of a model whose config states `found` under `key`. [`RopeKeys::context_length`] takes the scaling
/// of the rotation into account, in the same way for every architecture.
///
/// # Errors
///
/// [`ConfigError::Size`], and [`ConfigError::Rope`] where the config contradicts itself.
pub fn context_length(key: &'static str, found: i64, rope: &RopeKeys) -> Result<i32, ConfigError> {
    Ok(rope.context_length(size(key, found, limits::TOKENS)?)?)
}

/// The numbers of query heads and of key-value heads. The first must be a multiple of the second.
///
/// # Errors
///
/// [`ConfigError::Size`] and [`ConfigError::Multiple`], for `num_attention_heads` and `num_key_value_heads`.
pub fn grouped_heads(queries: i64, keys: i64) -> Result<(i32, i32), ConfigError> {
    let (queries_key, keys_key) = ("num_attention_heads", "num_key_value_heads");
    let queries = size(queries_key, queries, limits::HEADS)?;
    let keys = size(keys_key, keys, limits::HEADS)?;
    multiple(queries_key, queries, keys_key, keys)?;
    Ok((queries, keys))
}

/// The features of a head: `head_dim` where the config states it, otherwise an equal part of the residual stream for each
/// query head.
///
/// # Errors
///
/// [`ConfigError::Size`] for `head_dim`, and [`ConfigError::Multiple`] where `hidden_size` cannot be cut into heads.
pub fn head_dim(found: Option<i64>, hidden_size: i32, num_attention_heads: i32) -> Result<i32, ConfigError> {
    if let Some(found) = found {
        return size("head_dim", found, limits::HEAD_DIM);
    }
    multiple("hidden_size", hidden_size, "num_attention_heads", num_attention_heads)?;
    Ok(hidden_size / num_attention_heads)
}

/// A number that a config may state under two keys, which must then agree.
///
/// # Errors
///
/// [`ConfigError::Contradiction`].
pub fn one_of(
    (first_key, first): (&'static str, Option<i64>),
    (second_key, second): (&'static str, Option<i64>),
) -> Result<Option<i64>, ConfigError> {
    match (first, second) {
        (Some(first), Some(second)) if first != second => {
            let (first, second) = (first.to_string(), second.to_string());
            Err(ConfigError::Contradiction { first_key, first, second_key, second })
        }
        (first, second) => Ok(first.or(second)),
    }
}

/// The epsilon of a norm: a positive number below 1, as the float32 that norms compute with.
///
/// # Errors
///
/// [`ConfigError::Number`].
pub fn epsilon(key: &'static str, found: f64) -> Result<f32, ConfigError> {
    let epsilon = found as f32;
    if epsilon > 0.0 && epsilon < 1.0 {
        return Ok(epsilon);
    }
    Err(ConfigError::Number { key, found, expected: "a positive number below 1" })
}

/// A positive number that is finite as float32 too.
///
/// # Errors
///
/// [`ConfigError::Number`].
pub fn positive(key: &'static str, found: f64) -> Result<f64, ConfigError> {
    if (found as f32).is_finite() && found as f32 > 0.0 {
        return Ok(found);
    }
    Err(ConfigError::Number { key, found, expected: "a positive finite number" })
}

/// Checks that a key has the only value that the architecture supports. A config without the key passes.
///
/// # Errors
///
/// [`ConfigError::Unsupported`].
pub fn only<T>(key: &'static str, found: Option<T>, known: &'static str) -> Result<(), ConfigError>
where
    T: AsRef<str>,
{
    match found {
        Some(found) if found.as_ref() != known => {
            Err(ConfigError::Unsupported { key, found: format!("{:?}", found.as_ref()), only: known })
        }
        _ => Ok(()),
    }
}

/// Checks that the config does not switch on a feature that the architecture does not have.
///
/// # Errors
///
/// [`ConfigError::Unsupported`].
pub fn off(key: &'static str, found: Option<bool>) -> Result<(), ConfigError> {
    if found == Some(true) {
        return Err(ConfigError::Unsupported { key, found: "true".to_owned(), only: "false" });
    }
    Ok(())
}

/// Checks that the config does not switch off a feature that the architecture always has.
///
/// # Errors
///
/// [`ConfigError::Unsupported`].
pub fn on(key: &'static str, found: Option<bool>) -> Result<(), ConfigError> {
    if found == Some(false) {
        return Err(ConfigError::Unsupported { key, found: "false".to_owned(), only: "true" });
    }
    Ok(())
}

/// Compiles the README's example.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_positive_and_bounded() {
        assert!(matches!(size("a", 7, 7), Ok(7)));
        for found in [0, -1, 8, i64::MAX, i64::MIN] {
            let error = size("a", found, 7).unwrap_err();
            assert_eq!(error.to_string(), format!("a is {found}, and must be between 1 and 7"));
        }
    }

    #[test]
    fn query_heads_share_key_heads_evenly() {
        assert!(matches!(grouped_heads(8, 2), Ok((8, 2))));
        for (queries, keys, found) in [
            (0, 1, "num_attention_heads is 0"),
            (8, -1, "num_key_value_heads is -1"),
            (8, 3, "num_attention_heads is 8, and must be a multiple of num_key_value_heads, which is 3"),
        ] {
            let error = grouped_heads(queries, keys).unwrap_err().to_string();
            assert!(error.starts_with(found), "{error}");
        }
    }

    #[test]
    fn a_head_is_as_wide_as_stated_or_an_equal_part() {
        assert!(matches!(head_dim(Some(96), 100, 8), Ok(96)));
        assert!(matches!(head_dim(None, 64, 8), Ok(8)));
        let error = head_dim(Some(0), 64, 8).unwrap_err().to_string();
        assert!(error.starts_with("head_dim is 0"), "{error}");
        let error = head_dim(None, 100, 8).unwrap_err().to_string();
        assert!(error.starts_with("hidden_size is 100, and must be a multiple"), "{error}");
    }

    #[test]
    fn numbers_must_fit_into_float32() {
        assert!(matches!(epsilon("eps", 1e-6), Ok(found) if found == 1e-6));
        for found in [0.0, -1e-6, 1.0, 1e-60, f64::NAN] {
            let error = epsilon("eps", found).unwrap_err();
            assert!(error.to_string().ends_with("must be a positive number below 1"), "{error}");
        }
        assert!(epsilon("eps", 1e-300).unwrap_err().to_string().starts_with("eps is 1e-300, and"));
        assert!(positive("scalar", 256.0).is_ok());
        for found in [0.0, -2.0, f64::INFINITY, 1e300, 1e-300] {
            let error = positive("scalar", found).unwrap_err();
            assert!(error.to_string().ends_with("must be a positive finite number"), "{error}");
        }
    }

    #[test]
    fn features_that_an_architecture_does_not_have_are_refused() {
        assert!(only("hidden_act", Some("silu"), "silu").is_ok());
        assert!(only::<&str>("hidden_act", None, "silu").is_ok());
        let error = only("hidden_act", Some("relu"), "silu").unwrap_err();
        assert_eq!(error.to_string(), "hidden_act is \"relu\", and this architecture knows silu only");
        assert!(off("mlp_bias", Some(false)).is_ok());
        assert!(on("is_causal", Some(true)).is_ok() && on("is_causal", None).is_ok());
        let error = on("is_causal", Some(false)).unwrap_err();
        assert_eq!(error.to_string(), "is_causal is false, and this architecture knows true only");
        let error = off("mlp_bias", Some(true)).unwrap_err();
        assert_eq!(error.to_string(), "mlp_bias is true, and this architecture knows false only");
    }
}
