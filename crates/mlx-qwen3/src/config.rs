//! The numbers that make one Qwen 3 model.

use mlx_causal_lm::{LoadError, ModelInfo, UnlikeMlxLm, digest, read_config};
use mlx_checkpoint::Checkpoint;
use mlx_config::{
    ConfigError, Layer, SwitchedWindows, context_length, epsilon, grouped_heads, layers_alike, limits, off,
    only, size, specs,
};
use mlx_rope::{MlxLmReads, RopeKeys};
use mlx_rs::Dtype;
use serde::Deserialize;

/// The `model_type` of the checkpoints that this crate reads.
pub const MODEL_TYPE: &str = "qwen3";

/// A validated config, from which a model can always be built. The numbers in
/// brackets are those of Qwen3-0.6B.
#[derive(Debug, Clone)]
pub struct Config {
    /// Features of the residual stream, D (1024).
    pub hidden_size: i32,
    /// Features inside the feed-forward network (3072).
    pub intermediate_size: i32,
    /// Query heads, H (16).
    pub num_attention_heads: i32,
    /// Key-value heads, H_kv, each shared by `H / H_kv` query heads (8).
    pub num_key_value_heads: i32,
    /// Features of a head, d (128, also where the config does not state it). In half of these models it is not `D / H`.
    pub head_dim: i32,
    /// Tokens in the vocabulary, V (151936).
    pub vocab_size: i32,
    /// The context length, in tokens (40960).
    pub context_length: i32,
    /// The epsilon of every norm (1e-6).
    pub rms_norm_eps: f32,
    /// Whether the projections of attention have a bias. No released model has.
    pub attention_bias: bool,
    /// The layers, first layer first (28, all full). All layers of a model have the same rotation.
    pub layers: Vec<Layer>,
    /// Whether the head has a weight of its own (no; from 8B on it has). Otherwise it is the embedding table.
    pub has_own_head: bool,
    /// Why mlx-lm rotates keys by other angles, if it does: see
    /// [`CausalLm::unlike_mlx_lm`](mlx_causal_lm::CausalLm::unlike_mlx_lm).
    pub rotation_unlike_mlx_lm: Option<&'static str>,
}

/// The config as the file has it.
#[derive(Deserialize)]
struct RawConfig {
    hidden_size: i64,
    intermediate_size: i64,
    num_hidden_layers: i64,
    num_attention_heads: i64,
    num_key_value_heads: i64,
    head_dim: Option<i64>,
    vocab_size: i64,
    max_position_embeddings: i64,
    rms_norm_eps: f64,
    use_sliding_window: Option<bool>,
    sliding_window: Option<i64>,
    max_window_layers: Option<i64>,
    layer_types: Option<Vec<String>>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    hidden_act: Option<String>,
    tie_word_embeddings: Option<bool>,
}

impl Config {
    /// Reads and validates the config of a checkpoint.
    ///
    /// # Errors
    ///
    /// Where a key is missing, has the wrong type, or the values describe no model.
    pub fn from_checkpoint(checkpoint: &Checkpoint) -> Result<Self, LoadError> {
        let (raw, rope) = read_config::<RawConfig>(checkpoint)?;
        let has_own_head = checkpoint.has_own_head("lm_head", raw.tie_word_embeddings == Some(true));
        Self::validate(raw, &rope, has_own_head).map_err(|problem| LoadError::config(MODEL_TYPE, problem))
    }

    fn validate(raw: RawConfig, rope: &RopeKeys, has_own_head: bool) -> Result<Self, ConfigError> {
        let (num_attention_heads, num_key_value_heads) =
            grouped_heads(raw.num_attention_heads, raw.num_key_value_heads)?;
        // Some configs lack the key; transformers then takes 128. The shapes of the tensors show whether it is right.
        let head_dim = size("head_dim", raw.head_dim.unwrap_or(128), limits::HEAD_DIM)?;
        let num_layers = size("num_hidden_layers", raw.num_hidden_layers, limits::LAYERS)? as usize;
        let windows = SwitchedWindows {
            use_sliding_window: raw.use_sliding_window,
            sliding_window: raw.sliding_window,
            max_window_layers: raw.max_window_layers,
            layer_types: raw.layer_types.as_deref(),
        };
        let layers = layers_alike(windows.kinds(num_layers)?, rope, None, head_dim)?;
        let settings = rope.full_attention(None)?;
        let rotation_unlike_mlx_lm = rope.unlike_mlx_lm(&settings, MlxLmReads::BothForms);

        only("hidden_act", raw.hidden_act.as_ref(), "silu")?;
        off("mlp_bias", raw.mlp_bias)?;
        Ok(Self {
            hidden_size: size("hidden_size", raw.hidden_size, limits::HIDDEN_SIZE)?,
            intermediate_size: size("intermediate_size", raw.intermediate_size, limits::INTERMEDIATE_SIZE)?,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            vocab_size: size("vocab_size", raw.vocab_size, limits::VOCABULARY)?,
            context_length: context_length("max_position_embeddings", raw.max_position_embeddings, rope)?,
            rms_norm_eps: epsilon("rms_norm_eps", raw.rms_norm_eps)?,
            attention_bias: raw.attention_bias.unwrap_or(false),
            layers,
            has_own_head,
            rotation_unlike_mlx_lm,
        })
    }

    /// The facts that a runtime needs. The dtype of activations and the settings of adapters come from the weights.
    pub(crate) fn info(&self, dtype: Dtype, adapter_settings: Option<String>) -> ModelInfo {
        ModelInfo {
            model_type: MODEL_TYPE.to_owned(),
            vocab_size: self.vocab_size,
            context_length: self.context_length,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            query_heads: self.num_attention_heads,
            layers: specs(&self.layers, self.num_key_value_heads, self.head_dim),
            rotations: self.layers.iter().map(|layer| layer.rope.rotation()).collect(),
            dtype,
            // Keys and values depend on all fields but these.
            config_digest: digest(&Self { context_length: 0, rotation_unlike_mlx_lm: None, ..self.clone() }),
            adapter_settings,
            unlike_mlx_lm: UnlikeMlxLm { rotation: self.rotation_unlike_mlx_lm, ignores_windows: true },
        }
    }
}
