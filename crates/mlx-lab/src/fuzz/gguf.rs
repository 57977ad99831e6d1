//! Changes GGUF files, and uses them as models and as tokenizers.

use std::error::Error;
use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use mlx_gguf::{Gguf, NewTensor, TensorType, Value, Writer};
use mlx_models::tokenizer::Tokenizer;
use mlx_models::{
    CacheOptions, ConvertOptions, LoadOptions, Logits, Quantization, QuantizeOptions, Weights, convert,
    load_with,
};
use mlx_rs::Array;

use super::kind::Verdict;
use super::library::Tell;
use super::random::Random;
use super::values::{any_float, interesting_number, interesting_text};

/// Small models of every architecture, and small vocabularies.
const MODELS: &str = "crates/mlx-models/tests/fixtures/gguf";
const VOCABULARIES: &str = "crates/mlx-tokenizer/tests/fixtures/gguf";

/// The most numbers of a tensor that is made.
const MOST_NUMBERS: usize = 1 << 16;

/// Keys that files of all architectures have, behind the name of the architecture.
const KEYS: &[&str] = &[
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "attention.scale",
    "attention.temperature_scale",
    "attention.causal",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.freq_base_swa",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.attn_factor",
    "rope.scaling.yarn_log_multiplier",
    "final_logit_softcapping",
    "logit_scale",
    "vocab_size",
    "expert_count",
];

/// A file while it is changed.
struct Changed {
    metadata: Vec<(String, Value)>,
    tensors: Vec<(NewTensor, Vec<f32>)>,
}

/// Changes a model and uses it. The only files that are written are in `root`.
pub(super) fn run(root: &Path, random: &mut Random, tell: Tell) -> io::Result<Verdict> {
    let file = root.join("model.gguf");
    let mut changed = Changed::of(random)?;
    for _ in 0..random.below(4) {
        changed.change(random);
    }
    changed.write(&file)?;
    if random.once_in(4) {
        break_bytes(&file, random)?;
    }
    Ok(match use_file(&file, root, random, tell) {
        Ok(()) => Verdict::Accepted,
        Err(Stop::Refused(message)) => Verdict::Refused(message),
        Err(Stop::Fault(fault)) => Verdict::Fault(fault),
    })
}

impl Changed {
    /// A model of a fixture, in half of the cases with a vocabulary.
    fn of(random: &mut Random) -> io::Result<Self> {
        let model = open(&one_of(MODELS, random)?)?;
        let mut metadata = entries(&model);
        if random.once_in(2) {
            let vocabulary = open(&one_of(VOCABULARIES, random)?)?;
            metadata.retain(|(key, _)| !key.starts_with("tokenizer."));
            metadata
                .extend(entries(&vocabulary).into_iter().filter(|(key, _)| key.starts_with("tokenizer.")));
        }
        let tensor = |tensor: &mlx_gguf::Tensor| {
            let numbers = model.numbers(tensor).map_err(io::Error::other)?;
            let mlx_gguf::TensorInfo { name, kind, shape, .. } = tensor.info.clone();
            Ok((NewTensor { name, kind, shape }, numbers))
        };
        let tensors = model.tensors().map(tensor).collect::<io::Result<_>>()?;
        Ok(Self { metadata, tensors })
    }

    fn change(&mut self, random: &mut Random) {
        let entry = random.below(self.metadata.len());
        let tensor = random.below(self.tensors.len());
        match random.below(9) {
            0 => drop(self.metadata.swap_remove(entry)),
            1 | 2 => self.metadata[entry].1 = value(random),
            3 | 4 => {
                let architecture = self.metadata.iter().find(|(key, _)| key == "general.architecture");
                let prefix = match architecture {
                    Some((_, Value::Text(name))) => name.clone(),
                    _ => "llama".to_owned(),
                };
                let key = format!("{prefix}.{}", random.one(KEYS));
                self.metadata.retain(|(known, _)| *known != key);
                self.metadata.push((key, value(random)));
            }
            5 => drop(self.tensors.swap_remove(tensor)),
            6 => {
                let block = random.below(8);
                let parts = ["attn_q", "attn_qkv", "ffn_gate", "attn_norm", "post_ffw_norm", "attn_rot_embd"];
                let names =
                    ["output.weight", "rope_freqs.weight", "rope_factors_long.weight", "token_embd.weight"];
                let name = match random.below(3) {
                    0 => random.one(&names).to_owned(),
                    1 => interesting_text(random),
                    _ => format!("blk.{block}.{}.{}", random.one(&parts), random.one(&["weight", "bias"])),
                };
                if self.tensors.iter().all(|(known, _)| known.name != name) {
                    self.tensors[tensor].0.name = name;
                }
            }
            7 => reshape(&mut self.tensors[tensor], random),
            _ => self.quantize(random),
        }
    }

    /// Stores the tensors whose rows have whole blocks in another type.
    fn quantize(&mut self, random: &mut Random) {
        let kinds: Vec<TensorType> = TensorType::all().collect();
        let kind = random.one(&kinds);
        for (tensor, _) in &mut self.tensors {
            let columns = tensor.shape.last().copied().unwrap_or(1);
            if tensor.shape.len() > 1 && kind.row_bytes(columns).is_some() {
                tensor.kind = kind;
            }
        }
    }

