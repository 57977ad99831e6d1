//! The metadata of a file, from the config of a checkpoint: the opposite of reading it.

use serde_json::{Map, Value};

use super::architectures::{ARCHITECTURES, Architecture};
use super::facts::{LONG_FACTORS, ROPE_FREQS, SHORT_FACTORS};
use super::llama3;
use super::rope::{DEFAULT_BASE, ORIGINAL_LENGTH};
use crate::metadata::Value as Metadatum;

/// What a file says of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Description {
    /// The row of the table.
    pub architecture: &'static Architecture,
    /// The entries that begin with the name of the architecture, and `general.architecture`.
    pub metadata: Vec<(String, Metadatum)>,
    /// Tensors that follow from the config: the factors of rotations.
    pub factors: Vec<(&'static str, Vec<f32>)>,
    /// The number of blocks.
    pub layers: usize,
    /// The number of query heads.
    pub heads: usize,
    /// The number of key-value heads.
    pub key_heads: usize,
}

impl Description {
    /// Describes the model with this config of a checkpoint. Where a config leaves out a key, the file has the default of Hugging
    /// Face's transformers.
    ///
    /// llama.cpp has no words for some configs. Reading the file again ([`Gguf::model`](crate::Gguf::model)) shows what it computes.
    ///
    /// # Errors
    ///
    /// What llama.cpp cannot compute, or which key is missing.
    pub fn of(config: &Value) -> Result<Self, String> {
        let model_type = config["model_type"].as_str().unwrap_or_default();
        let architecture = Architecture::of_model_type(model_type).ok_or_else(|| {
            let known: Vec<&str> = ARCHITECTURES.iter().flat_map(|row| row.model_types).copied().collect();
            format!("llama.cpp has no architecture for a {model_type:.100}; known are {}", known.join(", "))
        })?;
        // The config of a model with a vision part.
        let text =
            config["text_config"].as_object().or(config.as_object()).ok_or("the config is no object")?;
        let config = Config { all: text, is_text_of_more: config["text_config"].is_object() };
        let mut entries = Entries { architecture, all: Vec::new(), factors: Vec::new() };
        entries.all.push(("general.architecture".to_owned(), Metadatum::Text(architecture.name.to_owned())));
        let sizes = Sizes::of(&config, architecture)?;
        sizes.push(&config, &mut entries)?;
        let rotation = Rotation::of(&config, architecture);
        rotation.push(&config, &sizes, &mut entries)?;
        windows(&config, &sizes, &mut entries)?;
        own(&config, &sizes, &rotation, &mut entries)?;
        let Sizes { layers, heads, key_heads, .. } = sizes;
        Ok(Self {
            architecture,
            metadata: entries.all,
            factors: entries.factors,
            layers: layers as usize,
            heads: heads as usize,
            key_heads: key_heads as usize,
        })
    }
}

/// The entries so far.
struct Entries {
    architecture: &'static Architecture,
    all: Vec<(String, Metadatum)>,
    factors: Vec<(&'static str, Vec<f32>)>,
}

impl Entries {
    fn push(&mut self, key: &str, value: Metadatum) {
        self.all.push((format!("{}.{key}", self.architecture.name), value));
    }

    fn integer(&mut self, key: &str, value: i64) {
        self.push(key, Metadatum::Integer(value.into()));
    }

    fn number(&mut self, key: &str, value: f64) {
        self.push(key, Metadatum::Float(value));
    }
}

/// The config of the language model.
struct Config<'a> {
    all: &'a Map<String, Value>,
    /// Whether it stands under `text_config`, where transformers leaves out more keys.
    is_text_of_more: bool,
}

impl Config<'_> {
    fn get(&self, key: &str) -> &Value {
        self.all.get(key).unwrap_or(&Value::Null)
    }

    fn integer(&self, key: &str) -> Option<i64> {
        self.get(key).as_i64()
    }

    fn number(&self, key: &str) -> Option<f64> {
        self.get(key).as_f64()
    }

    fn needed(&self, key: &str, default: Option<i64>) -> Result<i64, String> {
        let found = self.integer(key).or(default).ok_or_else(|| format!("the config has no {key}"))?;
        if found > 0 {
            Ok(found)
        } else {
            Err(format!("{key} of the config is {found}, and must be at least 1"))
        }
    }
}

