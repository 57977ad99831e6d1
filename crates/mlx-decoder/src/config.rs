//! The numbers of a model, and the keys of a config that they come from.

use mlx_causal_lm::{LoadError, ModelInfo, UnlikeMlxLm, digest, read_config};
use mlx_checkpoint::Checkpoint;
use mlx_config::{
    ConfigError, Layer, context_length, epsilon, grouped_heads, head_dim, limits, on, size, specs,
};
use mlx_layers::{Attention, AttentionBias, AttentionSettings, Gate, GatedMlp, NormOver, Parameters, heads};
use mlx_rope::RopeKeys;
use mlx_rs::Dtype;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::layout::KeyLayout;
use crate::norm::DecoderNorm;

/// The numbers of a model, from which it can always be built. An architecture gets them from [`ConfigKeys::decoder`], which
/// validates them, and then sets those in which it differs.
#[derive(Debug, Clone)]
pub struct DecoderConfig {
    /// The `model_type` of the config.
    pub model_type: String,
    /// The names of its tensors.
    pub keys: KeyLayout,
    /// Features of the residual stream, D.
    pub hidden_size: i32,
    /// Features inside the feed-forward network.
    pub intermediate_size: i32,
    /// Query heads, H.
    pub num_attention_heads: i32,
    /// Key-value heads, H_kv, each shared by `H / H_kv` query heads.
    pub num_key_value_heads: i32,
    /// Features of a head, d.
    pub head_dim: i32,
    /// Tokens in the vocabulary, V.
    pub vocab_size: i32,
    /// The context length, in tokens.
    pub context_length: i32,
    /// The epsilon of every norm.
    pub rms_norm_eps: f32,
    /// The layers, first layer first.
    pub layers: Vec<Layer>,
    /// Over what queries and keys are normalized before they are rotated: they are not (`None`), where the architecture says
    /// nothing else.
    pub query_key_norms: Option<NormOver>,
    /// Which projections of attention have a bias: none, where the architecture says nothing else.
    pub attention_bias: AttentionBias,
    /// What scores are multiplied by: `1 / sqrt(d)`, where the architecture says nothing else.
    pub attention_scale: f32,
    /// The cap of [soft-capped](AttentionSettings::softcap) scores: `None`, where the architecture says nothing else.
    pub attention_cap: Option<f32>,
    /// Whether the projections of the feed-forward network have a bias: no, where the architecture says nothing else.
    pub mlp_bias: bool,
    /// What the outputs of attention and of the feed-forward network are multiplied by before they are added to the stream,
    /// with [`add_residual`](mlx_layers::add_residual): 1, where the architecture says nothing else.
    pub residual_scale: f32,
    /// What embedded tokens are multiplied by, in the dtype of the embedding: 1, where the architecture says nothing else.
    pub embedding_scale: f32,
    /// What logits are divided by: 1, where the architecture says nothing else.
    pub logits_divisor: f32,
    /// The limit of [soft-capped](crate::softcap) logits: `None`, where the architecture says nothing else.
    pub logits_cap: Option<f32>,
    /// Whether the head has a weight of its own. Otherwise it is the embedding table.
    pub has_own_head: bool,
    /// Where mlx-lm computes other keys and values.
    pub unlike_mlx_lm: UnlikeMlxLm,
}

impl DecoderConfig {
    /// The attention of a layer, with parameters from this view. `N` is the norm of queries and keys.
    pub fn attention<N: DecoderNorm>(&self, layer: &Layer, parameters: Parameters<'_>) -> Attention<N> {
        let settings = AttentionSettings {
            dims: self.hidden_size,
            num_heads: self.num_attention_heads,
            num_kv_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
            bias: self.attention_bias,
            rope: layer.rope.clone(),
            scale: self.attention_scale,
            softcap: self.attention_cap,
        };
        let norm = |weight| N::new(weight, self.rms_norm_eps);
        Attention::with_norms(parameters, settings, self.query_key_norms, norm)
    }

    /// A feed-forward network with parameters from this view.
    pub fn mlp(&self, parameters: Parameters<'_>, gate: Gate) -> GatedMlp {
        GatedMlp::with_bias(parameters, self.hidden_size, self.intermediate_size, gate, self.mlp_bias)
    }