    /// Writes the file. A type that is not written stays float32.
    fn write(mut self, file: &Path) -> io::Result<()> {
        for (tensor, numbers) in &mut self.tensors {
            let mut blocks = Vec::new();
            if mlx_gguf::quantize(tensor.kind, numbers, &mut blocks).is_err() {
                tensor.kind = TensorType::F32;
            }
        }
        let tensors = self.tensors.iter().map(|(tensor, _)| tensor.clone()).collect();
        let mut writer = Writer::create(file, &self.metadata, tensors).map_err(io::Error::other)?;
        for (_, numbers) in &self.tensors {
            writer.append(numbers).map_err(io::Error::other)?;
        }
        writer.finish().map_err(io::Error::other)
    }
}

fn open(file: &Path) -> io::Result<Gguf> {
    Gguf::open(file).map_err(io::Error::other)
}

fn entries(file: &Gguf) -> Vec<(String, Value)> {
    file.metadata().iter().map(|(key, value)| (key.to_owned(), value.clone())).collect()
}

/// One of the files of a folder of this repository.
fn one_of(folder: &str, random: &mut Random) -> io::Result<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(workspace::root().join(folder))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "gguf") {
            files.push(path);
        }
    }
    files.sort();
    Ok(random.one(&files))
}

fn value(random: &mut Random) -> Value {
    let number = |random: &mut Random| match interesting_number(random) {
        serde_json::Value::Number(number) => number.as_i128().unwrap_or(i128::from(u64::MAX)),
        _ => 0,
    };
    match random.below(10) {
        0..=4 => Value::Integer(number(random).clamp(i64::MIN.into(), u64::MAX.into())),
        5 => Value::Float(any_float(random)),
        6 => Value::Bool(random.once_in(2)),
        7 => Value::Text(
            random.one(&["yarn", "linear", "longrope", "none", "gemma3", "phi3", "olmo2", ""]).to_owned(),
        ),
        8 => Value::Integers((0..random.below(9)).map(|_| random.below(9) as i64 - 1).collect()),
        _ => Value::Bools((0..random.below(9)).map(|_| random.once_in(2)).collect()),
    }
}

/// Gives a tensor another shape, and as many numbers.
fn reshape((tensor, numbers): &mut (NewTensor, Vec<f32>), random: &mut Random) {
    match random.below(4) {
        0 => tensor.shape.reverse(),
        1 => tensor.shape.push(1 + random.below(3)),
        2 => drop(tensor.shape.pop()),
        _ => {
            let axis = random.below(tensor.shape.len());
            if let Some(size) = tensor.shape.get_mut(axis) {
                *size = random.one(&[1, 2, 7, 32, 64, 256, *size + 1, *size * 2]);
            }
        }
    }
    let elements: usize = tensor.shape.iter().product();
    tensor.kind = TensorType::F32;
    // The writer takes one to four axes.
    if elements > MOST_NUMBERS || !(1..=4).contains(&tensor.shape.len()) {
        (tensor.shape, *numbers) = (vec![1], vec![0.5]);
    } else {
        numbers.resize(elements, 0.25);
    }
}

/// Overwrites bytes, mostly of the header, or cuts the file.
fn break_bytes(file: &Path, random: &mut Random) -> io::Result<()> {
    let mut bytes = fs::read(file)?;
    if random.once_in(4) {
        bytes.truncate(random.below(bytes.len()));
    }
    for _ in 0..1 + random.below(4) {
        let reach = if random.once_in(4) { bytes.len() } else { bytes.len().min(4000) };
        let (place, extreme) = (random.below(reach), random.one(&[0, 1, u64::MAX, 1 << 31, 1 << 62, 0xff]));
        let size = random.one(&[1, 4, 8]);
        let new = if random.once_in(2) { random.next() } else { extreme }.to_le_bytes();
        bytes.iter_mut().skip(place).zip(&new[..size]).for_each(|(byte, new)| *byte = *new);
    }
    fs::write(file, bytes)
}

enum Stop {
    Refused(String),
    Fault(String),
}

impl<E: Error> From<E> for Stop {
    fn from(error: E) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(error) = source {
            message = format!("{message}: {error}");
            source = error.source();
        }
        Self::Refused(message)
    }
}

fn use_file(file: &Path, root: &Path, random: &mut Random, tell: Tell) -> Result<(), Stop> {
    tell("read the tokenizer");
    if let Ok(tokenizer) = Tokenizer::open(file) {
        let tokens = tokenizer.encode("A text, twice.")?;
        tokenizer.decode(&tokens)?;
        let _ = tokenizer.files();
    }
    tell("load");
    let options = LoadOptions { lazy: random.once_in(2), ..LoadOptions::default() };
    let mut model = load_with(file, &options)?;
    tell("compute");
    let (tokens, vocabulary) = ([0_u32, 1, 2], model.info().vocab_size);
    let tokens = Array::from_slice(&tokens.map(|id| id % vocabulary.max(1) as u32), &[1, 3]);
    let mut cache = model.new_cache(&CacheOptions::default())?;
    let logits = model.forward(&tokens, &mut cache, Logits::All)?;
    logits.eval()?;
    if logits.shape() != [1, 3, vocabulary] {
        return Err(Stop::Fault(format!("logits of shape {:?}", logits.shape())));
    }
    if random.once_in(2) {
        let how = QuantizeOptions { quantization: Quantization::MXFP4, recipe: None, layers: Vec::new() };
        let weights = random.one(&[Weights::Kept, Weights::Dequantized, Weights::Quantized(how)]);
        tell("convert");
        let options = ConvertOptions { weights, ..ConvertOptions::default() };
        let out = root.join("converted");
        convert(file, None, &out, &options, |_| ControlFlow::Continue(()))?;
        tell("load what was converted");
        if let Err(error) = load_with(&out, &LoadOptions::default()) {
            return Err(Stop::Fault(format!("the converted model does not load: {error}")));
        }
    }
    Ok(())
}
