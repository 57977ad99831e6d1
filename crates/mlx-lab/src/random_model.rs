//! `cargo xtask random-model`: a checkpoint with random weights in the shape of a real model.
//!
//! The speed of a model does not depend on the values of its weights, so benchmarks need no download. The
//! weights are generated in the same way as those of parity cases (docs/parity.md, "Weights from a seed"), so
//! they are the same on every machine.

mod shapes;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use mlx_files::Partial;
use mlx_models::{ConvertOptions, Quantization, QuantizeOptions, Weights};
use mlx_safetensors::{Dtype, Header};
pub(crate) use shapes::Shape;

use crate::interrupt;
use crate::parity::weights::{self, Tensor};

/// The seed of the weights, unless another one is given.
pub(crate) const SEED: u64 = 1;

/// Arguments of `cargo xtask random-model`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The model whose shape is used
    #[arg(long, value_enum)]
    shape: Shape,
    /// How the weights are stored; quantized weights are made from bf16 by our own `convert`
    #[arg(long, value_enum, default_value_t = Width::Bf16)]
    width: Width,
    /// The seed of the weights
    #[arg(long, value_name = "N", default_value_t = SEED)]
    seed: u64,
    /// The folder to write; it must not exist
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// How weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Width {
    /// bfloat16
    Bf16,
    /// 8 bits, affine, in groups of 64
    #[value(name = "8-bit")]
    Eight,
    /// 4 bits, affine, in groups of 64
    #[value(name = "4-bit")]
    Four,
    /// 4 bits, affine, in groups of 32
    #[value(name = "4-bit-32")]
    FourIn32,
}

impl Width {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::Eight => "8-bit",
            Self::Four => "4-bit",
            Self::FourIn32 => "4-bit-32",
        }
    }

    /// The suffix of a model's folder, after the name of the shape.
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            Self::Bf16 => "",
            Self::Eight => "-8bit",
            Self::Four => "-4bit",
            Self::FourIn32 => "-4bit-32",
        }
    }

    /// The bits of a quantized weight, and the number of weights that share a scale.
    pub(crate) fn bits_and_group(self) -> Option<(i32, i32)> {
        match self {
            Self::Bf16 => None,
            Self::Eight => Some((8, 64)),
            Self::Four => Some((4, 64)),
            Self::FourIn32 => Some((4, 32)),
        }
    }
}

pub(crate) fn run(arguments: &Arguments) -> io::Result<bool> {
    interrupt::install()?;
    let Arguments { shape, width, seed, folder } = arguments;
    if *width == Width::Bf16 {
        write(*shape, *seed, folder)?;
    } else {
        // The bf16 model that is quantized is temporary.
        let scratch = tempfile::Builder::new().prefix("random-model-").tempdir_in(parent(folder)?)?;
        let plain = scratch.path().join(shape.name());
        write(*shape, *seed, &plain)?;
        quantize(&plain, *width, folder)?;
    }
    writeln!(io::stdout(), "{}", folder.display())?;
    Ok(true)
}

/// Writes the bf16 checkpoint of this shape. The folder appears when it is complete.
pub(crate) fn write(shape: Shape, seed: u64, folder: &Path) -> io::Result<()> {
    if folder.exists() {
        return Err(io::Error::other(format!("{} already exists; name a new folder", folder.display())));
    }
    parent(folder)?;
    let partial = Partial::folder(folder)?;
    let config = serde_json::to_string_pretty(&shape.config())?;
    fs::write(partial.path().join("config.json"), config + "\n")?;
    write_tensors(&shape.tensors(), seed, &partial.path().join("model.safetensors"))?;
    partial.commit().map_err(|e| io::Error::new(e.kind(), format!("writing {}: {e}", folder.display())))
}

/// Writes a quantized model, made from a bf16 model by our own `convert`.
pub(crate) fn quantize(plain: &Path, width: Width, folder: &Path) -> io::Result<()> {
    let Some((bits, group)) = width.bits_and_group() else {
        return Err(io::Error::other("only a bf16 model can be quantized"));
    };
    parent(folder)?;
    let quantization = Quantization::affine(bits, group).map_err(io::Error::other)?;
    let weights = Weights::Quantized(QuantizeOptions { quantization, recipe: None, layers: Vec::new() });
    let options = ConvertOptions { weights, dtype: None, largest_shard: 5 << 30 };
    let go_on = |_: mlx_models::Progress<'_>| {
        if interrupt::requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let converted = mlx_models::convert(plain, None, folder, &options, go_on);
    interrupt::check()?;
    converted.map(drop).map_err(io::Error::other)
}

/// The parent folder, which is made if needed.
pub(crate) fn parent(path: &Path) -> io::Result<PathBuf> {
    let parent = std::path::absolute(path)?.parent().map(Path::to_path_buf);
    let parent =
        parent.ok_or_else(|| io::Error::other(format!("{} has no parent folder", path.display())))?;
    fs::create_dir_all(&parent)
        .map_err(|e| io::Error::new(e.kind(), format!("making {}: {e}", parent.display())))?;
    Ok(parent)
}

/// Writes a safetensors file, tensor by tensor, so that only one tensor is in memory.
fn write_tensors(tensors: &[Tensor], seed: u64, file: &Path) -> io::Result<()> {
    let metadata = BTreeMap::from([("format".to_owned(), "mlx".to_owned())]);
    let header = tensors.iter().map(|tensor| (tensor.name.clone(), Dtype::BF16, tensor.shape.clone()));
    let header = Header::new(metadata, header)?;
    let mut out = BufWriter::new(File::create(file)?);
    out.write_all(&header.to_bytes()?)?;
    for tensor in tensors {
        interrupt::check()?;
        out.write_all(&weights::bytes(tensor, seed).map_err(io::Error::other)?)?;
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use mlx_models::CacheOptions;
    use mlx_models::generate::{GenerateOptions, Session, generate};

    use super::*;

    #[test]
    fn a_model_loads_and_answers_finite_numbers_at_each_width() {
        let folder = tempfile::tempdir().unwrap();
        let plain = folder.path().join("new/tiny");
        write(Shape::Tiny, SEED, &plain).unwrap();
        let mut folders = vec![plain.clone()];
        for width in [Width::Eight, Width::Four] {
            let quantized = folder.path().join(width.name());
            quantize(&plain, width, &quantized).unwrap();
            folders.push(quantized);
        }
        for folder in folders {
            let mut model = mlx_models::load(&folder).unwrap();
            let mut session = Session::new(model.new_cache(&CacheOptions::default()).unwrap());
            let options = GenerateOptions { max_tokens: 3, ..GenerateOptions::new(&[]) };
            let tokens = generate(&mut *model, &mut session, &[1, 2, 3], options).unwrap();
            let logprobs: Vec<f32> = tokens.map(|token| token.unwrap().logprob).collect();
            assert_eq!(logprobs.len(), 3);
            assert!(logprobs.iter().all(|logprob| logprob.is_finite() && *logprob < 0.0), "{logprobs:?}");
        }
    }

    #[test]
    fn the_weights_follow_from_the_seed_and_nothing_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let made = |name: &str, seed| {
            let folder = folder.path().join(name);
            write(Shape::Tiny, seed, &folder).unwrap();
            fs::read(folder.join("model.safetensors")).unwrap()
        };
        let first = made("a", 1);
        assert_eq!(first, made("b", 1));
        assert_ne!(first, made("c", 2));
        let error = write(Shape::Tiny, 1, &folder.path().join("a")).unwrap_err().to_string();
        assert!(error.ends_with("a already exists; name a new folder"), "{error}");
        // No partial folder is left.
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
    }
}
