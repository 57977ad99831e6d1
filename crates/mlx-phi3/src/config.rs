//! The numbers that make one Phi-3 model.

use mlx_causal_lm::{LoadError, LoadOptions, LongRopeMode, ModelInfo, UnlikeMlxLm, digest, read_config};
use mlx_checkpoint::Checkpoint;
use mlx_config::{
    ConfigError, context_length, epsilon, grouped_heads, head_dim, limits, off, on, only, size,
};
use mlx_kvcache::{LayerKind, LayerSpec};
use mlx_rope::{MlxLmReads, Rope, RopeKeys, RopeLayout, RopeScaling};
use mlx_rs::Dtype;
use serde::Deserialize;

/// The `model_type` of the checkpoints that this crate reads.
pub const MODEL_TYPE: &str = "phi3";

/// `rope_theta` for configs without the key, as in transformers and mlx-lm.
const DEFAULT_BASE: f64 = 10_000.0;

/// A validated config, from which a model can always be built. The numbers in
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
    /// Features of a head, d (96). Where the config does not state them, `D / H`.
    pub head_dim: i32,
    /// Tokens in the vocabulary, V (32064).
    pub vocab_size: i32,
    /// The context length, in tokens (4096).
    pub context_length: i32,
    /// How many tokens a query attends to, including its own (2047). `None` for all tokens.
    pub sliding_window: Option<i32>,
    /// The epsilon of every norm (1e-5).
    pub rms_norm_eps: f32,
    /// Whether the head has a weight of its own (yes). Otherwise it is the embedding table.
    pub has_own_head: bool,
    /// The rotation of queries and keys.
    pub rope: Rope,
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
    is_causal: Option<bool>,
    layer_types: Option<Vec<String>>,
}

impl Config {
    /// Reads and validates the config of a checkpoint.
    ///
    /// # Errors
    ///
    /// Where a key is missing, has the wrong type, or the values describe no model.
    pub fn from_checkpoint(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<Self, LoadError> {
        let (raw, rope) = read_config::<RawConfig>(checkpoint)?;
        let has_own_head = checkpoint.has_own_head("lm_head", raw.tie_word_embeddings == Some(true));
        Self::validate(raw, &rope, has_own_head, options.long_rope)
            .map_err(|problem| LoadError::config(MODEL_TYPE, problem))
    }

    fn validate(
        raw: RawConfig,
        rope: &RopeKeys,
        has_own_head: bool,
        long_rope: LongRopeMode,
    ) -> Result<Self, ConfigError> {
        let hidden_size = size("hidden_size", raw.hidden_size, limits::HIDDEN_SIZE)?;
        let intermediate_size = size("intermediate_size", raw.intermediate_size, limits::INTERMEDIATE_SIZE)?;
        let num_hidden_layers = size("num_hidden_layers", raw.num_hidden_layers, limits::LAYERS)? as usize;
        let key_heads = raw.num_key_value_heads.unwrap_or(raw.num_attention_heads);
        let (num_attention_heads, num_key_value_heads) = grouped_heads(raw.num_attention_heads, key_heads)?;
        let head_dim = head_dim(raw.head_dim, hidden_size, num_attention_heads)?;
        let window = |window| size("sliding_window", window, limits::TOKENS);
        let sliding_window = raw.sliding_window.map(window).transpose()?;

        only("hidden_act", raw.hidden_act.as_ref(), "silu")?;
        off("attention_bias", raw.attention_bias)?;
        off("mlp_bias", raw.mlp_bias)?;
        off("lm_head_bias", raw.lm_head_bias)?;
        on("is_causal", raw.is_causal)?;
        let unsupported = |key, found, only| Err(ConfigError::Unsupported { key, found, only });
        if let Some(found) = raw.layer_types {
            return unsupported("layer_types", format!("{found:?}"), "layers of one kind");
        }

        let rotation = rope.uniform(Some(DEFAULT_BASE))?.with_long_rope_mode(long_rope);
        let layout = match raw.rope_traditional {
            Some(true) => RopeLayout::Interleaved,
            _ => RopeLayout::Halves,
        };
        match &rotation.scaling {
            RopeScaling::LongRope(_) if layout == RopeLayout::Interleaved => {
                return unsupported("rope_traditional", "true".to_owned(), "false for longrope");
            }
            RopeScaling::Default | RopeScaling::Linear { .. } | RopeScaling::LongRope(_) => {}
            other => {
                let found = format!("{:?}", other.rope_type());
                return unsupported("rope_type", found, "default, linear, longrope and su");
            }
        }
        Ok(Self {
            hidden_size,
            intermediate_size,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            vocab_size: size("vocab_size", raw.vocab_size, limits::VOCABULARY)?,
            context_length: context_length("max_position_embeddings", raw.max_position_embeddings, rope)?,
            sliding_window,
            rms_norm_eps: epsilon("rms_norm_eps", raw.rms_norm_eps)?,
            has_own_head,
            rotation_unlike_mlx_lm: rope
                .unlike_mlx_lm(&rotation, MlxLmReads::OldForm { default_base: Some(DEFAULT_BASE) }),
            rope: rotation.rope(head_dim, layout)?,
        })
    }

    /// The facts that a runtime needs. The dtype of activations and the settings of adapters come from the weights.
    pub(crate) fn info(&self, dtype: Dtype, adapter_settings: Option<String>) -> ModelInfo {
        let kind = self.sliding_window.map_or(LayerKind::Full, |window| LayerKind::Sliding { window });
        let (heads, head_dim) = (self.num_key_value_heads, self.head_dim);
        let layer = LayerSpec { kind, heads, key_dim: head_dim, value_dim: head_dim };
        ModelInfo {
            model_type: MODEL_TYPE.to_owned(),
            vocab_size: self.vocab_size,
            context_length: self.context_length,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            query_heads: self.num_attention_heads,
            layers: vec![layer; self.num_hidden_layers],
            rotations: vec![Some(self.rope.rotation()); self.num_hidden_layers],
            dtype,
            // Keys and values depend on all fields but these.
            config_digest: digest(&Self { context_length: 0, rotation_unlike_mlx_lm: None, ..self.clone() }),
            adapter_settings,
            unlike_mlx_lm: UnlikeMlxLm { rotation: self.rotation_unlike_mlx_lm, ignores_windows: true },
        }
    }
}