struct Sizes {
    layers: i64,
    heads: i64,
    key_heads: i64,
    head_dim: i64,
    hidden: i64,
    context: i64,
}

impl Sizes {
    fn of(config: &Config<'_>, architecture: &Architecture) -> Result<Self, String> {
        let is_gemma3 = architecture.name == "gemma3";
        let of_vision = |default| Some(default).filter(|_| is_gemma3 && config.is_text_of_more);
        let hidden = config.needed("hidden_size", None)?;
        let heads = config.needed("num_attention_heads", of_vision(8))?;
        let head_dim = match architecture.name {
            "gemma3" => 256,
            "qwen3" => 128,
            _ => hidden / heads,
        };
        Ok(Self {
            layers: config.needed("num_hidden_layers", None)?,
            heads,
            key_heads: config.needed("num_key_value_heads", Some(of_vision(4).unwrap_or(heads)))?,
            head_dim: config.needed("head_dim", Some(head_dim))?,
            hidden,
            context: config.needed("max_position_embeddings", of_vision(131_072))?,
        })
    }

    fn push(&self, config: &Config<'_>, entries: &mut Entries) -> Result<(), String> {
        let epsilon =
            config.number("rms_norm_eps").or((entries.architecture.name == "gemma3").then_some(1e-6));
        entries.integer("context_length", self.context);
        entries.integer("embedding_length", self.hidden);
        entries.integer("block_count", self.layers);
        entries.integer("feed_forward_length", config.needed("intermediate_size", None)?);
        entries.integer("attention.head_count", self.heads);
        entries.integer("attention.head_count_kv", self.key_heads);
        entries.number("attention.layer_norm_rms_epsilon", epsilon.ok_or("the config has no rms_norm_eps")?);
        entries.integer("attention.key_length", self.head_dim);
        entries.integer("attention.value_length", self.head_dim);
        Ok(())
    }
}

/// The keys of rotations, which configs have in two forms.
struct Rotation<'a> {
    base: f64,
    /// In layers with a window.
    base_of_windows: Option<f64>,
    scaling: &'a Value,
}

impl<'a> Rotation<'a> {
    fn of(config: &'a Config<'_>, architecture: &Architecture) -> Self {
        let new = config.get("rope_parameters");
        let full = if new["full_attention"].is_object() { &new["full_attention"] } else { new };
        let default = if architecture.name == "gemma3" { 1_000_000.0 } else { DEFAULT_BASE };
        let base = full["rope_theta"].as_f64().or(config.number("rope_theta")).unwrap_or(default);
        let base_of_windows = new["sliding_attention"]["rope_theta"].as_f64();
        let has_new = full["rope_type"].is_string() || full["type"].is_string();
        Self {
            base,
            base_of_windows: base_of_windows.or(config.number("rope_local_base_freq")),
            scaling: if has_new { full } else { config.get("rope_scaling") },
        }
    }

    fn kind(&self) -> &str {
        self.scaling["rope_type"].as_str().or(self.scaling["type"].as_str()).unwrap_or("default")
    }

    fn factor(&self) -> Result<f64, String> {
        self.scaling["factor"].as_f64().ok_or_else(|| "the scaling of the rotation has no factor".to_owned())
    }

    fn original(&self, config: &Config<'_>, sizes: &Sizes) -> i64 {
        let key = "original_max_position_embeddings";
        self.scaling[key].as_i64().or(config.integer(key)).unwrap_or(sizes.context)
    }

