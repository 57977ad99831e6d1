//! The caches of all layers as one.

use mlx_attn_masks::AttentionMask;
use mlx_rs::Array;
use mlx_rs::error::Exception;

use crate::{CacheError, KvCache, Layout, Quantization};

/// Which tokens a layer attends to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LayerKind {
    /// Every token before.
    Full,
    /// The newest `window` tokens, the query's own included.
    Sliding {
        /// In tokens.
        window: i32,
    },
}

/// What a layer of attention asks of its cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerSpec {
    /// Which tokens it attends to.
    pub kind: LayerKind,
    /// Key-value heads.
    pub heads: i32,
    /// Features of a head of the keys.
    pub key_dim: i32,
    /// Features of a head of the values.
    pub value_dim: i32,
}

impl LayerSpec {
    /// Numbers that the cache holds for each token: keys and values.
    pub fn values_per_token(&self) -> usize {
        let size = |n: i32| n.max(0) as usize;
        size(self.heads) * (size(self.key_dim) + size(self.value_dim))
    }
}

/// What a user wants of a cache, whatever the model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CacheOptions {
    /// Keys and values quantized as they come.
    pub quantization: Option<Quantization>,
    /// How many of the newest tokens can be taken back at any time. Layers of full attention can always
    /// take back all of them; layers with a window hold this many more tokens.
    pub rewind: i32,
    /// A bound on the memory of layers of full attention, which then forget what lies in the middle.
    pub limit: Option<Limit>,
    /// For a batch of prompts that are filled up on the left to one length: the padding of each.
    pub left_padding: Vec<i32>,
}

/// A bound on what a layer of full attention sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Tokens that a query sees at most.
    pub max_size: i32,
    /// How many of them are the first ones, attention sinks. mlx-lm keeps 4.
    pub keep: i32,
}

/// One cache per layer, asked together so that the layers cannot drift apart.
///
/// A clone is cheap, since it shares the arrays: keep one to come back to the tokens of now. The first of
/// the two that is appended to copies the arrays once.
#[derive(Debug, Clone)]
pub struct ModelCache {
    layers: Vec<KvCache>,
    /// For each layer the first one with the same mask.
    masked_like: Vec<usize>,
    /// See [`Self::expect`].
    expected: i32,
}

impl ModelCache {
    /// A cache of the given layers, first layer first. Those that are alike now share their masks from now
    /// on: all are to be given the same tokens.
    pub fn new(layers: Vec<KvCache>) -> Self {
        let first_alike = |layer: &KvCache| layers.iter().position(|other| other.masked_like(layer));
        let masked_like = layers.iter().filter_map(first_alike).collect();
        Self { layers, masked_like, expected: 0 }
    }

    /// Empty caches for these layers, first layer first: a ring for each with a window, and one that
    /// keeps every token for each without.
    ///
    /// # Errors
    ///
    /// Where a window, a limit, the rewind or the padding is none, and [`CacheError::Groups`] where heads
    /// cannot be cut into the groups of the quantization.
    pub fn for_layers(layers: &[LayerSpec], options: &CacheOptions) -> Result<Self, CacheError> {
        let CacheOptions { quantization, rewind, limit, ref left_padding } = *options;
        if rewind < 0 {
            return Err(CacheError::Negative { tokens: rewind });
        }
        let mut caches = Vec::with_capacity(layers.len());
        for layer in layers {
            if let Some(quantization) = quantization {
                let group_size = quantization.group_size();
                for (what, head_dim) in [("keys", layer.key_dim), ("values", layer.value_dim)] {
                    if head_dim % group_size != 0 {
                        return Err(CacheError::Groups { what, head_dim, group_size });
                    }
                }
            }
            let mut cache = KvCache::new(Layout::for_layer(layer.kind, limit)?).with_rewind(rewind)?;
            if !left_padding.is_empty() {
                cache = cache.with_left_padding(left_padding)?;
            }
            if let Some(quantization) = quantization {
                cache.quantize(quantization)?;
            }
            caches.push(cache);
        }
        Ok(Self::new(caches))
    }

