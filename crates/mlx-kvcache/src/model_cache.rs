//! The caches of all layers of a model.

use mlx_attn_masks::AttentionMask;
use mlx_rs::Array;
use mlx_rs::error::Exception;

use crate::buffers::check_groups;
use crate::{CacheError, KvCache, LayerSpec, Layout, Limit, Quantization};

/// Settings of a cache that do not depend on the model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CacheOptions {
    /// Quantizes keys and values when they are appended.
    pub quantization: Option<Quantization>,
    /// How many of the newest tokens can be trimmed at any time. Layers of full attention can always trim
    /// all tokens; layers with a window hold this many more tokens.
    pub rewind: i32,
    /// Limits the memory of layers of full attention, which then forget the middle of the text.
    pub limit: Option<Limit>,
    /// For a batch of prompts that are padded on the left to one length: the padding of each prompt, in
    /// tokens.
    pub left_padding: Vec<i32>,
}

/// The caches of all layers of a model.
///
/// A clone is cheap, because it shares the arrays. Keep a clone to return to this point of the text later.
/// The first append to either of them copies the arrays once.
#[derive(Debug, Clone)]
pub struct ModelCache {
    layers: Vec<KvCache>,
    /// For each layer, the number of the first layer with the same mask.
    masked_like: Vec<usize>,
    /// See [`Self::expect`].
    expected: i32,
}

impl ModelCache {
    /// A cache with these layers, first layer first. Layers that are alike share their masks from now on, so
    /// the same number of tokens must be appended to all layers.
    pub fn new(layers: Vec<KvCache>) -> Self {
        let first_alike = |layer: &KvCache| layers.iter().position(|other| other.masked_like(layer));
        let masked_like = layers.iter().filter_map(first_alike).collect();
        Self { layers, masked_like, expected: 0 }
    }

    /// Empty caches for these layers, first layer first, with the layouts of [`Layout::for_layer`].
    ///
    /// # Errors
    ///
    /// [`CacheError::Sizes`], [`CacheError::Negative`] or [`CacheError::Padding`] for an invalid window,
    /// limit, rewind or padding, [`CacheError::Groups`] if the size of the heads is not a multiple of the
    /// quantization group, and [`CacheError::Mode`] for a mode that caches do not support.
    pub fn for_layers(layers: &[LayerSpec], options: &CacheOptions) -> Result<Self, CacheError> {
        let CacheOptions { quantization, rewind, limit, ref left_padding } = *options;
        if rewind < 0 {
            return Err(CacheError::Negative { tokens: rewind });
        }
        let mut caches = Vec::with_capacity(layers.len());
        for layer in layers {
            let mut cache = KvCache::new(Layout::for_layer(layer.kind, limit)?).with_rewind(rewind)?;
            if !left_padding.is_empty() {
                cache = cache.with_left_padding(left_padding)?;
            }
            if let Some(quantization) = quantization {
                check_groups(layer.key_dim, layer.value_dim, quantization)?;
                cache.quantize(quantization)?;
            }
            caches.push(cache);
        }
        Ok(Self::new(caches))
    }

    /// How many of the newest tokens can be trimmed at any time, counted from the furthest position that was
    /// reached; `None` for any number, where no layer has a window or a limit.
    pub fn rewind(&self) -> Option<i32> {
        let of_layer = |layer: &KvCache| match layer.layout() {
            Layout::Ring(ring) => Some(ring.rewind()),
            Layout::Full(_) => None,
        };
        self.layers.iter().filter_map(of_layer).min()
    }

    /// Makes room so that at least `rewind` tokens can be trimmed at any time: see [`KvCache::with_rewind`].
    ///
    /// # Errors
    ///
    /// Those of [`KvCache::with_rewind`].
    pub fn with_rewind(mut self, rewind: i32) -> Result<Self, CacheError> {
        let layers = self.layers.into_iter().map(|layer| layer.with_rewind(rewind));
        self.layers = layers.collect::<Result<_, _>>()?;
        Ok(self)
    }

    /// Makes the room for trims as large or as small as that of another cache of the model: see
    /// [`KvCache::with_rewind_of`].
    ///
    /// # Errors
    ///
    /// Those of [`KvCache::with_rewind_of`], and [`CacheError::Layers`] for caches of different numbers of layers.
    pub fn with_rewind_of(mut self, other: &Self) -> Result<Self, CacheError> {
        let (expected, found) = (other.layers.len(), self.layers.len());
        if expected != found {
            return Err(CacheError::Layers { expected, found });
        }
        let layers = self.layers.into_iter().zip(&other.layers);
        self.layers = layers.map(|(layer, other)| layer.with_rewind_of(other)).collect::<Result<_, _>>()?;
        Ok(self)
    }

    /// The number of tokens that were appended, which is the position of the next token. In a batch, that of
    /// the longest row.
    pub fn offset(&self) -> i32 {
        self.layers.first().map_or(0, |layer| layer.offset())
    }

    /// Sets how many tokens the sequence will have once the current prompt is read to its end: the number of
    /// tokens of the longest row.
    ///
    /// The rotation of some models depends on the length of the whole sequence (LongRoPE). Without this
    /// number they take the end of a call for the end of the sequence, which is wrong for a piece of a longer
    /// prompt. Masks do not depend on it.
    pub fn expect(&mut self, tokens: i32) {
        self.expected = tokens;
    }

    /// The [expected](Self::expect) number of tokens, or 0 if none was set.
    pub fn expected(&self) -> i32 {
        self.expected
    }

