//! Writing a file.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::thread;

use mlx_files::Partial;

use crate::header::{DEFAULT_ALIGNMENT, MOST_AXES};
use crate::metadata::Value;
use crate::value_type::ValueType;
use crate::{Gguf, GgufError, QuantizeError, TensorType, quantize};

/// The version of the format that is written.
const VERSION: u32 = 3;
/// The fewest numbers that are worth a thread.
const NUMBERS_OF_A_THREAD: usize = 1 << 16;

/// A tensor of a file that is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTensor {
    /// Its name.
    pub name: String,
    /// How its elements will be stored.
    pub kind: TensorType,
    /// Its shape, the axis of neighbouring elements last.
    pub shape: Vec<usize>,
}

impl NewTensor {
    /// Its number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes of its blocks, or what is wrong with its shape.
    fn bytes(&self) -> Result<u64, String> {
        let wrong = |problem: &str| {
            format!("the shape {:?} cannot be written as {}: {problem}", self.shape, self.kind)
        };
        if self.shape.len() > MOST_AXES as usize || self.shape.is_empty() {
            return Err(wrong(&format!("1 to {MOST_AXES} axes are needed")));
        }
        let row = self.shape.last().and_then(|&row| self.kind.row_bytes(row));
        let row = row.ok_or_else(|| wrong("a row must have whole blocks"))?;
        let rows = &self.shape[..self.shape.len() - 1];
        let bytes = rows.iter().try_fold(row as u64, |product, &size| product.checked_mul(size as u64));
        bytes.filter(|&bytes| bytes > 0).ok_or_else(|| wrong("it is empty or too large"))
    }
}

/// Writes a GGUF file: version 3, little endian, each tensor at a multiple of 32 bytes.
///
/// What the file will have is said first; then the numbers of its tensors are [appended](Self::append) in that order, in pieces of
/// any number of blocks, so that a model can be larger than the memory. The file is written under another name and takes its place in
/// [`finish`](Self::finish); a writer that is dropped before leaves nothing behind.
///
/// ```
/// use mlx_gguf::{Gguf, NewTensor, TensorType, Value, Writer};
///
/// # let folder = tempfile::tempdir()?;
/// let path = folder.path().join("small.gguf");
/// let metadata = [("general.architecture".to_owned(), Value::Text("llama".to_owned()))];
/// let norm = NewTensor { name: "output_norm.weight".to_owned(), kind: TensorType::F16, shape: vec![4] };
/// let mut writer = Writer::create(&path, &metadata, vec![norm])?;
/// writer.append(&[1.0, 0.5, 2.0, 0.25])?;
/// writer.finish()?;
/// assert_eq!(Gguf::open(&path)?.metadata().text("general.architecture")?, Some("llama"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    partial: Partial,
    out: BufWriter<File>,
    /// Bytes of the whole file.
    length: u64,
    tensors: Vec<NewTensor>,
    /// The tensor whose numbers come next.
    at: usize,
    /// How many of its numbers are written.
    written: usize,
    threads: usize,
    blocks: Vec<Vec<u8>>,
}

impl Writer {
    /// Begins a file with this metadata, in this order, and with these tensors. A file that is at `path` will be replaced.
    ///
    /// Integers become unsigned integers of 32 bits, or where they do not fit signed ones, or those of 64 bits. Numbers become float32;
    /// lists of integers become signed integers of 32 bits, or of 64 where one does not fit. These are the types that llama.cpp
    /// requires.
    ///
    /// # Errors
    ///
    /// [`WriteError::Metadata`], [`WriteError::Tensor`] for a name that occurs twice or a shape that the type cannot have, and
    /// [`WriteError::Io`].
    pub fn create(
        path: impl AsRef<Path>,
        metadata: &[(String, Value)],
        tensors: Vec<NewTensor>,
    ) -> Result<Self, WriteError> {
        let path = path.as_ref();
        let (header, length) = header(metadata, &tensors)?;
        let io = |source| WriteError::Io { path: path.to_owned(), source };
        let partial = Partial::file(path).map_err(io)?;
        let mut out = BufWriter::with_capacity(1 << 20, partial.as_file().try_clone().map_err(io)?);
        out.write_all(&header).map_err(io)?;
        let threads = thread::available_parallelism().map_or(1, NonZero::get);
        let path = path.to_owned();
        Ok(Self { path, partial, out, length, tensors, at: 0, written: 0, threads, blocks: Vec::new() })
    }

    /// Quantizes with this many threads. Otherwise there are as many as the machine can run at once.
    #[must_use]
    pub fn with_threads(mut self, threads: NonZero<usize>) -> Self {
        self.threads = threads.get();
        self
    }

