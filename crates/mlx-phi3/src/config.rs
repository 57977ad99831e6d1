//! The numbers that make one Phi-3 model.

use mlx_causal_lm::{LoadError, LoadOptions};
use mlx_checkpoint::Checkpoint;
use mlx_rope::{Rope, RopeError, RopeKeys, RopeLayout, RopeScaling};
use serde::Deserialize;

/// The `model_type` of the checkpoints that this crate reads.
pub const MODEL_TYPE: &str = "phi3";

/// `rope_theta` where a config has none: what transformers and mlx-lm take.
const DEFAULT_BASE: f64 = 10_000.0;

/// A validated configuration: every model that can be described by one can be built. The numbers in
/// brackets are those of Phi-3-mini-4k.
#[derive(Debug, Clone)]
pub struct Config {
    /// Features of the residual stream, D (3072).
    pub hidden_size: i32,
    /// Features inside the feed-forward network, F (8192).
    pub intermediate_size: i32,
    /// Blocks (32).
    pub num_hidden_layers: usize,
    /// Query heads, H (32).
    pub num_attention_heads: i32,
    /// Key-value heads, each shared by `num_attention_heads / num_key_value_heads` query heads (32).
    pub num_key_value_heads: i32,
    /// Features of a head, d: given, or `hidden_size / num_attention_heads` (96).
    pub head_dim: i32,
    /// Tokens in the vocabulary, V (32064).
    pub vocab_size: i32,
    /// The context length, in tokens (4096).
    pub max_position_embeddings: i32,
    /// How many tokens a query sees, itself included, if not all (2047).
    pub sliding_window: Option<i32>,
    /// The epsilon of every norm (1e-5).
    pub rms_norm_eps: f32,
    /// Whether the embedding table is the head as well (no).
    pub tie_word_embeddings: bool,
    /// The rotation of queries and keys.
    pub rope: Rope,
}

