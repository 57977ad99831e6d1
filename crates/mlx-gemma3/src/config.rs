//! The numbers that make one Gemma 3 model.

use mlx_causal_lm::{LoadError, ModelInfo, UnlikeMlxLm, digest, read_config};
use mlx_checkpoint::Checkpoint;
use mlx_config::{
    Bases, ConfigError, Layer, LayerTypes, context_length, epsilon, grouped_heads, layers, limits, off, only,
    positive, size, specs,
};
use mlx_rope::{MlxLmReads, RopeKeys};
use mlx_rs::Dtype;
use serde::Deserialize;

use crate::keys::{KeyLayout, MULTIMODAL, TEXT};

/// A validated config, from which a model can always be built.
///
/// Fields that are not explained are those of the config.
#[derive(Debug, Clone)]
pub struct Config {
    /// [`TEXT`] or [`MULTIMODAL`].
    pub model_type: &'static str,
    /// The names of the tensors.
    pub keys: KeyLayout,
    /// Features of the residual stream, D.
    pub hidden_size: i32,
    /// Features inside the feed-forward network.
    pub intermediate_size: i32,
    /// Query heads, H.
    pub num_attention_heads: i32,
    /// Key-value heads, H_kv, each shared by `H / H_kv` query heads.
    pub num_key_value_heads: i32,
    /// Features of a head, d. In these models it is not `D / H`.
    pub head_dim: i32,
    /// Tokens in the vocabulary, V.
    pub vocab_size: i32,
    /// The context length, in tokens.
    pub context_length: i32,
    /// The epsilon of every norm.
    pub rms_norm_eps: f32,
    /// The factor of the scores: `query_pre_attn_scalar^(-1/2)`.
    pub attention_scale: f32,
    /// Whether the projections of attention have a bias. No released model has.
    pub attention_bias: bool,
    /// The layers, first layer first.
    pub layers: Vec<Layer>,
    /// Whether the head has a weight of its own. Otherwise it is the embedding table.
    pub has_own_head: bool,
    /// Why mlx-lm rotates keys by other angles, if it does: see
    /// [`CausalLm::unlike_mlx_lm`](mlx_causal_lm::CausalLm::unlike_mlx_lm).
    pub rotation_unlike_mlx_lm: Option<&'static str>,
    /// The limit of soft-capped logits. Gemma 2 had one; the released Gemma 3 models have none.
    pub final_logit_softcapping: Option<f32>,
}

/// The part of the file's config that describes the language model.
#[derive(Deserialize)]
struct RawConfig {
    model_type: Option<String>,
    hidden_size: i64,
    intermediate_size: i64,
    num_hidden_layers: i64,
    num_attention_heads: Option<i64>,
    num_key_value_heads: Option<i64>,
    head_dim: Option<i64>,
    vocab_size: Option<i64>,
    max_position_embeddings: Option<i64>,
    rms_norm_eps: Option<f64>,
    query_pre_attn_scalar: Option<f64>,
    sliding_window: Option<i64>,
    layer_types: Option<Vec<String>>,
    sliding_window_pattern: Option<i64>,
    /// The name of the key above in configs that transformers saved.
    _sliding_window_pattern: Option<i64>,
    attention_bias: Option<bool>,
    hidden_activation: Option<String>,
    hidden_act: Option<String>,
    final_logit_softcapping: Option<f64>,
    attn_logit_softcapping: Option<f64>,
    use_bidirectional_attention: Option<bool>,
    tie_word_embeddings: Option<bool>,
}

/// The config of a model with a vision part. `T` reads the description of the language model.
#[derive(Deserialize)]
struct Multimodal<T> {
    text_config: T,
    vocab_size: Option<i64>,
    tie_word_embeddings: Option<bool>,
}

impl Config {
    /// Reads and validates the config of a checkpoint. The names of its tensors show which layout a `gemma3` checkpoint
    /// has and, together with the config, whether the head has a weight of its own.
    ///
    /// # Errors
    ///
    /// Where a key is missing, has the wrong type, or the values describe no model.
    pub fn from_checkpoint(checkpoint: &Checkpoint) -> Result<Self, LoadError> {
        let keys = KeyLayout::of(checkpoint);
        let (raw, rope) = match keys {
            KeyLayout::Text => read_config::<RawConfig>(checkpoint)?,
            KeyLayout::LanguageModel | KeyLayout::Inner => read_multimodal(checkpoint)?,
        };
        let has_own_head = checkpoint.has_own_head(keys.lm_head(), raw.tie_word_embeddings != Some(false));
        Self::validate(raw, &rope, keys, has_own_head)
            .map_err(|problem| LoadError::config(keys.model_type(), problem))
    }

