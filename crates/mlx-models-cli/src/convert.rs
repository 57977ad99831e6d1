//! `mlx-models convert`: writes a model with another quantization or dtype, with adapters fused into it, or as a GGUF file.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;

use mlx_models::{
    CheckpointError, ConvertOptions, FileKind, FloatDtype, LayerChoice, LoadError, Quantization,
    QuantizeOptions, Recipe, Weights, WriteGgufError,
};
use serde::Serialize;

use crate::demo::Source;
use crate::failure::Failure;
use crate::interrupt;
use crate::progress::{Progress, Unit};
use crate::style::printable;

/// Arguments of `mlx-models convert`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Convert this model: a checkpoint folder, a GGUF file, demo:NAME, or a Hub id (owner/name)
    #[arg(long, alias = "hf-path", value_name = "MODEL")]
    model: Source,
    /// Write the converted model to this folder, which must be new or empty; with --gguf, to this file, which must not exist
    #[arg(long, aliases = ["mlx-path", "save-path"], value_name = "PATH")]
    out: PathBuf,
    /// Write a GGUF file for llama.cpp: F16, BF16, Q8_0, Q4_0 or Q4_K_M. Quantized layers are dequantized first
    #[arg(
        long, value_name = "TYPE",
        conflicts_with_all = [
            "quantize", "bits", "group_size", "mode", "recipe", "layers", "dequantize", "dtype", "max_shard_size"
        ]
    )]
    gguf: Option<FileKind>,
    /// Quantize the linear layers and the embedding
    #[arg(long, short)]
    quantize: bool,
    /// Quantize to this many bits per weight [default: 4, or the bits of the mode]
    #[arg(long, alias = "q-bits", value_name = "N", requires = "quantize")]
    bits: Option<i32>,
    /// Quantize in groups of this many weights, which share a scale [default: 64, or the group size of the mode]
    #[arg(long, alias = "q-group-size", value_name = "N", requires = "quantize")]
    group_size: Option<i32>,
    /// Quantize in this mode: affine, mxfp4, mxfp8 or nvfp4
    #[arg(long, alias = "q-mode", value_name = "MODE", default_value = "affine")]
    mode: String,
    /// Quantize to two numbers of bits, mixed as in mlx-lm: mixed_2_6, mixed_3_4, mixed_3_6 or mixed_4_6
    #[arg(long, alias = "quant-predicate", value_name = "NAME", requires = "quantize", value_parser = recipe)]
    recipe: Option<Recipe>,
    /// Quantize some layers differently: PATTERN=BITS, PATTERN=BITS:GROUP_SIZE, PATTERN=MODE (mxfp4, mxfp8 or nvfp4), or
    /// PATTERN=none for full precision. A pattern is the key of a layer, or the end of a key after a dot; * matches any
    /// text. The last pattern that matches a layer counts
    #[arg(long, value_name = "PATTERN=HOW", requires = "quantize", num_args = 1..)]
    layers: Vec<String>,
    /// Dequantize the layers that are quantized
    #[arg(long, short, conflicts_with = "quantize")]
    dequantize: bool,
    /// Store weights that are not quantized as float32, float16 or bfloat16 [default: the config's torch_dtype, or else
    /// unchanged]
    #[arg(long, value_name = "DTYPE", value_parser = dtype)]
    dtype: Option<FloatDtype>,
    /// Fuse the adapters (LoRA, DoRA) in this folder into the weights, in the format of mlx-lm or PEFT
    #[arg(long, alias = "adapter-path", value_name = "DIR")]
    adapters: Option<PathBuf>,
    /// Split the weights into files of at most this size, such as 500MB or 2GiB
    #[arg(long, value_name = "SIZE", default_value = "5GiB", value_parser = size)]
    max_shard_size: u64,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// What `--json` writes.
