//! Writing a model as a GGUF file.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::ops::{ControlFlow, Range};
use std::path::Path;

use mlx_gguf::model::{Description, Named, Part, pair_order};
use mlx_gguf::{FileKind, Gguf, NewTensor, TensorType, WriteError, Writer};
use mlx_rs::error::Exception;
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::{Array, Dtype};
use serde_json::{Value, json};

use super::error::ConvertError;
use super::layer::Layer;
use crate::checkpoint::Checkpoint;
use crate::error::CheckpointError;
use crate::head::is_head;
use crate::text::of_mlx;
use crate::write::Progress;

/// How a GGUF file is written.
#[derive(Debug, Clone)]
pub struct GgufOptions {
    /// In which types its tensors are stored.
    pub kind: FileKind,
    /// The name of the model (`general.name`).
    pub name: Option<String>,
    /// The entries of the metadata that describe the tokenizer.
    pub tokenizer: Vec<(String, mlx_gguf::Value)>,
}

/// What [`Checkpoint::write_gguf`] has written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenGguf {
    /// The types of the tensors, each with the number of such tensors, the largest number first.
    pub types: Vec<(TensorType, usize)>,
    /// How many layers were quantized before, and were brought into full precision first.
    pub dequantized: usize,
    /// Number of parameters of the model.
    pub parameters: usize,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Bytes of the file: the tensors, the tokenizer and the rest of the metadata.
    pub file_bytes: u64,
}

impl WrittenGguf {
    /// Bits for each parameter on average.
    pub fn bits_per_weight(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.parameters.max(1) as f64
    }
}

impl fmt::Display for WrittenGguf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.dequantized > 0 {
            let (layers, were) = if self.dequantized == 1 { ("layer", "was") } else { ("layers", "were") };
            writeln!(
                f,
                "{} {layers} {were} quantized, and {were} brought into full precision first",
                self.dequantized
            )?;
        }
        for (kind, tensors) in &self.types {
            let noun = if *tensors == 1 { "tensor" } else { "tensors" };
            writeln!(f, "{tensors} {noun} {kind}")?;
        }
        write!(f, "{:.3} bits per weight, {:.2} MB", self.bits_per_weight(), self.file_bytes as f64 / 1e6)
    }
}

/// The most elements that are brought into float32 at once.
const ELEMENTS: usize = 1 << 24;

