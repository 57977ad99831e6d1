//! Blocks whose modules stand between two norms.

use mlx_config::Layer;
use mlx_layers::{Attention, AttentionInput, Gate, GatedMlp, Parameters};
use mlx_norms::{OffsetRmsNorm, clip_residual};
use mlx_rs::Array;
use mlx_rs::error::Exception;
use mlx_rs::macros::ModuleParameters;
use mlx_rs::module::Module;

use crate::config::DecoderConfig;
use crate::model::DecoderBlock;

/// The block of Gemma models: attention, then the feed-forward network with GeGLU, each between two offset norms and added
/// to the residual stream.
///
/// ```text
/// h = x + post_attention_layernorm(attention(input_layernorm(x)))
/// y = h + post_feedforward_layernorm(mlp(pre_feedforward_layernorm(h)))
/// ```
///
/// The norm before a module keeps the size of its input independent of the size of the stream. The norm after it bounds
/// what the module adds to the stream. In float16 the sums are [clipped](clip_residual).
///
/// # Parameters
///
/// | key | shape |
/// |---|---|
/// | `self_attn.`, then the keys of [`Attention`] | |
/// | `mlp.`, then the keys of [`GatedMlp`] | |
/// | `input_layernorm.weight`, `post_attention_layernorm.weight` | `[D]` |
/// | `pre_feedforward_layernorm.weight`, `post_feedforward_layernorm.weight` | `[D]` |
///
/// # Reference
///
/// Ding et al., *CogView*, section 2.4, "Sandwich LayerNorm" (<https://arxiv.org/abs/2105.13290>).
#[derive(Debug, Clone, ModuleParameters)]
pub struct SandwichBlock {
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

impl DecoderBlock for SandwichBlock {
    type Norm = OffsetRmsNorm;

    fn forward(&mut self, AttentionInput { x, mask, cache }: AttentionInput<'_>) -> Result<Array, Exception> {
        let normed = self.input_layernorm.forward(x)?;
        let attended = self.self_attn.forward(AttentionInput { x: &normed, mask, cache })?;
        let h = clip_residual(x, &self.post_attention_layernorm.forward(&attended)?)?;

        let normed = self.pre_feedforward_layernorm.forward(&h)?;
        let fed = self.mlp.forward(&normed)?;
        clip_residual(&h, &self.post_feedforward_layernorm.forward(&fed)?)
    }

    fn new(config: &DecoderConfig, layer: &Layer, mut parameters: Parameters<'_>) -> Self {
        Self {
            self_attn: config.attention(layer, parameters.at("self_attn")),
            mlp: config.mlp(parameters.at("mlp"), Gate::GeluTanh),
            input_layernorm: config.norm(parameters.at("input_layernorm")),
            post_attention_layernorm: config.norm(parameters.at("post_attention_layernorm")),
            pre_feedforward_layernorm: config.norm(parameters.at("pre_feedforward_layernorm")),
            post_feedforward_layernorm: config.norm(parameters.at("post_feedforward_layernorm")),
        }
    }
}