#[derive(Serialize)]
struct Report {
    folder: PathBuf,
    files: Vec<String>,
    size_bytes: usize,
    parameters: usize,
    bits_per_weight: f64,
    quantized_layers: usize,
    full_precision_layers: Vec<String>,
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    if let Some(kind) = arguments.gguf {
        return write_gguf(arguments, kind);
    }
    let options = options(&arguments)?;
    if arguments.out.is_file() {
        return Err(LoadError::from(CheckpointError::Exists { folder: arguments.out }).into());
    }
    let folder = arguments.model.folder()?;
    interrupt::install();
    let mut bar = Progress::new(Unit::Count);
    let progress = |now: mlx_models::Progress<'_>| {
        bar.set(now.number as u64, now.total as u64, now.layer);
        if interrupt::requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let converted =
        mlx_models::convert(folder, arguments.adapters.as_deref(), &arguments.out, &options, progress);
    bar.clear();
    let converted = match converted {
        // The exit status says that a signal stopped the program.
        Err(LoadError::Checkpoint(CheckpointError::Stopped)) if interrupt::requested() => return Ok(()),
        other => other?,
    };
    let mut out = io::stdout().lock();
    if !arguments.json {
        writeln!(out, "{}", printable(&converted.to_string()))?;
        writeln!(out, "written to {}", arguments.out.display())?;
        return Ok(());
    }
    let report = Report {
        size_bytes: converted.bytes,
        parameters: converted.parameters,
        bits_per_weight: converted.bits_per_weight(),
        quantized_layers: converted.quantized.iter().map(|(_, layers)| layers).sum(),
        folder: arguments.out,
        files: converted.files,
        full_precision_layers: converted.full_precision,
    };
    serde_json::to_writer(&mut out, &report).map_err(io::Error::from)?;
    writeln!(out)?;
    Ok(())
}

/// What `--json` writes of a GGUF file.
#[derive(Serialize)]
struct GgufReport {
    file: PathBuf,
    size_bytes: u64,
    parameters: usize,
    bits_per_weight: f64,
    tensors: BTreeMap<String, usize>,
    dequantized_layers: usize,
}

fn write_gguf(arguments: Arguments, kind: FileKind) -> Result<(), Failure> {
    let Arguments { model, out: file, adapters, json, .. } = arguments;
    if file.symlink_metadata().is_ok() {
        return Err(LoadError::from(CheckpointError::FileExists { file }).into());
    }
    let name = model.name();
    let folder = model.folder()?;
    interrupt::install();
    let mut bar = Progress::new(Unit::Count);
    let progress = |now: mlx_models::Progress<'_>| {
        bar.set(now.number as u64, now.total as u64, now.layer);
        if interrupt::requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let written = mlx_models::write_gguf(folder, adapters.as_deref(), &file, kind, name, progress);
    bar.clear();
    let written = match written {
        // The exit status says that a signal stopped the program.
        Err(WriteGgufError::Load(LoadError::Checkpoint(CheckpointError::Stopped)))
            if interrupt::requested() =>
        {
            return Ok(());
        }
        other => other?,
    };
    let mut out = io::stdout().lock();
    if !json {
        writeln!(out, "{written}")?;
        writeln!(out, "written to {}", file.display())?;
        return Ok(());
    }
    let report = GgufReport {
        size_bytes: written.file_bytes,
        parameters: written.parameters,
        bits_per_weight: written.bits_per_weight(),
        tensors: written.types.iter().map(|(kind, tensors)| (kind.to_string(), *tensors)).collect(),
        dequantized_layers: written.dequantized,
        file,
    };
    serde_json::to_writer(&mut out, &report).map_err(io::Error::from)?;
    writeln!(out)?;
    Ok(())
}

fn options(arguments: &Arguments) -> Result<ConvertOptions, Failure> {
    let weights = if arguments.quantize {
        let quantization = quantization(&arguments.mode, arguments.bits, arguments.group_size)?;
        let group_size = if quantization.has_biases() { quantization.group_size() } else { 64 };
        let layers = arguments.layers.iter().map(|text| choice(text, group_size));
        let layers = layers.collect::<Result<_, _>>()?;
        Weights::Quantized(QuantizeOptions { quantization, recipe: arguments.recipe, layers })
    } else if arguments.mode != "affine" {
        return Err(Failure::Usage(format!("--mode {} needs --quantize", arguments.mode)));
    } else if arguments.dequantize {
        Weights::Dequantized
    } else {
        Weights::Kept
    };
    Ok(ConvertOptions { weights, dtype: arguments.dtype, largest_shard: arguments.max_shard_size })
}

