//! The block, and the model that is made of such blocks.

use mlx_config::ConfigError;
use mlx_decoder::{ConfigKeys, Decoder, DecoderBlock, DecoderConfig, Layer};
use mlx_layers::{Attention, AttentionInput, Gate, GatedMlp, NormOver, Parameters};
use mlx_norms::RmsNorm;
use mlx_rs::Array;
use mlx_rs::error::Exception;
use mlx_rs::macros::ModuleParameters;
use mlx_rs::module::Module;

use crate::config::{self, OwnKeys};

/// An OLMo 3 language model.
pub type Olmo3 = Decoder<Block>;

/// Attention, then the feed-forward network, each followed by a norm and added to the residual stream.
#[derive(Debug, Clone, ModuleParameters)]
pub struct Block {
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

impl DecoderBlock for Block {
    type Keys = OwnKeys;
    type Norm = RmsNorm;

    fn config(keys: ConfigKeys<OwnKeys>) -> Result<DecoderConfig, ConfigError> {
        config::validate(&keys)
    }

    fn forward(&mut self, AttentionInput { x, mask, cache }: AttentionInput<'_>) -> Result<Array, Exception> {
        let attended = self.self_attn.forward(AttentionInput { x, mask, cache })?;
        let h = x.add(self.post_attention_layernorm.forward(&attended)?)?;
        let fed = self.mlp.forward(&h)?;
        h.add(self.post_feedforward_layernorm.forward(&fed)?)
    }

    fn new(config: &DecoderConfig, layer: &Layer, mut parameters: Parameters<'_>) -> Self {
        Self {
            self_attn: Attention::with_norms(
                parameters.at("self_attn"),
                config.attention(layer),
                NormOver::AllHeads,
                |weight| RmsNorm::new(weight, config.rms_norm_eps),
            ),
            mlp: config.mlp(parameters.at("mlp"), Gate::Silu),
            post_attention_layernorm: config.norm(parameters.at("post_attention_layernorm")),
            post_feedforward_layernorm: config.norm(parameters.at("post_feedforward_layernorm")),
        }
    }
}
