//! How the config of a Granite model is read.

use mlx_causal_lm::UnlikeMlxLm;
use mlx_config::{ConfigError, layers_alike, only, positive};
use mlx_decoder::{ConfigKeys, DecoderArchitecture, DecoderConfig, PreNormBlock, needed};
use mlx_kvcache::LayerKind;
use mlx_rope::MlxLmReads;
use serde::Deserialize;

/// The base of the rotation where the config states none, as in transformers. mlx-lm needs one.
const DEFAULT_BASE: f64 = 10_000.0;

/// The keys of a config beside those of all decoders.
#[derive(Debug, Deserialize)]
pub struct OwnKeys {
    embedding_multiplier: Option<f64>,
    attention_multiplier: Option<f64>,
    residual_multiplier: Option<f64>,
    logits_scaling: Option<f64>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    hidden_act: Option<String>,
}

impl DecoderArchitecture for OwnKeys {
    type Block = PreNormBlock;

    fn config(keys: ConfigKeys<Self>) -> Result<DecoderConfig, ConfigError> {
        let kinds = vec![LayerKind::Full; keys.num_layers()?];
        let layers = layers_alike(kinds, &keys.rope, Some(DEFAULT_BASE), keys.head_dim()?)?;
        let rotation = keys.rope.uniform(Some(DEFAULT_BASE))?;
        let mlx_lm_reads = MlxLmReads::OldForm { default_base: None };
        let own = &keys.own;
        only("hidden_act", own.hidden_act.as_ref(), "silu")?;
        Ok(DecoderConfig {
            attention_bias: own.attention_bias.unwrap_or(false).into(),
            mlp_bias: own.mlp_bias.unwrap_or(false),
            embedding_scale: factor("embedding_multiplier", own.embedding_multiplier)?,
            attention_scale: factor("attention_multiplier", own.attention_multiplier)?,
            residual_scale: factor("residual_multiplier", own.residual_multiplier)?,
            logits_divisor: factor("logits_scaling", own.logits_scaling)?,
            unlike_mlx_lm: UnlikeMlxLm {
                rotation: keys.rope.unlike_mlx_lm(&rotation, mlx_lm_reads),
                ignores_windows: false,
            },
            ..keys.decoder(layers)?
        })
    }
}

/// A factor, which the config must state: transformers would take 1 for each, which no released model has.
fn factor(key: &'static str, found: Option<f64>) -> Result<f32, ConfigError> {
    Ok(positive(key, needed(key, found)?)? as f32)
}
