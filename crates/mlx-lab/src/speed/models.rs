//! The models that are measured, in the form that each program reads. They are made if they do not exist yet.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use clap::builder::PossibleValue;
use mlx_gguf::Gguf;
use mlx_safetensors::Header;
use workspace::python::{self, Environment};

use super::peers::Peers;
use crate::process::output;
use crate::random_model::{self, Shape, Width};
use crate::real_model::RealModel;

/// The folder of the models below the target folder. The number changes when [`random_model`] writes other
/// models.
const MODELS: &str = "speed/models-1";

/// Whose weights are measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    /// The real Gemma 3 270M.
    Real,
    /// Random weights in the shape of a real model.
    Random(Shape),
}

const SOURCES: [Source; 7] = [
    Source::Real,
    Source::Random(Shape::Gemma3),
    Source::Random(Shape::Lille),
    Source::Random(Shape::Llama),
    Source::Random(Shape::Phi3),
    Source::Random(Shape::Qwen2),
    Source::Random(Shape::Tiny),
];

impl ValueEnum for Source {
    fn value_variants<'a>() -> &'a [Self] {
        &SOURCES
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        match self {
            Self::Real => {
                Some(PossibleValue::new(self.name()).help("The real Gemma 3 270M, which is downloaded"))
            }
            Self::Random(shape) => shape.to_possible_value(),
        }
    }
}

impl Source {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Real => "real",
            Self::Random(shape) => shape.name(),
        }
    }

    pub(super) fn shape(self) -> Shape {
        match self {
            Self::Real => Shape::Gemma3,
            Self::Random(shape) => shape,
        }
    }
}

/// How weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(super) enum Stored {
    /// bfloat16; BF16 in llama.cpp
    Bf16,
    /// 8 bits, affine, in groups of 64; Q8_0 in llama.cpp
    #[value(name = "8-bit")]
    Eight,
    /// 4 bits, affine, in groups of 64; Q4_0 in llama.cpp
    #[value(name = "4-bit")]
    Four,
    /// 4 bits, affine, in groups of 32; Q4_0 in llama.cpp
    #[value(name = "4-bit-32")]
    FourIn32,
    /// The real model's file in Q4_K_M, for both programs
    #[value(name = "q4_k_m")]
    Q4KM,
}

impl Stored {
    pub(super) fn name(self) -> &'static str {
        self.width().map_or("q4_k_m", Width::name)
    }

    fn width(self) -> Option<Width> {
        match self {
            Self::Bf16 => Some(Width::Bf16),
            Self::Eight => Some(Width::Eight),
            Self::Four => Some(Width::Four),
            Self::FourIn32 => Some(Width::FourIn32),
            Self::Q4KM => None,
        }
    }

    /// The options with which optimum-intel writes a model of this width for OpenVINO.
    fn openvino_format(self) -> Option<&'static [&'static str]> {
        match self {
            Self::Bf16 => Some(&["--weight-format", "fp16"]),
            Self::Eight => Some(&["--weight-format", "int8"]),
            Self::Four => Some(&["--weight-format", "int4", "--group-size", "64", "--ratio", "1.0"]),
            Self::FourIn32 => Some(&["--weight-format", "int4", "--group-size", "32", "--ratio", "1.0"]),
            Self::Q4KM => None,
        }
    }

    /// llama.cpp's type of weights.
    fn gguf_type(self) -> &'static str {
        match self {
            Self::Bf16 => "BF16",
            Self::Eight => "Q8_0",
            Self::Four | Self::FourIn32 => "Q4_0",
            Self::Q4KM => "Q4_K_M",
        }
    }
}

/// A model in the form that each program reads.
#[derive(Debug, Clone)]
pub(super) struct Model {
    pub(super) source: Source,
    pub(super) stored: Stored,
    /// The folder or file that we read.
    pub(super) ours: PathBuf,
    /// The file that llama.cpp reads.
    pub(super) gguf: PathBuf,
    /// The checkpoint in bfloat16, from which other forms are made.
    pub(super) plain: PathBuf,
    /// The folder that OpenVINO reads.
    pub(super) openvino: PathBuf,
    /// A tokenizer. None for random weights.
    pub(super) tokenizer: Option<PathBuf>,
    /// The same model in 4 bits, which drafts tokens. None for random weights.
    pub(super) draft: Option<PathBuf>,
}

impl Model {
    /// Makes what the other programs read.
    fn make_for(&self, peers: &Peers) -> io::Result<()> {
        if peers.llama_cpp.is_some() && !self.gguf.exists() {
            workspace::complain(&format!("making {}", self.gguf.display()));
            let mut script =
                python::script(&python::interpreter(Environment::LlamaCppTools)?, "write_gguf.py");
            script.arg("--model").arg(&self.plain).args(["--type", self.stored.gguf_type(), "--out"]);
            script.arg(&self.gguf);
            output(script, "write_gguf.py")?;
        }
        let format = self.stored.openvino_format();
        if let (Some(python), Some(format), false) = (&peers.openvino, format, self.openvino.exists()) {
            workspace::complain(&format!("making {}", self.openvino.display()));
            let mut export = python::isolated(python.with_file_name("optimum-cli"));
            export.args(["export", "openvino", "--task", "text-generation-with-past", "--model"]);
            // It appears under its name when it is complete.
            let partial = self.openvino.with_extension("partial");
            export.arg(&self.plain).args(format).arg(&partial).env("HF_HUB_OFFLINE", "1");
            output(export, "optimum-cli")?;
            fs::rename(&partial, &self.openvino)?;
        }
        Ok(())
    }
}

