//! The blocks of a model, one after the other.

use mlx_kvcache::ModelCache;
use mlx_rs::Array;
use mlx_rs::error::{Exception, Result};

use crate::AttentionInput;

/// Sends the embedded tokens through all blocks of a model. `forward` runs one block: it gets the output of the block
/// before it, the mask for its kind of layer, and its own layer of the cache.
///
/// The masks are computed once, before the first block; layers of one kind share a mask.
///
/// # Shapes
///
/// `x` `[B, L, D]`; the result has the same shape.
///
/// # Errors
///
/// Where `x` does not have three axes, the number of layers in the cache is not the number of blocks, or a block fails.
pub fn through_blocks<B>(
    blocks: &mut [B],
    mut x: Array,
    cache: &mut ModelCache,
    mut forward: impl FnMut(&mut B, AttentionInput<'_>) -> Result<Array>,
) -> Result<Array> {
    let [_batch, length, _features] = *x.shape() else {
        let tokens = x.shape().split_last().map_or(&[][..], |(_, tokens)| tokens);
        return Err(Exception::custom(format!("tokens of shape {tokens:?}, and [B, L] is needed")));
    };
    let (found, needed) = (cache.layers().len(), blocks.len());
    if found != needed {
        return Err(Exception::custom(format!("a cache of {found} layers for a model of {needed}")));
    }
    let masks = cache.masks(length)?;
    mlx_tap::step("embeddings", &x);
    for (index, ((block, cache), mask)) in blocks.iter_mut().zip(cache.layers_mut()).zip(&masks).enumerate() {
        let _inside = mlx_tap::block(index);
        x = forward(block, AttentionInput { x: &x, mask, cache })?;
        mlx_tap::step("output", &x);
    }
    Ok(x)
}
