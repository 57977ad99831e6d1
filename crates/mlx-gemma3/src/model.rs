//! The model, from tokens to logits.

use mlx_causal_lm::{CausalLm, LoadError, ModelInfo, activation_dtype};
use mlx_checkpoint::Checkpoint;
use mlx_kvcache::ModelCache;
use mlx_layers::{
    Attention, AttentionInput, AttentionSettings, Embedding, Gate, GatedMlp, Linear, NormOver,
    ParameterSource, Parameters, through_blocks,
};
use mlx_norms::{OffsetRmsNorm, clip_residual};
use mlx_rs::error::Exception;
use mlx_rs::macros::ModuleParameters;
use mlx_rs::module::{Module, ModuleParamMut, ModuleParamRef, ModuleParameters};
use mlx_rs::ops::tanh;
use mlx_rs::{Array, Dtype};

use crate::{Config, KeyLayout, Layer};

/// A Gemma 3 language model.
#[derive(Debug, Clone)]
pub struct Gemma3 {
    text: Text,
    keys: KeyLayout,
    final_logit_softcapping: Option<f32>,
    info: ModelInfo,
}

/// The transformer, and the head where it has a weight of its own.
#[derive(Debug, Clone, ModuleParameters)]
struct Text {
    #[param]
    model: Transformer,
    #[param]
    lm_head: Option<Linear>,
}

/// Scaled embedding, blocks, final norm.
#[derive(Debug, Clone, ModuleParameters)]
struct Transformer {
    #[param]
    embed_tokens: Embedding,
    #[param]
    layers: Vec<Block>,
    #[param]
    norm: OffsetRmsNorm,
    embedding_scale: f32,
}

/// Attention, then the feed-forward network, each between two norms and added to the residual stream.
#[derive(Debug, Clone, ModuleParameters)]
struct Block {
    #[param]
    self_attn: Attention<OffsetRmsNorm>,
    #[param]
    mlp: GatedMlp,
    #[param]
    input_layernorm: OffsetRmsNorm,
    #[param]
    post_attention_layernorm: OffsetRmsNorm,
    #[param]
    pre_feedforward_layernorm: OffsetRmsNorm,
    #[param]
    post_feedforward_layernorm: OffsetRmsNorm,
}

impl CausalLm for Gemma3 {
    fn hidden_states(&mut self, tokens: &Array, cache: &mut ModelCache) -> Result<Array, Exception> {
        let Transformer { embed_tokens, layers, norm, embedding_scale } = &mut self.text.model;
        let x = embed_tokens.forward(tokens)?; // [B, L] -> [B, L, D]
        let x = through_blocks(layers, scale_embedding(&x, *embedding_scale)?, cache, Block::forward)?;
        norm.forward(&x)
    }

    fn head(&mut self, hidden: &Array) -> Result<Array, Exception> {
        // [B, L, D] -> [B, L, V]
        let logits = match &mut self.text.lm_head {
            Some(lm_head) => lm_head.forward(hidden)?,
            None => self.text.model.embed_tokens.as_linear(hidden)?,
        };
        match self.final_logit_softcapping {
            Some(cap) => softcap(&logits, cap),
            None => Ok(logits),
        }
    }

    fn info(&self) -> &ModelInfo {
        &self.info
    }
}

impl Block {
    fn forward(&mut self, AttentionInput { x, mask, cache }: AttentionInput<'_>) -> Result<Array, Exception> {
        let normed = self.input_layernorm.forward(x)?;
        let attended = self.self_attn.forward(AttentionInput { x: &normed, mask, cache })?;
        let h = clip_residual(x, &self.post_attention_layernorm.forward(&attended)?)?;

        let normed = self.pre_feedforward_layernorm.forward(&h)?;
        let fed = self.mlp.forward(&normed)?;
        clip_residual(&h, &self.post_feedforward_layernorm.forward(&fed)?)
    }
}

/// The embedding times `scale`, in the dtype of the embedding.
fn scale_embedding(x: &Array, scale: f32) -> Result<Array, Exception> {
    // Rounded to bfloat16 for every dtype: in training the factor was a bfloat16 number, such as 25.25 for the square root
    // of 640, and the weights were learned with it.
    let scale = Array::from_f32(scale).as_dtype(Dtype::Bfloat16)?;
    x.multiply(scale.as_dtype(x.dtype())?)
}

/// Limits logits smoothly to `-cap..cap`: small logits hardly change.
fn softcap(logits: &Array, cap: f32) -> Result<Array, Exception> {
    let cap = Array::from_f32(cap).as_dtype(logits.dtype())?;
    tanh(logits.divide(&cap)?)?.multiply(cap)
}