impl Checkpoint {
    /// Writes a GGUF file with the parameters of a model, for llama.cpp.
    ///
    /// `parameters` are those of the model that was built from this checkpoint, as for [`convert`](Self::convert). Quantized layers are
    /// brought into full precision first. The file is the one that llama.cpp's own programs write, tensor by tensor, byte for byte.
    ///
    /// A GGUF file says less of a model than a config, and llama.cpp computes what it does not say in one way only. So before the
    /// tensors are written, the file so far is read again, and `is_same` is called with the config that it means. It answers whether that
    /// is the same model, as far as its architecture knows.
    ///
    /// `progress` is told of each tensor, and answers whether to go on.
    ///
    /// # Errors
    ///
    /// [`ConvertError::Gguf`] where llama.cpp cannot compute the model or a type cannot store its numbers,
    /// [`CheckpointError::FileExists`] if something is at `out`, [`CheckpointError::Write`], and [`CheckpointError::Stopped`].
    pub fn write_gguf(
        &self,
        out: impl AsRef<Path>,
        parameters: Vec<(String, Array)>,
        options: &GgufOptions,
        is_same: impl FnOnce(Self) -> bool,
        mut progress: impl FnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<WrittenGguf, CheckpointError> {
        let out = out.as_ref();
        check_free(out)?;
        let unlike = |problem: String| CheckpointError::from(ConvertError::Gguf { problem });
        let description = Description::of(&self.config).map_err(unlike)?;
        let mlx = |e: Exception| CheckpointError::Write { file: out.to_path_buf(), problem: of_mlx(&e) };
        let mut layers = self.layers(parameters, None);
        let source = self.gguf_source()?;
        let in_blocks = |tensor: &mlx_gguf::Tensor| tensor.info.kind.block_elements() > 1;
        let dequantized = match &source {
            Some(file) => file.tensors().filter(|tensor| in_blocks(tensor)).count(),
            None => layers.values().filter(|layer| layer.quantization.is_some()).count(),
        };
        layers.values_mut().try_for_each(Layer::dequantize).map_err(mlx)?;
        let planned = planned(layers, &description, options.kind).map_err(unlike)?;

        let failed = |e: WriteError| failed(out, e);
        if let Some(folder) = out.parent() {
            let problem =
                |e: io::Error| CheckpointError::Write { file: folder.to_path_buf(), problem: e.to_string() };
            fs::create_dir_all(folder).map_err(problem)?;
        }
        let factors = description.factors.iter().map(|(name, numbers)| NewTensor {
            name: (*name).to_owned(),
            kind: TensorType::F32,
            shape: vec![numbers.len()],
        });
        let tensors = factors.chain(planned.iter().map(|tensor| tensor.new.clone())).collect();
        let metadata = metadata(&description, options, source.as_ref());
        let mut writer = Writer::create(out, &metadata, tensors).map_err(failed)?;
        for (_, factors) in &description.factors {
            writer.append(factors).map_err(failed)?;
        }
        let file = writer.so_far().map_err(failed)?;
        let model = file.model().map_err(|e| unlike(e.to_string()))?;
        self.check_same(model.config, is_same)?;

        let written = written(&planned, dequantized);
        let total = planned.len();
        for (index, tensor) in planned.into_iter().enumerate() {
            let mut tell = || progress(Progress { layer: &tensor.new.name, number: index + 1, total });
            for rows in tensor.pieces() {
                if tell().is_break() {
                    return Err(CheckpointError::Stopped);
                }
                let numbers = tensor.numbers(rows).map_err(mlx)?;
                writer.append(numbers.try_as_slice().map_err(|e| unlike(e.to_string()))?).map_err(failed)?;
            }
        }
        writer.finish().map_err(failed)?;
        let file_bytes = out.metadata().map_or(written.bytes, |file| file.len());
        Ok(WrittenGguf { file_bytes, ..written })
    }

    /// The GGUF file that this checkpoint is.
    fn gguf_source(&self) -> Result<Option<Gguf>, CheckpointError> {
        let wrong = |source| CheckpointError::Gguf { source: Box::new(source) };
        self.path().is_file().then(|| Gguf::open(self.path()).map_err(wrong)).transpose()
    }

    /// Checks that a config, which a GGUF file means, is that of this checkpoint. Its tensors have the same keys.
    fn check_same(&self, meant: Value, is_same: impl FnOnce(Self) -> bool) -> Result<(), CheckpointError> {
        let differences = self.differences(&meant);
        if is_same(self.with_config(meant)) {
            return Ok(());
        }
        let problem = match &*differences {
            [] => "llama.cpp computes another model from such a config".to_owned(),
            all => format!("llama.cpp computes another model: {}", all.join(", ")),
        };
        Err(ConvertError::Gguf { problem }.into())
    }

    /// The keys of the config that another one has with another value.
    fn differences(&self, meant: &Value) -> Vec<String> {
        let config = self.config.get("text_config").filter(|text| text.is_object()).unwrap_or(&self.config);
        let is_equal = |a: &Value, b: &Value| match (a.as_f64(), b.as_f64()) {
            (Some(a), Some(b)) => (a - b).abs() <= 1e-6 * a.abs(),
            _ => a == b,
        };
        let keys = meant.as_object().into_iter().flatten();
        let differs = |(key, there): (&String, &Value)| {
            let here = config.get(key).filter(|here| !is_equal(here, there))?;
            let is_named = !matches!(&**key, "model_type" | "torch_dtype" | "max_position_embeddings");
            is_named.then(|| format!("{key} is {here:.100}, and {there:.100} there"))
        };
        let mut differences: Vec<String> = keys.filter_map(differs).collect();
        let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
        // Qwen's configs have a window that is not used.
        let is_used = config
            .get("use_sliding_window")
            .map_or(matches!(model_type, "llama" | "mistral"), |used| used == true);
        let is_lost = is_used && meant.get("sliding_window").is_none_or(Value::is_null);
        if let Some(window) = config.get("sliding_window").filter(|window| is_lost && !window.is_null()) {
            differences.push(format!(
                "sliding_window is {window:.100}, and llama.cpp has no window for {model_type:.100}"
            ));
        }
        differences
    }

    /// The same checkpoint with the numbers of another config.
    fn with_config(&self, mut config: Value) -> Self {
        let model_type = |config: &Value| config.get("model_type").cloned().unwrap_or_default();
        if let Some(text) = self.config.get("text_config").filter(|text| text.is_object()) {
            config["model_type"] = model_type(text);
            config = json!({ "model_type": self.model_type(), "text_config": config });
        } else {
            config["model_type"] = json!(self.model_type());
        }
        if self.model_type() == "mistral" && config.get("sliding_window").is_none() {
            config["sliding_window"] = Value::Null;
        }
        let mut other = self.clone();
        other.config = config;
        other
    }
}

fn check_free(out: &Path) -> Result<(), CheckpointError> {
    match out.symlink_metadata() {
        Ok(_) => Err(CheckpointError::FileExists { file: out.to_path_buf() }),
        Err(_) => Ok(()),
    }
}

fn failed(out: &Path, e: WriteError) -> CheckpointError {
    match e {
        WriteError::Io { source, .. } => {
            CheckpointError::Write { file: out.to_path_buf(), problem: source.to_string() }
        }
        other => ConvertError::Gguf { problem: other.to_string() }.into(),
    }
}

/// The entries before those of the tokenizer say what the file is. Where the model comes from a GGUF file, its name, license and so on
/// are kept.
fn metadata(
    description: &Description,
    options: &GgufOptions,
    source: Option<&Gguf>,
) -> Vec<(String, mlx_gguf::Value)> {
    use mlx_gguf::Value;
    /// The version of ggml's quantized types.
    const QUANTIZATION_VERSION: i128 = 2;
    let mut entries = vec![("general.type".to_owned(), Value::Text("model".to_owned()))];
    /// Entries that are different in another file of the same model.
    const OF_FILE: [&str; 6] =
        ["architecture", "type", "name", "quantization_version", "file_type", "alignment"];
    let source = source.map(Gguf::metadata);
    let of_source = source.and_then(|source| source.text("general.name").ok().flatten());
    let name = of_source.or(options.name.as_deref());
    let name = name.and_then(|name| name_for(name, description, &options.tokenizer));
    entries.extend(name.map(|name| ("general.name".to_owned(), Value::Text(name))));
    for (key, value) in source.into_iter().flat_map(|source| source.iter()) {
        if key.strip_prefix("general.").is_some_and(|key| !OF_FILE.contains(&key)) {
            entries.push((key.to_owned(), value.clone()));
        }
    }
    entries.extend(description.metadata.iter().cloned());
    entries.extend(options.tokenizer.iter().cloned());
    entries.push(("general.quantization_version".to_owned(), Value::Integer(QUANTIZATION_VERSION)));
    entries.push(("general.file_type".to_owned(), Value::Integer(options.kind.number().into())));
    entries
}

/// The name of the model. From it llama.cpp knows whether special tokens take the white space behind them, as those of Phi-3's first
/// tokenizer do.
fn name_for(
    name: &str,
    description: &Description,
    tokenizer: &[(String, mlx_gguf::Value)],
) -> Option<String> {
    let lower = name.to_lowercase();
    let is_known = lower.contains("phi-3") || lower.contains("phi3");
    let spaces = mlx_gguf::Value::Text("llama".to_owned());
    let takes_space = description.architecture.name == "phi3"
        && tokenizer.iter().any(|(key, value)| key == "tokenizer.ggml.model" && *value == spaces);
    match (takes_space, is_known) {
        (true, false) => Some(format!("Phi-3 {name}")),
        (false, true) => None,
        _ => Some(name.to_owned()),
    }
}

/// A tensor of the file, and the parameter that it is made of.
struct Planned {
    new: NewTensor,
    /// The block that it belongs to.
    block: Option<usize>,
    array: Array,
    /// What is added to each number.
    more: Option<f32>,
    /// For each row its row in the parameter, where they have another order.
    order: Option<Vec<usize>>,
}

impl Planned {
    fn new(key: &str, array: Array, description: &Description) -> Result<Self, String> {
        let found = description.architecture.name_of(&plain(key));
        let (name, Named { part, .. }, block) =
            found.ok_or_else(|| format!("llama.cpp has no tensor for {key:.100} in this architecture"))?;
        let shape: Vec<usize> = array.shape().iter().map(|&size| size as usize).collect();
        let rows = shape.first().copied().unwrap_or(1);
        let heads = match part {
            Part::PairedQueries => Some(description.heads),
            Part::PairedKeys => Some(description.key_heads),
            Part::Plain | Part::NormPlusOne => None,
        };
        let order = heads
            .map(|heads| pair_order(rows, heads).ok_or_else(|| format!("{key:.100} has no pairs of rows")));
        let more = (part == Part::NormPlusOne).then_some(1.0);
        let new = NewTensor { name, kind: TensorType::F32, shape };
        Ok(Self { new, block, array, more, order: order.transpose()? })
    }

