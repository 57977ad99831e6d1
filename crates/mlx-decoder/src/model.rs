//! The model, from tokens to logits, around blocks of any kind.

use std::fmt::{self, Debug};

use mlx_causal_lm::{CausalLm, LoadError, ModelInfo, activation_dtype};
use mlx_checkpoint::Checkpoint;
use mlx_config::{ConfigError, Layer};
use mlx_kvcache::ModelCache;
use mlx_layers::{AttentionInput, Embedding, Linear, ParameterSource, Parameters, number, through_blocks};
use mlx_rs::Array;
use mlx_rs::error::Exception;
use mlx_rs::macros::ModuleParameters;
use mlx_rs::module::{Module, ModuleParamMut, ModuleParamRef, ModuleParameters};
use mlx_rs::ops::tanh;
use serde::de::DeserializeOwned;

use crate::config::{ConfigKeys, DecoderConfig};
use crate::layout::KeyLayout;
use crate::norm::DecoderNorm;

/// What distinguishes an architecture: how its config is read, and its block. It is implemented by the keys of the config that
/// the architecture reads beside [`DecoderKeys`](crate::DecoderKeys).
pub trait DecoderArchitecture: DeserializeOwned {
    /// The block of all layers.
    type Block: DecoderBlock;
    /// The `model_type` of checkpoints that also have a vision part, if the architecture reads any.
    const MULTIMODAL: Option<&'static str> = None;

    /// Validates the config.
    ///
    /// # Errors
    ///
    /// Where a key is missing, or the values describe no model.
    fn config(keys: ConfigKeys<Self>) -> Result<DecoderConfig, ConfigError>;
}

/// A block of a model: from the residual stream before it to the residual stream after it.
pub trait DecoderBlock: ModuleParameters + Debug + Clone + Send {
    /// The norm after the last block.
    type Norm: DecoderNorm;

    /// The block of this layer, with its parameters.
    fn new(config: &DecoderConfig, layer: &Layer, parameters: Parameters<'_>) -> Self;

    /// `[B, L, D]` to `[B, L, D]`.
    ///
    /// # Errors
    ///
    /// What its layers report.
    fn forward(&mut self, input: AttentionInput<'_>) -> Result<Array, Exception>;
}

/// A decoder-only language model: embedding, blocks, norm and head.
///
/// # Parameters
///
/// | key | shape |
/// |---|---|
/// | `model.embed_tokens.weight` | `[V, D]` |
/// | `model.layers.N.`, then the keys of the block | |
/// | `model.norm.weight` | `[D]` |
/// | `lm_head.weight`, where the head is not tied to the embedding | `[V, D]` |
///
/// [`KeyLayout`] lists other names.
pub struct Decoder<A: DecoderArchitecture> {
    parts: Parts<A::Block>,
    keys: KeyLayout,
    logits_divisor: f32,
    logits_cap: Option<f32>,
    info: ModelInfo,
}

/// The parts with parameters: the transformer, and the head where it has a weight of its own.
#[derive(Debug, Clone, ModuleParameters)]
struct Parts<B: DecoderBlock> {
    #[param]
    model: Transformer<B>,
    #[param]
    lm_head: Option<Linear>,
}

/// Embedding, blocks, final norm.
#[derive(Debug, Clone, ModuleParameters)]
struct Transformer<B: DecoderBlock> {
    #[param]
    embed_tokens: Embedding,
    #[param]
    layers: Vec<B>,
    #[param]
    norm: B::Norm,
    embedding_scale: f32,
}

// Derived, they would need these traits of the keys too.
impl<A: DecoderArchitecture> Clone for Decoder<A> {
    fn clone(&self) -> Self {
        let Self { parts, keys, logits_divisor, logits_cap, info } = self;
        let (parts, info) = (parts.clone(), info.clone());
        Self { parts, keys: *keys, logits_divisor: *logits_divisor, logits_cap: *logits_cap, info }
    }
}

impl<A: DecoderArchitecture> Debug for Decoder<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { parts, keys, logits_divisor, logits_cap, info } = self;
        f.debug_struct("Decoder")
            .field("parts", parts)
            .field("keys", keys)
            .field("logits_divisor", logits_divisor)
            .field("logits_cap", logits_cap)
            .field("info", info)
            .finish()
    }
}

impl<A: DecoderArchitecture> CausalLm for Decoder<A> {
    fn hidden_states(&mut self, tokens: &Array, cache: &mut ModelCache) -> Result<Array, Exception> {
        let Transformer { embed_tokens, layers, norm, embedding_scale } = &mut self.parts.model;
        let mut x = embed_tokens.forward(tokens)?; // [B, L] -> [B, L, D]
        if *embedding_scale != 1.0 {
            x = x.multiply(number(*embedding_scale, x.dtype())?)?;
        }
        norm.forward(&through_blocks(layers, x, cache, A::Block::forward)?)
    }