/// Why a config describes no Phi-3 model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A size is zero, negative, or beyond any model.
    #[error("{key} is {found}, and must be between 1 and {max}")]
    Size {
        /// The config's key.
        key: &'static str,
        /// Its value.
        found: i64,
        /// The largest value that makes sense.
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
    /// The epsilon of the norms is not a small positive number.
    #[error("rms_norm_eps is {found:e}, and must be a positive number below 1")]
    Epsilon {
        /// The config's value.
        found: f64,
    },
    /// The rotation cannot be built.
    #[error(transparent)]
    Rope(#[from] RopeError),
    /// A rotation that exists, but not in this architecture.
    #[error("rope_type {found:?} is not one that Phi-3 has; those are default, linear, longrope and su")]
    RopeType {
        /// What the config asks for.
        found: &'static str,
    },
    /// The config asks for a variant that this architecture does not have.
    #[error("{key} is {found}, and this architecture knows {only} only")]
    Unsupported {
        /// The config's key.
        key: &'static str,
        /// Its value.
        found: String,
        /// The value that the architecture has.
        only: &'static str,
    },
}

/// The config as the file has it.
#[derive(Deserialize)]
struct RawConfig {
    hidden_size: i64,
    intermediate_size: i64,
    num_hidden_layers: i64,
    num_attention_heads: i64,
    num_key_value_heads: Option<i64>,
    head_dim: Option<i64>,
    vocab_size: i64,
    max_position_embeddings: i64,
    sliding_window: Option<i64>,
    rms_norm_eps: f64,
    tie_word_embeddings: Option<bool>,
    rope_traditional: Option<bool>,
    hidden_act: Option<String>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    lm_head_bias: Option<bool>,
    layer_types: Option<Vec<String>>,
}

impl Config {
    /// Reads and validates the config of a checkpoint.
    ///
    /// # Errors
    ///
    /// Where a key is missing, has the wrong type, or the values describe no model.
    pub fn from_checkpoint(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<Self, LoadError> {
        // Twice over the same file: the keys of rotations have one parser for all architectures.
        let (raw, rope): (RawConfig, RopeKeys) = (checkpoint.config()?, checkpoint.config()?);
        Self::try_from((raw, rope, options)).map_err(|source| LoadError::Config {
            model_type: MODEL_TYPE.to_owned(),
            source: Box::new(source),
        })
    }
}

impl TryFrom<(RawConfig, RopeKeys, &LoadOptions)> for Config {
    type Error = ConfigError;

    fn try_from((raw, rope, options): (RawConfig, RopeKeys, &LoadOptions)) -> Result<Self, ConfigError> {
        // Generous limits: they only keep a typing error from filling the memory, and the features of the
        // fused projections within what an i32 can count.
        let hidden_size = size("hidden_size", raw.hidden_size, 1 << 17)?;
        let intermediate_size = size("intermediate_size", raw.intermediate_size, 1 << 20)?;
        let num_hidden_layers = size("num_hidden_layers", raw.num_hidden_layers, 1 << 12)? as usize;
        let num_attention_heads = size("num_attention_heads", raw.num_attention_heads, 1 << 12)?;
        let num_key_value_heads = match raw.num_key_value_heads {
            Some(heads) => size("num_key_value_heads", heads, 1 << 12)?,
            None => num_attention_heads,
        };
        multiple("num_attention_heads", num_attention_heads, "num_key_value_heads", num_key_value_heads)?;
        let head_dim = match raw.head_dim {
            Some(head_dim) => size("head_dim", head_dim, 1 << 14)?,
            None => {
                multiple("hidden_size", hidden_size, "num_attention_heads", num_attention_heads)?;
                hidden_size / num_attention_heads
            }
        };
        let rms_norm_eps = raw.rms_norm_eps as f32;
        if !(rms_norm_eps > 0.0 && rms_norm_eps < 1.0) {
            return Err(ConfigError::Epsilon { found: raw.rms_norm_eps });
        }
        let sliding_window = raw.sliding_window.map(|window| size("sliding_window", window, 1 << 28));
        let sliding_window = sliding_window.transpose()?;

        let unsupported = |key, found: String, only| Err(ConfigError::Unsupported { key, found, only });
        if let Some(found) = raw.hidden_act.filter(|name| name != "silu") {
            return unsupported("hidden_act", format!("{found:?}"), "\"silu\"");
        }
        let biases = [
            ("attention_bias", raw.attention_bias),
            ("mlp_bias", raw.mlp_bias),
            ("lm_head_bias", raw.lm_head_bias),
        ];
        for (key, bias) in biases {
            if bias == Some(true) {
                return unsupported(key, "true".to_owned(), "false");
            }
        }
        if let Some(found) = raw.layer_types {
            return unsupported("layer_types", format!("{found:?}"), "layers of one kind");
        }

        let rotation = rope.uniform(Some(DEFAULT_BASE))?.with_long_rope_mode(options.long_rope);
        let interleaved = raw.rope_traditional == Some(true);
        match &rotation.scaling {
            RopeScaling::Default | RopeScaling::Linear { .. } => {}
            RopeScaling::LongRope(_) if interleaved => {
                return unsupported("rope_traditional", "true".to_owned(), "false for longrope");
            }
            RopeScaling::LongRope(_) => {}
            other => return Err(ConfigError::RopeType { found: other.rope_type() }),
        }
        Ok(Self {
            hidden_size,
            intermediate_size,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            vocab_size: size("vocab_size", raw.vocab_size, 1 << 24)?,
            max_position_embeddings: size("max_position_embeddings", raw.max_position_embeddings, 1 << 28)?,
            sliding_window,
            rms_norm_eps,
            tie_word_embeddings: raw.tie_word_embeddings.unwrap_or(false),
            rope: rotation
                .rope(head_dim, if interleaved { RopeLayout::Interleaved } else { RopeLayout::Halves })?,
        })
    }
}

fn size(key: &'static str, found: i64, max: i32) -> Result<i32, ConfigError> {
    match i32::try_from(found) {
        Ok(size) if (1..=max).contains(&size) => Ok(size),
        _ => Err(ConfigError::Size { key, found, max }),
    }
}

fn multiple(key: &'static str, found: i32, of: &'static str, divisor: i32) -> Result<(), ConfigError> {
    if found % divisor == 0 { Ok(()) } else { Err(ConfigError::Multiple { key, found, of, divisor }) }
}