    /// A norm over the residual stream, with the parameter `weight`, `[D]`, of this view.
    pub fn norm<N: DecoderNorm>(&self, mut parameters: Parameters<'_>) -> N {
        N::new(parameters.take("weight", &[self.hidden_size]), self.rms_norm_eps)
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
            rotations: self
                .layers
                .iter()
                .map(|layer| layer.rope.as_ref().map(|rope| rope.rotation()))
                .collect(),
            dtype,
            // Keys and values depend on all fields but these.
            config_digest: digest(&Self {
                context_length: 0,
                unlike_mlx_lm: UnlikeMlxLm::default(),
                ..self.clone()
            }),
            adapter_settings,
            unlike_mlx_lm: self.unlike_mlx_lm,
        }
    }
}

/// The keys of a config: those of nearly all models, the rotation's, and the architecture's `own`.
#[derive(Debug)]
pub struct ConfigKeys<Own> {
    /// The keys that configs of nearly all models have.
    pub decoder: DecoderKeys,
    /// The keys of rotations.
    pub rope: RopeKeys,
    /// The other keys of the architecture.
    pub own: Own,
    /// The names of the tensors.
    pub layout: KeyLayout,
    model_type: String,
    head_in_checkpoint: bool,
}

/// The keys that the configs of nearly all models have, with the meaning of the fields of [`DecoderConfig`]. A key that is
/// an `Option` may be missing in some architectures, which then fill in their default before they call
/// [`ConfigKeys::decoder`].
#[derive(Debug, Deserialize)]
pub struct DecoderKeys {
    /// The `model_type` of the language model where the config also describes a vision part; otherwise that of the
    /// config.
    pub model_type: Option<String>,
    #[expect(missing_docs, reason = "named like the field of DecoderConfig")]
    pub hidden_size: i64,
    #[expect(missing_docs, reason = "named like the field of DecoderConfig")]
    pub intermediate_size: i64,
    /// The number of layers.
    pub num_hidden_layers: i64,
    #[expect(missing_docs, reason = "named like the field of DecoderConfig")]
    pub num_attention_heads: Option<i64>,
    /// Without it, each query head has a key-value head.
    pub num_key_value_heads: Option<i64>,
    /// Without it, the stream is cut into query heads.
    pub head_dim: Option<i64>,
    #[expect(missing_docs, reason = "named like the field of DecoderConfig")]
    pub vocab_size: Option<i64>,
    /// The context length, before the scaling of the rotation is applied.
    pub max_position_embeddings: Option<i64>,
    #[expect(missing_docs, reason = "named like the field of DecoderConfig")]
    pub rms_norm_eps: Option<f64>,
    /// Which layers have a window, by name.
    pub layer_types: Option<Vec<String>>,
    /// Whether the embedding table is the head, if the checkpoint has no other. Without it, no.
    pub tie_word_embeddings: Option<bool>,
    /// Whether tokens attend to those before them only, as in every language model. Embedding models state that they do not.
    pub is_causal: Option<bool>,
}

/// The config of a model with a vision part. `T` reads the description of the language model.
#[derive(Deserialize)]
struct Nested<T> {
    text_config: T,
}

/// The keys beside `text_config` that count for the language model.
#[derive(Deserialize)]
struct Outer {
    vocab_size: Option<i64>,
    tie_word_embeddings: Option<bool>,
}

impl<Own: DeserializeOwned> ConfigKeys<Own> {
    /// Reads the config of a checkpoint. `multimodal` is the `model_type` of checkpoints that also have a vision part, and
    /// describe the language model under `text_config`.
    pub(crate) fn read(checkpoint: &Checkpoint, multimodal: Option<&str>) -> Result<Self, LoadError> {
        let layout = KeyLayout::of(checkpoint, multimodal);
        let (decoder, rope, own) = match layout {
            KeyLayout::Text => {
                let (own, rope) = read_config(checkpoint)?;
                (checkpoint.config()?, rope, own)
            }
            KeyLayout::LanguageModel | KeyLayout::Inner => {
                let Nested { text_config: mut decoder } = checkpoint.config::<Nested<DecoderKeys>>()?;
                decoder
                    .complete(checkpoint.config()?)
                    .map_err(|e| LoadError::config(checkpoint.model_type(), e))?;
                let Nested { text_config: rope } = checkpoint.config::<Nested<RopeKeys>>()?;
                let Nested { text_config: own } = checkpoint.config::<Nested<Own>>()?;
                checkpoint.warn_ignored(rope.ignored().iter().map(|key| format!("text_config.{key}")));
                (decoder, rope, own)
            }
        };
        let model_type = checkpoint.model_type().to_owned();
        let head_in_checkpoint = checkpoint.has_own_head(layout.lm_head(), true);
        Ok(Self { decoder, rope, own, layout, model_type, head_in_checkpoint })
    }
}

