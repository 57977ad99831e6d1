//! How the config of a Qwen 3 model is read.

use mlx_causal_lm::UnlikeMlxLm;
use mlx_config::{ConfigError, SwitchedWindows, layers_alike, off, only};
use mlx_decoder::{ConfigKeys, DecoderArchitecture, DecoderConfig, PreNormBlock, needed};
use mlx_layers::NormOver;
use mlx_rope::MlxLmReads;
use serde::Deserialize;

/// The `model_type` of the checkpoints that this crate reads.
pub const MODEL_TYPE: &str = "qwen3";

/// The keys of a config beside those of all decoders.
#[derive(Debug, Deserialize)]
pub struct OwnKeys {
    use_sliding_window: Option<bool>,
    sliding_window: Option<i64>,
    max_window_layers: Option<i64>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    hidden_act: Option<String>,
}

impl DecoderArchitecture for OwnKeys {
    type Block = PreNormBlock;

    fn config(mut keys: ConfigKeys<Self>) -> Result<DecoderConfig, ConfigError> {
        needed("num_key_value_heads", keys.decoder.num_key_value_heads)?;
        // Some configs lack the key; transformers then takes 128. The shapes of the tensors show whether it is right.
        keys.decoder.head_dim.get_or_insert(128);
        let windows = SwitchedWindows {
            use_sliding_window: keys.own.use_sliding_window,
            sliding_window: keys.own.sliding_window,
            max_window_layers: keys.own.max_window_layers,
            layer_types: keys.decoder.layer_types.as_deref(),
        };
        let kinds = windows.kinds(keys.num_layers()?)?;
        let layers = layers_alike(kinds, &keys.rope, None, keys.head_dim()?)?;
        let rotation = keys.rope.full_attention(None)?;
        only("hidden_act", keys.own.hidden_act.as_ref(), "silu")?;
        off("mlp_bias", keys.own.mlp_bias)?;
        Ok(DecoderConfig {
            query_key_norms: Some(NormOver::EachHead),
            attention_bias: keys.own.attention_bias.unwrap_or(false).into(),
            unlike_mlx_lm: UnlikeMlxLm {
                rotation: keys.rope.unlike_mlx_lm(&rotation, MlxLmReads::BothForms),
                ignores_windows: true,
            },
            ..keys.decoder(layers)?
        })
    }
}