    /// The file as a reader sees it so far: numbers that are not written yet are zeros.
    ///
    /// # Errors
    ///
    /// [`WriteError::Io`], and [`WriteError::Unreadable`] where a reader refuses it.
    pub fn so_far(&mut self) -> Result<Gguf, WriteError> {
        let io = |source| WriteError::Io { path: self.path.clone(), source };
        self.out.flush().map_err(io)?;
        self.out.get_ref().set_len(self.length).map_err(io)?;
        Gguf::open(self.partial.path()).map_err(|source| WriteError::Unreadable { source })
    }

    /// The tensor whose numbers come next; `None` where all are written.
    pub fn next_tensor(&self) -> Option<&NewTensor> {
        self.tensors.get(self.at)
    }

    /// Writes the next numbers of [`next_tensor`](Self::next_tensor), quantized to its type: whole blocks.
    ///
    /// # Errors
    ///
    /// [`WriteError::Quantize`] where the type cannot store the numbers, [`WriteError::Tensor`] where the tensor has fewer numbers, and
    /// [`WriteError::Io`]. Then the file cannot be finished.
    pub fn append(&mut self, numbers: &[f32]) -> Result<(), WriteError> {
        let Some(tensor) = self.tensors.get(self.at) else {
            let problem = format!("{} numbers are left over, and no tensor needs them", numbers.len());
            return Err(WriteError::Tensor { name: String::new(), problem });
        };
        let elements = tensor.elements();
        if numbers.len() > elements - self.written {
            let (name, more) = (tensor.name.clone(), self.written + numbers.len());
            return Err(WriteError::Tensor {
                name,
                problem: format!("it has {elements} numbers, not {more}"),
            });
        }
        let refused = |source| WriteError::Quantize { name: tensor.name.clone(), source };
        let pieces = blocks_of(tensor.kind, numbers, self.threads, &mut self.blocks).map_err(refused)?;
        let io = |source| WriteError::Io { path: self.path.clone(), source };
        for piece in &self.blocks[..pieces] {
            self.out.write_all(piece).map_err(io)?;
        }
        self.written += numbers.len();
        if self.written == elements {
            let bytes = tensor.bytes().unwrap_or_default();
            self.out.write_all(&vec![0; padding(bytes)]).map_err(io)?;
            (self.at, self.written) = (self.at + 1, 0);
        }
        Ok(())
    }

    /// Puts the file in its place.
    ///
    /// # Errors
    ///
    /// [`WriteError::Tensor`] where numbers of a tensor are missing, and [`WriteError::Io`].
    pub fn finish(self) -> Result<(), WriteError> {
        if let Some(tensor) = self.tensors.get(self.at) {
            let problem = format!("{} of its {} numbers were written", self.written, tensor.elements());
            return Err(WriteError::Tensor { name: tensor.name.clone(), problem });
        }
        let io = |source| WriteError::Io { path: self.path.clone(), source };
        self.out.into_inner().map_err(|e| io(e.into_error()))?;
        self.partial.commit().map_err(io)
    }
}

/// Why a file cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The file cannot be written.
    #[error("{}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A tensor and its numbers do not fit each other.
    #[error("tensor {name:.100}: {problem}")]
    Tensor {
        /// The tensor.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// The numbers of a tensor cannot be stored in its type.
    #[error("tensor {name:.100}: {source}")]
    Quantize {
        /// The tensor.
        name: String,
        /// Why.
        source: QuantizeError,
    },
    /// What was written so far cannot be read.
    #[error("the file would not be readable: {source}")]
    Unreadable {
        /// Why.
        source: GgufError,
    },
    /// A metadata entry cannot be written.
    #[error("metadata {key:.100}: {problem}")]
    Metadata {
        /// The key.
        key: String,
        /// What is wrong.
        problem: String,
    },
}

/// Quantizes numbers on several threads. The blocks lie in the first elements of `pieces`, whose number is returned.
fn blocks_of(
    kind: TensorType,
    numbers: &[f32],
    threads: usize,
    pieces: &mut Vec<Vec<u8>>,
) -> Result<usize, QuantizeError> {
    let blocks = numbers.len().div_ceil(kind.block_elements());
    let threads = threads.min(numbers.len() / NUMBERS_OF_A_THREAD).max(1);
    let piece = blocks.div_ceil(threads).max(1) * kind.block_elements();
    let parts: Vec<&[f32]> = numbers.chunks(piece).collect();
    if pieces.len() < parts.len() {
        pieces.resize(parts.len(), Vec::new());
    }
    pieces.iter_mut().for_each(Vec::clear);
    let one = |(numbers, out): (&[f32], &mut Vec<u8>)| quantize(kind, numbers, out);
    thread::scope(|scope| {
        let mut jobs = parts.iter().copied().zip(pieces.iter_mut());
        let first = jobs.next();
        let others: Vec<_> = jobs.map(|job| scope.spawn(move || one(job))).collect();
        let mut result = first.map_or(Ok(()), one);
        for other in others {
            // A thread that panics would be a defect of the quantizer, and the panic goes on here.
            let other = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            result = result.and(other);
        }
        result
    })?;
    Ok(parts.len())
}