impl DecoderKeys {
    /// Adds the keys outside of the description of the language model.
    fn complete(&mut self, outer: Outer) -> Result<(), ConfigError> {
        self.vocab_size = mlx_config::one_of(
            ("vocab_size", outer.vocab_size),
            ("text_config.vocab_size", self.vocab_size),
        )?;
        // The outer key counts, as in transformers, which saves the default as the inner one.
        self.tie_word_embeddings = outer.tie_word_embeddings.or(self.tie_word_embeddings);
        Ok(())
    }
}

impl<Own> ConfigKeys<Own> {
    /// The number of layers.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Size`].
    pub fn num_layers(&self) -> Result<usize, ConfigError> {
        Ok(size("num_hidden_layers", self.decoder.num_hidden_layers, limits::LAYERS)? as usize)
    }

    /// The features of a head, d.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Size`], [`ConfigError::Multiple`] and [`ConfigError::Missing`].
    pub fn head_dim(&self) -> Result<i32, ConfigError> {
        let hidden_size = size("hidden_size", self.decoder.hidden_size, limits::HIDDEN_SIZE)?;
        head_dim(self.decoder.head_dim, hidden_size, self.heads()?.0)
    }

    /// The numbers of query heads and of key-value heads.
    fn heads(&self) -> Result<(i32, i32), ConfigError> {
        let queries = needed("num_attention_heads", self.decoder.num_attention_heads)?;
        grouped_heads(queries, self.decoder.num_key_value_heads.unwrap_or(queries))
    }

    /// The numbers of a model with these layers. Those that not all models have get the values that change nothing.
    ///
    /// # Errors
    ///
    /// Where a key is missing, or the values describe no model.
    pub fn decoder(&self, layers: Vec<Layer>) -> Result<DecoderConfig, ConfigError> {
        let keys = &self.decoder;
        let head_dim = self.head_dim()?;
        let (num_attention_heads, num_key_value_heads) = self.heads()?;
        let context = ("max_position_embeddings", keys.max_position_embeddings);
        on("is_causal", keys.is_causal)?;
        Ok(DecoderConfig {
            model_type: self.model_type.clone(),
            keys: self.layout,
            hidden_size: size("hidden_size", keys.hidden_size, limits::HIDDEN_SIZE)?,
            intermediate_size: size("intermediate_size", keys.intermediate_size, limits::INTERMEDIATE_SIZE)?,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            vocab_size: size("vocab_size", needed("vocab_size", keys.vocab_size)?, limits::VOCABULARY)?,
            context_length: context_length(context.0, needed(context.0, context.1)?, &self.rope)?,
            rms_norm_eps: epsilon("rms_norm_eps", needed("rms_norm_eps", keys.rms_norm_eps)?)?,
            layers,
            query_key_norms: None,
            attention_bias: AttentionBias::None,
            attention_scale: heads::scale(head_dim),
            attention_cap: None,
            mlp_bias: false,
            residual_scale: 1.0,
            embedding_scale: 1.0,
            logits_divisor: 1.0,
            logits_cap: None,
            has_own_head: self.head_in_checkpoint || keys.tie_word_embeddings != Some(true),
            unlike_mlx_lm: UnlikeMlxLm::default(),
        })
    }
}

/// The value of a key that must not be missing.
///
/// # Errors
///
/// [`ConfigError::Missing`].
pub fn needed<T>(key: &'static str, found: Option<T>) -> Result<T, ConfigError> {
    found.ok_or(ConfigError::Missing { key, needed_for: "models of this type" })
}