    fn push(&self, config: &Config<'_>, sizes: &Sizes, entries: &mut Entries) -> Result<(), String> {
        let name = entries.architecture.name;
        entries.number("rope.freq_base", self.base);
        if let Some(base) = self.base_of_windows.filter(|_| name == "gemma3") {
            entries.number("rope.freq_base_swa", base);
        }
        match (self.kind(), name) {
            ("default", _) => {}
            ("linear", _) => {
                entries.push("rope.scaling.type", Metadatum::Text("linear".to_owned()));
                entries.number("rope.scaling.factor", self.factor()?);
            }
            ("yarn", _) => self.yarn(config, sizes, entries)?,
            ("llama3", "llama" | "granite") => {
                let numbers = |key: &str, default| self.scaling[key].as_f64().unwrap_or(default);
                let scaling = llama3::Scaling {
                    factor: self.factor()?,
                    low: numbers("low_freq_factor", 1.0),
                    high: numbers("high_freq_factor", 4.0),
                    original: self.original(config, sizes) as f64,
                };
                let factors = scaling.factors(self.base, sizes.head_dim as usize / 2);
                entries.factors.push((ROPE_FREQS, factors));
            }
            ("longrope" | "su", "phi3") => self.longrope(config, sizes, entries)?,
            (other, _) => {
                return Err(format!("llama.cpp cannot scale the rotation of a {name} model by {other:.100}"));
            }
        }
        Ok(())
    }

    fn yarn(&self, config: &Config<'_>, sizes: &Sizes, entries: &mut Entries) -> Result<(), String> {
        let number = |key: &str| self.scaling[key].as_f64();
        let factor = self.factor()?;
        entries.push("rope.scaling.type", Metadatum::Text("yarn".to_owned()));
        entries.number("rope.scaling.factor", factor);
        entries.integer(ORIGINAL_LENGTH, self.original(config, sizes));
        let of_all = number("mscale_all_dim").filter(|&weight| weight != 0.0);
        for key in ["beta_fast", "beta_slow"] {
            let name = format!("rope.scaling.yarn_{key}");
            number(key).into_iter().for_each(|value| entries.number(&name, value));
        }
        // llama.cpp reads these numbers in one architecture only.
        if entries.architecture.name == "mistral3" {
            of_all.into_iter().for_each(|weight| entries.number("rope.scaling.yarn_log_multiplier", weight));
        } else if let Some((key, found)) = [("beta_fast", 32.0), ("beta_slow", 1.0), ("mscale_all_dim", 0.0)]
            .iter()
            .find_map(|(key, usual)| Some((key, number(key).filter(|found| found != usual)?)))
        {
            return Err(format!("llama.cpp knows no {key} of {found} in the rotation of this architecture"));
        }
        // llama.cpp multiplies the paper's factor by that of the file.
        let grows = |weight: f64| if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 };
        let of_paper = grows(1.0) / of_all.map_or(1.0, grows);
        let Some(stated) = number("attention_factor") else { return Ok(()) };
        let more = stated / of_paper;
        if (more - 1.0).abs() > 1e-6 {
            entries.number("rope.scaling.attn_factor", more);
        }
        // llama.cpp does not read this. Other readers get the very number.
        if (more - 1.0).abs() > 1e-12 {
            entries.number("rope.scaling.yarn_attn_factor", stated);
        }
        Ok(())
    }

    fn longrope(&self, config: &Config<'_>, sizes: &Sizes, entries: &mut Entries) -> Result<(), String> {
        let original = self.original(config, sizes);
        let (context, original_length) = (sizes.context as f64, original as f64);
        let ratio = context / original_length;
        let of_paper = if ratio <= 1.0 { 1.0 } else { (1.0 + ratio.ln() / original_length.ln()).sqrt() };
        entries.push("rope.scaling.type", Metadatum::Text("longrope".to_owned()));
        entries.integer(ORIGINAL_LENGTH, original);
        entries.number(
            "rope.scaling.attn_factor",
            self.scaling["attention_factor"].as_f64().unwrap_or(of_paper),
        );
        for (key, name) in [("long_factor", LONG_FACTORS), ("short_factor", SHORT_FACTORS)] {
            let factors = self.scaling[key].as_array();
            let numbers = factors.and_then(|all| all.iter().map(|one| Some(one.as_f64()? as f32)).collect());
            entries
                .factors
                .push((name, numbers.ok_or_else(|| format!("{key} of the rotation is no list of numbers"))?));
        }
        Ok(())
    }
}

