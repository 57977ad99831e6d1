//! How the config of a Gemma 3 model is read.

use mlx_causal_lm::UnlikeMlxLm;
use mlx_config::{Bases, ConfigError, LayerTypes, layers, limits, off, one_of, only, positive, size};
use mlx_decoder::{ConfigKeys, DecoderArchitecture, DecoderConfig, KeyLayout, SandwichBlock, needed};
use mlx_layers::NormOver;
use mlx_rope::MlxLmReads;
use serde::Deserialize;

/// The `model_type` of a checkpoint of the language model alone.
pub const TEXT: &str = "gemma3_text";

/// The `model_type` of a checkpoint that also has a vision part; this crate reads its language model.
pub const MULTIMODAL: &str = "gemma3";

/// The keys of a config beside those of all decoders.
#[derive(Debug, Deserialize)]
pub struct OwnKeys {
    query_pre_attn_scalar: Option<f64>,
    sliding_window: Option<i64>,
    sliding_window_pattern: Option<i64>,
    /// The name of the key above in configs that transformers saved.
    _sliding_window_pattern: Option<i64>,
    attention_bias: Option<bool>,
    hidden_activation: Option<String>,
    hidden_act: Option<String>,
    final_logit_softcapping: Option<f64>,
    attn_logit_softcapping: Option<f64>,
    use_bidirectional_attention: Option<bool>,
}

impl DecoderArchitecture for OwnKeys {
    type Block = SandwichBlock;
    const MULTIMODAL: Option<&'static str> = Some(MULTIMODAL);

    fn config(mut keys: ConfigKeys<Self>) -> Result<DecoderConfig, ConfigError> {
        fill_in_defaults(&mut keys)?;
        let layer_types = match &keys.decoder.layer_types {
            Some(types) => LayerTypes::Listed(types),
            None => LayerTypes::FullEvery(pattern(&keys.own)?),
        };
        let kinds = layer_types.kinds(keys.num_layers()?, keys.own.sliding_window)?;
        // 10 000 for local layers, which look no further than their window. 1 000 000 for global layers, so that more pairs
        // turn slowly enough to distinguish far positions.
        let bases = Bases { full: Some(1_000_000.0), sliding: Some(10_000.0) };
        let layers = layers(kinds, &keys.rope, bases, keys.head_dim()?)?;
        let rotation = keys.rope.full_attention(bases.full)?;
        let mlx_lm_reads = MlxLmReads::OldForm { default_base: Some(1_000_000.0) };

        let own = &keys.own;
        only("hidden_activation", own.hidden_activation.as_ref(), "gelu_pytorch_tanh")?;
        only("hidden_act", own.hidden_act.as_ref(), "gelu_pytorch_tanh")?;
        off("use_bidirectional_attention", own.use_bidirectional_attention)?;
        if let Some(found) = own.attn_logit_softcapping {
            // transformers reads the key and does not apply it.
            let key = "attn_logit_softcapping";
            return Err(ConfigError::Unsupported { key, found: found.to_string(), only: "null" });
        }
        let scalar = positive("query_pre_attn_scalar", own.query_pre_attn_scalar.unwrap_or(256.0))?;
        let cap = own.final_logit_softcapping.map(|cap| positive("final_logit_softcapping", cap));
        let decoder = keys.decoder(layers)?;
        Ok(DecoderConfig {
            query_key_norms: Some(NormOver::EachHead),
            attention_bias: own.attention_bias.unwrap_or(false).into(),
            attention_scale: scalar.powf(-0.5) as f32,
            embedding_scale: embedding_scale(decoder.hidden_size),
            logits_cap: cap.transpose()?.map(|cap| cap as f32),
            unlike_mlx_lm: UnlikeMlxLm {
                rotation: keys.rope.unlike_mlx_lm(&rotation, mlx_lm_reads),
                ignores_windows: false,
            },
            ..decoder
        })
    }
}

/// Fills in what a config may leave out. mlx-lm and transformers have the same defaults for these keys in both kinds of
/// checkpoints. For others they have different ones, and a config of the language model alone must state them. The
/// released configs with a vision part rely on those of transformers.
fn fill_in_defaults(keys: &mut ConfigKeys<OwnKeys>) -> Result<(), ConfigError> {
    let decoder = &mut keys.decoder;
    decoder.head_dim.get_or_insert(256);
    decoder.rms_norm_eps.get_or_insert(1e-6);
    decoder.tie_word_embeddings.get_or_insert(true);
    if keys.layout == KeyLayout::Text {
        needed("num_key_value_heads", decoder.num_key_value_heads)?;
        return Ok(());
    }
    only("text_config.model_type", decoder.model_type.as_ref(), TEXT)?;
    decoder.vocab_size.get_or_insert(262_208);
    decoder.num_attention_heads.get_or_insert(8);
    decoder.num_key_value_heads.get_or_insert(4);
    decoder.max_position_embeddings.get_or_insert(131_072);
    Ok(())
}

/// The square root of `hidden_size`. The table is also the head, so its features are small; the factor scales them to the
/// size of the blocks' outputs.
fn embedding_scale(hidden_size: i32) -> f32 {
    let scale = f64::from(hidden_size).sqrt() as f32;
    // Rounded to bfloat16 for every dtype: in training the factor was a bfloat16 number, such as 25.25 for the square root
    // of 640, and the weights were learned with it.
    let bits = scale.to_bits();
    let half_to_even = 0x7fff + ((bits >> 16) & 1);
    f32::from_bits((bits + half_to_even) & 0xffff_0000)
}

/// After how many layers a global one comes, where no list gives the kind of each layer.
fn pattern(own: &OwnKeys) -> Result<usize, ConfigError> {
    let (first, second) = (own.sliding_window_pattern, own._sliding_window_pattern);
    let n = one_of(("sliding_window_pattern", first), ("_sliding_window_pattern", second))?.unwrap_or(6);
    Ok(size("sliding_window_pattern", n, limits::LAYERS)? as usize)
}

#[cfg(test)]
mod tests {
    use super::embedding_scale;

    #[test]
    fn the_factor_of_the_embedding_is_a_bfloat16_number() {
        // The square roots are 25.298, 33.94, 50.596 and 61.968.
        assert_eq!([640, 1152, 2560, 3840].map(embedding_scale), [25.25, 34.0, 50.5, 62.0]);
    }
}
