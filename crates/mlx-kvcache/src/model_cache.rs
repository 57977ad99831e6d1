//! The caches of all layers as one.

use mlx_attn_masks::AttentionMask;
use mlx_rs::error::Exception;

use crate::{FullKvCache, KvCache};

/// One cache per layer, asked together so that the layers cannot drift apart.
#[derive(Debug)]
pub struct ModelCache {
    layers: Vec<Box<dyn KvCache>>,
}

impl ModelCache {
    /// A cache of the given layers, first layer first.
    pub fn new(layers: Vec<Box<dyn KvCache>>) -> Self {
        Self { layers }
    }

    /// `layers` empty caches that keep every token.
    pub fn full(layers: usize) -> Self {
        Self::new((0..layers).map(|_| Box::new(FullKvCache::new()) as Box<dyn KvCache>).collect())
    }

    /// Tokens seen so far.
    pub fn offset(&self) -> i32 {
        self.layers.first().map_or(0, |layer| layer.offset())
    }

    /// What each of the next `queries` tokens may see, in a model whose layers are all of one kind.
    pub fn mask(&self, queries: i32) -> AttentionMask {
        self.layers.first().map_or(AttentionMask::None, |layer| layer.mask(queries))
    }

    /// The caches, first layer first.
    pub fn layers(&self) -> &[Box<dyn KvCache>] {
        &self.layers
    }

    /// The caches, first layer first, to append to.
    pub fn layers_mut(&mut self) -> impl ExactSizeIterator<Item = &mut dyn KvCache> {
        self.layers.iter_mut().map(|layer| &mut **layer as &mut dyn KvCache)
    }

    /// Forgets the newest `tokens` tokens in every layer, or all where there are fewer, and says
    /// how many went.
    pub fn trim(&mut self, tokens: i32) -> i32 {
        self.layers.iter_mut().map(|layer| layer.trim(tokens)).min().unwrap_or(0)
    }

    /// Bytes held by all layers, free places included.
    pub fn nbytes(&self) -> usize {
        self.layers.iter().map(|layer| layer.nbytes()).sum()
    }

    /// Computes what is held, so that the graph of the calls so far can be freed.
    ///
    /// # Errors
    ///
    /// What MLX reports from any operation of those calls.
    pub fn eval(&self) -> Result<(), Exception> {
        mlx_rs::transforms::eval(self.layers.iter().flat_map(|layer| layer.arrays()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlx_rs::Array;

    #[test]
    fn layers_are_counted_and_trimmed_together() {
        let mut cache = ModelCache::full(3);
        assert_eq!((cache.offset(), cache.nbytes()), (0, 0));
        let x = Array::ones::<f32>(&[1, 1, 4, 8]).unwrap();
        for layer in cache.layers_mut() {
            layer.append(&x, &x).unwrap();
        }
        cache.eval().unwrap();
        assert_eq!(cache.offset(), 4);
        assert_eq!(cache.nbytes(), 3 * 2 * 256 * 8 * 4);
        assert_eq!(cache.trim(3), 3);
        assert!(cache.layers().iter().all(|layer| layer.offset() == 1));
    }
}
