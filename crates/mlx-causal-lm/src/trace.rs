//! The intermediate results of a model, by name.

use std::collections::BTreeMap;

use mlx_rs::Array;
use mlx_tap::{Site, record};

use crate::CausalLm;

/// The output of a layer or of a step between tokens and logits.
#[derive(Debug, Clone)]
pub struct Traced {
    /// The block that it belongs to, counted from 0; `None` before the first block and after the last.
    pub block: Option<usize>,
    /// The name of the layer in the keys of the checkpoint, without the part for the block: `self_attn.q_proj` for
    /// `model.layers.3.self_attn.q_proj.weight`. Steps without parameters have these names:
    ///
    /// | name | output | shape |
    /// |---|---|---|
    /// | `embeddings` | the input of the first block | `[B, L, D]` |
    /// | `rotated queries` | queries after the rotation | `[B, H, L, d]` |
    /// | `rotated keys` | keys after the rotation | `[B, H_kv, L, d]` |
    /// | `attention` | the output of each attention head | `[B, H, L, d]` |
    /// | `gated` | the input of the last projection of the feed-forward network | `[B, L, F]` |
    /// | `output` | the residual stream after a block | `[B, L, D]` |
    /// | `logits` | the output of the head | `[B, L, V]` |
    pub name: String,
    /// The output, which may not be computed yet.
    pub output: Array,
}

/// Calls `run` with the model. Returns the result of `run` and, in order, every output that a layer or step computed
/// during the call.
///
/// This finds where two programs begin to differ: at the first output that is not the same. The code of a model needs
/// nothing for it, because its layers offer their outputs to `mlx-tap`. All outputs stay in memory until they are
/// dropped. Where `run` reads tokens several times, as a session does when it crosses LongRoPE's border, a name occurs
/// several times, and its last occurrence led to the result.
///
/// ```no_run
/// # use mlx_causal_lm::{CausalLm, Logits, trace};
/// # use mlx_kvcache::CacheOptions;
/// # use mlx_rs::Array;
/// # fn f(model: &mut dyn CausalLm) -> Result<(), Box<dyn std::error::Error>> {
/// let tokens = Array::from_slice(&[3_u32, 1, 4], &[1, 3]);
/// let mut cache = model.new_cache(&CacheOptions::default())?;
/// let (logits, outputs) = trace(model, |model| model.forward(&tokens, &mut cache, Logits::Last));
/// for traced in outputs {
///     println!("{:?} {}: {:?}", traced.block, traced.name, traced.output.shape());
/// }
/// # logits?;
/// # Ok(())
/// # }
/// ```
pub fn trace<R>(model: &mut dyn CausalLm, run: impl FnOnce(&mut dyn CausalLm) -> R) -> (R, Vec<Traced>) {
    let (answer, taps) = record(|| run(model));
    let mut layers = BTreeMap::new();
    for (key, parameter) in model.parameters().flatten() {
        let layer = key.rsplit_once('.').map_or(&*key, |(layer, _)| layer);
        if let Site::Layer { parameter } = Site::of(parameter) {
            layers.insert(parameter, layer.to_owned());
        }
    }
    let traced = taps.into_iter().filter_map(|tap| {
        let name = match tap.site {
            Site::Step(name) => name.to_owned(),
            // A layer of another model that ran on this thread has no name here.
            Site::Layer { parameter } => inside_block(layers.get(&parameter)?, tap.block),
        };
        Some(Traced { block: tap.block, name, output: tap.output })
    });
    (answer, traced.collect())
}

/// `self_attn.q_proj` of `model.layers.3.self_attn.q_proj` in block 3; `norm` of `model.norm` outside of blocks.
fn inside_block(layer: &str, block: Option<usize>) -> String {
    let inside = match block {
        Some(index) => layer.split_once(&format!(".{index}.")).map(|(_, inside)| inside),
        None => layer.rsplit_once('.').map(|(_, last)| last),
    };
    inside.unwrap_or(layer).to_owned()
}

#[cfg(test)]
mod tests {
    use super::inside_block;

    #[test]
    fn names_leave_out_the_part_for_the_block() {
        let of = |layer, block| inside_block(layer, block);
        assert_eq!(of("model.layers.3.self_attn.q_proj", Some(3)), "self_attn.q_proj");
        assert_eq!(of("transformer.layers.13.attention.norm", Some(13)), "attention.norm");
        assert_eq!(of("model.norm", None), "norm");
        assert_eq!(of("lm_head", None), "lm_head");
    }
}