    /// Ranges of rows, or of the elements of a vector, of which each is small enough to be brought into float32 at once.
    fn pieces(&self) -> Vec<Range<usize>> {
        let rows = self.new.shape.first().copied().unwrap_or(1);
        let row = self.new.elements() / rows.max(1);
        let step = if self.new.shape.len() < 2 { rows } else { ELEMENTS / row.max(1) }.max(1);
        (0..rows).step_by(step).map(|start| start..(start + step).min(rows)).collect()
    }

    /// These rows in float32, computed.
    fn numbers(&self, rows: Range<usize>) -> Result<Array, Exception> {
        let is_whole = rows == (0..self.new.shape.first().copied().unwrap_or(1));
        let rows = match &self.order {
            Some(order) => {
                let rows: Vec<i32> = order[rows].iter().map(|&row| row as i32).collect();
                self.array.take_axis(Array::from_slice(&rows, &[rows.len() as i32]), 0)?
            }
            None if is_whole => self.array.clone(),
            None => self.array.try_index(rows.start as i32..rows.end as i32)?,
        };
        let numbers = rows.as_dtype(Dtype::Float32)?;
        let numbers = self.more.map_or(Ok(numbers.clone()), |more| numbers.add(Array::from_f32(more)))?;
        let numbers = numbers.contiguous()?;
        numbers.eval()?;
        Ok(numbers)
    }
}

/// The key of a parameter in a checkpoint without a vision part.
fn plain(key: &str) -> String {
    match key.strip_prefix("model.language_model.") {
        Some(rest) => format!("model.{rest}"),
        None => key.strip_prefix("language_model.").unwrap_or(key).to_owned(),
    }
}

/// The tensors of the file with their types. The error says which parameter llama.cpp has no tensor for.
fn planned(
    layers: BTreeMap<String, Layer>,
    description: &Description,
    kind: FileKind,
) -> Result<Vec<Planned>, String> {
    let has_own_head = layers.keys().any(|key| is_head(key));
    let mut planned = Vec::new();
    for (key, layer) in layers {
        for (part, array) in layer.parts {
            let mut tensor = Planned::new(&format!("{key}.{part}"), array, description)?;
            let NewTensor { name, shape, .. } = &tensor.new;
            tensor.new.kind = kind.type_of(name, shape, description, has_own_head);
            planned.push(tensor);
        }
    }
    planned.sort_by_key(|tensor| tensor.block);
    Ok(planned)
}

fn written(planned: &[Planned], dequantized: usize) -> WrittenGguf {
    let mut types: Vec<(TensorType, usize)> = Vec::new();
    let (mut parameters, mut bytes) = (0, 0);
    for Planned { new, .. } in planned {
        match types.iter_mut().find(|(kind, _)| *kind == new.kind) {
            Some((_, tensors)) => *tensors += 1,
            None => types.push((new.kind, 1)),
        }
        parameters += new.elements();
        bytes += (new.elements() / new.kind.block_elements() * new.kind.block_bytes()) as u64;
    }
    types.sort_by_key(|&(_, tensors)| std::cmp::Reverse(tensors));
    WrittenGguf { types, dequantized, parameters, bytes, file_bytes: 0 }
}
