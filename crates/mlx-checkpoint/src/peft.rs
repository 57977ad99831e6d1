//! Adapters as the library PEFT saves them: which layers have them, and how they are scaled.
//!
//! The file of tensors decides which layers have adapters and of which rank. The config has to agree with it: a layer
//! that it names has its tensors in the file, and every adapter in the file is one that the config names.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::path::Path;

use mlx_layers::AdaptedLayer;
use regex::{Regex, RegexBuilder, RegexSet, RegexSetBuilder};
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::adapters::{Part, Wanted};
use crate::error::{of_config, shortened};
use crate::{CheckpointError, TensorInfo};

/// The tensors, as PEFT has saved them since 2023.
pub(crate) const TENSORS: &str = "adapter_model.safetensors";
/// The tensors, as it saved them before.
const PICKLED: &str = "adapter_model.bin";
/// What a key begins with: the path to the model inside of PEFT's.
const PREFIX: &str = "base_model.model.";
/// What stands in a key between a layer with an adapter and its own weight.
const BASE_LAYER: &str = ".base_layer";
/// What a key ends with, behind the name of a layer. The last two are the same in older and newer files.
const LEAVES: [&str; 6] = [
    ".lora_A.weight",
    ".lora_B.weight",
    ".lora_embedding_A",
    ".lora_embedding_B",
    ".lora_magnitude_vector",
    ".lora_magnitude_vector.weight",
];
/// The layers of transformers' models that read the embedding backwards or stand in its place.
pub(crate) const HEAD: &str = "lm_head";
/// What to do with adapters that cannot be applied here.
pub(crate) const MERGE: &str =
    "merge the adapters into the model with PEFT (merge_and_unload) and load the result";
/// What is said of the head of a model that has none of its own.
pub(crate) const TIED: &str = "the model's head is its embedding table; merge the adapters into the model with PEFT \
                               (merge_and_unload) and load the result";

/// The keys of the config that change what an adapter computes, and that nothing here computes.
const UNSUPPORTED: [&str; 11] = [
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "megatron_config",
];

/// The keys that say where adapters come from, or how they were trained.
const WITHOUT_EFFECT: [&str; 16] = [
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "inference_mode",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
    "velora_config",
];

/// How many names, patterns or numbers one key of the config may have. A model of 126 blocks has 882 linear layers.
const MOST_ENTRIES: usize = 4096;
/// What the regular expressions of one key may take in memory together, in bytes as `regex` counts them.
const LARGEST_PATTERNS: usize = 4 << 20;

