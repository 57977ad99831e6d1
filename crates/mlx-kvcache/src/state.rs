//! A cache as a value: to keep, to put back, to cut into rows and to put together.

use crate::buffers::Form;
use crate::full::check_quantize;
use crate::{CacheError, FullKvCache, KvCache, Quantization, RotatingKvCache};

/// All that a cache is. Arrays are shared with the cache that it came from, not copied; whichever of
/// the two goes on first copies what it overwrites.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum CacheState {
    /// A cache of every token.
    Full(FullKvCache),
    /// A cache of bounded size.
    Rotating(RotatingKvCache),
}

impl CacheState {
    /// A cache with this state.
    pub fn into_cache(self) -> Box<dyn KvCache> {
        match self {
            Self::Full(cache) => Box::new(cache),
            Self::Rotating(cache) => Box::new(cache),
        }
    }

    /// These rows of the batch, in this order. What was padding for all of them is dropped.
    ///
    /// # Errors
    ///
    /// [`CacheError::Rows`] for no rows, or rows that the batch does not have.
    pub fn filter(&self, rows: &[usize]) -> Result<Self, CacheError> {
        match self {
            Self::Full(cache) => cache.filter(rows).map(Self::Full),
            Self::Rotating(cache) => cache.filter(rows).map(Self::Rotating),
        }
    }

    /// One row of the batch as a cache of its own.
    ///
    /// # Errors
    ///
    /// [`CacheError::Rows`] for a row that the batch does not have.
    pub fn row(&self, row: usize) -> Result<Self, CacheError> {
        Ok(match self.filter(&[row])? {
            Self::Full(cache) => Self::Full(cache.single()),
            Self::Rotating(cache) => Self::Rotating(cache.single()),
        })
    }

    /// How keys and values are quantized.
    pub fn quantization(&self) -> Option<Quantization> {
        match self {
            Self::Full(cache) => cache.quantization(),
            Self::Rotating(cache) => cache.quantization(),
        }
    }

    /// Whether [`KvCache::quantize`] would work.
    pub(crate) fn check_quantize(&self, asked: Quantization) -> Result<(), CacheError> {
        check_quantize(self.form(), self.quantization(), asked)
    }

    pub(crate) fn quantize(&mut self, quantization: Quantization) -> Result<(), CacheError> {
        match self {
            Self::Full(cache) => cache.quantize(quantization),
            Self::Rotating(cache) => cache.quantize(quantization),
        }
    }

    /// Rows of the batch; 1 while that is not known.
    pub(crate) fn batch(&self) -> usize {
        match self {
            Self::Full(cache) => cache.batch(),
            Self::Rotating(cache) => cache.batch(),
        }
    }

    /// All rows of these caches as one batch, the rows of the first one first. The newest tokens of all
    /// rows come to stand side by side; shorter rows are padded on the left.
    ///
    /// A rotating batch can take back as many tokens as each of the caches could.
    ///
    /// # Errors
    ///
    /// [`CacheError::Merge`] for caches of different kinds, sizes, quantizations, heads or dtypes, and
    /// [`CacheError::Rows`] for none.
    pub fn merge(caches: &[Self]) -> Result<Self, CacheError> {
        let full: Vec<_> =
            caches.iter().filter_map(|c| if let Self::Full(c) = c { Some(c) } else { None }).collect();
        let rotating: Vec<_> =
            caches.iter().filter_map(|c| if let Self::Rotating(c) = c { Some(c) } else { None }).collect();
        if !full.is_empty() && !rotating.is_empty() {
            let name = |cache: &Self| cache.kind().to_owned();
            let other =
                caches.iter().find(|cache| cache.kind() != caches[0].kind()).map_or_else(String::new, name);
            return Err(CacheError::Merge { what: "kinds", first: name(&caches[0]), other });
        }
        if rotating.is_empty() {
            FullKvCache::merge(&full).map(Self::Full)
        } else {
            RotatingKvCache::merge(&rotating).map(Self::Rotating)
        }
    }

    /// The cache that this is.
    pub fn as_cache(&self) -> &dyn KvCache {
        match self {
            Self::Full(cache) => cache,
            Self::Rotating(cache) => cache,
        }
    }

    /// What keys and values look like, once there are any.
    pub(crate) fn form(&self) -> Option<Form> {
        match self {
            Self::Full(cache) => cache.form(),
            Self::Rotating(cache) => cache.form(),
        }
    }

    /// Whether the masks of the two are the same, now and after the same calls.
    pub(crate) fn masked_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Full(a), Self::Full(b)) => a.window() == b.window() && a.rows() == b.rows(),
            (Self::Rotating(a), Self::Rotating(b)) => a.ring() == b.ring() && a.rows() == b.rows(),
            _ => false,
        }
    }

    /// What kind of cache it is, in a word.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Full(_) => "full",
            Self::Rotating(_) => "rotating",
        }
    }
}
