//! A GGUF file as a checkpoint.

mod affine;
mod loss;
mod stored;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use mlx_gguf::model::{Architecture, Change, Model, ModelTensor, half_order};
use mlx_gguf::{Gguf, GgufError, Tensor, TensorType, dequantize};
use mlx_layers::Quantization;
use mlx_quantization::{BlockFormat, block_formats_work, read_blocks};
use mlx_rs::Array;
use mlx_safetensors::{Dtype, arrays};
use serde_json::Value;

use crate::error::CheckpointError;
use crate::safetensors_file::TensorInfo;
use crate::source::TensorSource;
use crate::text::of_mlx;
use loss::{Loss, Losses};
use stored::{MadeOf, Stored};

/// What becomes of the layers of a GGUF file, which are quantized in blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GgufLayers {
    /// They stay as they are in the file where the CPU kernels of this project compute with its blocks
    /// ([`mlx_quantization::block_formats_work`]). Elsewhere they become what [`Mlx`](Self::Mlx) says.
    Kept,
    /// They get a format of MLX: the same numbers where there is one, otherwise the nearest.
    Mlx,
    /// They are brought into full precision.
    Dequantized,
}

/// What a file has.
pub(crate) struct Opened {
    pub(crate) config: Value,
    /// The file, or its parts.
    pub(crate) files: Vec<PathBuf>,
    pub(crate) source: GgufSource,
}

/// Opens a file, of which any part can be given where there are several.
pub(crate) fn open(path: &Path, layers: GgufLayers) -> Result<Opened, CheckpointError> {
    let wrong = |source: GgufError| CheckpointError::Gguf { source: Box::new(source) };
    let file = Gguf::open(path).map_err(wrong)?;
    let Model { config, tensors, architecture } = file.model().map_err(wrong)?;
    let files = file.files().map(Path::to_path_buf).collect();
    let source = GgufSource::new(file, architecture, tensors, &config, layers);
    Ok(Opened { config, files, source })
}

/// Makes the tensors of a checkpoint from those of a GGUF file.
#[derive(Debug)]
pub(crate) struct GgufSource {
    file: Gguf,
    architecture: &'static Architecture,
    tensors: BTreeMap<String, Made>,
    /// The dtype of what is not quantized.
    dtype: Dtype,
    /// Whether layers that the file has quantized are in full precision.
    dequantized: bool,
    /// Scales and biases that were made with a weight, until the model takes them.
    companions: Mutex<HashMap<String, Array>>,
    losses: Mutex<Losses>,
}

/// A tensor of the checkpoint, by the key of its numbers.
#[derive(Debug)]
struct Made {
    from: ModelTensor,
    kind: TensorType,
    stored: Stored,
}

impl GgufSource {
    fn new(
        file: Gguf,
        architecture: &'static Architecture,
        tensors: Vec<ModelTensor>,
        config: &Value,
        layers: GgufLayers,
    ) -> Self {
        let is_float32 = config.get("torch_dtype").and_then(Value::as_str) == Some("float32");
        let dtype = if is_float32 { Dtype::F32 } else { Dtype::BF16 };
        let in_blocks = layers == GgufLayers::Kept && block_formats_work();
        let mut dequantized = false;
        let made = |from: ModelTensor| {
            let kind = file.tensor(&from.name).map_or(TensorType::F32, |tensor| tensor.info.kind);
            let is_layer =
                from.shape.len() == 2 && from.change != Change::MinusOne && from.key.ends_with(".weight");
            let of_kind = if is_layer { Stored::of(kind, in_blocks) } else { Stored::Full };
            let stored = if layers == GgufLayers::Dequantized { Stored::Full } else { of_kind };
            dequantized |= stored != of_kind;
            (from.key.clone(), Made { from, kind, stored })
        };
        let tensors = tensors.into_iter().map(made).collect();
        let (companions, losses) = (Mutex::default(), Mutex::default());
        Self { file, architecture, tensors, dtype, dequantized, companions, losses }
    }

    /// Whether layers that the file has quantized are in full precision.
    pub(crate) fn is_dequantized(&self) -> bool {
        self.dequantized
    }

    /// How each layer is quantized.
    pub(crate) fn quantizations(&self) -> BTreeMap<String, Quantization> {
        let layer = |(key, made): (&String, &Made)| {
            Some((key.strip_suffix(".weight")?.to_owned(), made.stored.quantization()?))
        };
        self.tensors.iter().filter_map(layer).collect()
    }