    /// Tokens seen so far; of the longest row, in a batch.
    pub fn offset(&self) -> i32 {
        self.layers.first().map_or(0, |layer| layer.offset())
    }

    /// Says that the sequence will have `tokens` tokens, of the longest row, when what is being read now
    /// was read to its end.
    ///
    /// The rotation of some models depends on the length of the whole sequence (LongRoPE). They take a call
    /// for its end; a piece of a longer prompt is not. Masks do not depend on it.
    pub fn expect(&mut self, tokens: i32) {
        self.expected = tokens;
    }

    /// What was [expected](Self::expect) last, and 0 where nothing was.
    pub fn expected(&self) -> i32 {
        self.expected
    }

    /// How many tokens are [expected](Self::expect) after the next `length` ones.
    pub fn expected_after(&self, length: i32) -> i32 {
        self.expected.saturating_sub(self.offset().saturating_add(length)).max(0)
    }

    /// What each of the next `queries` tokens may see, layer by layer. Masks are built once for each kind
    /// of layer that there is, and shared.
    ///
    /// # Errors
    ///
    /// As [`KvCache::mask`], and [`CacheError::Drift`] after a call of the model that has failed halfway.
    pub fn masks(&self, queries: i32) -> Result<Vec<AttentionMask>, CacheError> {
        self.check_aligned()?;
        let mut masks: Vec<AttentionMask> = Vec::with_capacity(self.layers.len());
        for (i, (layer, &like)) in self.layers.iter().zip(&self.masked_like).enumerate() {
            let mask = match masks.get(like).filter(|_| like < i) {
                Some(mask) => mask.clone(),
                None => layer.mask(queries)?,
            };
            masks.push(mask);
        }
        Ok(masks)
    }

    /// The caches, first layer first.
    pub fn layers(&self) -> &[KvCache] {
        &self.layers
    }

    /// The caches, first layer first, to append to.
    pub fn layers_mut(&mut self) -> impl ExactSizeIterator<Item = &mut KvCache> {
        self.layers.iter_mut()
    }

    /// Forgets the newest `tokens` tokens in every layer, or all where there are fewer, and says how many
    /// went.
    ///
    /// # Errors
    ///
    /// As [`KvCache::trim`], and [`CacheError::Drift`]; no layer is then changed.
    pub fn trim(&mut self, tokens: i32) -> Result<i32, CacheError> {
        self.can_trim(tokens)?;
        let mut gone = 0;
        for layer in &mut self.layers {
            gone = layer.trim(tokens)?;
        }
        Ok(gone)
    }

    /// Whether all layers have seen as many tokens, which is so between two calls of the model.
    ///
    /// # Errors
    ///
    /// [`CacheError::Drift`] where they have not.
    pub fn check_aligned(&self) -> Result<(), CacheError> {
        let expected = self.offset();
        let drifted = self.layers.iter().map(|layer| layer.offset()).enumerate();
        match drifted.into_iter().find(|&(_, found)| found != expected) {
            None => Ok(()),
            Some((layer, found)) => Err(CacheError::Drift { layer, expected, found }),
        }
    }

    /// Takes back what only some layers have seen of a call of the model that has failed halfway.
    ///
    /// # Errors
    ///
    /// [`CacheError::Trim`] where a layer with a window no longer holds what it would need; only a
    /// clone from before that call could help then. No layer is changed.
    pub fn realign(&mut self) -> Result<(), CacheError> {
        let shortest = self.layers.iter().map(|layer| layer.offset()).min().unwrap_or(0);
        for layer in &self.layers {
            layer.can_trim(layer.offset() - shortest)?;
        }
        for layer in &mut self.layers {
            layer.trim(layer.offset() - shortest)?;
        }
        Ok(())
    }