/// The part of `adapter_config.json` that is looked at. PEFT has defaults for all of it.
#[derive(Deserialize)]
struct RawConfig {
    peft_type: String,
    r: Option<i32>,
    lora_alpha: Option<f64>,
    use_rslora: Option<bool>,
    use_dora: Option<bool>,
    fan_in_fan_out: Option<bool>,
    bias: Option<String>,
    target_modules: Option<Names>,
    exclude_modules: Option<Names>,
    modules_to_save: Option<Vec<String>>,
    layers_to_transform: Option<Indices>,
    layers_pattern: Option<Names>,
    rank_pattern: Option<Ordered<i32>>,
    alpha_pattern: Option<Ordered<f64>>,
    init_lora_weights: Option<Value>,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a name or a list of names is needed")]
enum Names {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a number or a list of numbers is needed")]
enum Indices {
    One(usize),
    Many(Vec<usize>),
}

/// An object whose keys stay in their order, since the first that fits counts.
struct Ordered<T>(Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Ordered<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object<T>(std::marker::PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Object<T> {
            type Value = Ordered<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with a number for each pattern")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ordered<T>, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Ordered(entries))
            }
        }

        deserializer.deserialize_map(Object(std::marker::PhantomData))
    }
}

/// What `adapter_config.json` says of adapters of the type LORA.
#[derive(Debug, Clone)]
pub(crate) struct PeftConfig {
    rank: i32,
    alpha: f64,
    rslora: bool,
    dora: bool,
    /// The layers that have another rank, and other alphas.
    ranks: (Patterns, Vec<i32>),
    alphas: (Patterns, Vec<f64>),
    targets: Targets,
    excluded: Option<Targets>,
    /// Only in these blocks, where it is not empty.
    blocks: Vec<usize>,
    /// How the numbers of blocks are found in names.
    block_numbers: Vec<Regex>,
    /// The modules that were trained as a whole.
    saved: Patterns,
}

/// Which layers are meant.
#[derive(Debug, Clone)]
enum Targets {
    /// Those with these names, or whose names end with a dot and one of these.
    Names(Vec<String>),
    /// Those whose whole names fit.
    Pattern(Regex),
    /// Every linear layer but the head.
    AllLinear,
    /// A pattern that only Python understands: the file of tensors decides.
    Unreadable,
}

impl PeftConfig {
    /// Reads the text of a config that has `peft_type`.
    pub(crate) fn read(text: &str, file: &Path, folder: &Path) -> Result<Self, CheckpointError> {
        let refused = |problem: String| CheckpointError::AdapterConfig { file: file.to_path_buf(), problem };
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let raw: RawConfig =
            serde_path_to_error::deserialize(&mut deserializer).map_err(|e| of_config(file, e))?;
        if raw.peft_type != "LORA" {
            let found = format!("{:?}", raw.peft_type);
            let found = shortened(&found);
            return Err(refused(format!("peft_type is {found}, and only LORA is supported; {MERGE}")));
        }
        let present = |name: &str| {
            let file = folder.join(name);
            mlx_files::is_present(&file).map_err(|source| CheckpointError::Io { file, source })
        };
        if !present(TENSORS)? {
            if present(PICKLED)? {
                return Err(refused(format!(
                    "the adapters are in {PICKLED}, which is not read, since unpickling runs code; load them with PEFT \
                     and save them anew, which writes {TENSORS}"
                )));
            }
            let (folder, missing) = (folder.to_path_buf(), folder.join(TENSORS));
            return Err(CheckpointError::NoAdapters { folder, missing });
        }
        for (key, value) in raw.rest.iter().filter(|(_, value)| is_set(value)) {
            if UNSUPPORTED.contains(&&**key) {
                let value = value.to_string();
                let value = shortened(&value);
                return Err(refused(format!("{key} is {value}, and such adapters are not supported")));
            }
            if !WITHOUT_EFFECT.contains(&&**key) {
                crate::warn_ignored(file, key); // as PEFT does with keys of a newer version
            }
        }
        if raw.fan_in_fan_out == Some(true) {
            crate::warn_ignored(file, "fan_in_fan_out"); // as PEFT does for layers that are no Conv1D
        }
        Self::from_raw(raw).map_err(refused)
    }

