//! How the config of an OLMo 3 model is read.

use mlx_causal_lm::UnlikeMlxLm;
use mlx_config::{Bases, ConfigError, LayerTypes, layers, off, only};
use mlx_decoder::{ConfigKeys, DecoderArchitecture, DecoderConfig, PostNormBlock};
use mlx_layers::NormOver;
use mlx_rope::MlxLmReads;
use serde::Deserialize;

/// The `model_type` of the checkpoints that this crate reads.
pub const MODEL_TYPE: &str = "olmo3";

/// The keys of a config beside those of all decoders.
#[derive(Debug, Deserialize)]
pub struct OwnKeys {
    sliding_window: Option<i64>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    hidden_act: Option<String>,
}

impl DecoderArchitecture for OwnKeys {
    type Block = PostNormBlock;

    fn config(keys: ConfigKeys<Self>) -> Result<DecoderConfig, ConfigError> {
        let layer_types = match &keys.decoder.layer_types {
            Some(types) => LayerTypes::Listed(types),
            // Three layers with a window, then a full layer, and so on.
            None => LayerTypes::FullEvery(4),
        };
        let kinds = layer_types.kinds(keys.num_layers()?, keys.own.sliding_window)?;
        let layers = layers(kinds, &keys.rope, Bases::default(), keys.head_dim()?)?;
        let rotation = keys.rope.full_attention(None)?;
        let mlx_lm_reads = MlxLmReads::OldForm { default_base: None };
        only("hidden_act", keys.own.hidden_act.as_ref(), "silu")?;
        off("mlp_bias", keys.own.mlp_bias)?;
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
