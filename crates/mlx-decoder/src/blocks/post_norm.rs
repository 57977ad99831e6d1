//! Blocks whose modules come before a norm.

use mlx_config::Layer;
use mlx_layers::{Attention, AttentionInput, Gate, GatedMlp, Parameters};
use mlx_norms::RmsNorm;
use mlx_rs::Array;
use mlx_rs::error::Exception;
use mlx_rs::macros::ModuleParameters;
use mlx_rs::module::Module;

use crate::config::DecoderConfig;
use crate::model::DecoderBlock;

/// The block of OLMo 2 and OLMo 3: attention, then a gated feed-forward network (SwiGLU), each followed by a norm and added
/// to the residual stream.
///
/// ```text
/// h = x + post_attention_layernorm(attention(x))
/// y = h + post_feedforward_layernorm(mlp(h))
/// ```
///
/// # Parameters
///
/// | key | shape |
/// |---|---|
/// | `self_attn.`, then the keys of [`Attention`] | |
/// | `post_attention_layernorm.weight` | `[D]` |
/// | `mlp.`, then the keys of [`GatedMlp`] | |
/// | `post_feedforward_layernorm.weight` | `[D]` |
///
/// # Reference
///
/// Team OLMo, *2 OLMo 2 Furious*, section 2.1 (<https://arxiv.org/abs/2501.00656>).
#[derive(Debug, Clone, ModuleParameters)]
pub struct PostNormBlock {
    #[param]
    self_attn: Attention<RmsNorm>,
    #[param]
    mlp: GatedMlp,
    #[param]
    post_attention_layernorm: RmsNorm,
    #[param]
    post_feedforward_layernorm: RmsNorm,
}

impl DecoderBlock for PostNormBlock {
    type Norm = RmsNorm;

    fn forward(&mut self, AttentionInput { x, mask, cache }: AttentionInput<'_>) -> Result<Array, Exception> {
        let attended = self.self_attn.forward(AttentionInput { x, mask, cache })?;
        let h = x.add(self.post_attention_layernorm.forward(&attended)?)?;
        let fed = self.mlp.forward(&h)?;
        h.add(self.post_feedforward_layernorm.forward(&fed)?)
    }

    fn new(config: &DecoderConfig, layer: &Layer, mut parameters: Parameters<'_>) -> Self {
        Self {
            self_attn: config.attention(layer, parameters.at("self_attn")),
            mlp: config.mlp(parameters.at("mlp"), Gate::Silu),
            post_attention_layernorm: config.norm(parameters.at("post_attention_layernorm")),
            post_feedforward_layernorm: config.norm(parameters.at("post_feedforward_layernorm")),
        }
    }
}
