//! The tensors of each layer's adapter in a file of PEFT.

use std::collections::{BTreeMap, HashMap, HashSet};

use mlx_layers::AdaptedLayer;

use super::config::{PeftConfig, TENSORS, Targets};
use crate::adapters::wanted::{Part, Wanted};
use crate::head::HEAD;
use crate::safetensors_file::TensorInfo;
use crate::text::shortened;

/// What every key begins with: the path to the model inside PEFT's own.
const PREFIX: &str = "base_model.model.";
/// The part of a key between a layer with an adapter and its own weight.
const BASE_LAYER: &str = ".base_layer";
/// What keys of adapters end with, after the name of a layer. The last two are DoRA's magnitudes in older and in newer
/// files.
const LEAVES: [&str; 6] = [
    ".lora_A.weight",
    ".lora_B.weight",
    ".lora_embedding_A",
    ".lora_embedding_B",
    ".lora_magnitude_vector",
    ".lora_magnitude_vector.weight",
];
/// The problem of adapters for the head of a model that has none of its own.
pub(crate) const TIED: &str = "the model's head is its embedding table; merge the adapters into the model with PEFT \
     (merge_and_unload) and load the result";

/// The name of a module without `language_model`. transformers puts that into the path of a language model that has other
/// parts beside it, in one of two places.
pub(crate) fn canonical(name: &str) -> String {
    const INNER: &str = "language_model";
    let parts: Vec<&str> = name.split('.').filter(|part| *part != INNER).collect();
    parts.join(".")
}

/// The adapters of a folder while a model is built.
#[derive(Debug)]
pub(crate) struct Peft {
    config: PeftConfig,
    /// The layers with adapters in the file: the file's names by the canonical names.
    layers: HashMap<String, String>,
    /// Layers that have two names in the file.
    pub(crate) twice: Vec<[String; 2]>,
    /// The end of the keys of DoRA's magnitudes.
    magnitudes: &'static str,
    /// The canonical names of the modules that were trained as a whole, on a copy.
    copied: HashSet<String>,
    /// The embedding that the adapters change, if they change one. No head may be tied to it.
    pub(crate) embedding: Option<String>,
}

impl Peft {
    pub(crate) fn new(config: PeftConfig, header: &BTreeMap<String, TensorInfo>) -> Self {
        let mut layers: HashMap<String, String> = HashMap::new();
        let mut twice = Vec::new();
        for name in header.keys().filter_map(|key| layer_of(key)) {
            match layers.insert(canonical(name), name.to_owned()) {
                Some(other) if other != name => twice.push([other, name.to_owned()]),
                _ => {}
            }
        }
        let newer = header.keys().any(|key| key.ends_with(LEAVES[5]));
        let magnitudes = LEAVES[if newer { 5 } else { 4 }];
        Self { config, layers, twice, magnitudes, copied: HashSet::new(), embedding: None }
    }

    /// The adapter of a layer of the model, if the file or the config has one for it.
    pub(crate) fn wanted(&mut self, layer: &str, kind: AdaptedLayer) -> Option<Wanted> {
        let canonical = canonical(layer);
        let is_linear = matches!(kind, AdaptedLayer::Linear { .. });
        if !is_linear && self.copied.contains(&canonical) {
            self.embedding = Some(layer.to_owned());
        }
        let name = match self.layers.get(&canonical) {
            // Its tensors are reported as left over at the end.
            Some(name) if self.is_outside(name, is_linear) => return None,
            Some(name) => name.clone(),
            // The file has no tensors for the layer, so its name in the config is not known. The usual name is tried.
            None if self.config.covers(&canonical, is_linear) == Some(true) => canonical,
            None => return None,
        };
        let [a, b, m] = match kind {
            AdaptedLayer::Linear { .. } => [LEAVES[0], LEAVES[1], self.magnitudes],
            AdaptedLayer::Embedding { .. } => {
                self.embedding = Some(layer.to_owned());
                [LEAVES[2], LEAVES[3], self.magnitudes]
            }
        };
        let rank = self.config.rank_of(&name);
        let [[inputs, _], [_, outputs]] = kind.shapes(rank);
        let key = |leaf: &str| format!("{PREFIX}{name}{leaf}");
        let refused = (self.config.dora && !is_linear)
            .then_some("DoRA for an embedding, as PEFT computes it, is not supported");
        Some(Wanted {
            a: Part { key: key(a), shape: vec![rank, inputs], transposed: true },
            b: Part { key: key(b), shape: vec![outputs, rank], transposed: true },
            m: self.config.dora.then(|| Part {
                key: key(m),
                shape: vec![kind.magnitudes()],
                transposed: false,
            }),
            scale: self.config.scale_of(&name),
            rank,
            refused,
        })
    }

    /// Whether the config gives a layer no adapter, neither by its own name nor by its canonical name.
    fn is_outside(&self, layer: &str, is_linear: bool) -> bool {
        let covers = |name: &str| self.config.covers(name, is_linear);
        covers(layer) == Some(false) && covers(&canonical(layer)) == Some(false)
    }

    /// Whether the layer of a tensor has two names in the file.
    pub(crate) fn is_twice(&self, key: &str) -> bool {
        let layer = layer_of(key).map(canonical);
        layer.is_some_and(|layer| self.twice.iter().any(|[name, _]| canonical(name) == layer))
    }

    /// Which layers the config names, in words.
    pub(crate) fn targets(&self) -> String {
        match &self.config.targets {
            Targets::Names(names) if !names.is_empty() => {
                format!("target_modules names {}", shortened(&names.join(", ")))
            }
            Targets::Pattern(pattern) => format!("target_modules is {}", shortened(pattern.as_str())),
            Targets::Names(_) | Targets::AllLinear | Targets::Unreadable => {
                format!("target_modules names none, and {TENSORS} has no tensors for one")
            }
        }
    }

    /// Why no layer took an adapter tensor; `None` if it belongs to no layer.
    pub(crate) fn left_over(&self, key: &str, has_head: bool) -> Option<String> {
        let layer = layer_of(key)?;
        let is_linear = !key.contains(".lora_embedding_");
        Some(if !has_head && canonical(layer) == HEAD {
            TIED.to_owned()
        } else if self.is_outside(layer, is_linear) {
            "adapter_config.json gives this layer no adapter".to_owned()
        } else {
            "the model has no such layer".to_owned()
        })
    }

    /// Whether a tensor that no layer took belongs to a part of the model that is not used, such as a vision part.
    pub(crate) fn is_ignored(key: &str, ignored: &impl Fn(&str) -> bool) -> bool {
        let Some(name) = key.strip_prefix(PREFIX) else { return false };
        let inner = name.strip_prefix("model.").unwrap_or(name);
        ignored(name) || ignored(inner) || ignored(&format!("model.{inner}"))
    }

    /// The canonical name of a whole weight or bias; `None` for a tensor of an adapter.
    pub(crate) fn whole(&mut self, key: &str) -> Option<String> {
        let name = key.strip_prefix(PREFIX).filter(|_| layer_of(key).is_none() && !key.contains(".lora_"))?;
        let (module, leaf) = name.rsplit_once('.')?;
        let module = module.strip_suffix(BASE_LAYER).unwrap_or(module);
        if self.config.is_saved(module) {
            self.copied.insert(canonical(module));
        }
        Some(format!("{}.{leaf}", canonical(module)))
    }
}

/// The layer of an adapter tensor.
fn layer_of(key: &str) -> Option<&str> {
    let name = key.strip_prefix(PREFIX)?;
    LEAVES.iter().find_map(|leaf| name.strip_suffix(leaf))
}
