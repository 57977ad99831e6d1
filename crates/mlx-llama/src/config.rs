//! How the config of a Llama or Mistral model is read.

use mlx_causal_lm::UnlikeMlxLm;
use mlx_config::{ConfigError, MistralWindows, layers_alike, off, only, stated};
use mlx_decoder::{ConfigKeys, DecoderArchitecture, DecoderConfig, PreNormBlock};
use mlx_kvcache::LayerKind;
use mlx_rope::MlxLmReads;
use serde::Deserialize;

/// The `model_type`s of the checkpoints that this crate reads.
pub const MODEL_TYPES: &[&str] = &["llama", MISTRAL];

const MISTRAL: &str = "mistral";

/// The base of the rotation where the config states none, as in both references.
const DEFAULT_BASE: f64 = 10_000.0;

/// The keys of a config beside those of all decoders.
#[derive(Debug, Deserialize)]
pub struct OwnKeys {
    #[serde(default, deserialize_with = "stated")]
    sliding_window: Option<Option<i64>>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    hidden_act: Option<String>,
    rope_traditional: Option<bool>,
}

impl DecoderArchitecture for OwnKeys {
    type Block = PreNormBlock;

    fn config(keys: ConfigKeys<Self>) -> Result<DecoderConfig, ConfigError> {
        let layers = layers_alike(kinds(&keys)?, &keys.rope, Some(DEFAULT_BASE), keys.head_dim()?)?;
        let rotation = keys.rope.uniform(Some(DEFAULT_BASE))?;
        let mlx_lm_reads = MlxLmReads::OldForm { default_base: Some(DEFAULT_BASE) };
        only("hidden_act", keys.own.hidden_act.as_ref(), "silu")?;
        off("rope_traditional", keys.own.rope_traditional)?;
        Ok(DecoderConfig {
            attention_bias: keys.own.attention_bias.unwrap_or(false).into(),
            mlp_bias: keys.own.mlp_bias.unwrap_or(false),
            unlike_mlx_lm: UnlikeMlxLm {
                rotation: keys.rope.unlike_mlx_lm(&rotation, mlx_lm_reads),
                ignores_windows: keys.decoder.layer_types.is_none(),
            },
            ..keys.decoder(layers)?
        })
    }
}

/// Which layers have a window. Those of a Llama model have none, unless `layer_types` says so.
fn kinds(keys: &ConfigKeys<OwnKeys>) -> Result<Vec<LayerKind>, ConfigError> {
    let (layers, sliding_window) = (keys.num_layers()?, keys.own.sliding_window);
    let layer_types = keys.decoder.layer_types.as_deref();
    let is_mistral = keys.decoder.model_type.as_deref() == Some(MISTRAL);
    if layer_types.is_none() && !is_mistral {
        return Ok(vec![LayerKind::Full; layers]);
    }
    MistralWindows { sliding_window, layer_types }.kinds(layers)
}
