//! The model, from tokens to logits.

use mlx_causal_lm::{CausalLm, LoadError, ModelInfo, activation_dtype};
use mlx_checkpoint::Checkpoint;
use mlx_kvcache::ModelCache;
use mlx_layers::{
    Attention, AttentionInput, AttentionSettings, Embedding, Gate, GatedMlp, Linear, ParameterSource,
    Parameters, heads, through_blocks,
};
use mlx_norms::RmsNorm;
use mlx_rs::Array;
use mlx_rs::error::Exception;
use mlx_rs::macros::ModuleParameters;
use mlx_rs::module::Module;

use crate::{Config, Layer};

/// A Llama or Mistral language model.
#[derive(Debug, Clone, ModuleParameters)]
pub struct Llama {
    #[param]
    model: Transformer,
    #[param]
    lm_head: Option<Linear>,
    info: ModelInfo,
}

/// Embedding, blocks, final norm.
#[derive(Debug, Clone, ModuleParameters)]
struct Transformer {
    #[param]
    embed_tokens: Embedding,
    #[param]
    layers: Vec<Block>,
    #[param]
    norm: RmsNorm,
}

/// Attention, then the feed-forward network, each after a norm and added to the residual stream.
#[derive(Debug, Clone, ModuleParameters)]
struct Block {
    #[param]
    input_layernorm: RmsNorm,
    #[param]
    self_attn: Attention,
    #[param]
    post_attention_layernorm: RmsNorm,
    #[param]
    mlp: GatedMlp,
}

impl CausalLm for Llama {
    fn hidden_states(&mut self, tokens: &Array, cache: &mut ModelCache) -> Result<Array, Exception> {
        let Transformer { embed_tokens, layers, norm } = &mut self.model;
        let x = embed_tokens.forward(tokens)?; // [B, L] -> [B, L, D]
        norm.forward(&through_blocks(layers, x, cache, Block::forward)?)
    }

    fn head(&mut self, hidden: &Array) -> Result<Array, Exception> {
        // [B, L, D] -> [B, L, V]
        match &mut self.lm_head {
            Some(lm_head) => lm_head.forward(hidden),
            None => self.model.embed_tokens.as_linear(hidden),
        }
    }

    fn info(&self) -> &ModelInfo {
        &self.info
    }
}

impl Block {
    fn forward(&mut self, AttentionInput { x, mask, cache }: AttentionInput<'_>) -> Result<Array, Exception> {
        let normed = self.input_layernorm.forward(x)?;
        let h = x.add(self.self_attn.forward(AttentionInput { x: &normed, mask, cache })?)?;
        let normed = self.post_attention_layernorm.forward(&h)?;
        h.add(self.mlp.forward(&normed)?)
    }
}

impl Llama {
    /// Builds the model of this config from a source of parameters.
    pub fn new(config: &Config, source: &mut dyn ParameterSource) -> Self {
        let Config { hidden_size, vocab_size, .. } = *config;
        let mut root = Parameters::root(source);
        let model = Transformer::new(config, root.at("model"));
        let head = || Linear::new(root.at("lm_head"), hidden_size, vocab_size);
        let lm_head = config.has_own_head.then(head);
        let info = config.info(activation_dtype(&[&model, &lm_head]), source.adapter_settings());
        Self { model, lm_head, info }
    }

    /// Builds the model of a checkpoint.
    ///
    /// # Errors
    ///
    /// Where the config describes no Llama or Mistral model, or the tensors are not those of that model.
    pub fn load(checkpoint: &Checkpoint) -> Result<Self, LoadError> {
        let config = Config::from_checkpoint(checkpoint)?;
        let mut tensors = checkpoint.tensors()?;
        let model = Self::new(&config, &mut tensors);
        tensors.finish(|_| false)?;
        Ok(model)
    }
}

impl Transformer {
    fn new(config: &Config, mut parameters: Parameters<'_>) -> Self {
        let Config { hidden_size, vocab_size, rms_norm_eps, .. } = *config;
        let layers = config.layers.iter().enumerate();
        Self {
            embed_tokens: Embedding::new(parameters.at("embed_tokens"), vocab_size, hidden_size),
            layers: layers
                .map(|(i, layer)| Block::new(config, layer, parameters.index("layers", i)))
                .collect(),
            norm: RmsNorm::new(parameters.take("norm.weight", &[hidden_size]), rms_norm_eps),
        }
    }
}

impl Block {
    fn new(config: &Config, layer: &Layer, mut parameters: Parameters<'_>) -> Self {
        let Config { hidden_size, intermediate_size, head_dim, rms_norm_eps, mlp_bias, .. } = *config;
        let attention = AttentionSettings {
            dims: hidden_size,
            num_heads: config.num_attention_heads,
            num_kv_heads: config.num_key_value_heads,
            head_dim,
            bias: config.attention_bias.into(),
            rope: Some(layer.rope.clone()),
            scale: heads::scale(head_dim),
            softcap: None,
        };
        let norm = |weight| RmsNorm::new(weight, rms_norm_eps);
        Self {
            input_layernorm: norm(parameters.take("input_layernorm.weight", &[hidden_size])),
            self_attn: Attention::new(parameters.at("self_attn"), attention),
            post_attention_layernorm: norm(
                parameters.take("post_attention_layernorm.weight", &[hidden_size]),
            ),
            mlp: GatedMlp::with_bias(
                parameters.at("mlp"),
                hidden_size,
                intermediate_size,
                Gate::Silu,
                mlp_bias,
            ),
        }
    }
}
