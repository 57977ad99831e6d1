//! How the config of a Gemma 2 model is read.

use mlx_causal_lm::UnlikeMlxLm;
use mlx_config::{ConfigError, LayerTypes, layers_alike, off, only, positive, stated};
use mlx_decoder::{ConfigKeys, DecoderArchitecture, DecoderConfig, SandwichBlock, needed};
use mlx_rope::MlxLmReads;
use serde::Deserialize;

/// The `model_type` of the checkpoints that this crate reads.
pub const MODEL_TYPE: &str = "gemma2";

/// The base of the rotation where the config states none, as in both references.
const DEFAULT_BASE: f64 = 10_000.0;

/// The keys of a config beside those of all decoders.
#[derive(Debug, Deserialize)]
pub struct OwnKeys {
    query_pre_attn_scalar: Option<f64>,
    #[serde(default, deserialize_with = "stated")]
    attn_logit_softcapping: Option<Option<f64>>,
    #[serde(default, deserialize_with = "stated")]
    final_logit_softcapping: Option<Option<f64>>,
    sliding_window: Option<i64>,
    attention_bias: Option<bool>,
    hidden_activation: Option<String>,
    hidden_act: Option<String>,
    rope_traditional: Option<bool>,
    use_bidirectional_attention: Option<bool>,
}

impl DecoderArchitecture for OwnKeys {
    type Block = SandwichBlock;

    fn config(mut keys: ConfigKeys<Self>) -> Result<DecoderConfig, ConfigError> {
        // transformers and mlx-lm have different defaults, or none, for the number of key-value heads and the size of a head.
        needed("num_key_value_heads", keys.decoder.num_key_value_heads)?;
        needed("head_dim", keys.decoder.head_dim)?;
        keys.decoder.tie_word_embeddings.get_or_insert(true);
        let layer_types = match &keys.decoder.layer_types {
            Some(types) => LayerTypes::Listed(types),
            None => LayerTypes::FullEvery(2),
        };
        let kinds = layer_types.kinds(keys.num_layers()?, keys.own.sliding_window)?;
        let layers = layers_alike(kinds, &keys.rope, Some(DEFAULT_BASE), keys.head_dim()?)?;
        let rotation = keys.rope.uniform(Some(DEFAULT_BASE))?;

        let own = &keys.own;
        only("hidden_activation", own.hidden_activation.as_ref(), "gelu_pytorch_tanh")?;
        only("hidden_act", own.hidden_act.as_ref(), "gelu_pytorch_tanh")?;
        off("rope_traditional", own.rope_traditional)?;
        off("use_bidirectional_attention", own.use_bidirectional_attention)?;
        let scalar = needed("query_pre_attn_scalar", own.query_pre_attn_scalar)?;
        let decoder = keys.decoder(layers)?;
        Ok(DecoderConfig {
            attention_bias: own.attention_bias.unwrap_or(false).into(),
            attention_scale: positive("query_pre_attn_scalar", scalar)?.powf(-0.5) as f32,
            attention_cap: cap("attn_logit_softcapping", own.attn_logit_softcapping, 50.0)?,
            logits_cap: cap("final_logit_softcapping", own.final_logit_softcapping, 30.0)?,
            embedding_scale: f64::from(decoder.hidden_size).sqrt() as f32,
            unlike_mlx_lm: UnlikeMlxLm {
                rotation: keys.rope.unlike_mlx_lm(&rotation, MlxLmReads::Base { default: DEFAULT_BASE }),
                ignores_windows: true,
            },
            ..decoder
        })
    }
}

/// A soft cap: `default` where the config has no such key, as in both references, and none where it is `null`.
fn cap(key: &'static str, stated: Option<Option<f64>>, default: f64) -> Result<Option<f32>, ConfigError> {
    let cap = stated.unwrap_or(Some(default)).map(|cap| positive(key, cap)).transpose()?;
    Ok(cap.map(|cap| cap as f32))
}