impl Gemma3 {
    /// Builds the model of this config from a source of parameters.
    pub fn new(config: &Config, source: &mut dyn ParameterSource) -> Self {
        let text = Text::new(config, Parameters::root(source));
        let info = config.info(activation_dtype(&[&text]), source.adapter_settings());
        let Config { keys, final_logit_softcapping, .. } = *config;
        Self { text, keys, final_logit_softcapping, info }
    }

    /// Builds the model of a checkpoint.
    ///
    /// # Errors
    ///
    /// Where the config describes no Gemma 3 model, or the tensors are not those of that model.
    pub fn load(checkpoint: &Checkpoint) -> Result<Self, LoadError> {
        let config = Config::from_checkpoint(checkpoint)?;
        let mut tensors = checkpoint.tensors()?;
        let model = Self::new(&config, &mut tensors);
        tensors.finish(|key| config.keys.ignores(key))?;
        Ok(model)
    }
}

impl Text {
    fn new(config: &Config, mut root: Parameters<'_>) -> Self {
        let Config { hidden_size, vocab_size, keys, .. } = *config;
        let head = |parameters: Parameters<'_>| Linear::new(parameters, hidden_size, vocab_size);
        Self {
            model: Transformer::new(config, root.at(keys.model())),
            lm_head: config.has_own_head.then(|| head(root.at(keys.lm_head()))),
        }
    }
}

impl Transformer {
    fn new(config: &Config, mut parameters: Parameters<'_>) -> Self {
        let Config { hidden_size, vocab_size, .. } = *config;
        let layers = config.layers.iter().enumerate();
        Self {
            embed_tokens: Embedding::new(parameters.at("embed_tokens"), vocab_size, hidden_size),
            layers: layers
                .map(|(i, layer)| Block::new(config, layer, parameters.index("layers", i)))
                .collect(),
            norm: norm(&mut parameters, "norm", hidden_size, config.rms_norm_eps),
            // The table is also the head, so its features are small. The factor scales them to the size of the blocks'
            // outputs.
            embedding_scale: f64::from(hidden_size).sqrt() as f32,
        }
    }
}

impl Block {
    fn new(config: &Config, layer: &Layer, mut parameters: Parameters<'_>) -> Self {
        let Config { hidden_size, intermediate_size, rms_norm_eps, .. } = *config;
        let attention = AttentionSettings {
            dims: hidden_size,
            num_heads: config.num_attention_heads,
            num_kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            bias: config.attention_bias.into(),
            rope: Some(layer.rope.clone()),
            scale: config.attention_scale,
            softcap: None,
        };
        let head_norm = |weight| OffsetRmsNorm::new(weight, rms_norm_eps);
        let mut layer_norm = |name| norm(&mut parameters, name, hidden_size, rms_norm_eps);
        Self {
            input_layernorm: layer_norm("input_layernorm"),
            post_attention_layernorm: layer_norm("post_attention_layernorm"),
            pre_feedforward_layernorm: layer_norm("pre_feedforward_layernorm"),
            post_feedforward_layernorm: layer_norm("post_feedforward_layernorm"),
            self_attn: Attention::with_norms(
                parameters.at("self_attn"),
                attention,
                NormOver::EachHead,
                head_norm,
            ),
            mlp: GatedMlp::new(parameters.at("mlp"), hidden_size, intermediate_size, Gate::GeluTanh),
        }
    }
}

fn norm(parameters: &mut Parameters<'_>, name: &str, dims: i32, eps: f32) -> OffsetRmsNorm {
    OffsetRmsNorm::new(parameters.at(name).take("weight", &[dims]), eps)
}

/// The parameters of the language model, under the names of the checkpoint.
impl ModuleParameters for Gemma3 {
    fn num_parameters(&self) -> usize {
        self.text.num_parameters()
    }

    fn parameters(&self) -> ModuleParamRef<'_> {
        self.keys.wrap(self.text.parameters())
    }

    fn parameters_mut(&mut self) -> ModuleParamMut<'_> {
        self.keys.wrap(self.text.parameters_mut())
    }

    fn trainable_parameters(&self) -> ModuleParamRef<'_> {
        self.keys.wrap(self.text.trainable_parameters())
    }

    fn freeze_parameters(&mut self, recursive: bool) {
        self.text.freeze_parameters(recursive);
    }

    fn unfreeze_parameters(&mut self, recursive: bool) {
        self.text.unfreeze_parameters(recursive);
    }

    fn all_frozen(&self) -> Option<bool> {
        self.text.all_frozen()
    }

    fn any_frozen(&self) -> Option<bool> {
        self.text.any_frozen()
    }
}