/// Which layers have a window.
fn windows(config: &Config<'_>, sizes: &Sizes, entries: &mut Entries) -> Result<(), String> {
    let name = entries.architecture.name;
    let usual = match name {
        "gemma2" => 2,
        "gemma3" => 6,
        "olmo2" if config.get("model_type") == "olmo3" => 4,
        _ => return Ok(()),
    };
    let pattern = config.integer("sliding_window_pattern").or(config.integer("_sliding_window_pattern"));
    let pattern = pattern.unwrap_or(usual);
    let kinds: Option<Vec<bool>> = config
        .get("layer_types")
        .as_array()
        .map(|all| all.iter().map(|kind| kind == "sliding_attention").collect());
    let is_usual = |kinds: &[bool]| {
        kinds.iter().zip(1_i64..).all(|(&is_sliding, layer)| is_sliding == (layer % usual != 0))
    };
    let has_windows = kinds.as_ref().map_or(pattern != 1, |kinds| kinds.contains(&true));
    if !has_windows {
        entries.integer("attention.sliding_window", 0);
        return Ok(());
    }
    entries.integer("attention.sliding_window", config.needed("sliding_window", None)?);
    match kinds {
        Some(kinds) if kinds.len() as i64 != sizes.layers => {
            return Err(format!(
                "layer_types of the config has {} entries for {} layers",
                kinds.len(),
                sizes.layers
            ));
        }
        Some(kinds) if !is_usual(&kinds) => {
            entries.push("attention.sliding_window_pattern", Metadatum::Bools(kinds))
        }
        None if pattern != usual => entries.integer("attention.sliding_window_pattern", pattern),
        _ => {}
    }
    Ok(())
}

/// What one architecture has.
fn own(
    config: &Config<'_>,
    sizes: &Sizes,
    rotation: &Rotation<'_>,
    entries: &mut Entries,
) -> Result<(), String> {
    let numbers: &[(&str, &str)] = match entries.architecture.name {
        "gemma2" => &[
            ("attn_logit_softcapping", "attn_logit_softcapping"),
            ("final_logit_softcapping", "final_logit_softcapping"),
        ],
        "gemma3" => &[("final_logit_softcapping", "final_logit_softcapping")],
        "granite" => &[
            ("logits_scaling", "logit_scale"),
            ("attention_multiplier", "attention.scale"),
            ("embedding_multiplier", "embedding_scale"),
            ("residual_multiplier", "residual_scale"),
        ],
        _ => &[],
    };
    for (key, name) in numbers {
        match config.number(key) {
            Some(number) => entries.number(name, number),
            None if entries.architecture.name == "gemma2" && config.all.contains_key(*key) => {
                return Err(format!(
                    "llama.cpp caps the scores and the logits of this architecture always, and {key} is null"
                ));
            }
            None => {}
        }
    }
    match entries.architecture.name {
        "mistral3" => {
            let beta = rotation.scaling["llama_4_scaling_beta"].as_f64();
            beta.into_iter().for_each(|beta| entries.number("attention.temperature_scale", beta));
        }
        "phi3" => {
            let partial = config.get("rope_parameters")["partial_rotary_factor"].as_f64();
            let partial = partial.or(config.number("partial_rotary_factor")).unwrap_or(1.0);
            entries.integer("rope.dimension_count", (partial * sizes.head_dim as f64) as i64);
            if rotation.kind() == "default" {
                entries.integer(ORIGINAL_LENGTH, rotation.original(config, sizes));
            }
            entries.integer("attention.sliding_window", config.integer("sliding_window").unwrap_or(0));
        }
        _ => {}
    }
    Ok(())
}