    /// How many tokens are [expected](Self::expect) after the next `length` tokens.
    pub fn expected_after(&self, length: i32) -> i32 {
        self.expected.saturating_sub(self.offset().saturating_add(length)).max(0)
    }

    /// The mask of each layer for the next `queries` tokens. A mask is built once for each kind of layer, and
    /// layers of the same kind share it.
    ///
    /// # Errors
    ///
    /// Those of [`KvCache::mask`], and [`CacheError::Drift`] after a call of the model that failed halfway.
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

    /// The caches of the layers, first layer first.
    pub fn layers(&self) -> &[KvCache] {
        &self.layers
    }

    /// The caches of the layers, first layer first, for appending.
    pub fn layers_mut(&mut self) -> impl ExactSizeIterator<Item = &mut KvCache> {
        self.layers.iter_mut()
    }

    /// Forgets the newest `tokens` tokens in every layer, or all if there are fewer, and returns how many it
    /// forgot.
    ///
    /// # Errors
    ///
    /// Those of [`KvCache::trim`], and [`CacheError::Drift`]. No layer is then changed.
    pub fn trim(&mut self, tokens: i32) -> Result<i32, CacheError> {
        self.can_trim(tokens)?;
        let mut gone = 0;
        for layer in &mut self.layers {
            gone = layer.trim(tokens)?;
        }
        Ok(gone)
    }

    /// Checks that all layers hold the same number of tokens, which is so between two calls of the model.
    ///
    /// # Errors
    ///
    /// [`CacheError::Drift`] if they do not.
    pub fn check_aligned(&self) -> Result<(), CacheError> {
        let expected = self.offset();
        let drifted = self.layers.iter().map(|layer| layer.offset()).enumerate();
        match drifted.into_iter().find(|&(_, found)| found != expected) {
            None => Ok(()),
            Some((layer, found)) => Err(CacheError::Drift { layer, expected, found }),
        }
    }

    /// After a call of the model that failed halfway, trims the tokens that only some layers hold.
    ///
    /// # Errors
    ///
    /// [`CacheError::Trim`] if a layer with a window has overwritten tokens that it would need. No layer is
    /// then changed, and only a clone from before that call can replace the cache.
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
    /// Those of [`trim`](Self::trim).
    pub fn can_trim(&self, tokens: i32) -> Result<i32, CacheError> {
        self.check_aligned()?;
        self.layers.iter().try_fold(0, |_, layer| layer.can_trim(tokens))
    }

    /// Quantizes the tokens of every layer, and those that will be appended.
    ///
    /// # Errors
    ///
    /// Those of [`KvCache::quantize`]. No layer is then changed.
    pub fn quantize(&mut self, quantization: Quantization) -> Result<(), CacheError> {
        for layer in &self.layers {
            layer.check_quantize(quantization)?;
        }
        // One layer after the other, so that at most one is in memory twice.
        self.layers.iter_mut().try_for_each(|layer| layer.quantize(quantization))
    }

    /// Keeps these rows of the batch, in this order.
    ///
    /// # Errors
    ///
    /// Those of [`KvCache::filter`], and [`CacheError::Drift`]. No layer is then changed.
    pub fn filter(&mut self, rows: &[usize]) -> Result<(), CacheError> {
        *self = self.select(|layer| layer.filter(rows))?;
        Ok(())
    }

    /// One row of the batch as a cache of its own.
    ///
    /// # Errors
    ///
    /// Those of [`KvCache::row`], and [`CacheError::Drift`].
    pub fn row(&self, row: usize) -> Result<Self, CacheError> {
        self.select(|layer| layer.row(row))
    }

    fn select(&self, rows: impl Fn(&KvCache) -> Result<KvCache, CacheError>) -> Result<Self, CacheError> {
        self.check_aligned()?;
        let layers = self.layers.iter().map(rows).collect::<Result<_, _>>()?;
        let mut kept = Self { layers, masked_like: self.masked_like.clone(), expected: 0 };
        // The expected length is that of the longest row, which may have been dropped.
        kept.expected = self.expected.saturating_sub(self.offset() - kept.offset()).max(0);
        Ok(kept)
    }

    /// All rows of these caches as one batch, the rows of the first one first.
    ///
    /// # Errors
    ///
    /// Those of [`KvCache::merge`], [`CacheError::Drift`], and [`CacheError::Layers`] for caches of different
    /// numbers of layers.
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
        // The rows were read separately and may end at different lengths, so no length is expected.
        Ok(Self::new((0..expected).map(layer).collect::<Result<_, _>>()?))
    }

    /// Adds the rows of another cache.
    ///
    /// # Errors
    ///
    /// Those of [`merge`](Self::merge). The cache is then unchanged.
    pub fn extend(&mut self, other: &Self) -> Result<(), CacheError> {
        *self = Self::merge(&[self, other])?;
        Ok(())
    }

    /// Bytes of all arrays, including free slots. Arrays that are shared with a clone count for both.
    pub fn nbytes(&self) -> usize {
        self.layers.iter().map(|layer| layer.nbytes()).sum()
    }

    /// Computes the keys and values of the calls so far, so that their graph can be freed.
    ///
    /// This is needed after each piece of a prompt that is read without logits, and before a cache moves to
    /// another thread, since MLX computes pending arrays on a stream of the thread that created them. It is
    /// not needed if the logits of every call are computed.
    ///
    /// # Errors
    ///
    /// An MLX error from any operation of those calls.
    pub fn eval(&self) -> Result<(), Exception> {
        mlx_rs::transforms::eval(self.arrays())
    }

    /// The arrays of all layers, for evaluating them together with others.
    pub fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.layers.iter().flat_map(|layer| layer.arrays())
    }
}