/// The bytes before the first tensor, and how many the whole file has.
fn header(metadata: &[(String, Value)], tensors: &[NewTensor]) -> Result<(Vec<u8>, u64), WriteError> {
    let mut out = b"GGUF".to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    let mut keys = BTreeSet::new();
    for (key, value) in metadata {
        let wrong = |problem| WriteError::Metadata { key: key.clone(), problem };
        if !keys.insert(key) {
            return Err(wrong("it occurs twice".to_owned()));
        }
        push_text(key, &mut out);
        push_value(value, &mut out).map_err(wrong)?;
    }
    let (mut names, mut offset) = (BTreeSet::new(), 0_u64);
    for tensor in tensors {
        let wrong = |problem| WriteError::Tensor { name: tensor.name.clone(), problem };
        if !names.insert(&tensor.name) {
            return Err(wrong("it occurs twice".to_owned()));
        }
        let bytes = tensor.bytes().map_err(wrong)?;
        push_text(&tensor.name, &mut out);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        out.extend(tensor.shape.iter().rev().flat_map(|&size| (size as u64).to_le_bytes()));
        out.extend(tensor.kind.number().to_le_bytes());
        out.extend(offset.to_le_bytes());
        let end = offset.checked_add(bytes).and_then(|end| end.checked_next_multiple_of(DEFAULT_ALIGNMENT));
        offset = end.ok_or_else(|| wrong("the file would be too large".to_owned()))?;
    }
    out.resize(out.len() + padding(out.len() as u64), 0);
    let length = out.len() as u64 + offset;
    Ok((out, length))
}

/// How many zeros follow this many bytes.
fn padding(bytes: u64) -> usize {
    (bytes.next_multiple_of(DEFAULT_ALIGNMENT) - bytes) as usize
}

fn push_text(text: &str, out: &mut Vec<u8>) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// The widths of integers, in the order in which they are tried.
const INTEGER: [ValueType; 4] = [ValueType::U32, ValueType::I32, ValueType::U64, ValueType::I64];
/// The same for lists.
const INTEGERS: [ValueType; 2] = [ValueType::I32, ValueType::I64];

/// A value with its type before it.
fn push_value(value: &Value, out: &mut Vec<u8>) -> Result<(), String> {
    match value {
        Value::Integer(value) => {
            let width = INTEGER.into_iter().find(|width| width.holds(*value));
            let width = width.ok_or_else(|| format!("{value} does not fit into 64 bits"))?;
            push_type(width, out);
            out.extend(&value.to_le_bytes()[..width.bytes()]);
        }
        Value::Float(value) => {
            push_type(ValueType::Float32, out);
            out.extend((*value as f32).to_le_bytes());
        }
        Value::Bool(value) => {
            push_type(ValueType::Bool, out);
            out.push((*value).into());
        }
        Value::Text(text) => {
            push_type(ValueType::Text, out);
            push_text(text, out);
        }
        Value::Integers(values) => {
            let fits = |width: &ValueType| values.iter().all(|&value| width.holds(value.into()));
            let width = INTEGERS.into_iter().find(fits).unwrap_or(ValueType::I64);
            push_list(width, values.len(), out);
            for value in values {
                out.extend(&value.to_le_bytes()[..width.bytes()]);
            }
        }
        Value::Floats(values) => {
            push_list(ValueType::Float32, values.len(), out);
            out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
        Value::Bools(values) => {
            push_list(ValueType::Bool, values.len(), out);
            out.extend(values.iter().map(|&value| u8::from(value)));
        }
        Value::Texts(texts) => {
            push_list(ValueType::Text, texts.len(), out);
            texts.iter().for_each(|text| push_text(text, out));
        }
    }
    Ok(())
}

fn push_type(kind: ValueType, out: &mut Vec<u8>) {
    out.extend(kind.number().to_le_bytes());
}

fn push_list(elements: ValueType, length: usize, out: &mut Vec<u8>) {
    push_type(ValueType::List, out);
    push_type(elements, out);
    out.extend((length as u64).to_le_bytes());
}
