//! The numbers that make one Lille model.

use mlx_causal_lm::LoadError;
use mlx_checkpoint::Checkpoint;
use mlx_config::{ConfigError, epsilon, multiple, off, only, size};
use mlx_rope::{Rope, RopeKeys, RopeLayout, RopeScaling};
use serde::Deserialize;

/// The `model_type` of the checkpoints that this crate reads.
pub const MODEL_TYPE: &str = "lille-130m";

/// A validated configuration: every model that can be described by one can be built.
#[derive(Debug, Clone)]
pub struct Config {
    /// Features of the residual stream, D. The released model has 640.
    pub n_embd: i32,
    /// Query heads, H. The released model has 10.
    pub n_head: i32,
    /// Key-value heads, each shared by `n_head / n_kv_heads` query heads. The released model has 2.
    pub n_kv_heads: i32,
    /// Features of a head, `n_embd / n_head`.
    pub head_dim: i32,
    /// Features inside the feed-forward network; see [`hidden_dim`].
    pub hidden_dim: i32,
    /// Blocks. The released model has 24.
    pub n_layer: usize,
    /// Tokens in the vocabulary, V.
    pub vocab_size: i32,
    /// The context length, in tokens.
    pub block_size: i32,
    /// The epsilon of every norm.
    pub norm_eps: f32,
    /// The rotation of queries and keys.
    pub rope: Rope,
}

/// The config as the file has it.
#[derive(Deserialize)]
struct RawConfig {
    block_size: i64,
    layer_norm_eps: f64,
    n_embd: i64,
    n_head: i64,
    n_kv_heads: i64,
    n_layer: i64,
    vocab_size: i64,
    #[serde(default = "tied")]
    tie_word_embeddings: bool,
    hidden_act: Option<String>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
}

fn tied() -> bool {
    true
}

impl Config {
    /// Reads and validates the config of a checkpoint.
    ///
    /// # Errors
    ///
    /// Where a key is missing, has the wrong type, or the values describe no model.
    pub fn from_checkpoint(checkpoint: &Checkpoint) -> Result<Self, LoadError> {
        // Twice over the same file: the keys of rotations have one parser for all architectures.
        let (raw, rope): (RawConfig, RopeKeys) = (checkpoint.config()?, checkpoint.config()?);
        Self::try_from((raw, rope)).map_err(|source| LoadError::Config {
            model_type: MODEL_TYPE.to_owned(),
            source: Box::new(source),
        })
    }
}

impl TryFrom<(RawConfig, RopeKeys)> for Config {
    type Error = ConfigError;

    fn try_from((raw, rope): (RawConfig, RopeKeys)) -> Result<Self, ConfigError> {
        let n_embd = size("n_embd", raw.n_embd, 1 << 17)?;
        let n_head = size("n_head", raw.n_head, 1 << 12)?;
        let n_kv_heads = size("n_kv_heads", raw.n_kv_heads, 1 << 12)?;
        let n_layer = size("n_layer", raw.n_layer, 1 << 12)? as usize;
        let vocab_size = size("vocab_size", raw.vocab_size, 1 << 24)?;
        let block_size = size("block_size", raw.block_size, 1 << 28)?;

        multiple("n_embd", n_embd, "n_head", n_head)?;
        multiple("n_head", n_head, "n_kv_heads", n_kv_heads)?;
        let hidden_dim = hidden_dim(n_embd);
        if hidden_dim == 0 {
            let expected = "wide enough for 8/3 of it, rounded to a multiple of 256, to be more than 0";
            return Err(ConfigError::Number { key: "n_embd", found: f64::from(n_embd), expected });
        }
        let norm_eps = epsilon("layer_norm_eps", raw.layer_norm_eps)?;
        only("hidden_act", raw.hidden_act.as_ref(), "silu")?;
        off("attention_bias", raw.attention_bias)?;
        off("mlp_bias", raw.mlp_bias)?;
        let unsupported = |key, found: String, only| Err(ConfigError::Unsupported { key, found, only });
        if !raw.tie_word_embeddings {
            // The head is the embedding table: there is no other.
            return unsupported("tie_word_embeddings", "false".to_owned(), "true");
        }
        let head_dim = n_embd / n_head;
        let rotation = rope.uniform(None)?;
        if rotation.scaling != RopeScaling::Default {
            return unsupported("rope_type", format!("{:?}", rotation.scaling.rope_type()), "\"default\"");
        }
        if rotation.partial_rotary_factor != 1.0 {
            return unsupported("partial_rotary_factor", rotation.partial_rotary_factor.to_string(), "1");
        }
        Ok(Self {
            n_embd,
            n_head,
            n_kv_heads,
            head_dim,
            hidden_dim,
            n_layer,
            vocab_size,
            block_size,
            norm_eps,
            rope: rotation.rope(head_dim, RopeLayout::Interleaved)?,
        })
    }
}