    fn from_raw(raw: RawConfig) -> Result<Self, String> {
        // Of these PEFT changes the weights of the model, too, and the adapters fit the changed ones alone.
        match raw.init_lora_weights {
            None | Some(Value::Null | Value::Bool(_)) => {}
            Some(Value::String(way)) if ["gaussian", "eva", "orthogonal"].contains(&&*way) => {}
            Some(other) => {
                let other = other.to_string();
                let other = shortened(&other);
                return Err(format!(
                    "init_lora_weights is {other}, so that the adapters are for weights that PEFT changed first; save \
                     them with PEFT's path_initial_model_for_weight_conversion"
                ));
            }
        }
        if let Some(bias) = raw.bias.filter(|bias| !["none", "all", "lora_only"].contains(&&**bias)) {
            let bias = format!("{bias:?}");
            return Err(format!("bias is {}, and must be none, all or lora_only", shortened(&bias)));
        }
        let rank = positive("r", raw.r.unwrap_or(8))?;
        let alpha = finite("lora_alpha", raw.lora_alpha.unwrap_or(8.0))?;
        let ranks = raw.rank_pattern.map_or_else(Vec::new, |ordered| ordered.0).into_iter().unzip();
        let alphas = raw.alpha_pattern.map_or_else(Vec::new, |ordered| ordered.0).into_iter().unzip();
        let (rank_patterns, ranks): (Vec<String>, Vec<i32>) = ranks;
        let (alpha_patterns, alphas): (Vec<String>, Vec<f64>) = alphas;
        ranks.iter().try_for_each(|&rank| positive("rank_pattern", rank).map(drop))?;
        alphas.iter().try_for_each(|&alpha| finite("alpha_pattern", alpha).map(drop))?;
        let targets = match raw.target_modules {
            None => Targets::Unreadable,
            Some(names) => Targets::of("target_modules", names)?,
        };
        let blocks = match raw.layers_to_transform {
            None => Vec::new(),
            Some(Indices::One(index)) => vec![index],
            Some(Indices::Many(indices)) => indices,
        };
        few("layers_to_transform", blocks.len())?;
        let block_names = match raw.layers_pattern {
            None => Vec::new(),
            Some(Names::One(name)) => vec![name],
            Some(Names::Many(names)) => names,
        };
        // Each is an expression of its own, and all models here have one list of blocks.
        if block_names.len() > 16 {
            return Err(format!("layers_pattern has {} entries, and may have at most 16", block_names.len()));
        }
        let block_numbers: Result<_, String> = match &*block_names {
            [] => Ok(vec![pattern_of("layers_pattern", r"^.*?\.[^.]*\.(\d+)\.")?]),
            names => names
                .iter()
                .map(|name| pattern_of("layers_pattern", &format!(r"^(?:.*?\.)?(?:{name})\.(\d+)\.")))
                .collect(),
        };
        Ok(Self {
            rank,
            alpha,
            rslora: raw.use_rslora == Some(true),
            dora: raw.use_dora == Some(true),
            ranks: (Patterns::new("rank_pattern", Place::End, rank_patterns)?, ranks),
            alphas: (Patterns::new("alpha_pattern", Place::End, alpha_patterns)?, alphas),
            targets,
            excluded: raw.exclude_modules.map(|names| Targets::of("exclude_modules", names)).transpose()?,
            blocks,
            block_numbers: block_numbers?,
            saved: Patterns::new(
                "modules_to_save",
                Place::Anywhere,
                raw.modules_to_save.unwrap_or_default(),
            )?,
        })
    }

    /// Whether the config gives a layer an adapter; `None` where only Python could say it.
    fn covers(&self, layer: &str, is_linear: bool) -> Option<bool> {
        let excluded = self.excluded.as_ref().map_or(Some(false), |excluded| excluded.fit(layer, is_linear));
        if excluded == Some(true) || self.is_saved(layer) {
            return Some(false);
        }
        let found = self.targets.fit(layer, is_linear)? && self.in_blocks(layer);
        if found && excluded.is_none() { None } else { Some(found) }
    }

    /// Whether a module was trained as a whole.
    fn is_saved(&self, module: &str) -> bool {
        self.saved.first(module).is_some()
    }

    /// PEFT looks at the numbers of blocks only where layers are named by the ends of their names.
    fn in_blocks(&self, layer: &str) -> bool {
        let Targets::Names(names) = &self.targets else { return true };
        if self.blocks.is_empty() || names.iter().any(|name| name == layer) {
            return true;
        }
        let number = self.block_numbers.iter().find_map(|numbers| numbers.captures(layer)?.get(1));
        number.and_then(|number| number.as_str().parse().ok()).is_some_and(|n| self.blocks.contains(&n))
    }

    fn rank_of(&self, layer: &str) -> i32 {
        let (patterns, ranks) = &self.ranks;
        patterns.first(layer).map_or(self.rank, |i| ranks[i])
    }