    fn make(&self, key: &str, made: &Made) -> Result<Array, String> {
        let tensor = self.file.tensor(&made.from.name).ok_or("the file has no such tensor")?;
        let Some(quantization) = made.stored.quantization() else {
            return self.full(made, self.rows(tensor, &made.from)?);
        };
        let &[rows, columns] = &made.from.shape[..] else { return Err("it is no matrix".to_owned()) };
        let made_of = match made.stored {
            Stored::Blocks(format) => self.in_blocks(tensor, &made.from, format, [rows, columns])?,
            stored => stored.make(made.kind, &self.rows(tensor, &made.from)?.blocks, columns)?,
        };
        if let Some(loss) = made_of.loss {
            self.lose(key, made.kind, quantization.to_string(), loss);
        }
        let layer = key.strip_suffix("weight").unwrap_or(key);
        let mut companions = self.companions.lock().unwrap_or_else(PoisonError::into_inner);
        companions.insert(format!("{layer}scales"), made_of.scales);
        companions.extend(made_of.biases.map(|biases| (format!("{layer}biases"), biases)));
        Ok(made_of.packed)
    }

    /// A layer in the blocks of the file. It is read in pieces, so that it is in memory only once.
    fn in_blocks(
        &self,
        tensor: &Tensor,
        from: &ModelTensor,
        format: BlockFormat,
        [rows, columns]: [usize; 2],
    ) -> Result<MadeOf, String> {
        let row = tensor.info.kind.row_bytes(columns).filter(|&row| row > 0).ok_or("it has no rows")?;
        let order = order_of(from);
        let read = |first: usize, to: &mut [u8]| {
            let read = |place: usize, to: &mut [u8]| {
                self.file.read_at(tensor, (from.rows.start + place) * row, to).map_err(io::Error::other)
            };
            match &order {
                None => read(first, to),
                Some(order) => {
                    order[first..].iter().zip(to.chunks_exact_mut(row)).try_for_each(|(&at, to)| read(at, to))
                }
            }
        };
        let made = read_blocks(format, [rows as i32, columns as i32], read).map_err(|e| message(&e))?;
        Ok(MadeOf { packed: made.packed, scales: made.scales, biases: None, loss: None })
    }

    /// The rows of a tensor of the checkpoint, in their order there.
    fn rows(&self, tensor: &Tensor, from: &ModelTensor) -> Result<Rows, String> {
        let info = &tensor.info;
        let mut bytes = self.file.read(tensor).map_err(|e| message(&e))?;
        let mut kind = info.kind;
        if info.shape.len() < 2 && kind.block_elements() > 1 {
            // A block has several rows.
            let mut numbers = Vec::new();
            dequantize(kind, &bytes, &mut numbers);
            (bytes, kind) =
                (numbers.iter().flat_map(|number| number.to_le_bytes()).collect(), TensorType::F32);
        }
        let all = info.shape.first().copied().unwrap_or(1);
        let row = bytes.len() / all.max(1);
        let Range { start, end } = from.rows;
        let order = order_of(from);
        let blocks = match order {
            None if (start, end) == (0, all) => bytes,
            None => bytes[start * row..end * row].to_vec(),
            Some(order) => {
                let at = |place: usize| &bytes[(start + place) * row..(start + place + 1) * row];
                order.into_iter().flat_map(at).copied().collect()
            }
        };
        Ok(Rows { kind, blocks })
    }