/// The width of the feed-forward network: `8/3 * n_embd`, rounded to the nearest multiple of 256.
///
/// A gated network has three matrices where a plain one of width `4 * n_embd` has two. Two thirds
/// of that width, `8/3 * n_embd`, keep the number of weights the same (Shazeer, *GLU Variants
/// Improve Transformer*, section 3, <https://arxiv.org/abs/2002.05202>). A multiple of 256 fills
/// the tiles of a matrix unit. A width halfway between two multiples goes to the even one, since
/// the reference rounds with Python's `round`; 240, for one, has 8/3 of 640 and width 512.
pub fn hidden_dim(n_embd: i32) -> i32 {
    let two_thirds = i64::from(n_embd) * 8 / 3;
    let tiles = (two_thirds as f64 / 256.0).round_ties_even() as i32;
    tiles.saturating_mul(256)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlx_rope::RopeError;
    use serde_json::{Value, json};

    fn released() -> Value {
        json!({
            "model_type": "lille-130m", "block_size": 512, "layer_norm_eps": 1e-5, "n_embd": 640,
            "n_head": 10, "n_kv_heads": 2, "n_layer": 24, "rope_theta": 10000.0, "vocab_size": 32768,
            "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        })
    }

    fn read(config: Value) -> Result<Config, ConfigError> {
        Config::try_from((
            serde_json::from_value(config.clone()).unwrap(),
            serde_json::from_value(config).unwrap(),
        ))
    }

    fn with(key: &str, value: Value) -> Result<Config, ConfigError> {
        let mut config = released();
        config[key] = value;
        read(config)
    }

    #[test]
    fn the_released_model_is_valid() {
        let config = with("n_embd", json!(640)).unwrap();
        assert_eq!((config.head_dim, config.hidden_dim), (64, 1792));
    }

    /// Values of `256 * round(int(8 * n / 3) / 256)` that Python 3.11 printed.
    #[test]
    fn the_width_is_rounded_as_python_rounds() {
        for (n_embd, width) in [
            (47, 0),
            (48, 0),
            (49, 256),
            (64, 256),
            (143, 256),
            (144, 512),
            (240, 512),
            (241, 768),
            (640, 1792),
            (768, 2048),
            (1008, 2560),
            (1009, 2816),
        ] {
            assert_eq!(hidden_dim(n_embd), width, "{n_embd}");
        }
    }

    #[test]
    fn tied_embeddings_are_the_default() {
        let mut config = released();
        config.as_object_mut().unwrap().remove("tie_word_embeddings");
        assert!(read(config).is_ok());
    }

    #[test]
    fn sizes_are_positive_and_bounded() {
        for key in ["n_embd", "n_head", "n_kv_heads", "n_layer", "vocab_size", "block_size"] {
            for value in [0, -1, i64::MAX] {
                let error = with(key, json!(value)).unwrap_err();
                assert!(matches!(error, ConfigError::Size { key: found, .. } if found == key), "{error}");
                assert!(error.to_string().starts_with(&format!("{key} is {value}")));
            }
        }
    }

    #[test]
    fn heads_divide_the_features() {
        let error = with("n_head", json!(12)).unwrap_err();
        assert_eq!(error.to_string(), "n_embd is 640, and must be a multiple of n_head, which is 12");
        let error = with("n_kv_heads", json!(4)).unwrap_err();
        assert_eq!(error.to_string(), "n_head is 10, and must be a multiple of n_kv_heads, which is 4");
    }

    #[test]
    fn a_model_without_feed_forward_features_is_refused() {
        assert!(matches!(with("n_embd", json!(40)), Err(ConfigError::Number { key: "n_embd", .. })));
    }

    #[test]
    fn the_epsilon_is_small_and_positive() {
        for value in [0.0, -1e-5, 1.0] {
            assert!(matches!(
                with("layer_norm_eps", json!(value)),
                Err(ConfigError::Number { key: "layer_norm_eps", .. })
            ));
        }
    }

    #[test]
    fn the_rotation_needs_pairs_and_a_base() {
        assert!(matches!(with("n_embd", json!(70)), Err(ConfigError::Rope(RopeError::Dims { dims: 7 }))));
        assert!(matches!(with("rope_theta", json!(0.0)), Err(ConfigError::Rope(RopeError::Base { .. }))));
    }

    #[test]
    fn a_rotation_with_scaling_is_refused() {
        let error = with("rope_scaling", json!({ "type": "linear", "factor": 2.0 })).unwrap_err();
        assert!(matches!(error, ConfigError::Unsupported { key: "rope_type", .. }), "{error}");
        let error = with("partial_rotary_factor", json!(0.5)).unwrap_err();
        assert!(matches!(error, ConfigError::Unsupported { key: "partial_rotary_factor", .. }), "{error}");
    }

    #[test]
    fn variants_of_other_architectures_are_refused() {
        for (key, value) in
            [("hidden_act", json!("gelu")), ("attention_bias", json!(true)), ("mlp_bias", json!(true))]
        {
            let error = with(key, value).unwrap_err();
            assert!(matches!(error, ConfigError::Unsupported { key: found, .. } if found == key), "{error}");
        }
        assert!(with("hidden_act", json!("silu")).is_ok());
    }

    #[test]
    fn a_head_of_its_own_is_refused() {
        let error = with("tie_word_embeddings", json!(false)).unwrap_err();
        assert!(error.to_string().starts_with("tie_word_embeddings is false"), "{error}");
    }
}