    fn scale_of(&self, layer: &str) -> f32 {
        let (patterns, alphas) = &self.alphas;
        let alpha = patterns.first(layer).map_or(self.alpha, |i| alphas[i]);
        let rank = f64::from(self.rank_of(layer));
        (alpha / if self.rslora { rank.sqrt() } else { rank }) as f32
    }
}

impl Targets {
    fn of(key: &str, names: Names) -> Result<Self, String> {
        Ok(match names {
            Names::Many(names) => {
                few(key, names.len())?;
                Self::Names(names)
            }
            Names::One(name) if name.eq_ignore_ascii_case("all-linear") => Self::AllLinear,
            Names::One(pattern) => match pattern_of("", &format!("^(?:{pattern})$")) {
                Ok(pattern) => Self::Pattern(pattern),
                Err(_) => Self::Unreadable,
            },
        })
    }

    fn fit(&self, layer: &str, is_linear: bool) -> Option<bool> {
        let ends_with = |name: &String| layer.strip_suffix(&**name).is_some_and(|rest| rest.ends_with('.'));
        match self {
            Self::Names(names) => Some(names.iter().any(|name| name == layer || ends_with(name))),
            Self::Pattern(pattern) => Some(pattern.is_match(layer)),
            Self::AllLinear => Some(is_linear && layer.rsplit('.').next() != Some(HEAD)),
            Self::Unreadable => None,
        }
    }
}

/// Where in the name of a module a pattern has to fit. It always begins at the beginning or behind a dot.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// Up to the end.
    End,
    /// Up to the end or a dot.
    Anywhere,
}

/// The patterns of one key, in their order. Names are compared as texts, since a regular expression takes some
/// twenty kilobytes.
#[derive(Debug, Clone)]
struct Patterns {
    place: Place,
    /// Each with its number. `None` stands for any letter.
    names: Vec<(usize, Vec<Option<char>>)>,
    regexes: RegexSet,
    /// The numbers of the regular expressions.
    numbers: Vec<usize>,
}

impl Patterns {
    fn new(key: &str, place: Place, patterns: Vec<String>) -> Result<Self, String> {
        few(key, patterns.len())?;
        let (mut names, mut regexes, mut numbers) = (Vec::new(), Vec::new(), Vec::new());
        for (i, pattern) in patterns.into_iter().enumerate() {
            match letters(&pattern) {
                Some(letters) => names.push((i, letters)),
                None => {
                    numbers.push(i);
                    regexes.push(match place {
                        Place::End => format!(r"^(.*\.)?({pattern})$"),
                        Place::Anywhere => format!(r"(?:^|\.)(?:{pattern})(?:$|\.)"),
                    });
                }
            }
        }
        let built = RegexSetBuilder::new(&regexes).size_limit(LARGEST_PATTERNS).build();
        let regexes = built.map_err(|_| {
            // Without room nothing is compiled, so that only what cannot be read is another error.
            let parse = |pattern: &str| RegexBuilder::new(pattern).size_limit(0).build();
            let wrong = regexes.iter().find(|p| matches!(parse(p), Err(regex::Error::Syntax(_))));
            wrong.map_or_else(
                || {
                    let megabytes = LARGEST_PATTERNS >> 20;
                    format!("the regular expressions of {key} need more than {megabytes} MB; name the layers instead")
                },
                |pattern| unreadable(key, pattern),
            )
        })?;
        Ok(Self { place, names, regexes, numbers })
    }

    /// The number of the first that fits.
    fn first(&self, module: &str) -> Option<usize> {
        let name = self.names.iter().find(|(_, letters)| self.fits(letters, module)).map(|(i, _)| *i);
        let regex = self.regexes.matches(module).iter().next().map(|i| self.numbers[i]);
        name.into_iter().chain(regex).min()
    }

