//! The block, and the model that is made of such blocks.

use mlx_config::ConfigError;
use mlx_decoder::{ConfigKeys, Decoder, DecoderBlock, DecoderConfig, Layer};
use mlx_layers::{Attention, AttentionInput, Gate, GatedMlp, Parameters, add_residual};
use mlx_norms::RmsNorm;
use mlx_rs::Array;
use mlx_rs::error::Exception;
use mlx_rs::macros::ModuleParameters;
use mlx_rs::module::Module;

use crate::config::{self, OwnKeys};

/// A Granite language model.
pub type Granite = Decoder<Block>;

/// Attention, then the feed-forward network, each after a norm and added to the residual stream with a factor.
#[derive(Debug, Clone, ModuleParameters)]
pub struct Block {
    #[param]
    input_layernorm: RmsNorm,
    #[param]
    self_attn: Attention,
    #[param]
    post_attention_layernorm: RmsNorm,
    #[param]
    mlp: GatedMlp,
    residual_scale: f32,
}

impl DecoderBlock for Block {
    type Keys = OwnKeys;
    type Norm = RmsNorm;

    fn config(keys: ConfigKeys<OwnKeys>) -> Result<DecoderConfig, ConfigError> {
        config::validate(&keys)
    }

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
            self_attn: Attention::new(parameters.at("self_attn"), config.attention(layer)),
            post_attention_layernorm: config.norm(parameters.at("post_attention_layernorm")),
            mlp: config.mlp(parameters.at("mlp"), Gate::Silu),
            residual_scale: config.residual_scale,
        }
    }
}
