//! How the config of an OLMo 2 model is read.

use mlx_causal_lm::UnlikeMlxLm;
use mlx_config::{ConfigError, layers_alike, off, only};
use mlx_decoder::{ConfigKeys, DecoderArchitecture, DecoderConfig, PostNormBlock};
use mlx_kvcache::LayerKind;
use mlx_layers::NormOver;
use mlx_rope::MlxLmReads;
use serde::Deserialize;

/// The `model_type` of the checkpoints that this crate reads.
pub const MODEL_TYPE: &str = "olmo2";

/// The base of the rotation where the config states none, as in both references. The released models have 500 000.
const DEFAULT_BASE: f64 = 10_000.0;

/// The keys of a config beside those of all decoders.
#[derive(Debug, Deserialize)]
pub struct OwnKeys {
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    hidden_act: Option<String>,
    rope_traditional: Option<bool>,
}

impl DecoderArchitecture for OwnKeys {
    type Block = PostNormBlock;

    fn config(keys: ConfigKeys<Self>) -> Result<DecoderConfig, ConfigError> {
        let kinds = vec![LayerKind::Full; keys.num_layers()?];
        let layers = layers_alike(kinds, &keys.rope, Some(DEFAULT_BASE), keys.head_dim()?)?;
        let rotation = keys.rope.uniform(Some(DEFAULT_BASE))?;
        let mlx_lm_reads = MlxLmReads::OldForm { default_base: Some(DEFAULT_BASE) };
        only("hidden_act", keys.own.hidden_act.as_ref(), "silu")?;
        off("mlp_bias", keys.own.mlp_bias)?;
        off("rope_traditional", keys.own.rope_traditional)?;
        Ok(DecoderConfig {
            query_key_norms: Some(NormOver::AllHeads),
            attention_bias: keys.own.attention_bias.unwrap_or(false).into(),
            unlike_mlx_lm: UnlikeMlxLm {
                rotation: keys.rope.unlike_mlx_lm(&rotation, mlx_lm_reads),
                ignores_windows: false,
            },
            ..keys.decoder(layers)?
        })
    }
}
