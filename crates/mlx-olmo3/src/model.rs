//! The model, from tokens to logits.

use mlx_causal_lm::{CausalLm, LoadError, ModelInfo, activation_dtype};
use mlx_checkpoint::Checkpoint;
use mlx_kvcache::ModelCache;
use mlx_layers::{
    AttentionInput, Embedding, Gate, GatedMlp, Linear, ParameterSource, Parameters, heads, through_blocks,
};
use mlx_norms::RmsNorm;
use mlx_rope::Rope;
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
    #[param]
    self_attn: Attention,
    #[param]
    mlp: GatedMlp,
    #[param]
    post_attention_layernorm: RmsNorm,
    #[param]
    post_feedforward_layernorm: RmsNorm,
}

/// Grouped-query attention with queries and keys normalized over all heads together.
#[derive(Debug, Clone, ModuleParameters)]
struct Attention {
    #[param]
    q_proj: Linear,
    #[param]
    k_proj: Linear,
    #[param]
    v_proj: Linear,
    #[param]
    o_proj: Linear,
    #[param]
    q_norm: RmsNorm,
    #[param]
    k_norm: RmsNorm,
    rope: Rope,
    num_heads: i32,
    num_kv_heads: i32,
    scale: f32,
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

impl Attention {
    fn forward(&mut self, AttentionInput { x, mask, cache }: AttentionInput<'_>) -> Result<Array, Exception> {
        // The norms are over the features of all heads together, before the heads are cut apart.
        let queries = self.q_norm.forward(&self.q_proj.forward(x)?)?; // [B, L, D] -> [B, L, H d]
        let keys = self.k_norm.forward(&self.k_proj.forward(x)?)?; // [B, L, D] -> [B, L, H_kv d]

        let queries = heads::split(&queries, self.num_heads)?; // [B, H, L, d]
        let keys = heads::split(&keys, self.num_kv_heads)?; // [B, H_kv, L, d]
        let values = heads::split(&self.v_proj.forward(x)?, self.num_kv_heads)?;

        let attended = heads::attend([&queries, &keys, &values], &self.rope, self.scale, mask, cache)?;
        self.o_proj.forward(&attended) // [B, L, H d] -> [B, L, D]
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
        let Config { hidden_size, intermediate_size, rms_norm_eps, .. } = *config;
        let mut layer_norm = |name| norm(&mut parameters, name, hidden_size, rms_norm_eps);
        Self {
            post_attention_layernorm: layer_norm("post_attention_layernorm"),
            post_feedforward_layernorm: layer_norm("post_feedforward_layernorm"),
            self_attn: Attention::new(config, layer, parameters.at("self_attn")),
            mlp: GatedMlp::new(parameters.at("mlp"), hidden_size, intermediate_size, Gate::Silu),
        }
    }
}

impl Attention {
    fn new(config: &Config, layer: &Layer, mut parameters: Parameters<'_>) -> Self {
        let Config { hidden_size, head_dim, rms_norm_eps, attention_bias, .. } = *config;
        let (queries, keys) = (config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim);
        let mut projection =
            |name, inputs, outputs| Linear::with_bias(parameters.at(name), inputs, outputs, attention_bias);
        Self {
            q_proj: projection("q_proj", hidden_size, queries),
            k_proj: projection("k_proj", hidden_size, keys),
            v_proj: projection("v_proj", hidden_size, keys),
            o_proj: projection("o_proj", queries, hidden_size),
            q_norm: norm(&mut parameters, "q_norm", queries, rms_norm_eps),
            k_norm: norm(&mut parameters, "k_norm", keys, rms_norm_eps),
            rope: layer.rope.clone(),
            num_heads: config.num_attention_heads,
            num_kv_heads: config.num_key_value_heads,
            // Keeps the variance of a product of d features at that of one feature.
            scale: f64::from(head_dim).powf(-0.5) as f32,
        }
    }
}

fn norm(parameters: &mut Parameters<'_>, name: &str, dims: i32, eps: f32) -> RmsNorm {
    RmsNorm::new(parameters.at(name).take("weight", &[dims]), eps)
}
