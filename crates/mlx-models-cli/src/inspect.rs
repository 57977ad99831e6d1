//! `mlx-models inspect`: shows what a checkpoint folder contains.

use std::collections::BTreeMap;
use std::io::{self, Write};

use mlx_models::{Checkpoint, LoadError, LoadOptions};
use serde::Serialize;

use crate::demo::Source;
use crate::failure::Failure;
use crate::style::printable;

/// Arguments of `mlx-models inspect`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Show this model: a checkpoint folder, demo:NAME, or a Hub id (owner/name)
    #[arg(value_name = "MODEL")]
    model: Source,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Description {
    architecture: String,
    parameters: usize,
    dtype: String,
    quantization: String,
    size_on_disk_bytes: u64,
    context_length: i32,
    cache_bytes_per_token: usize,
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let checkpoint = Checkpoint::open(arguments.model.folder()?).map_err(LoadError::from)?;
    // The model is built, so that errors in the config or the tensors are found; the weights are not read.
    let options = LoadOptions { lazy: true, ..LoadOptions::default() };
    let model = mlx_models::load_checkpoint(&checkpoint, &options)?;
    let info = model.info();
    let parameters = model.parameters().flatten();
    let description = Description {
        architecture: info.model_type.clone(),
        parameters: checkpoint.parameter_count(parameters.keys().map(|key| &**key)),
        dtype: format!("{:?}", info.dtype).to_lowercase(),
        quantization: quantization(&checkpoint),
        size_on_disk_bytes: checkpoint.size_on_disk().map_err(LoadError::from)?,
        context_length: info.context_length,
        cache_bytes_per_token: info.cache_bytes_per_token(),
    };

    let mut out = io::stdout().lock();
    if arguments.json {
        serde_json::to_writer(&mut out, &description).map_err(io::Error::from)?;
        writeln!(out)?;
        return Ok(());
    }
    let Description { architecture, parameters, dtype, quantization, .. } = &description;
    writeln!(out, "architecture          {}", printable(architecture))?;
    writeln!(out, "parameters            {parameters}")?;
    writeln!(out, "dtype                 {dtype}")?;
    writeln!(out, "quantization          {}", printable(quantization))?;
    writeln!(out, "size on disk          {:.2} MB", description.size_on_disk_bytes as f64 / 1e6)?;
    writeln!(out, "context length        {} tokens", description.context_length)?;
    writeln!(out, "cache                 {} bytes per token", description.cache_bytes_per_token)?;
    Ok(())
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
    let ways: Vec<String> =
        ways.into_iter().map(|(way, layers)| format!("{way} ({layers} layers)")).collect();
    ways.join(", ")
}