    /// How many tokens [`trim`](Self::trim) would forget.
    ///
    /// # Errors
    ///
    /// As [`trim`](Self::trim).
    pub fn can_trim(&self, tokens: i32) -> Result<i32, CacheError> {
        self.check_aligned()?;
        self.layers.iter().try_fold(0, |_, layer| layer.can_trim(tokens))
    }

    /// Quantizes what is held, and what will come, in every layer.
    ///
    /// # Errors
    ///
    /// As [`KvCache::quantize`]; no layer is then changed.
    pub fn quantize(&mut self, quantization: Quantization) -> Result<(), CacheError> {
        for layer in &self.layers {
            layer.check_quantize(quantization)?;
        }
        // One after the other, so that no more than one layer is held twice.
        self.layers.iter_mut().try_for_each(|layer| layer.quantize(quantization))
    }

    /// Keeps these rows of the batch, in this order.
    ///
    /// # Errors
    ///
    /// As [`KvCache::filter`]; no layer is then changed.
    pub fn filter(&mut self, rows: &[usize]) -> Result<(), CacheError> {
        *self = self.select(|layer| layer.filter(rows))?;
        Ok(())
    }

    /// One row of the batch as a cache of its own.
    ///
    /// # Errors
    ///
    /// As [`KvCache::filter`].
    pub fn row(&self, row: usize) -> Result<Self, CacheError> {
        self.select(|layer| layer.row(row))
    }

    fn select(&self, rows: impl Fn(&KvCache) -> Result<KvCache, CacheError>) -> Result<Self, CacheError> {
        self.check_aligned()?;
        let layers = self.layers.iter().map(rows).collect::<Result<_, _>>()?;
        let mut kept = Self { layers, masked_like: self.masked_like.clone(), expected: 0 };
        // Of the longest row, which may have gone.
        kept.expected = self.expected.saturating_sub(self.offset() - kept.offset()).max(0);
        Ok(kept)
    }

    /// All rows of these caches as one batch, the rows of the first one first.
    ///
    /// # Errors
    ///
    /// As [`KvCache::merge`], and [`CacheError::Layers`] for caches of different numbers of layers.
    pub fn merge(caches: &[&Self]) -> Result<Self, CacheError> {
        let Some(first) = caches.first() else { return Err(CacheError::Rows { rows: Vec::new(), batch: 0 }) };
        let expected = first.layers.len();
        if let Some(other) = caches.iter().find(|cache| cache.layers.len() != expected) {
            return Err(CacheError::Layers { expected, found: other.layers.len() });
        }
        caches.iter().try_for_each(|cache| cache.check_aligned())?;
        let layer = |i: usize| {
            let layers: Vec<&KvCache> = caches.iter().map(|cache| &cache.layers[i]).collect();
            KvCache::merge(&layers)
        };
        // Rows that were read apart come to their ends apart, so nothing is expected.
        Ok(Self::new((0..expected).map(layer).collect::<Result<_, _>>()?))
    }

    /// Adds the rows of another cache.
    ///
    /// # Errors
    ///
    /// As [`merge`](Self::merge); the cache is then as it was.
    pub fn extend(&mut self, other: &Self) -> Result<(), CacheError> {
        *self = Self::merge(&[self, other])?;
        Ok(())
    }

    /// Bytes held by all layers, free places included. What is shared with a snapshot counts for each.
    pub fn nbytes(&self) -> usize {
        self.layers.iter().map(|layer| layer.nbytes()).sum()
    }

    /// Computes what is held, so that the graph of the calls so far can be freed. A caller that reads the
    /// logits of every call does not need it. One that reads a prompt in pieces without logits does, and one that moves a
    /// cache to another thread: MLX computes what is pending on a stream of the thread that asked for it.
    ///
    /// # Errors
    ///
    /// What MLX reports from any operation of those calls.
    pub fn eval(&self) -> Result<(), Exception> {
        mlx_rs::transforms::eval(self.arrays())
    }

    /// The arrays of all layers, for evaluating them together with others.
    pub fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.layers.iter().flat_map(|layer| layer.arrays())
    }
}
