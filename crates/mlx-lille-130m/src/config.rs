//! The numbers that make one Lille model.

use mlx_causal_lm::{LoadError, ModelInfo, UnlikeMlxLm, digest, read_config};
use mlx_checkpoint::Checkpoint;
use mlx_config::{ConfigError, context_length, epsilon, limits, multiple, off, only, size};
use mlx_kvcache::{LayerKind, LayerSpec};
use mlx_rope::{Rope, RopeKeys, RopeLayout, RopeScaling};
use mlx_rs::Dtype;
use serde::Deserialize;

/// The `model_type` of the checkpoints that this crate reads.
pub const MODEL_TYPE: &str = "lille-130m";

/// A validated config, from which a model can always be built.
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
    pub context_length: i32,
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
        let (raw, rope) = read_config::<RawConfig>(checkpoint)?;
        Self::validate(raw, &rope).map_err(|problem| LoadError::config(MODEL_TYPE, problem))
    }

    fn validate(raw: RawConfig, rope: &RopeKeys) -> Result<Self, ConfigError> {
        let n_embd = size("n_embd", raw.n_embd, limits::HIDDEN_SIZE)?;
        let n_head = size("n_head", raw.n_head, limits::HEADS)?;
        let n_kv_heads = size("n_kv_heads", raw.n_kv_heads, limits::HEADS)?;
        let n_layer = size("n_layer", raw.n_layer, limits::LAYERS)? as usize;
        let vocab_size = size("vocab_size", raw.vocab_size, limits::VOCABULARY)?;
        let context_length = context_length("block_size", raw.block_size, rope)?;

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
            // The head is always the embedding table.
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
            context_length,
            norm_eps,
            rope: rotation.rope(head_dim, RopeLayout::Interleaved)?,
        })
    }

    /// The facts that a runtime needs. The dtype of activations and the settings of adapters come from the weights.
    pub(crate) fn info(&self, dtype: Dtype, adapter_settings: Option<String>) -> ModelInfo {
        let (kind, heads, head_dim) = (LayerKind::Full, self.n_kv_heads, self.head_dim);
        let layer = LayerSpec { kind, heads, key_dim: head_dim, value_dim: head_dim };
        ModelInfo {
            model_type: MODEL_TYPE.to_owned(),
            vocab_size: self.vocab_size,
            context_length: self.context_length,
            hidden_size: self.n_embd,
            intermediate_size: self.hidden_dim,
            query_heads: self.n_head,
            layers: vec![layer; self.n_layer],
            rotations: vec![Some(self.rope.rotation()); self.n_layer],
            dtype,
            // Keys and values depend on all fields but these.
            config_digest: digest(&Self { context_length: 0, ..self.clone() }),
            adapter_settings,
            unlike_mlx_lm: UnlikeMlxLm::default(),
        }
    }
}

/// The width of the feed-forward network: `8/3 * n_embd`, rounded to the nearest multiple of 256.
///
/// A gated network has three matrices, and a plain one of width `4 * n_embd` has two. Two thirds of that width, `8/3 *
/// n_embd`, keep the number of weights the same (Shazeer, *GLU Variants Improve Transformer*, section 3,
/// <https://arxiv.org/abs/2002.05202>). A multiple of 256 fills the tiles of a matrix unit. A width halfway between two
/// multiples is rounded to the even multiple, because the reference uses Python's `round`: for `n_embd` 240, 640 is
/// rounded to 512.
pub fn hidden_dim(n_embd: i32) -> i32 {
    let two_thirds = i64::from(n_embd) * 8 / 3;
    let tiles = (two_thirds as f64 / 256.0).round_ties_even() as i32;
    tiles.saturating_mul(256)
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