    fn head(&mut self, hidden: &Array) -> Result<Array, Exception> {
        // [B, L, D] -> [B, L, V]
        let mut logits = match &mut self.parts.lm_head {
            Some(lm_head) => lm_head.forward(hidden)?,
            None => self.parts.model.embed_tokens.as_linear(hidden)?,
        };
        if self.logits_divisor != 1.0 {
            logits = logits.divide(number(self.logits_divisor, logits.dtype())?)?;
        }
        match self.logits_cap {
            Some(cap) => softcap(&logits, cap),
            None => Ok(logits),
        }
    }

    fn info(&self) -> &ModelInfo {
        &self.info
    }
}

/// Limits numbers smoothly to `-cap..cap`, in their dtype: those far below the cap hardly change.
///
/// # Errors
///
/// What MLX reports.
///
/// # Reference
///
/// Gemma Team, *Gemma 2*, section 2, "Logit soft-capping" (<https://arxiv.org/abs/2408.00118>).
pub fn softcap(logits: &Array, cap: f32) -> Result<Array, Exception> {
    let cap = number(cap, logits.dtype())?;
    tanh(logits.divide(&cap)?)?.multiply(cap)
}

impl<A: DecoderArchitecture> Decoder<A> {
    /// Reads and validates the config of a checkpoint. The names of its tensors show which layout it has and, together
    /// with the config, whether the head has a weight of its own.
    ///
    /// # Errors
    ///
    /// Where a key is missing, has the wrong type, or the values describe no model.
    pub fn config(checkpoint: &Checkpoint) -> Result<DecoderConfig, LoadError> {
        let keys = ConfigKeys::read(checkpoint, A::MULTIMODAL)?;
        A::config(keys).map_err(|problem| LoadError::config(checkpoint.model_type(), problem))
    }

    /// Builds the model of this config from a source of parameters.
    pub fn new(config: &DecoderConfig, source: &mut dyn ParameterSource) -> Self {
        let DecoderConfig { keys, logits_divisor, logits_cap, .. } = *config;
        let parts = Parts::new(config, Parameters::root(source));
        let info = config.info(activation_dtype(&[&parts]), source.adapter_settings());
        Self { parts, keys, logits_divisor, logits_cap, info }
    }

    /// Builds the model of a checkpoint.
    ///
    /// # Errors
    ///
    /// Where the config describes no model of this architecture, or the tensors are not those of that model.
    pub fn load(checkpoint: &Checkpoint) -> Result<Self, LoadError> {
        let config = Self::config(checkpoint)?;
        let mut tensors = checkpoint.tensors()?;
        let model = Self::new(&config, &mut tensors);
        tensors.finish(|key| config.keys.ignores(key))?;
        Ok(model)
    }
}

impl<B: DecoderBlock> Parts<B> {
    fn new(config: &DecoderConfig, mut root: Parameters<'_>) -> Self {
        let DecoderConfig { hidden_size, vocab_size, keys, .. } = *config;
        let head = |parameters: Parameters<'_>| Linear::new(parameters, hidden_size, vocab_size);
        Self {
            model: Transformer::new(config, root.at(keys.model())),
            lm_head: config.has_own_head.then(|| head(root.at(keys.lm_head()))),
        }
    }
}

impl<B: DecoderBlock> Transformer<B> {
    fn new(config: &DecoderConfig, mut parameters: Parameters<'_>) -> Self {
        let DecoderConfig { hidden_size, vocab_size, embedding_scale, .. } = *config;
        let layers = config.layers.iter().enumerate();
        Self {
            embed_tokens: Embedding::new(parameters.at("embed_tokens"), vocab_size, hidden_size),
            layers: layers.map(|(i, layer)| B::new(config, layer, parameters.index("layers", i))).collect(),
            norm: config.norm(parameters.at("norm")),
            embedding_scale,
        }
    }
}

/// The parameters of the language model, under the names of the checkpoint.
impl<A: DecoderArchitecture> ModuleParameters for Decoder<A> {
    fn num_parameters(&self) -> usize {
        self.parts.num_parameters()
    }

    fn parameters(&self) -> ModuleParamRef<'_> {
        self.keys.wrap(self.parts.parameters())
    }

    fn parameters_mut(&mut self) -> ModuleParamMut<'_> {
        self.keys.wrap(self.parts.parameters_mut())
    }

    fn trainable_parameters(&self) -> ModuleParamRef<'_> {
        self.keys.wrap(self.parts.trainable_parameters())
    }

    fn freeze_parameters(&mut self, recursive: bool) {
        self.parts.freeze_parameters(recursive);
    }

    fn unfreeze_parameters(&mut self, recursive: bool) {
        self.parts.unfreeze_parameters(recursive);
    }

    fn all_frozen(&self) -> Option<bool> {
        self.parts.all_frozen()
    }

    fn any_frozen(&self) -> Option<bool> {
        self.parts.any_frozen()
    }
}
