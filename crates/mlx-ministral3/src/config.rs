//! How the config of a Ministral 3 or Mistral 3 model is read.

use mlx_causal_lm::UnlikeMlxLm;
use mlx_config::{ConfigError, MistralWindows, layers_alike, off, only, stated};
use mlx_decoder::{ConfigKeys, DecoderArchitecture, DecoderConfig, KeyLayout, PreNormBlock, needed};
use mlx_rope::MlxLmReads;
use serde::Deserialize;

/// The `model_type` of a Ministral 3 alone, and of one that is the language model of a Mistral 3.
pub const MINISTRAL: &str = "ministral3";

/// The `model_type` of a checkpoint that also has a vision part; this crate reads its language model.
pub const MULTIMODAL: &str = "mistral3";

/// The `model_type` of the other kind of language model that a Mistral 3 may have.
const MISTRAL: &str = "mistral";

/// The base of the rotation where the config of a `mistral` states none, as in both references.
const MISTRAL_BASE: f64 = 10_000.0;

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
    const MULTIMODAL: Option<&'static str> = Some(MULTIMODAL);

    fn config(mut keys: ConfigKeys<Self>) -> Result<DecoderConfig, ConfigError> {
        let text = Text::of(&keys)?;
        text.defaults(&mut keys)?;
        only("hidden_act", keys.own.hidden_act.as_ref(), "silu")?;
        off("attention_bias", keys.own.attention_bias)?;
        off("mlp_bias", keys.own.mlp_bias)?;
        off("rope_traditional", keys.own.rope_traditional)?;

        let layer_types = keys.decoder.layer_types.as_deref();
        let windows = MistralWindows { sliding_window: keys.own.sliding_window, layer_types };
        let kinds = windows.kinds(keys.num_layers()?)?;
        let mut layers = layers_alike(kinds, &keys.rope, text.default_base(), keys.head_dim()?)?;
        if text == Text::Ministral3 {
            let scale = needed("llama_4_scaling_beta", keys.rope.query_scale()?)?;
            for layer in &mut layers {
                layer.rope = layer.rope.take().map(|rope| rope.with_query_scale(Some(scale)));
            }
        }
        let rotation = keys.rope.uniform(text.default_base())?;
        Ok(DecoderConfig {
            unlike_mlx_lm: UnlikeMlxLm {
                rotation: keys.rope.unlike_mlx_lm(&rotation, text.mlx_lm_reads()),
                ignores_windows: layer_types.is_none(),
            },
            ..keys.decoder(layers)?
        })
    }
}

/// The kinds of language models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Text {
    Ministral3,
    Mistral,
}

impl Text {
    fn of(keys: &ConfigKeys<OwnKeys>) -> Result<Self, ConfigError> {
        match keys.decoder.model_type.as_deref() {
            Some(MINISTRAL) => Ok(Self::Ministral3),
            None | Some(MISTRAL) => Ok(Self::Mistral),
            Some(other) => Err(ConfigError::Unsupported {
                key: "text_config.model_type",
                found: format!("{other:?}"),
                only: "ministral3, mistral",
            }),
        }
    }

    /// Fills in what a config may leave out. It must state the keys for which the references have different defaults.
    fn defaults(self, keys: &mut ConfigKeys<OwnKeys>) -> Result<(), ConfigError> {
        needed("num_key_value_heads", keys.decoder.num_key_value_heads)?;
        if self == Self::Ministral3 {
            needed("head_dim", keys.decoder.head_dim)?;
            keys.own.sliding_window.get_or_insert(None);
        }
        if keys.layout != KeyLayout::Text {
            // As in transformers. mlx-lm would need a head in the checkpoint, which counts here too.
            keys.decoder.tie_word_embeddings.get_or_insert(true);
        }
        Ok(())
    }

    /// The base of the rotation where the config states none. For a `ministral3`, mlx-lm needs one.
    fn default_base(self) -> Option<f64> {
        match self {
            Self::Ministral3 => None,
            Self::Mistral => Some(MISTRAL_BASE),
        }
    }

    fn mlx_lm_reads(self) -> MlxLmReads {
        match self {
            Self::Ministral3 => MlxLmReads::BothForms,
            Self::Mistral => MlxLmReads::OldForm { default_base: self.default_base() },
        }
    }
}