    fn validate(
        raw: RawConfig,
        rope: &RopeKeys,
        keys: KeyLayout,
        has_own_head: bool,
    ) -> Result<Self, ConfigError> {
        // mlx-lm and transformers have different defaults for these keys, so the config must state them.
        let needed = |key, found: Option<i64>| {
            found.ok_or(ConfigError::Missing { key, needed_for: "models of type gemma3_text" })
        };
        let layer_types = match &raw.layer_types {
            Some(types) => LayerTypes::Listed(types),
            None => LayerTypes::FullEvery(pattern(&raw)?),
        };
        let num_hidden_layers = size("num_hidden_layers", raw.num_hidden_layers, limits::LAYERS)? as usize;
        let kinds = layer_types.kinds(num_hidden_layers, raw.sliding_window)?;

        let (num_attention_heads, num_key_value_heads) = grouped_heads(
            needed("num_attention_heads", raw.num_attention_heads)?,
            needed("num_key_value_heads", raw.num_key_value_heads)?,
        )?;
        // mlx-lm and transformers have the same defaults for the keys from here on.
        let head_dim = size("head_dim", raw.head_dim.unwrap_or(256), limits::HEAD_DIM)?;
        let scalar = positive("query_pre_attn_scalar", raw.query_pre_attn_scalar.unwrap_or(256.0))?;
        // 10 000 for local layers, which look no further than their window. 1 000 000 for global layers, so that more pairs
        // turn slowly enough to distinguish far positions.
        let bases = Bases { full: Some(1_000_000.0), sliding: Some(10_000.0) };
        let layers = layers(kinds, rope, bases, head_dim)?;
        let settings = rope.full_attention(bases.full)?;
        let rotation_unlike_mlx_lm =
            rope.unlike_mlx_lm(&settings, MlxLmReads::OldForm { default_base: Some(1_000_000.0) });

        only("hidden_activation", raw.hidden_activation.as_ref(), "gelu_pytorch_tanh")?;
        only("hidden_act", raw.hidden_act.as_ref(), "gelu_pytorch_tanh")?;
        off("use_bidirectional_attention", raw.use_bidirectional_attention)?;
        if let Some(found) = raw.attn_logit_softcapping {
            // transformers reads the key and does not apply it.
            let key = "attn_logit_softcapping";
            return Err(ConfigError::Unsupported { key, found: found.to_string(), only: "null" });
        }
        let softcap = raw.final_logit_softcapping.map(|cap| positive("final_logit_softcapping", cap));

        Ok(Self {
            model_type: keys.model_type(),
            keys,
            hidden_size: size("hidden_size", raw.hidden_size, limits::HIDDEN_SIZE)?,
            intermediate_size: size("intermediate_size", raw.intermediate_size, limits::INTERMEDIATE_SIZE)?,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            vocab_size: size("vocab_size", needed("vocab_size", raw.vocab_size)?, limits::VOCABULARY)?,
            context_length: context_length(
                "max_position_embeddings",
                needed("max_position_embeddings", raw.max_position_embeddings)?,
                rope,
            )?,
            rms_norm_eps: epsilon("rms_norm_eps", raw.rms_norm_eps.unwrap_or(1e-6))?,
            attention_scale: scalar.powf(-0.5) as f32,
            attention_bias: raw.attention_bias.unwrap_or(false),
            layers,
            has_own_head,
            rotation_unlike_mlx_lm,
            final_logit_softcapping: softcap.transpose()?.map(|cap| cap as f32),
        })
    }

    /// The facts that a runtime needs. The dtype of activations and the settings of adapters come from the weights.
    pub(crate) fn info(&self, dtype: Dtype, adapter_settings: Option<String>) -> ModelInfo {
        ModelInfo {
            model_type: self.model_type.to_owned(),
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
            unlike_mlx_lm: UnlikeMlxLm { rotation: self.rotation_unlike_mlx_lm, ignores_windows: false },
        }
    }
}

/// [`read_config`] for the config of a model with a vision part.
fn read_multimodal(checkpoint: &Checkpoint) -> Result<(RawConfig, RopeKeys), LoadError> {
    let rope = checkpoint.config::<Multimodal<RopeKeys>>()?.text_config;
    let raw = language_model(checkpoint.config()?);
    let raw = raw.map_err(|problem| LoadError::config(MULTIMODAL, problem))?;
    checkpoint.warn_ignored(rope.ignored().iter().map(|key| format!("text_config.{key}")));
    Ok((raw, rope))
}

/// The description of the language model, completed by the keys outside of it and by the defaults of transformers, which
/// the released configs of this type rely on.
fn language_model(config: Multimodal<RawConfig>) -> Result<RawConfig, ConfigError> {
    let Multimodal { text_config: mut raw, vocab_size, tie_word_embeddings } = config;
    only("text_config.model_type", raw.model_type.as_ref(), TEXT)?;
    let vocab_size = one_of(("vocab_size", vocab_size), ("text_config.vocab_size", raw.vocab_size))?;
    raw.vocab_size = vocab_size.or(Some(262_208));
    // The outer key counts, as in transformers, which saves the default as the inner one.
    raw.tie_word_embeddings = tie_word_embeddings.or(raw.tie_word_embeddings);
    raw.num_attention_heads.get_or_insert(8);
    raw.num_key_value_heads.get_or_insert(4);
    raw.max_position_embeddings.get_or_insert(131_072);
    Ok(raw)
}

/// After how many layers a global one comes, where no list gives the kind of each layer.
fn pattern(raw: &RawConfig) -> Result<usize, ConfigError> {
    let (first, second) = (raw.sliding_window_pattern, raw._sliding_window_pattern);
    let n = one_of(("sliding_window_pattern", first), ("_sliding_window_pattern", second))?.unwrap_or(6);
    Ok(size("sliding_window_pattern", n, limits::LAYERS)? as usize)
}

type Key = (&'static str, Option<i64>);

/// A number that a config may state under two keys, which must then agree.
fn one_of((first_key, first): Key, (second_key, second): Key) -> Result<Option<i64>, ConfigError> {
    match (first, second) {
        (Some(first), Some(second)) if first != second => {
            let (first, second) = (first.to_string(), second.to_string());
            Err(ConfigError::Contradiction { first_key, first, second_key, second })
        }
        (first, second) => Ok(first.or(second)),
    }
}