/// A mode of quantization, with the mode's own bits and group size where none are given.
fn quantization(mode: &str, bits: Option<i32>, group_size: Option<i32>) -> Result<Quantization, Failure> {
    Quantization::with_defaults(mode, bits, group_size).map_err(|e| Failure::Usage(e.to_string()))
}

/// `PATTERN=BITS[:GROUP]`, `PATTERN=MODE` or `PATTERN=none`.
fn choice(text: &str, group_size: i32) -> Result<LayerChoice, Failure> {
    let wrong = || {
        Failure::Usage(format!(
            "--layers {text:?} is not PATTERN=BITS, PATTERN=BITS:GROUP, PATTERN=MODE or PATTERN=none"
        ))
    };
    let (pattern, how) = text.split_once('=').filter(|(pattern, _)| !pattern.is_empty()).ok_or_else(wrong)?;
    let quantization = match how {
        "none" => None,
        // Affine quantization is named by its bits.
        mode if Quantization::all().any(|known| !known.has_biases() && known.mode().name() == mode) => {
            Some(quantization(mode, None, None)?)
        }
        sizes => {
            let (bits, group) =
                sizes.split_once(':').map_or((sizes, None), |(bits, group)| (bits, Some(group)));
            let bits = bits.parse().map_err(|_| wrong())?;
            let group = group.map_or(Ok(group_size), str::parse).map_err(|_| wrong())?;
            Some(quantization("affine", Some(bits), Some(group))?)
        }
    };
    Ok(LayerChoice { pattern: pattern.to_owned(), quantization })
}

fn recipe(text: &str) -> Result<Recipe, String> {
    let known = || Recipe::ALL.map(Recipe::name).join(", ");
    let found = Recipe::ALL.into_iter().find(|recipe| recipe.name() == text);
    found.ok_or_else(|| format!("known are {}", known()))
}

fn dtype(text: &str) -> Result<FloatDtype, String> {
    let known = || FloatDtype::ALL.map(FloatDtype::name).join(", ");
    let found = FloatDtype::ALL.into_iter().find(|dtype| dtype.name() == text);
    found.ok_or_else(|| format!("known are {}", known()))
}

/// A number of bytes. `5GB` counts in powers of 1000, `5GiB` in powers of 1024.
fn size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        _ => return Err("a whole number with B, kB, MB, GB, kiB, MiB or GiB is needed".to_owned()),
    };
    let bytes =
        number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)).filter(|&bytes| bytes > 0);
    bytes.ok_or_else(|| "a whole number of bytes, one or more, is needed".to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn sizes_are_of_thousands_or_of_1024s() {
        for (text, bytes) in [("5GB", 5_000_000_000), ("5GiB", 5 << 30), ("500 mb", 500_000_000), ("12", 12)]
        {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "GB", "0", "5TB", "1.5GB", "-1", "99999999999999GB"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn layers_are_named_with_how() {
        let how = |text: &str| choice(text, 32).map(|choice| choice.quantization).map_err(|e| e.to_string());
        assert_eq!(how("lm_head=8").unwrap(), Some(Quantization::affine(8, 32).unwrap()));
        assert_eq!(how("lm_head=6:128").unwrap(), Some(Quantization::affine(6, 128).unwrap()));
        assert_eq!(how("*.mlp.*=mxfp8").unwrap(), Some(Quantization::MXFP8));
        assert_eq!(how("x=none").unwrap(), None);
        for text in ["lm_head", "=4", "x=", "x=a:b", "x=4:"] {
            assert!(how(text).unwrap_err().contains("PATTERN=BITS"), "{text}");
        }
        assert!(how("x=7").unwrap_err().contains("7 bits"));
    }
}
