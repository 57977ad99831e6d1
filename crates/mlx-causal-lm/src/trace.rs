//! What a model computes on the way, by name.

use std::collections::BTreeMap;

use mlx_rs::Array;
use mlx_tap::{Site, record};

use crate::CausalLm;

/// An output on the way from tokens to logits.
#[derive(Debug, Clone)]
pub struct Traced {
    /// The block that it comes from, counted from 0; none before the first and after the last.
    pub block: Option<usize>,
    /// The layer, as the checkpoint's keys have it, without what stands for the block: `self_attn.q_proj` of
    /// `model.layers.3.self_attn.q_proj.weight`. Steps without parameters have names of their own:
    ///
    /// | name | output | shape |
    /// |---|---|---|
    /// | `embeddings` | what goes into the first block | `[B, L, D]` |
    /// | `rotated queries` | queries after the rotation | `[B, H, L, d]` |
    /// | `rotated keys` | keys after the rotation | `[B, H_kv, L, d]` |
    /// | `attention` | what the heads read, before they are merged | `[B, H, L, d]` |
    /// | `gated` | what goes into the last projection of the feed-forward network | `[B, L, F]` |
    /// | `output` | the residual stream behind a block | `[B, L, D]` |
    /// | `logits` | what the head answers | `[B, L, V]` |
    pub name: String,
    /// Perhaps not computed yet.
    pub output: Array,
}

/// Calls `run` with the model, and answers with what it answers and every output on the way, in order.
///
/// For the search of a difference between two programs: the first output that differs is where to look. A model's
/// own code has nothing for this, its layers offer what they answer (`mlx-tap`). All outputs stay in memory until
/// they are dropped. Where `run` reads tokens several times, as a session does over LongRoPE's border, a name
/// comes several times, too; the last is what the answer comes from.
///
/// ```no_run
/// # use mlx_causal_lm::{CausalLm, Logits, trace};
/// # use mlx_kvcache::CacheOptions;
/// # use mlx_rs::Array;
/// # fn f(model: &mut dyn CausalLm) -> Result<(), Box<dyn std::error::Error>> {
/// let tokens = Array::from_slice(&[3_u32, 1, 4], &[1, 3]);
/// let mut cache = model.new_cache(&CacheOptions::default())?;
/// let (logits, on_the_way) = trace(model, |model| model.forward(&tokens, &mut cache, Logits::Last));
/// for traced in on_the_way {
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
            // A layer of something else that runs on this thread has no name here.
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
    fn names_leave_out_what_stands_for_the_block() {
        let of = |layer, block| inside_block(layer, block);
        assert_eq!(of("model.layers.3.self_attn.q_proj", Some(3)), "self_attn.q_proj");
        assert_eq!(of("transformer.layers.13.attention.norm", Some(13)), "attention.norm");
        assert_eq!(of("model.norm", None), "norm");
        assert_eq!(of("lm_head", None), "lm_head");
    }
}
