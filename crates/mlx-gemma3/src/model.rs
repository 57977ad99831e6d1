//! The block, and the model that is made of such blocks.

use mlx_config::ConfigError;
use mlx_decoder::{ConfigKeys, Decoder, DecoderBlock, DecoderConfig, Layer};
use mlx_layers::{Attention, AttentionInput, Gate, GatedMlp, NormOver, Parameters};
use mlx_norms::{OffsetRmsNorm, clip_residual};
use mlx_rs::Array;
use mlx_rs::error::Exception;
use mlx_rs::macros::ModuleParameters;
use mlx_rs::module::Module;

use crate::config::{self, OwnKeys};

/// A Gemma 3 language model.
pub type Gemma3 = Decoder<Block>;

/// Attention, then the feed-forward network, each between two norms and added to the residual stream.
#[derive(Debug, Clone, ModuleParameters)]
pub struct Block {
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

impl DecoderBlock for Block {
    type Keys = OwnKeys;
    type Norm = OffsetRmsNorm;
    const MULTIMODAL: Option<&'static str> = Some(config::MULTIMODAL);

    fn config(keys: ConfigKeys<OwnKeys>) -> Result<DecoderConfig, ConfigError> {
        config::validate(keys)
    }

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
            self_attn: Attention::with_norms(
                parameters.at("self_attn"),
                config.attention(layer),
                NormOver::EachHead,
                |weight| OffsetRmsNorm::new(weight, config.rms_norm_eps),
            ),
            mlp: config.mlp(parameters.at("mlp"), Gate::GeluTanh),
            input_layernorm: config.norm(parameters.at("input_layernorm")),
            post_attention_layernorm: config.norm(parameters.at("post_attention_layernorm")),
            pre_feedforward_layernorm: config.norm(parameters.at("pre_feedforward_layernorm")),
            post_feedforward_layernorm: config.norm(parameters.at("post_feedforward_layernorm")),
        }
    }
}
