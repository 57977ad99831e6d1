//! PEFT's config of adapters.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use regex::Regex;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::patterns::{Patterns, Place, check_count, compile};
use crate::error::{CheckpointError, of_config};
use crate::files::{is_present, warn_ignored};
use crate::head::is_head;
use crate::text::shortened;

/// The file of the tensors, as PEFT has written it since 2023.
pub(crate) const TENSORS: &str = "adapter_model.safetensors";
/// The file of the tensors, as PEFT wrote it before.
const PICKLED: &str = "adapter_model.bin";
/// What to do with adapters that cannot be applied here.
pub(crate) const MERGE: &str =
    "merge the adapters into the model with PEFT (merge_and_unload) and load the result";

/// Keys of the config that are refused: they change what an adapter computes in ways that are not supported.
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

/// Keys that are ignored: they say where adapters come from, or how they were trained.
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

/// The part of `adapter_config.json` that is used. PEFT has a default for every key but `peft_type`.
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

/// An object whose keys keep their order, since the first pattern that fits a layer counts.
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

/// The config of adapters of the type LORA.
#[derive(Debug, Clone)]
pub(crate) struct PeftConfig {
    rank: i32,
    alpha: f64,
    rslora: bool,
    pub(super) dora: bool,
    /// Patterns of layers, and the rank that each gives.
    ranks: (Patterns, Vec<i32>),
    /// Patterns of layers, and the alpha that each gives.
    alphas: (Patterns, Vec<f64>),
    pub(super) targets: Targets,
    excluded: Option<Targets>,
    /// The only blocks with adapters; empty for all blocks.
    blocks: Vec<usize>,
    /// Patterns that find the number of the block in the name of a layer.
    block_numbers: Vec<Regex>,
    /// The modules that were trained as a whole.
    saved: Patterns,
}

/// Which layers a key of the config means.
#[derive(Debug, Clone)]
pub(super) enum Targets {
    /// Layers with these names, or whose names end with a dot and one of these.
    Names(Vec<String>),
    /// Layers whose whole names fit.
    Pattern(Regex),
    /// Every linear layer except the head.
    AllLinear,
    /// A pattern that only Python can read: the file of tensors decides.
    Unreadable,
}

impl PeftConfig {
    /// Reads the text of a config that has `peft_type`, and checks that the folder has its tensors.
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
        if !is_present(&folder.join(TENSORS))? {
            if is_present(&folder.join(PICKLED))? {
                return Err(refused(format!(
                    "the adapters are in {PICKLED}, which is not read, since unpickling runs code; load them with PEFT \
                     and save them again, which writes {TENSORS}"
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
                warn_ignored(file, key); // as PEFT does with keys of newer versions
            }
        }
        if raw.fan_in_fan_out == Some(true) {
            warn_ignored(file, "fan_in_fan_out"); // as PEFT does for layers that are not Conv1D
        }
        Self::from_raw(raw).map_err(refused)
    }

    fn from_raw(raw: RawConfig) -> Result<Self, String> {
        check_init(raw.init_lora_weights)?;
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
        check_count("layers_to_transform", blocks.len())?;
        let block_numbers = block_numbers(raw.layers_pattern)?;
        let saved = raw.modules_to_save.unwrap_or_default();
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
            block_numbers,
            saved: Patterns::new("modules_to_save", Place::Anywhere, saved)?,
        })
    }

    /// Whether the config gives a layer an adapter; `None` if only Python could tell.
    pub(super) fn covers(&self, layer: &str, is_linear: bool) -> Option<bool> {
        let excluded = self.excluded.as_ref().map_or(Some(false), |excluded| excluded.fit(layer, is_linear));
        if excluded == Some(true) || self.is_saved(layer) {
            return Some(false);
        }
        let found = self.targets.fit(layer, is_linear)? && self.in_blocks(layer);
        if found && excluded.is_none() { None } else { Some(found) }
    }

    /// Whether a module was trained as a whole.
    pub(super) fn is_saved(&self, module: &str) -> bool {
        self.saved.first(module).is_some()
    }

    /// Whether a layer is in one of the blocks with adapters. As in PEFT, this restricts only layers that are given by the
    /// ends of their names.
    fn in_blocks(&self, layer: &str) -> bool {
        let Targets::Names(names) = &self.targets else { return true };
        if self.blocks.is_empty() || names.iter().any(|name| name == layer) {
            return true;
        }
        let number = self.block_numbers.iter().find_map(|numbers| numbers.captures(layer)?.get(1));
        number.and_then(|number| number.as_str().parse().ok()).is_some_and(|n| self.blocks.contains(&n))
    }

    pub(super) fn rank_of(&self, layer: &str) -> i32 {
        let (patterns, ranks) = &self.ranks;
        patterns.first(layer).map_or(self.rank, |i| ranks[i])
    }

    pub(super) fn scale_of(&self, layer: &str) -> f32 {
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
                check_count(key, names.len())?;
                Self::Names(names)
            }
            Names::One(name) if name.eq_ignore_ascii_case("all-linear") => Self::AllLinear,
            Names::One(pattern) => match compile("", &format!("^(?:{pattern})$")) {
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
            Self::AllLinear => Some(is_linear && !is_head(layer)),
            Self::Unreadable => None,
        }
    }
}

/// Refuses ways to start from which PEFT changes the weights of the model as well: the adapters fit only those weights.
fn check_init(init_lora_weights: Option<Value>) -> Result<(), String> {
    match init_lora_weights {
        None | Some(Value::Null | Value::Bool(_)) => Ok(()),
        Some(Value::String(way)) if ["gaussian", "eva", "orthogonal"].contains(&&*way) => Ok(()),
        Some(other) => {
            let other = other.to_string();
            let other = shortened(&other);
            Err(format!(
                "init_lora_weights is {other}, so that the adapters are for weights that PEFT changed first; save \
                 them with PEFT's path_initial_model_for_weight_conversion"
            ))
        }
    }
}

/// Patterns that find the number of the block in the name of a layer, by `layers_pattern`.
fn block_numbers(layers_pattern: Option<Names>) -> Result<Vec<Regex>, String> {
    let names = match layers_pattern {
        None => Vec::new(),
        Some(Names::One(name)) => vec![name],
        Some(Names::Many(names)) => names,
    };
    // Each is a regular expression of its own, and every model here has one list of blocks.
    if names.len() > 16 {
        return Err(format!("layers_pattern has {} entries, and may have at most 16", names.len()));
    }
    match &*names {
        [] => Ok(vec![compile("layers_pattern", r"^.*?\.[^.]*\.(\d+)\.")?]),
        names => names
            .iter()
            .map(|name| compile("layers_pattern", &format!(r"^(?:.*?\.)?(?:{name})\.(\d+)\.")))
            .collect(),
    }
}

fn positive(key: &str, rank: i32) -> Result<i32, String> {
    if rank > 0 { Ok(rank) } else { Err(format!("{key} is {rank}, and a rank must be positive")) }
}

fn finite(key: &str, alpha: f64) -> Result<f64, String> {
    if (alpha as f32).is_finite() { Ok(alpha) } else { Err(format!("{key} is {alpha}, and must be finite")) }
}

/// Whether a key has a value other than null, false or an empty list or object.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(items) => !items.is_empty(),
        Value::Object(entries) => !entries.is_empty(),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::super::patterns::MOST_ENTRIES;
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
