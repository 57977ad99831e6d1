//! How the config of a SmolLM3 model is read.

use mlx_causal_lm::UnlikeMlxLm;
use mlx_config::{ConfigError, Layer, LayerTypes, layers_alike, limits, off, only, rotating, size};
use mlx_decoder::{ConfigKeys, DecoderArchitecture, DecoderConfig, PreNormBlock, needed};
use mlx_kvcache::LayerKind;
use mlx_rope::MlxLmReads;
use serde::Deserialize;

/// The `model_type` of the checkpoints that this crate reads.
pub const MODEL_TYPE: &str = "smollm3";

/// The base that mlx-lm takes where it finds none. transformers has another default, so the config must state it.
const MLX_LM_BASE: f64 = 10_000.0;

/// `no_rope_layer_interval`, where the config states none, as in both references.
const DEFAULT_INTERVAL: i64 = 4;

/// The keys of a config beside those of all decoders.
#[derive(Debug, Deserialize)]
pub struct OwnKeys {
    no_rope_layers: Option<Vec<i64>>,
    no_rope_layer_interval: Option<i64>,
    use_sliding_window: Option<bool>,
    sliding_window: Option<i64>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    hidden_act: Option<String>,
    rope_traditional: Option<bool>,
}

impl DecoderArchitecture for OwnKeys {
    type Block = PreNormBlock;

    fn config(mut keys: ConfigKeys<Self>) -> Result<DecoderConfig, ConfigError> {
        // The references have different defaults: as many as query heads, and 4.
        needed("num_key_value_heads", keys.decoder.num_key_value_heads)?;
        // Tied, as in both references.
        keys.decoder.tie_word_embeddings.get_or_insert(true);
        let rotation = keys.rope.uniform(None)?;
        let mlx_lm_reads = MlxLmReads::OldForm { default_base: Some(MLX_LM_BASE) };
        only("hidden_act", keys.own.hidden_act.as_ref(), "silu")?;
        off("rope_traditional", keys.own.rope_traditional)?;
        Ok(DecoderConfig {
            attention_bias: keys.own.attention_bias.unwrap_or(false).into(),
            mlp_bias: keys.own.mlp_bias.unwrap_or(false),
            unlike_mlx_lm: UnlikeMlxLm {
                rotation: keys.rope.unlike_mlx_lm(&rotation, mlx_lm_reads),
                ignores_windows: keys.decoder.layer_types.is_none(),
            },
            ..keys.decoder(layers(&keys)?)?
        })
    }
}

/// The layers, with a rotation in those that `no_rope_layers` or `no_rope_layer_interval` says.
fn layers(keys: &ConfigKeys<OwnKeys>) -> Result<Vec<Layer>, ConfigError> {
    let interval = keys.own.no_rope_layer_interval.unwrap_or(DEFAULT_INTERVAL);
    let rotating = rotating(keys.own.no_rope_layers.as_deref(), interval, keys.num_layers()?)?;
    let layers = layers_alike(kinds(keys, &rotating)?, &keys.rope, None, keys.head_dim()?)?;
    let layer = |(layer, rotates): (Layer, bool)| Layer { rope: layer.rope.filter(|_| rotates), ..layer };
    Ok(layers.into_iter().zip(rotating).map(layer).collect())
}

/// Which layers have a window: those that `layer_types` says. Without it, if windows are switched on, those without a
/// rotation.
fn kinds(keys: &ConfigKeys<OwnKeys>, rotating: &[bool]) -> Result<Vec<LayerKind>, ConfigError> {
    if let Some(types) = &keys.decoder.layer_types {
        return LayerTypes::Listed(types).kinds(rotating.len(), keys.own.sliding_window);
    }
    if keys.own.use_sliding_window != Some(true) {
        return Ok(vec![LayerKind::Full; rotating.len()]);
    }
    let window = size("sliding_window", needed("sliding_window", keys.own.sliding_window)?, limits::TOKENS)?;
    let kind = |&rotates: &bool| if rotates { LayerKind::Full } else { LayerKind::Sliding { window } };
    Ok(rotating.iter().map(kind).collect())
}
