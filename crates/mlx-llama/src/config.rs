//! The numbers that make one Llama or Mistral model.

use mlx_causal_lm::{LoadError, ModelInfo, UnlikeMlxLm, digest, read_config};
use mlx_checkpoint::Checkpoint;
use mlx_config::{
    ConfigError, Layer, LayerTypes, context_length, epsilon, grouped_heads, head_dim, layers_alike, limits,
    off, only, size, specs,
};
use mlx_kvcache::LayerKind;
use mlx_rope::{MlxLmReads, RopeKeys};
use mlx_rs::Dtype;
use serde::{Deserialize, Deserializer};

/// The `model_type`s of the checkpoints that this crate reads.
pub const MODEL_TYPES: &[&str] = &["llama", MISTRAL];

const MISTRAL: &str = "mistral";

/// The base of the rotation where the config states none, as in both references.
const DEFAULT_BASE: f64 = 10_000.0;

/// A validated config, from which a model can always be built. The numbers in brackets are those of Llama-3.2-1B.
#[derive(Debug, Clone)]
pub struct Config {
    /// `llama` or `mistral`.
    pub model_type: String,
    /// Features of the residual stream, D (2048).
    pub hidden_size: i32,
    /// Features inside the feed-forward network (8192).
    pub intermediate_size: i32,
    /// Query heads, H (32).
    pub num_attention_heads: i32,
    /// Key-value heads, H_kv, each shared by `H / H_kv` query heads (8).
    pub num_key_value_heads: i32,
    /// Features of a head, d (64). `D / H` in all models but Mistral Nemo.
    pub head_dim: i32,
    /// Tokens in the vocabulary, V (128256).
    pub vocab_size: i32,
    /// The context length, in tokens (131072).
    pub context_length: i32,
    /// The epsilon of every norm (1e-5).
    pub rms_norm_eps: f32,
    /// Whether the four projections of attention have a bias. The released models of Meta and Mistral have none.
    pub attention_bias: bool,
    /// Whether the projections of the feed-forward network have a bias. The released models of Meta and Mistral have none.
    pub mlp_bias: bool,
    /// The layers, first layer first (16, all full). All layers of a model have the same rotation.
    pub layers: Vec<Layer>,
    /// Whether the head has a weight of its own (no; all other sizes have). Otherwise it is the embedding table.
    pub has_own_head: bool,
    /// Why mlx-lm rotates keys by other angles, if it does: see
    /// [`CausalLm::unlike_mlx_lm`](mlx_causal_lm::CausalLm::unlike_mlx_lm).
    pub rotation_unlike_mlx_lm: Option<&'static str>,
    /// Whether mlx-lm lets all tokens be attended to where the model has a window.
    pub mlx_lm_ignores_windows: bool,
}

/// The config as the file has it.
#[derive(Deserialize)]
struct RawConfig {
    model_type: String,
    hidden_size: i64,
    intermediate_size: i64,
    num_hidden_layers: i64,
    num_attention_heads: i64,
    num_key_value_heads: Option<i64>,
    head_dim: Option<i64>,
    vocab_size: i64,
    max_position_embeddings: i64,
    rms_norm_eps: f64,
    #[serde(default, deserialize_with = "stated")]
    sliding_window: Option<Option<i64>>,
    layer_types: Option<Vec<String>>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    hidden_act: Option<String>,
    rope_traditional: Option<bool>,
    tie_word_embeddings: Option<bool>,
}

/// Distinguishes a key that is `null` from one that is missing.
fn stated<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Option<i64>>, D::Error> {
    Option::deserialize(value).map(Some)
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
        let model_type = raw.model_type.clone();
        Self::validate(raw, &rope, has_own_head).map_err(|problem| LoadError::config(&model_type, problem))
    }

    fn validate(raw: RawConfig, rope: &RopeKeys, has_own_head: bool) -> Result<Self, ConfigError> {
        let hidden_size = size("hidden_size", raw.hidden_size, limits::HIDDEN_SIZE)?;
        let (num_attention_heads, num_key_value_heads) = grouped_heads(
            raw.num_attention_heads,
            raw.num_key_value_heads.unwrap_or(raw.num_attention_heads),
        )?;
        let head_dim = head_dim(raw.head_dim, hidden_size, num_attention_heads)?;
        let layers = layers_alike(kinds(&raw)?, rope, Some(DEFAULT_BASE), head_dim)?;
        let settings = rope.uniform(Some(DEFAULT_BASE))?;
        let mlx_lm_reads = MlxLmReads::OldForm { default_base: Some(DEFAULT_BASE) };

        only("hidden_act", raw.hidden_act.as_ref(), "silu")?;
        off("rope_traditional", raw.rope_traditional)?;
        Ok(Self {
            hidden_size,
            intermediate_size: size("intermediate_size", raw.intermediate_size, limits::INTERMEDIATE_SIZE)?,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            vocab_size: size("vocab_size", raw.vocab_size, limits::VOCABULARY)?,
            context_length: context_length("max_position_embeddings", raw.max_position_embeddings, rope)?,
            rms_norm_eps: epsilon("rms_norm_eps", raw.rms_norm_eps)?,
            attention_bias: raw.attention_bias.unwrap_or(false),
            mlp_bias: raw.mlp_bias.unwrap_or(false),
            rotation_unlike_mlx_lm: rope.unlike_mlx_lm(&settings, mlx_lm_reads),
            mlx_lm_ignores_windows: raw.layer_types.is_none(),
            layers,
            has_own_head,
            model_type: raw.model_type,
        })
    }

    /// The facts that a runtime needs. The dtype of activations and the settings of adapters come from the weights.
    pub(crate) fn info(&self, dtype: Dtype, adapter_settings: Option<String>) -> ModelInfo {
        ModelInfo {
            model_type: self.model_type.clone(),
            vocab_size: self.vocab_size,
            context_length: self.context_length,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            query_heads: self.num_attention_heads,
            layers: specs(&self.layers, self.num_key_value_heads, self.head_dim),
            rotations: self.layers.iter().map(|layer| layer.rope.rotation()).collect(),
            dtype,
            // Keys and values depend on all fields but these.
            config_digest: digest(&Self {
                context_length: 0,
                rotation_unlike_mlx_lm: None,
                mlx_lm_ignores_windows: false,
                ..self.clone()
            }),
            adapter_settings,
            unlike_mlx_lm: UnlikeMlxLm {
                rotation: self.rotation_unlike_mlx_lm,
                ignores_windows: self.mlx_lm_ignores_windows,
            },
        }
    }
}

/// Which layers have a window: those that `layer_types` says. Without it all layers of a Mistral model have
/// `sliding_window`, if that is not `null`, and no layer of a Llama model has one.
fn kinds(raw: &RawConfig) -> Result<Vec<LayerKind>, ConfigError> {
    let layers = size("num_hidden_layers", raw.num_hidden_layers, limits::LAYERS)? as usize;
    match (&raw.layer_types, raw.sliding_window) {
        (Some(types), window) => LayerTypes::Listed(types).kinds(layers, window.flatten()),
        (None, _) if raw.model_type != MISTRAL => Ok(vec![LayerKind::Full; layers]),
        (None, Some(None)) => Ok(vec![LayerKind::Full; layers]),
        (None, Some(window)) => LayerTypes::FullFirst(0).kinds(layers, window),
        // transformers would take a window of 4096, and mlx-lm none.
        (None, None) => Err(ConfigError::Missing {
            key: "sliding_window",
            needed_for: "Mistral models, as a number or null",
        }),
    }
}
