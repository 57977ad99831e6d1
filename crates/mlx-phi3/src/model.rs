//! The model, from tokens to logits.

use mlx_causal_lm::{CausalLm, LoadError, LoadOptions, ModelInfo, activation_dtype};
use mlx_checkpoint::Checkpoint;
use mlx_kvcache::ModelCache;
use mlx_layers::{
    AttentionInput, Embedding, Linear, ParameterSource, Parameters, heads, swiglu_fused, through_blocks,
};
use mlx_norms::RmsNorm;
use mlx_rope::Rope;
use mlx_rs::Array;
use mlx_rs::error::Exception;
use mlx_rs::macros::ModuleParameters;
use mlx_rs::module::Module;

use crate::Config;

/// A Phi-3 language model.
#[derive(Debug, Clone, ModuleParameters)]
pub struct Phi3 {
    #[param]
    model: Transformer,
    /// `None` where the embedding table is the head.
    #[param]
    lm_head: Option<Linear>,
    /// The rotation of all layers.
    rope: Rope,
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
    mlp: Mlp,
}

/// Grouped-query attention with rotary positions.
#[derive(Debug, Clone, ModuleParameters)]
struct Attention {
    #[param]
    qkv_proj: Linear,
    #[param]
    o_proj: Linear,
    query_heads: i32,
    key_heads: i32,
    scale: f32,
}

/// The gated feed-forward network.
#[derive(Debug, Clone, ModuleParameters)]
struct Mlp {
    #[param]
    gate_up_proj: Linear,
    #[param]
    down_proj: Linear,
}

impl CausalLm for Phi3 {
    fn hidden_states(&mut self, tokens: &Array, cache: &mut ModelCache) -> Result<Array, Exception> {
        let Transformer { embed_tokens, layers, norm } = &mut self.model;
        let x = embed_tokens.forward(tokens)?; // [B, L] -> [B, L, D]
        // The rotation depends on the end of the prompt that is being read, not on the end of this call.
        let following = cache.expected_after(tokens.shape().last().copied().unwrap_or(0));
        let rope = &self.rope.followed_by(following);
        norm.forward(&through_blocks(layers, x, cache, |block, input| block.forward(input, rope))?)
    }

    fn head(&mut self, hidden: &Array) -> Result<Array, Exception> {
        match &mut self.lm_head {
            Some(lm_head) => lm_head.forward(hidden), // [B, L, D] -> [B, L, V]
            None => self.model.embed_tokens.as_linear(hidden),
        }
    }

    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn rotates_alike(&self, a: i32, b: i32) -> bool {
        self.rope.rotates_alike(a, b)
    }

    fn has_short_factors_at(&self, tokens: i32) -> bool {
        self.rope.has_short_factors_at(tokens)
    }
}

impl Block {
    fn forward(
        &mut self,
        AttentionInput { x, mask, cache }: AttentionInput<'_>,
        rope: &Rope,
    ) -> Result<Array, Exception> {
        let normed = self.input_layernorm.forward(x)?;
        let h = x.add(self.self_attn.forward(AttentionInput { x: &normed, mask, cache }, rope)?)?;
        h.add(self.mlp.forward(&self.post_attention_layernorm.forward(&h)?)?)
    }
}

impl Attention {
    fn forward(
        &mut self,
        AttentionInput { x, mask, cache }: AttentionInput<'_>,
        rope: &Rope,
    ) -> Result<Array, Exception> {
        let qkv = self.qkv_proj.forward(x)?; // [B, L, D] -> [B, L, (H + 2 H_kv) d]
        // [B, H, L, d] and twice [B, H_kv, L, d]
        let [queries, keys, values] = heads::split_fused(&qkv, self.query_heads, self.key_heads)?;
        let attended = heads::attend([&queries, &keys, &values], rope, self.scale, None, mask, cache)?;
        self.o_proj.forward(&attended) // [B, L, H d] -> [B, L, D]
    }
}

impl Mlp {
    fn forward(&mut self, x: &Array) -> Result<Array, Exception> {
        let gated = swiglu_fused(&self.gate_up_proj.forward(x)?)?; // [B, L, 2 F] -> [B, L, F]
        self.down_proj.forward(&gated)
    }
}

impl Phi3 {
    /// Builds the model of this config from a source of parameters.
    pub fn new(config: &Config, source: &mut dyn ParameterSource) -> Self {
        let Config { hidden_size, vocab_size, .. } = *config;
        let mut root = Parameters::root(source);
        let model = Transformer::new(config, root.at("model"));
        let head = || Linear::new(root.at("lm_head"), hidden_size, vocab_size);
        let lm_head = config.has_own_head.then(head);
        let info = config.info(activation_dtype(&[&model, &lm_head]), source.adapter_settings());
        Self { model, lm_head, rope: config.rope.clone(), info }
    }

    /// Builds the model of a checkpoint.
    ///
    /// # Errors
    ///
    /// Where the config describes no Phi-3 model, or the tensors are not those of that model.
    pub fn load(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<Self, LoadError> {
        let config = Config::from_checkpoint(checkpoint, options)?;
        let mut tensors = checkpoint.tensors()?;
        let model = Self::new(&config, &mut tensors);
        tensors.finish(|_| false)?;
        Ok(model)
    }
}

impl Transformer {
    fn new(config: &Config, mut parameters: Parameters<'_>) -> Self {
        let Config { hidden_size, vocab_size, num_hidden_layers, rms_norm_eps, .. } = *config;
        Self {
            embed_tokens: Embedding::new(parameters.at("embed_tokens"), vocab_size, hidden_size),
            layers: (0..num_hidden_layers)
                .map(|i| Block::new(config, parameters.index("layers", i)))
                .collect(),
            norm: RmsNorm::new(parameters.take("norm.weight", &[hidden_size]), rms_norm_eps),
        }
    }
}

impl Block {
    fn new(config: &Config, mut parameters: Parameters<'_>) -> Self {
        let mut norm = |key: &str| {
            RmsNorm::new(
                parameters.take(&format!("{key}.weight"), &[config.hidden_size]),
                config.rms_norm_eps,
            )
        };
        Self {
            input_layernorm: norm("input_layernorm"),
            post_attention_layernorm: norm("post_attention_layernorm"),
            self_attn: Attention::new(config, parameters.at("self_attn")),
            mlp: Mlp::new(config.hidden_size, config.intermediate_size, parameters.at("mlp")),
        }
    }
}

impl Attention {
    fn new(config: &Config, mut parameters: Parameters<'_>) -> Self {
        let Config { hidden_size, head_dim, .. } = *config;
        let (query_heads, key_heads) = (config.num_attention_heads, config.num_key_value_heads);
        let qkv_dim = (query_heads + 2 * key_heads) * head_dim;
        Self {
            qkv_proj: Linear::new(parameters.at("qkv_proj"), hidden_size, qkv_dim),
            o_proj: Linear::new(parameters.at("o_proj"), query_heads * head_dim, hidden_size),
            query_heads,
            key_heads,
            scale: heads::scale(head_dim),
        }
    }
}

impl Mlp {
    fn new(hidden_size: i32, intermediate_size: i32, mut parameters: Parameters<'_>) -> Self {
        Self {
            gate_up_proj: Linear::new(parameters.at("gate_up_proj"), hidden_size, 2 * intermediate_size),
            down_proj: Linear::new(parameters.at("down_proj"), intermediate_size, hidden_size),
        }
    }
}
