//! The blocks that several architectures have.

use std::fmt::Debug;
use std::marker::PhantomData;

use mlx_config::{ConfigError, Layer};
use mlx_layers::{Attention, AttentionInput, Gate, GatedMlp, NormOver, Parameters, add_residual};
use mlx_norms::RmsNorm;
use mlx_rs::Array;
use mlx_rs::error::Exception;
use mlx_rs::macros::ModuleParameters;
use mlx_rs::module::Module;
use serde::de::DeserializeOwned;

use crate::{ConfigKeys, DecoderBlock, DecoderConfig};

/// How an architecture reads its config. It is what distinguishes architectures with the same block.
pub trait ReadConfig: Debug + Clone + Send {
    /// The keys of the config that the architecture reads beside [`DecoderKeys`](crate::DecoderKeys).
    type Keys: DeserializeOwned;
    /// The `model_type` of checkpoints that also have a vision part, if the architecture reads any.
    const MULTIMODAL: Option<&'static str> = None;

    /// Validates the config.
    ///
    /// # Errors
    ///
    /// Where a key is missing, or the values describe no model.
    fn config(keys: ConfigKeys<Self::Keys>) -> Result<DecoderConfig, ConfigError>;
}

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
/// | `self_attn.`, then the keys of [`Attention`] without norms | |
/// | `post_attention_layernorm.weight` | `[D]` |
/// | `mlp.`, then the keys of [`GatedMlp`] | |
///
/// # Reference
///
/// Touvron et al., *LLaMA*, section 2.2 (<https://arxiv.org/abs/2302.13971>).
#[derive(Debug, Clone, ModuleParameters)]
pub struct PreNormBlock<C: ReadConfig> {
    #[param]
    input_layernorm: RmsNorm,
    #[param]
    self_attn: Attention,
    #[param]
    post_attention_layernorm: RmsNorm,
    #[param]
    mlp: GatedMlp,
    residual_scale: f32,
    config: PhantomData<C>,
}

/// The block of OLMo 2 and OLMo 3: attention, then a gated feed-forward network (SwiGLU), each followed by a norm and added
/// to the residual stream. Queries and keys are normalized over all heads together.
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
/// | `self_attn.`, then the keys of [`Attention`] with norms over all heads | |
/// | `post_attention_layernorm.weight` | `[D]` |
/// | `mlp.`, then the keys of [`GatedMlp`] | |
/// | `post_feedforward_layernorm.weight` | `[D]` |
///
/// # Reference
///
/// Team OLMo, *2 OLMo 2 Furious*, section 2.1 (<https://arxiv.org/abs/2501.00656>).
#[derive(Debug, Clone, ModuleParameters)]
pub struct PostNormBlock<C: ReadConfig> {
    #[param]
    self_attn: Attention<RmsNorm>,
    #[param]
    mlp: GatedMlp,
    #[param]
    post_attention_layernorm: RmsNorm,
    #[param]
    post_feedforward_layernorm: RmsNorm,
    config: PhantomData<C>,
}

impl<C: ReadConfig> DecoderBlock for PreNormBlock<C> {
    type Keys = C::Keys;
    type Norm = RmsNorm;
    const MULTIMODAL: Option<&'static str> = C::MULTIMODAL;

    fn config(keys: ConfigKeys<C::Keys>) -> Result<DecoderConfig, ConfigError> {
        C::config(keys)
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
            config: PhantomData,
        }
    }
}

impl<C: ReadConfig> DecoderBlock for PostNormBlock<C> {
    type Keys = C::Keys;
    type Norm = RmsNorm;
    const MULTIMODAL: Option<&'static str> = C::MULTIMODAL;

    fn config(keys: ConfigKeys<C::Keys>) -> Result<DecoderConfig, ConfigError> {
        C::config(keys)
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
            config: PhantomData,
        }
    }
}