    /// A tensor in full precision.
    fn full(&self, made: &Made, rows: Rows) -> Result<Array, String> {
        let shape = &made.from.shape;
        let minus_one = made.from.change == Change::MinusOne;
        let as_it_is = match rows.kind {
            TensorType::BF16 => self.dtype == Dtype::BF16,
            TensorType::F32 => self.dtype == Dtype::F32,
            _ => false,
        };
        if as_it_is && !minus_one {
            return arrays::from_bytes(&rows.blocks, self.dtype, shape)
                .and_then(evaluated)
                .map_err(|e| of_mlx(&e));
        }
        let mut numbers = stored::numbers(rows.kind, &rows.blocks);
        drop(rows.blocks);
        if minus_one {
            numbers.iter_mut().for_each(|number| *number -= 1.0);
        }
        if self.dtype == Dtype::F32 {
            let shape: Vec<i32> = shape.iter().map(|&size| size as i32).collect();
            return evaluated(Array::from_slice(&numbers, &shape)).map_err(|e| of_mlx(&e));
        }
        let bytes: Vec<u8> =
            numbers.iter().flat_map(|&number| half::bf16::from_f32(number).to_le_bytes()).collect();
        if rows.kind == TensorType::F16 {
            let rounded =
                bytes.as_chunks::<2>().0.iter().map(|&bytes| half::bf16::from_le_bytes(bytes).to_f32());
            let loss = Loss::between(&numbers, rounded);
            if loss.largest > 0.0 {
                self.lose(&made.from.key, made.kind, "bfloat16".to_owned(), loss);
            }
        }
        arrays::from_bytes(&bytes, Dtype::BF16, shape).and_then(evaluated).map_err(|e| of_mlx(&e))
    }

    fn lose(&self, key: &str, kind: TensorType, became: String, loss: Loss) {
        self.losses.lock().unwrap_or_else(PoisonError::into_inner).add(key, kind, became, loss);
    }
}

/// The rows of a tensor, in blocks of this type.
struct Rows {
    kind: TensorType,
    blocks: Vec<u8>,
}

impl TensorSource for GgufSource {
    fn tensors(&self) -> BTreeMap<String, TensorInfo> {
        let mut infos = BTreeMap::new();
        for (key, made) in &self.tensors {
            let layer = key.strip_suffix("weight").unwrap_or(key);
            let (Some(quantization), &[rows, columns]) = (made.stored.quantization(), &made.from.shape[..])
            else {
                infos.insert(key.clone(), TensorInfo::made(self.dtype, made.from.shape.clone()));
                continue;
            };
            let size = |shape: [i32; 2]| shape.iter().map(|&size| size as usize).collect::<Vec<_>>();
            let shape = [rows as i32, columns as i32];
            let groups = size(quantization.groups_shape(shape));
            infos.insert(key.clone(), TensorInfo::made(Dtype::U32, size(quantization.packed_shape(shape))));
            let scales = if quantization.has_biases() { Dtype::F16 } else { Dtype::U8 };
            infos.insert(format!("{layer}scales"), TensorInfo::made(scales, groups.clone()));
            if quantization.has_biases() {
                infos.insert(format!("{layer}biases"), TensorInfo::made(Dtype::F16, groups));
            }
        }
        infos
    }

    fn read(&self, key: &str) -> Result<Array, String> {
        if let Some(made) = self.tensors.get(key) {
            return self.make(key, made);
        }
        let taken = self.companions.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
        if let Some(array) = taken {
            return Ok(array);
        }
        // The model takes it before the weight.
        let layer = key.rsplit_once('.').map_or(key, |(layer, _)| layer);
        let made = self.tensors.get(&format!("{layer}.weight")).ok_or("the file has no such tensor")?;
        self.make(&made.from.key, made)?;
        let mut companions = self.companions.lock().unwrap_or_else(PoisonError::into_inner);
        companions.remove(key).ok_or_else(|| "the file has no such tensor".to_owned())
    }

    fn name_in_gguf(&self, key: &str) -> Option<String> {
        let layer = key.strip_suffix(".scales").or_else(|| key.strip_suffix(".biases")).unwrap_or(key);
        let weight = format!("{layer}.weight");
        let made = self.tensors.get(key).or_else(|| self.tensors.get(&weight));
        made.map(|made| made.from.name.clone()).or_else(|| Some(self.architecture.name_of(key)?.0))
    }

    fn notes(&self) -> Vec<String> {
        self.losses.lock().unwrap_or_else(PoisonError::into_inner).notes()
    }
}

/// The array, computed.
fn evaluated(array: Array) -> Result<Array, mlx_rs::error::Exception> {
    array.eval()?;
    Ok(array)
}

/// The order in which the rows of a layer are in the file; `None` where it is the same.
fn order_of(from: &ModelTensor) -> Option<Vec<usize>> {
    match from.change {
        Change::Halves { heads } => half_order(from.rows.end - from.rows.start, heads),
        Change::None | Change::MinusOne => None,
    }
}

/// An error with its causes.
fn message(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", message(cause)),
        None => error.to_string(),
    }
}
