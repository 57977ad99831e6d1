//! A language model of one's own from four components alone: `mlx-rope`, `mlx-kvcache`, `mlx-norms` and `mlx-attn-masks`. Its
//! weights are random, so it only shows that tokens read one by one get the same logits as tokens read together.
//!
//! `cargo run -p mlx-models --features architectures,generate,tokenizer --example own_model`
#![allow(clippy::print_stdout, reason = "an example shows its results")]

use std::error::Error;

use mlx_attn_masks::AttentionMask;
use mlx_kvcache::{CacheOptions, KvCache, LayerKind, LayerSpec, ModelCache};
use mlx_norms::rms_norm;
use mlx_rope::{Rope, RopeLayout};
use mlx_rs::Array;
use mlx_rs::nn::silu;
use mlx_rs::ops::concatenate;
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::random::{key, normal};

/// Heads, features of a head (d), features of the residual stream (D), tokens.
const HEADS: i32 = 4;
const DIM: i32 = 16;
const WIDTH: i32 = 64;
const VOCAB: i32 = 100;

struct Block {
    norm: Array,
    qkv: Array,
    out: Array,
    mlp: [Array; 2],
}

fn weight(seed: u64, inputs: i32, outputs: i32) -> Result<Array, Box<dyn Error>> {
    Ok(normal::<f32>(&[inputs, outputs], 0.0, (inputs as f32).powf(-0.5), &key(seed)?)?)
}

impl Block {
    fn forward(
        &self,
        x: &Array,
        rope: &Rope,
        mask: &AttentionMask,
        cache: &mut KvCache,
    ) -> Result<Array, Box<dyn Error>> {
        let [batch, length, _] = *x.shape() else { return Err("[B, L, D] is expected".into()) };
        let fused = rms_norm(x, &self.norm, 1e-6)?.matmul(&self.qkv)?; // [B, L, 3 H d]
        let fused = fused.reshape(&[batch, length, 3 * HEADS, DIM])?.transpose_axes(&[0, 2, 1, 3])?;
        let part = |n: i32| fused.try_index((.., n * HEADS..(n + 1) * HEADS, .., ..)); // [B, H, L, d]
        let offset = cache.offset(); // the position of the first of these tokens
        let queries = rope.rotate(&part(0)?, offset)?;
        let keys = rope.rotate(&part(1)?, offset)?;
        let read = cache.append(&keys, &part(2)?)?; // what the queries may read: also all earlier tokens
        let y = read.attention(&queries, (DIM as f32).powf(-0.5), mask)?; // [B, H, L, d]
        let y = y.transpose_axes(&[0, 2, 1, 3])?.reshape(&[batch, length, WIDTH])?;
        let x = x.add(y.matmul(&self.out)?)?;
        let inner = silu(rms_norm(&x, &self.norm, 1e-6)?.matmul(&self.mlp[0])?)?;
        Ok(x.add(inner.matmul(&self.mlp[1])?)?)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let ones = Array::ones::<f32>(&[WIDTH])?;
    let block = |seed| -> Result<Block, Box<dyn Error>> {
        let mlp = [weight(seed + 2, WIDTH, 2 * WIDTH)?, weight(seed + 3, 2 * WIDTH, WIDTH)?];
        Ok(Block {
            norm: ones.clone(),
            qkv: weight(seed, WIDTH, 3 * WIDTH)?,
            out: weight(seed + 1, WIDTH, WIDTH)?,
            mlp,
        })
    };
    let blocks = [block(10)?, block(20)?];
    let table = weight(1, VOCAB, WIDTH)?; // the embedding, which is the head too
    let rope = Rope::new(DIM, 10_000.0, RopeLayout::Halves)?;

    // The second layer has a window of four tokens: its cache is a ring that keeps no more than it needs.
    let spec = |kind| LayerSpec { kind, heads: HEADS, key_dim: DIM, value_dim: DIM };
    let layers = [spec(LayerKind::Full), spec(LayerKind::Sliding { window: 4 })];
    let forward = |tokens: &[u32], cache: &mut ModelCache| -> Result<Array, Box<dyn Error>> {
        let length = tokens.len() as i32;
        let mut x = table.try_index(&Array::from_slice(tokens, &[1, length]))?; // [B, L, D]
        let masks = cache.masks(length)?; // one for each layer, before the tokens are appended
        for ((block, layer), mask) in blocks.iter().zip(cache.layers_mut()).zip(&masks) {
            x = block.forward(&x, &rope, mask, layer)?;
        }
        Ok(x.matmul(table.transpose()?)?) // [B, L, V]
    };

    let tokens = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3];
    let new_cache = || ModelCache::for_layers(&layers, &CacheOptions::default());
    let together = forward(&tokens, &mut new_cache()?)?;
    let mut cache = new_cache()?;
    let one_by_one = tokens.iter().map(|&token| forward(&[token], &mut cache));
    let one_by_one = concatenate(&one_by_one.collect::<Result<Vec<_>, _>>()?, 1)?;
    let difference = together.subtract(&one_by_one)?.abs()?.max(None)?.try_item_exact::<f32>()?;
    println!("logits {:?}, largest difference {difference:.0e}", together.shape());
    println!("the cache has {} bytes for {} tokens", cache.nbytes(), cache.offset());
    Ok(())
}
