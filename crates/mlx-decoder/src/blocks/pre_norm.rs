//! Blocks whose modules come after a norm.

use mlx_config::Layer;
use mlx_layers::{Attention, AttentionInput, Gate, GatedMlp, Parameters, add_residual};
use mlx_norms::RmsNorm;
use mlx_rs::Array;
use mlx_rs::error::Exception;
use mlx_rs::macros::ModuleParameters;
use mlx_rs::module::Module;

use crate::config::DecoderConfig;
use crate::model::DecoderBlock;

/// The block of Llama: attention, then a gated feed-forward network (SwiGLU), each after a norm and added to the residual
/// stream, `s` being [`residual_scale`](DecoderConfig::residual_scale).
///
/// ```text
/// h = x + s attention(input_layernorm(x))
/// y = h + s mlp(post_attention_layernorm(h))
/// ```
///
/// # Parameters
///
/// | key | shape |
/// |---|---|
/// | `input_layernorm.weight` | `[D]` |
/// | `self_attn.`, then the keys of [`Attention`] | |
/// | `post_attention_layernorm.weight` | `[D]` |
/// | `mlp.`, then the keys of [`GatedMlp`] | |
///
/// # Reference
///
/// Touvron et al., *LLaMA*, section 2.2 (<https://arxiv.org/abs/2302.13971>).
#[derive(Debug, Clone, ModuleParameters)]
pub struct PreNormBlock {
    #[param]
    input_layernorm: RmsNorm,
    #[param]
    self_attn: Attention<RmsNorm>,
    #[param]
    post_attention_layernorm: RmsNorm,
    #[param]
    mlp: GatedMlp,
    residual_scale: f32,
}

impl DecoderBlock for PreNormBlock {
    type Norm = RmsNorm;

    fn forward(&mut self, AttentionInput { x, mask, cache }: AttentionInput<'_>) -> Result<Array, Exception> {
        let normed = self.input_layernorm.forward(x)?;
        let attended = self.self_attn.forward(AttentionInput { x: &normed, mask, cache })?;
        let h = add_residual(x, &attended, self.residual_scale)?;
        let normed = self.post_attention_layernorm.forward(&h)?;
        add_residual(&h, &self.mlp.forward(&normed)?, self.residual_scale)
    }

    fn new(config: &DecoderConfig, layer: &Layer, mut parameters: Parameters<'_>) -> Self {
        Self {
            input_layernorm: config.norm(parameters.at("input_layernorm")),
            self_attn: config.attention(layer, parameters.at("self_attn")),
            post_attention_layernorm: config.norm(parameters.at("post_attention_layernorm")),
            mlp: config.mlp(parameters.at("mlp"), Gate::Silu),
            residual_scale: config.residual_scale,
        }
    }
}