/// The models of these sources and widths. `root` is the folder of random models.
pub(super) fn models(
    sources: &[Source],
    widths: &[Stored],
    root: Option<&Path>,
    peers: &Peers,
) -> io::Result<Vec<Model>> {
    let root = match root {
        Some(folder) => std::path::absolute(folder)?,
        None => workspace::target_folder(&workspace::root())?.join(MODELS),
    };
    let mut models = Vec::new();
    for &source in sources {
        match source {
            Source::Real => real(widths, peers, &mut models)?,
            Source::Random(shape) => random(shape, widths, &root, peers, &mut models)?,
        }
    }
    Ok(models)
}

fn real(widths: &[Stored], peers: &Peers, models: &mut Vec<Model>) -> io::Result<()> {
    let real = RealModel::open(None, Environment::LlamaCppTools)?;
    for &stored in widths {
        let ours = match stored {
            Stored::Bf16 => real.files.bf16.clone(),
            Stored::Eight => real.quantized("8-bit", 8, 64)?,
            Stored::Four => real.quantized("4-bit-64", 4, 64)?,
            // The name that `cargo xtask real` gives it.
            Stored::FourIn32 => real.quantized("4-bit", 4, 32)?,
            Stored::Q4KM => real.files.gguf.clone(),
        };
        let gguf = match stored {
            Stored::Q4KM => real.files.gguf.clone(),
            _ => real.made.join(format!("gguf/{}.gguf", stored.gguf_type())),
        };
        let model = Model {
            source: Source::Real,
            stored,
            ours,
            gguf,
            plain: real.files.bf16.clone(),
            openvino: real.made.join(format!("openvino-{}", stored.name())),
            tokenizer: Some(real.files.gguf.clone()),
            draft: Some(real.quantized("4-bit-64", 4, 64)?),
        };
        model.make_for(peers)?;
        models.push(model);
    }
    Ok(())
}

fn random(
    shape: Shape,
    widths: &[Stored],
    root: &Path,
    peers: &Peers,
    models: &mut Vec<Model>,
) -> io::Result<()> {
    let plain = root.join(shape.name());
    let widths: &[Stored] = if shape == Shape::Tiny { &[Stored::Bf16] } else { widths };
    for &stored in widths {
        let Some(width) = stored.width() else { continue };
        let model = Model {
            source: Source::Random(shape),
            stored,
            ours: root.join(format!("{}{}", shape.name(), width.suffix())),
            gguf: root.join(format!("gguf/{}-{}.gguf", shape.name(), stored.gguf_type())),
            plain: plain.clone(),
            openvino: root.join(format!("openvino/{}-{}", shape.name(), stored.name())),
            tokenizer: None,
            draft: None,
        };
        let complete = model.ours.exists()
            && (peers.llama_cpp.is_none() || model.gguf.exists())
            && (peers.openvino.is_none() || model.openvino.exists());
        // It is needed to make the others only.
        if !complete && !plain.exists() {
            workspace::complain(&format!("making {}", plain.display()));
            random_model::write(shape, random_model::SEED, &plain)?;
        }
        if !model.ours.exists() {
            workspace::complain(&format!("making {}", model.ours.display()));
            random_model::quantize(&plain, width, &model.ours)?;
        }
        model.make_for(peers)?;
        models.push(model);
    }
    Ok(())
}

/// The bytes of weights that a token has to read: all tensors, but the embedding only if it is the head too.
pub(super) fn weight_bytes(path: &Path) -> io::Result<u64> {
    let length = |bytes: &Range<u64>| bytes.end - bytes.start;
    let mut tensors: Vec<(String, u64)> = Vec::new();
    if path.is_file() {
        let file = Gguf::open(path).map_err(io::Error::other)?;
        let tensor = |tensor: &mlx_gguf::Tensor| (tensor.info.name.clone(), length(&tensor.info.bytes));
        tensors.extend(file.tensors().map(tensor));
    } else {
        for entry in fs::read_dir(path)? {
            let file = entry?.path();
            if file.extension().is_some_and(|extension| extension == "safetensors") {
                let header = Header::read(&fs::File::open(&file)?).map_err(io::Error::other)?;
                tensors
                    .extend(header.tensors().iter().map(|(name, info)| (name.clone(), length(&info.bytes))));
            }
        }
    }
    Ok(read_bytes(&tensors))
}

fn read_bytes(tensors: &[(String, u64)]) -> u64 {
    let is_head = |name: &str| name.starts_with("lm_head.") || name == "output.weight";
    let is_embedding = |name: &str| name.contains("embed_tokens.") || name == "token_embd.weight";
    let has_own_head = tensors.iter().any(|(name, _)| is_head(name));
    let read = |name: &str| !(has_own_head && is_embedding(name));
    tensors.iter().filter(|(name, _)| read(name)).map(|(_, bytes)| bytes).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_embedding_is_read_where_it_is_the_head_too() {
        let of = |tensors: &[(&str, u64)]| {
            read_bytes(&tensors.iter().map(|&(name, bytes)| (name.to_owned(), bytes)).collect::<Vec<_>>())
        };
        assert_eq!(of(&[("model.embed_tokens.weight", 100), ("model.norm.weight", 3)]), 103);
        assert_eq!(
            of(&[("model.embed_tokens.weight", 100), ("lm_head.weight", 90), ("model.norm.weight", 3)]),
            93
        );
        assert_eq!(of(&[("token_embd.weight", 100), ("output.weight", 90)]), 90);
    }

    #[test]
    fn names_are_those_of_the_command_line() {
        for source in Source::value_variants() {
            assert_eq!(
                source.to_possible_value().map(|value| value.get_name().to_owned()),
                Some(source.name().into())
            );
        }
        for stored in Stored::value_variants() {
            assert_eq!(
                stored.to_possible_value().map(|value| value.get_name().to_owned()),
                Some(stored.name().into())
            );
        }
    }
}
