//! `mlx-models inspect`: shows what a checkpoint folder contains.

use std::collections::BTreeMap;
use std::io::{self, Write};

use mlx_models::device::Device;
use mlx_models::tokenizer::{Tokenizer, TokenizerError};
use mlx_models::{CausalLm, Checkpoint, LayerKind, LoadError, LoadOptions, ModelInfo, Rotation};
use serde::Serialize;
use serde_json::Value;

use crate::demo::Source;
use crate::failure::{Failure, in_full};
use crate::memory::{Fit, Memory, Need};
use crate::style::{printable, printable_json, say};

/// Arguments of `mlx-models inspect`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Show this model: a checkpoint folder, a GGUF file, demo:NAME, or a Hub id (owner/name)
    #[arg(value_name = "MODEL")]
    model: Source,
    /// Print one JSON object instead of a table; it also has the whole config
    #[arg(long)]
    json: bool,
}

/// What is shown. The fields are the keys of the JSON object.
#[derive(Serialize)]
struct Description {
    architecture: String,
    parameters: usize,
    dtype: String,
    quantization: String,
    size_on_disk_bytes: u64,
    layers: usize,
    hidden_size: i32,
    intermediate_size: i32,
    query_heads: i32,
    key_value_heads: i32,
    head_dim: i32,
    vocab_size: i32,
    rotations: Vec<Rotated>,
    windows: Vec<Option<i32>>,
    context_length: i32,
    cache_bytes_per_token: usize,
    memory: Fit,
    stop_tokens: Option<Vec<StopToken>>,
    chat_templates: Option<Vec<String>>,
    tokenizer_error: Option<String>,
    /// What is worth knowing of the tensors, such as a loss of precision.
    notes: Vec<String>,
    device: Used,
    config: Value,
}

/// Layers that rotate alike.
#[derive(Serialize)]
struct Rotated {
    rope_type: &'static str,
    base: f64,
    dims: i32,
    layout: String,
    factor: Option<f64>,
    /// Their numbers, counted from 0.
    layers: Vec<usize>,
    #[serde(skip)]
    shown: String,
}

#[derive(Serialize)]
struct StopToken {
    id: u32,
    /// `None` for a token that is not special.
    token: Option<String>,
}

/// The device that models run on.
#[derive(Serialize)]
struct Used {
    kind: &'static str,
    /// Why, a clause.
    reason: String,
    #[serde(skip)]
    shown: String,
}

pub(crate) fn run(arguments: Arguments, device: Device) -> Result<(), Failure> {
    let checkpoint = Checkpoint::open(arguments.model.folder()?).map_err(LoadError::from)?;
    // The model is built, so that errors in the config or the tensors are found; the weights are not read.
    let options = LoadOptions { lazy: true, ..LoadOptions::default() };
    let model = mlx_models::load_checkpoint(&checkpoint, &options)?;
    // Without one a model can still be described.
    let tokenizer = Tokenizer::open(checkpoint.path());
    let description = describe(&checkpoint, &*model, &tokenizer, device)?;

    if let Some(warning) = &description.memory.warning {
        say(&format!("warning: {warning}"));
    }
    let mut out = io::stdout().lock();
    if arguments.json {
        let json = serde_json::to_string(&description).map_err(io::Error::from)?;
        writeln!(out, "{}", printable_json(&json))?;
        return Ok(());
    }
    for (name, text) in description.rows() {
        writeln!(out, "{name:<22}{}", printable(&text))?;
    }
    Ok(())
}

fn describe(
    checkpoint: &Checkpoint,
    model: &dyn CausalLm,
    tokenizer: &Result<Tokenizer, TokenizerError>,
    device: Device,
) -> Result<Description, Failure> {
    let info = model.info();
    let parameters = model.parameters().flatten();
    let (key_value_heads, head_dim) =
        info.layers.first().map_or((0, 0), |layer| (layer.heads, layer.key_dim));
    let window = |kind| match kind {
        LayerKind::Full => None,
        LayerKind::Sliding { window } => Some(window),
    };
    let stop_token = |tokenizer: &Tokenizer, id| StopToken { id, token: tokenizer.special_content(id) };
    let tokens =
        |tokenizer: &Tokenizer| tokenizer.stop_tokens().iter().map(|&id| stop_token(tokenizer, id)).collect();
    let need = Need {
        weights: parameters.values().map(|array| array.nbytes() as u64).sum(),
        context: info.context_length,
        cache: &|tokens| info.cache_bytes(tokens) as u64,
    };
    Ok(Description {
        architecture: info.model_type.clone(),
        parameters: checkpoint.parameter_count(parameters.keys().map(|key| &**key)),
        dtype: format!("{:?}", info.dtype).to_lowercase(),
        quantization: quantization(checkpoint),
        size_on_disk_bytes: checkpoint.size_on_disk().map_err(LoadError::from)?,
        layers: info.layers.len(),
        hidden_size: info.hidden_size,
        intermediate_size: info.intermediate_size,
        query_heads: info.query_heads,
        key_value_heads,
        head_dim,
        vocab_size: info.vocab_size,
        rotations: rotations(info),
        windows: info.layers.iter().map(|layer| window(layer.kind)).collect(),
        context_length: info.context_length,
        cache_bytes_per_token: info.cache_bytes_per_token(),
        memory: Fit::new(&need, Memory::of(device.kind)),
        stop_tokens: tokenizer.as_ref().ok().map(tokens),
        chat_templates: (tokenizer.as_ref().ok())
            .map(|tokenizer| tokenizer.chat_templates().map(str::to_owned).collect()),
        tokenizer_error: tokenizer.as_ref().err().map(|error| in_full(error)),
        notes: checkpoint.notes(),
        device: Used { kind: device.kind.name(), reason: device.reason.clone(), shown: device.to_string() },
        config: checkpoint.config().map_err(LoadError::from)?,
    })
}

