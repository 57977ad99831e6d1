//! Which layers have adapters by mlx-lm's config.

use std::collections::BTreeMap;

use mlx_layers::AdaptedLayer;

use super::config::{AdapterConfig, AdapterKind};
use super::wanted::{Part, Wanted};

/// A config, and which of its keys the model had a layer for so far.
#[derive(Debug)]
pub(super) struct Plan {
    config: AdapterConfig,
    /// The number of blocks below each prefix, such as `model.layers`.
    blocks: BTreeMap<String, usize>,
    /// For each key of the config, whether the model had such a layer.
    met: Vec<bool>,
}

impl Plan {
    pub(super) fn new(config: AdapterConfig, checkpoint_keys: impl Iterator<Item = impl AsRef<str>>) -> Self {
        let mut blocks = BTreeMap::new();
        for key in checkpoint_keys {
            if let Some(Block { list, index, .. }) = Block::of(key.as_ref()) {
                let count = blocks.entry(list.to_owned()).or_default();
                *count = index.saturating_add(1).max(*count);
            }
        }
        let met = vec![false; config.keys.as_ref().map_or(0, Vec::len)];
        Self { config, blocks, met }
    }

    /// Whether the config gives this layer an adapter.
    pub(super) fn covers(&mut self, layer: &str) -> bool {
        let block = Block::of(layer);
        let Some(keys) = &self.config.keys else {
            return block.is_some_and(|block| self.is_late(&block));
        };
        let named = |key: &str| key == layer || block.as_ref().is_some_and(|block| block.rest == key);
        for (key, met) in keys.iter().zip(&mut self.met) {
            *met |= named(key);
        }
        let late = block.as_ref().is_some_and(|block| self.is_late(block));
        keys.iter().any(|key| key == layer || late && block.as_ref().is_some_and(|block| block.rest == key))
    }

    /// The adapter of a layer, if the config gives it one.
    pub(super) fn wanted(&mut self, layer: &str, kind: AdaptedLayer) -> Option<Wanted> {
        if !self.covers(layer) {
            return None;
        }
        let AdapterConfig { kind: adapter, rank, scale, .. } = self.config;
        let dora = adapter == AdapterKind::Dora;
        let part = |leaf: &str, shape: &[i32]| Part {
            key: format!("{layer}.{leaf}"),
            shape: shape.to_vec(),
            transposed: false,
        };
        let [a, b] = kind.shapes(rank);
        let refused = (dora && matches!(kind, AdaptedLayer::Embedding { quantized: true, .. }))
            .then_some("DoRA has no adapters for quantized embeddings");
        let m = dora.then(|| part("m", &[kind.magnitudes()]));
        Some(Wanted { a: part("lora_a", &a), b: part("lora_b", &b), m, rank, scale, refused })
    }

    /// The keys of the config for which the model has no layer.
    pub(super) fn unmet(&self) -> impl Iterator<Item = &str> {
        let keys = self.config.keys.iter().flatten().zip(&self.met);
        keys.filter(|(_, met)| !**met).map(|(key, _)| key.as_str())
    }

    /// Whether a block is one of the last `num_layers` blocks.
    fn is_late(&self, block: &Block<'_>) -> bool {
        let count = self.blocks.get(block.list).copied().unwrap_or(0);
        match usize::try_from(self.config.num_layers) {
            Ok(last @ 1..) => block.index.saturating_add(last) >= count,
            _ => true,
        }
    }
}

/// The parts of a key inside a block, such as `model.layers`, `3` and `self_attn.q_proj`.
struct Block<'a> {
    list: &'a str,
    index: usize,
    rest: &'a str,
}

impl<'a> Block<'a> {
    fn of(key: &'a str) -> Option<Self> {
        const LIST: &str = "layers.";
        let start = key.find(".layers.").map(|dot| dot + 1).or_else(|| key.starts_with(LIST).then_some(0))?;
        let (index, rest) = key[start + LIST.len()..].split_once('.')?;
        Some(Self { list: &key[..start + LIST.len() - 1], index: index.parse().ok()?, rest })
    }
}
