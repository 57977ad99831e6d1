//! The model, from tokens to logits.

use mlx_causal_lm::{CausalLm, LoadError, ModelInfo, activation_dtype};
use mlx_checkpoint::Checkpoint;
use mlx_kvcache::ModelCache;
use mlx_layers::{
    AttentionInput, Embedding, Linear, ParameterSource, Parameters, heads, swiglu, through_blocks,
};
use mlx_norms::RmsNorm;
use mlx_rope::Rope;
use mlx_rs::Array;
use mlx_rs::error::Exception;
use mlx_rs::macros::ModuleParameters;
use mlx_rs::module::Module;

use crate::Config;

/// A Lille language model.
#[derive(Debug, Clone, ModuleParameters)]
pub struct Lille130m {
    #[param]
    transformer: Transformer,
    info: ModelInfo,
}

/// Embedding, blocks, final norm; the embedding table is the head as well.
#[derive(Debug, Clone, ModuleParameters)]
struct Transformer {
    #[param]
    tok_embeddings: Embedding,
    #[param]
    layers: Vec<Block>,
    #[param]
    norm: RmsNorm,
}

/// Attention, then the feed-forward network, each added to the residual stream.
#[derive(Debug, Clone, ModuleParameters)]
struct Block {
    #[param]
    attention: Attention,
    #[param]
    feed_forward: FeedForward,
}

/// Grouped-query attention with rotary positions, after its own norm.
#[derive(Debug, Clone, ModuleParameters)]
struct Attention {
    #[param]
    norm: RmsNorm,
    #[param]
    qkv_proj: Linear,
    #[param]
    out_proj: Linear,
    rope: Rope,
    n_head: i32,
    n_kv_heads: i32,
    scale: f32,
}

/// The gated feed-forward network, after its own norm.
#[derive(Debug, Clone, ModuleParameters)]
struct FeedForward {
    #[param]
    norm: RmsNorm,
    #[param]
    gate_proj: Linear,
    #[param]
    up_proj: Linear,
    #[param]
    down_proj: Linear,
}

impl CausalLm for Lille130m {
    fn hidden_states(&mut self, tokens: &Array, cache: &mut ModelCache) -> Result<Array, Exception> {
        let Transformer { tok_embeddings, layers, norm } = &mut self.transformer;
        let x = tok_embeddings.forward(tokens)?; // [B, L] -> [B, L, D]
        norm.forward(&through_blocks(layers, x, cache, Block::forward)?)
    }

    fn head(&mut self, hidden: &Array) -> Result<Array, Exception> {
        self.transformer.tok_embeddings.as_linear(hidden) // [B, L, D] -> [B, L, V]
    }

    fn info(&self) -> &ModelInfo {
        &self.info
    }
}

impl Block {
    fn forward(&mut self, AttentionInput { x, mask, cache }: AttentionInput<'_>) -> Result<Array, Exception> {
        let h = x.add(self.attention.forward(AttentionInput { x, mask, cache })?)?;
        h.add(self.feed_forward.forward(&h)?)
    }
}

impl Attention {
    fn forward(&mut self, AttentionInput { x, mask, cache }: AttentionInput<'_>) -> Result<Array, Exception> {
        // One product for queries, keys and values: [B, L, D] -> [B, L, (H + 2 H_kv) * d]
        let qkv = self.qkv_proj.forward(&self.norm.forward(x)?)?;
        // [B, H, L, d] and twice [B, H_kv, L, d]
        let [queries, keys, values] = heads::split_fused(&qkv, self.n_head, self.n_kv_heads)?;
        let attended = heads::attend([&queries, &keys, &values], &self.rope, self.scale, None, mask, cache)?;
        self.out_proj.forward(&attended) // [B, L, H d] -> [B, L, D]
    }
}

impl FeedForward {
    fn forward(&mut self, x: &Array) -> Result<Array, Exception> {
        let h = self.norm.forward(x)?;
        let gated = swiglu(&self.gate_proj.forward(&h)?, &self.up_proj.forward(&h)?)?; // [B, L, hidden]
        self.down_proj.forward(&gated)
    }
}

impl Lille130m {
    /// Builds the model of this config from a source of parameters.
    pub fn new(config: &Config, source: &mut dyn ParameterSource) -> Self {
        let mut root = Parameters::root(source);
        let transformer = Transformer::new(config, root.at("transformer"));
        let info = config.info(activation_dtype(&[&transformer]), source.adapter_settings());
        Self { transformer, info }
    }

    /// Builds the model of a checkpoint.
    ///
    /// # Errors
    ///
    /// Where the config describes no Lille model, or the tensors are not those of that model.
    pub fn load(checkpoint: &Checkpoint) -> Result<Self, LoadError> {
        let config = Config::from_checkpoint(checkpoint)?;
        let mut tensors = checkpoint.tensors()?;
        let model = Self::new(&config, &mut tensors);
        // Training code may save the tables of the rotation's frequencies with the weights. The rotation computes them from
        // `rope_theta`.
        tensors.finish(|key| key.contains("rotary_emb"))?;
        Ok(model)
    }
}

impl Transformer {
    fn new(config: &Config, mut parameters: Parameters<'_>) -> Self {
        let Config { n_embd, vocab_size, n_layer, norm_eps, .. } = *config;
        Self {
            tok_embeddings: Embedding::new(parameters.at("tok_embeddings"), vocab_size, n_embd),
            layers: (0..n_layer).map(|i| Block::new(config, parameters.index("layers", i))).collect(),
            norm: RmsNorm::new(parameters.take("norm.weight", &[n_embd]), norm_eps),
        }
    }
}

impl Block {
    fn new(config: &Config, mut parameters: Parameters<'_>) -> Self {
        Self {
            attention: Attention::new(config, parameters.at("attention")),
            feed_forward: FeedForward::new(config, parameters.at("feed_forward")),
        }
    }
}

impl Attention {
    fn new(config: &Config, mut parameters: Parameters<'_>) -> Self {
        let Config { n_embd, n_head, n_kv_heads, head_dim, norm_eps, .. } = *config;
        let qkv_dim = (n_head + 2 * n_kv_heads) * head_dim;
        Self {
            norm: RmsNorm::new(parameters.take("norm.weight", &[n_embd]), norm_eps),
            qkv_proj: Linear::new(parameters.at("qkv_proj"), n_embd, qkv_dim),
            out_proj: Linear::new(parameters.at("out_proj"), n_head * head_dim, n_embd),
            rope: config.rope.clone(),
            n_head,
            n_kv_heads,
            scale: heads::scale(head_dim),
        }
    }
}

impl FeedForward {
    fn new(config: &Config, mut parameters: Parameters<'_>) -> Self {
        let Config { n_embd, hidden_dim, norm_eps, .. } = *config;
        Self {
            norm: RmsNorm::new(parameters.take("norm.weight", &[n_embd]), norm_eps),
            gate_proj: Linear::new(parameters.at("gate_proj"), n_embd, hidden_dim),
            up_proj: Linear::new(parameters.at("up_proj"), n_embd, hidden_dim),
            down_proj: Linear::new(parameters.at("down_proj"), hidden_dim, n_embd),
        }
    }
}