/// The rotations of a model's layers, those of the first layers first. A layer without a rotation is in none of them.
fn rotations(info: &ModelInfo) -> Vec<Rotated> {
    let mut groups: Vec<(&Rotation, Vec<usize>)> = Vec::new();
    for (layer, rotation) in info.rotations.iter().enumerate() {
        let Some(rotation) = rotation else { continue };
        match groups.iter_mut().find(|(known, _)| **known == **rotation) {
            Some((_, layers)) => layers.push(layer),
            None => groups.push((rotation, vec![layer])),
        }
    }
    let rotated = |(rotation, layers): (&Rotation, Vec<usize>)| Rotated {
        rope_type: rotation.scaling.rope_type(),
        base: rotation.base,
        dims: rotation.dims,
        layout: format!("{:?}", rotation.layout).to_lowercase(),
        factor: rotation.scaling.factor(),
        layers,
        shown: rotation.to_string(),
    };
    groups.into_iter().map(rotated).collect()
}

/// How the layers are quantized, the most common quantization first: `affine of 4 bits in groups of 64 (12 layers)`.
fn quantization(checkpoint: &Checkpoint) -> String {
    let mut ways = BTreeMap::new();
    for key in checkpoint.headers().keys() {
        if let Some(layer) = key.strip_suffix(".scales")
            && let Some(way) = checkpoint.quantization_of(layer)
        {
            *ways.entry(way.to_string()).or_insert(0_usize) += 1;
        }
    }
    let mut ways: Vec<_> = ways.into_iter().collect();
    ways.sort_by_key(|&(_, layers)| std::cmp::Reverse(layers));
    if ways.is_empty() {
        return "none".to_owned();
    }
    let shown = |(way, layers)| format!("{way} ({layers} layer{})", if layers == 1 { "" } else { "s" });
    ways.into_iter().map(shown).collect::<Vec<_>>().join(", ")
}

impl Description {
    /// The rows of the table: names and texts.
    fn rows(&self) -> Vec<(&'static str, String)> {
        let unknown = || format!("unknown: {}", self.tokenizer_error.as_deref().unwrap_or_default());
        vec![
            ("architecture", self.architecture.clone()),
            ("parameters", self.parameters.to_string()),
            ("dtype", self.dtype.clone()),
            ("quantization", self.quantization.clone()),
            ("size on disk", format!("{:.2} MB", self.size_on_disk_bytes as f64 / 1e6)),
            ("layers", self.layers.to_string()),
            ("hidden size", self.hidden_size.to_string()),
            ("intermediate size", self.intermediate_size.to_string()),
            ("query heads", self.query_heads.to_string()),
            ("key-value heads", self.key_value_heads.to_string()),
            ("head size", self.head_dim.to_string()),
            ("vocabulary", format!("{} tokens", self.vocab_size)),
            ("rotation", self.rotation_row()),
            ("windows", self.window_row()),
            ("context length", format!("{} tokens", self.context_length)),
            ("cache", format!("{} bytes per token", self.cache_bytes_per_token)),
            ("memory", self.memory.shown.clone()),
            ("stop tokens", self.stop_tokens.as_ref().map_or_else(unknown, |tokens| stop_token_row(tokens))),
            ("chat template", self.chat_templates.as_ref().map_or_else(unknown, |names| or_none(names))),
            ("device", self.device.shown.clone()),
        ]
        .into_iter()
        .chain(self.notes.iter().map(|note| ("note", note.clone())))
        .collect()
    }

    /// `base 10000, 32 features (layers 0, 1); yarn by 8, base 10000, 32 features (layer 2); none (layer 3)`. The layers are
    /// left out where all rotate alike.
    fn rotation_row(&self) -> String {
        let is_rotated = |layer: &usize| self.rotations.iter().any(|rotated| rotated.layers.contains(layer));
        let others: Vec<usize> = (0..self.layers).filter(|layer| !is_rotated(layer)).collect();
        let groups = self.rotations.iter().map(|rotated| (&*rotated.shown, &rotated.layers));
        let none = Some(("none", &others)).filter(|_| !others.is_empty());
        let row = |(shown, layers): (&str, &Vec<usize>)| match &**layers {
            all if all.len() == self.layers => shown.to_owned(),
            [layer] => format!("{shown} (layer {layer})"),
            layers => format!("{shown} (layers {})", numbers(layers)),
        };
        groups.chain(none).map(row).collect::<Vec<_>>().join("; ")
    }

    /// `512 tokens in 5 of 6 layers`, for each length of a window.
    fn window_row(&self) -> String {
        let mut lengths = BTreeMap::new();
        for window in self.windows.iter().flatten() {
            *lengths.entry(window).or_insert(0_usize) += 1;
        }
        let row = |(window, count)| format!("{window} tokens in {count} of {} layers", self.layers);
        or_none(&lengths.into_iter().map(row).collect::<Vec<_>>())
    }
}

fn stop_token_row(tokens: &[StopToken]) -> String {
    let row = |StopToken { id, token }: &StopToken| match token {
        Some(token) => format!("{id} ({token})"),
        None => id.to_string(),
    };
    or_none(&tokens.iter().map(row).collect::<Vec<_>>())
}

/// The texts in one line.
fn or_none(texts: &[String]) -> String {
    if texts.is_empty() { "none".to_owned() } else { texts.join(", ") }
}

fn numbers(layers: &[usize]) -> String {
    let numbers: Vec<String> = layers.iter().map(usize::to_string).collect();
    numbers.join(", ")
}