    fn fits(&self, letters: &[Option<char>], module: &str) -> bool {
        let behind_dots = module.match_indices('.').map(|(dot, _)| dot + 1);
        std::iter::once(0).chain(behind_dots).any(|start| {
            let mut rest = module[start..].chars();
            let same = letters.iter().all(|&l| rest.next().is_some_and(|found| l.is_none_or(|l| l == found)));
            same && match self.place {
                Place::End => rest.next().is_none(),
                Place::Anywhere => rest.next().is_none_or(|next| next == '.'),
            }
        })
    }
}

/// The letters of a pattern that is no more than a name; `None` among them for a dot, which fits any letter.
fn letters(pattern: &str) -> Option<Vec<Option<char>>> {
    let mut letters = Vec::with_capacity(pattern.len());
    let mut rest = pattern.chars();
    while let Some(letter) = rest.next() {
        letters.push(match letter {
            '.' => None,
            '\\' if rest.next() == Some('.') => Some('.'),
            _ if letter.is_alphanumeric() || matches!(letter, '_' | '-') => Some(letter),
            _ => return None,
        });
    }
    Some(letters)
}

fn few(key: &str, count: usize) -> Result<(), String> {
    if count <= MOST_ENTRIES {
        return Ok(());
    }
    Err(format!("{key} has {count} entries, and may have at most {MOST_ENTRIES}"))
}

/// A pattern of Python's, without what only Python has. Patterns of downloads are bounded in size; matching takes time
/// in proportion to the name.
fn pattern_of(key: &str, pattern: &str) -> Result<Regex, String> {
    let built = RegexBuilder::new(pattern).size_limit(1 << 20).build();
    built.map_err(|_| unreadable(key, pattern))
}

fn unreadable(key: &str, pattern: &str) -> String {
    format!("{key} has a pattern that cannot be read: {}", shortened(pattern))
}

fn positive(key: &str, rank: i32) -> Result<i32, String> {
    if rank > 0 { Ok(rank) } else { Err(format!("{key} is {rank}, and a rank must be positive")) }
}

fn finite(key: &str, alpha: f64) -> Result<f64, String> {
    if (alpha as f32).is_finite() { Ok(alpha) } else { Err(format!("{key} is {alpha}, and must be finite")) }
}

/// Whether a key has a value that says more than that it has none.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(items) => !items.is_empty(),
        Value::Object(entries) => !entries.is_empty(),
        _ => true,
    }
}

/// The name of a module whatever else the model has: the language model of one with a vision part has a part of its
/// path more, in one of two places.
fn canonical(name: &str) -> String {
    const INNER: &str = "language_model";
    let parts: Vec<&str> = name.split('.').filter(|part| *part != INNER).collect();
    parts.join(".")
}

/// The adapters of a folder while a model is built.
#[derive(Debug)]
pub(crate) struct Peft {
    config: PeftConfig,
    /// PEFT's names of the layers with adapters, by their canonical names.
    layers: HashMap<String, String>,
    /// Two names of one layer each.
    pub(crate) twice: Vec<[String; 2]>,
    /// DoRA's key ends so.
    magnitudes: &'static str,
    /// The modules that PEFT copied before they were trained, by their canonical names.
    pub(crate) copied: HashSet<String>,
    /// The embedding that differs from the checkpoint's, if one does: no head may be tied to it.
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

