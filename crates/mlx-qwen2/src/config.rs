//! How the config of a Qwen 2 model is read.

use mlx_causal_lm::UnlikeMlxLm;
use mlx_config::{ConfigError, SwitchedWindows, layers_alike, off, only};
use mlx_decoder::{ConfigKeys, DecoderArchitecture, DecoderConfig, PreNormBlock, needed};
use mlx_layers::AttentionBias;
use mlx_rope::MlxLmReads;
use serde::Deserialize;

/// The `model_type` of the checkpoints that this crate reads.
pub const MODEL_TYPE: &str = "qwen2";

/// The base that mlx-lm takes where it finds none. transformers takes 10 000, so the config must state it.
const BASE_OF_MLX_LM: f64 = 1_000_000.0;

/// The keys of a config beside those of all decoders.
#[derive(Debug, Deserialize)]
pub struct OwnKeys {
    use_sliding_window: Option<bool>,
    sliding_window: Option<i64>,
    max_window_layers: Option<i64>,
    hidden_act: Option<String>,
    rope_traditional: Option<bool>,
}

impl DecoderArchitecture for OwnKeys {
    type Block = PreNormBlock;

    fn config(keys: ConfigKeys<Self>) -> Result<DecoderConfig, ConfigError> {
        needed("num_key_value_heads", keys.decoder.num_key_value_heads)?;
        let windows = SwitchedWindows {
            use_sliding_window: keys.own.use_sliding_window,
            sliding_window: keys.own.sliding_window,
            max_window_layers: keys.own.max_window_layers,
            layer_types: keys.decoder.layer_types.as_deref(),
        };
        let layers = layers_alike(windows.kinds(keys.num_layers()?)?, &keys.rope, None, keys.head_dim()?)?;
        let rotation = keys.rope.uniform(None)?;
        let mlx_lm_reads = MlxLmReads::OldForm { default_base: Some(BASE_OF_MLX_LM) };
        only("hidden_act", keys.own.hidden_act.as_ref(), "silu")?;
        off("rope_traditional", keys.own.rope_traditional)?;
        Ok(DecoderConfig {
            attention_bias: AttentionBias::Inputs,
            unlike_mlx_lm: UnlikeMlxLm {
                rotation: keys.rope.unlike_mlx_lm(&rotation, mlx_lm_reads),
                ignores_windows: true,
            },
            ..keys.decoder(layers)?
        })
    }
}
