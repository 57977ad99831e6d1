//! The model, from tokens to logits.

use mlx_causal_lm::{CausalLm, LoadError, ModelInfo, activation_dtype};
use mlx_checkpoint::Checkpoint;
use mlx_kvcache::ModelCache;
use mlx_layers::{
    Attention, AttentionInput, AttentionSettings, Embedding, Gate, GatedMlp, Linear, NormOver,
    ParameterSource, Parameters, heads, through_blocks,
};
use mlx_norms::RmsNorm;
use mlx_rs::Array;
use mlx_rs::error::Exception;
use mlx_rs::macros::ModuleParameters;
use mlx_rs::module::Module;

use crate::{Config, Layer};

/// An OLMo 3 language model.
#[derive(Debug, Clone, ModuleParameters)]
pub struct Olmo3 {
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

/// Attention, then the feed-forward network, each followed by a norm and added to the residual stream.
#[derive(Debug, Clone, ModuleParameters)]
struct Block {
    /// With queries and keys normalized over all heads together.
    #[param]
    self_attn: Attention<RmsNorm>,
    #[param]
    mlp: GatedMlp,
    #[param]
    post_attention_layernorm: RmsNorm,
    #[param]
    post_feedforward_layernorm: RmsNorm,
}

impl CausalLm for Olmo3 {
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
        let attended = self.self_attn.forward(AttentionInput { x, mask, cache })?;
        let h = x.add(self.post_attention_layernorm.forward(&attended)?)?;
        let fed = self.mlp.forward(&h)?;
        h.add(self.post_feedforward_layernorm.forward(&fed)?)
    }
}

impl Olmo3 {
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
    /// Where the config describes no OLMo 3 model, or the tensors are not those of that model.
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
            norm: norm(&mut parameters, "norm", hidden_size, rms_norm_eps),
        }
    }
}

impl Block {
    fn new(config: &Config, layer: &Layer, mut parameters: Parameters<'_>) -> Self {
        let Config { hidden_size, intermediate_size, head_dim, rms_norm_eps, .. } = *config;
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
        let head_norm = |weight| RmsNorm::new(weight, rms_norm_eps);
        let mut layer_norm = |name| norm(&mut parameters, name, hidden_size, rms_norm_eps);
        Self {
            post_attention_layernorm: layer_norm("post_attention_layernorm"),
            post_feedforward_layernorm: layer_norm("post_feedforward_layernorm"),
            self_attn: Attention::with_norms(
                parameters.at("self_attn"),
                attention,
                NormOver::AllHeads,
                head_norm,
            ),
            mlp: GatedMlp::new(parameters.at("mlp"), hidden_size, intermediate_size, Gate::Silu),
        }
    }
}

fn norm(parameters: &mut Parameters<'_>, name: &str, dims: i32, eps: f32) -> RmsNorm {
    RmsNorm::new(parameters.at(name).take("weight", &[dims]), eps)
}