    /// What the adapter of a layer of the model is, if the file or the config has one for it.
    pub(crate) fn wanted(&mut self, layer: &str, kind: AdaptedLayer) -> Option<Wanted> {
        let canonical = canonical(layer);
        let is_linear = matches!(kind, AdaptedLayer::Linear { .. });
        if !is_linear && self.copied.contains(&canonical) {
            self.embedding = Some(layer.to_owned());
        }
        let name = match self.layers.get(&canonical) {
            // That it is left over is said at the end.
            Some(name) if self.is_outside(name, is_linear) => return None,
            Some(name) => name.clone(),
            // The names that the config was written for are not known here, only the usual ones.
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

    /// Whether the config gives a layer no adapter, under its own name nor the canonical one.
    fn is_outside(&self, layer: &str, is_linear: bool) -> bool {
        let covers = |name: &str| self.config.covers(name, is_linear);
        covers(layer) == Some(false) && covers(&canonical(layer)) == Some(false)
    }

    /// Whether the layer of a tensor has another name in the file, too.
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

    /// What is wrong with an adapter tensor that no layer took.
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

    /// Whether a tensor that no layer took belongs to a part of the model that is no language model.
    pub(crate) fn is_ignored(key: &str, ignored: &impl Fn(&str) -> bool) -> bool {
        let Some(name) = key.strip_prefix(PREFIX) else { return false };
        let inner = name.strip_prefix("model.").unwrap_or(name);
        ignored(name) || ignored(inner) || ignored(&format!("model.{inner}"))
    }

    /// The canonical name of a whole weight or bias that was trained.
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

/// The same name for a key of a checkpoint.
pub(crate) fn canonical_key(key: &str) -> String {
    canonical(key)
}

/// The layer of an adapter tensor.
fn layer_of(key: &str) -> Option<&str> {
    let name = key.strip_prefix(PREFIX)?;
    LEAVES.iter().find_map(|leaf| name.strip_suffix(leaf))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Result<PeftConfig, String> {
        PeftConfig::from_raw(serde_json::from_str(text).unwrap())
    }

    /// What Python's `re` and PEFT's `check_target_module_exists` say, 0.21.2.
    #[test]
    fn layers_are_covered_as_by_peft() {
        const Q1: &str = "model.layers.1.self_attn.q_proj";
        const DOWN: &str = "model.layers.10.mlp.down_proj";
        for (keys, layer, covers) in [
            (r#""target_modules": ["q_proj"]"#, Q1, Some(true)),
            (r#""target_modules": ["proj"]"#, Q1, Some(false)),
            (r#""target_modules": ["model.layers.1.self_attn.q_proj"]"#, Q1, Some(true)),
            (r#""target_modules": ["q_proj"], "layers_to_transform": [0, 2]"#, Q1, Some(false)),
            (r#""target_modules": ["q_proj"], "layers_to_transform": 1"#, Q1, Some(true)),
            (
                r#""target_modules": ["down_proj"], "layers_to_transform": [10], "layers_pattern": "layers""#,
                DOWN,
                Some(true),
            ),
            (
                r#""target_modules": ["down_proj"], "layers_to_transform": [10], "layers_pattern": "h""#,
                DOWN,
                Some(false),
            ),
            (r#""target_modules": ".*(q|v)_proj""#, Q1, Some(true)),
            (r#""target_modules": "(q|v)_proj""#, Q1, Some(false)),
            (r#""target_modules": "all-linear""#, Q1, Some(true)),
            (r#""target_modules": "all-linear""#, "lm_head", Some(false)),
            (r#""target_modules": "^(?!.*vision).*proj$""#, Q1, None),
            (
                r#""target_modules": ["q_proj"], "exclude_modules": ["layers.1.self_attn.q_proj"]"#,
                Q1,
                Some(false),
            ),
            (r#""target_modules": ["q_proj"], "exclude_modules": ".*mlp.*""#, Q1, Some(true)),
            (r#""target_modules": ["q_proj"], "modules_to_save": ["self_attn"]"#, Q1, Some(false)),
        ] {
            let config = config(&format!(r#"{{"peft_type": "LORA", {keys}}}"#)).unwrap();
            assert_eq!(config.covers(layer, true), covers, "{keys}");
        }
    }

    #[test]
    fn the_first_pattern_that_fits_counts() {
        let text = r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 6, "rank_pattern": {"v_proj": 2},
            "alpha_pattern": {"layers\\.0\\.self_attn\\.q_proj": 32, "(q|v)_proj": 3}}"#;
        let plain = config(text).unwrap();
        let scale = |config: &PeftConfig, layer: &str| config.scale_of(&format!("model.layers.{layer}"));
        assert_eq!(scale(&plain, "0.self_attn.q_proj"), 8.0);
        assert_eq!(scale(&plain, "1.self_attn.q_proj"), 0.75);
        assert_eq!(scale(&plain, "1.self_attn.v_proj"), 1.5);
        assert_eq!(scale(&plain, "1.mlp.up_proj"), 1.5);
        let rslora = config(&text.replace("\"r\"", "\"use_rslora\": true, \"r\"")).unwrap();
        assert_eq!(scale(&rslora, "1.mlp.up_proj"), 3.0);
    }

    /// A plain name fits as Python's `re` would have it, whatever way it is looked for.
    #[test]
    fn names_fit_as_regular_expressions_do() {
        let names = [
            "",
            "q_proj",
            "proj",
            "self_attn",
            "layers.1",
            r"layers\.1",
            "layers.1.self_attn",
            "self.attn",
            "é",
        ];
        let modules = [
            "",
            "q_proj",
            "x.q_proj",
            "xq_proj",
            "layers.1.self_attn.q_proj",
            "layersx1",
            "a.layers.10",
            "é",
            "a..b",
        ];
        for place in [Place::End, Place::Anywhere] {
            for name in names {
                let plain = Patterns::new("key", place, vec![name.to_owned()]).unwrap();
                assert_eq!(plain.names.len(), 1, "{name}");
                let regex = Patterns::new("key", place, vec![format!("(?:{name})")]).unwrap();
                assert_eq!(regex.numbers.len(), 1, "{name}");
                for module in modules {
                    assert_eq!(plain.first(module), regex.first(module), "{name} {module} {place:?}");
                }
            }
        }
    }

    #[test]
    fn patterns_take_a_bounded_amount_of_memory() {
        let object = |count: usize, of: &dyn Fn(usize) -> String| {
            let entries: Vec<_> = (0..count).map(|i| format!("{:?}: 2", of(i))).collect();
            format!("{{{}}}", entries.join(","))
        };
        let list = |count: usize, of: &dyn Fn(usize) -> String| {
            let entries: Vec<_> = (0..count).map(|i| format!("{:?}", of(i))).collect();
            format!("[{}]", entries.join(","))
        };
        let name = |i: usize| format!("layer{i}");
        let large = |i: usize| format!(r"\w{{1,15}}x{i}");
        let read =
            |key: &str, value: String| config(&format!(r#"{{"peft_type": "LORA", "{key}": {value}}}"#));
        for key in ["rank_pattern", "alpha_pattern"] {
            let found = read(key, object(MOST_ENTRIES, &name)).unwrap();
            assert_eq!((found.ranks.0.numbers.len(), found.alphas.0.numbers.len()), (0, 0));
            let error = read(key, object(MOST_ENTRIES + 1, &name)).unwrap_err();
            assert_eq!(error, format!("{key} has 4097 entries, and may have at most 4096"));
            let error = read(key, object(2000, &large)).unwrap_err();
            assert!(error.contains(&format!("expressions of {key} need more than 4 MB")), "{error}");
        }
        for key in ["target_modules", "exclude_modules", "modules_to_save"] {
            read(key, list(MOST_ENTRIES, &name)).unwrap();
            let error = read(key, list(MOST_ENTRIES + 1, &name)).unwrap_err();
            assert_eq!(error, format!("{key} has 4097 entries, and may have at most 4096"));
        }
        let error = read("modules_to_save", list(2000, &large)).unwrap_err();
        assert!(error.contains("expressions of modules_to_save need more than 4 MB"), "{error}");
        let error = read("layers_pattern", list(17, &name)).unwrap_err();
        assert_eq!(error, "layers_pattern has 17 entries, and may have at most 16");
        let error = read("layers_to_transform", format!("{:?}", vec![1; 4097])).unwrap_err();
        assert_eq!(error, "layers_to_transform has 4097 entries, and may have at most 4096");
    }
}
