//! What a layer of attention needs of its cache.

/// Which tokens a layer of attention sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LayerKind {
    /// Every token before the query, and the query's own.
    Full,
    /// The newest `window` tokens, including the query's own.
    Sliding {
        /// The window, in tokens.
        window: i32,
    },
}

/// What a layer of attention needs of its cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerSpec {
    /// Which tokens the layer sees.
    pub kind: LayerKind,
    /// The number of key-value heads.
    pub heads: i32,
    /// Features per head of the keys.
    pub key_dim: i32,
    /// Features per head of the values.
    pub value_dim: i32,
}

impl LayerSpec {
    /// How many numbers the cache holds for each token: those of its keys and values.
    pub fn values_per_token(&self) -> usize {
        let size = |n: i32| n.max(0) as usize;
        size(self.heads) * (size(self.key_dim) + size(self.value_dim))
    }
}

/// A limit on the tokens that a layer of full attention keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// The most tokens that a query sees.
    pub max_size: i32,
    /// How many of them are attention sinks: the first tokens, which stay. mlx-lm keeps 4.
    pub keep: i32,
}
