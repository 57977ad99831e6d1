//! The beginning of a file: its metadata, and where its tensors are.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::ops::Range;

use crate::metadata::{Metadata, Texts, Value};
use crate::value_type::ValueType;
use crate::{Problem, TensorType};

/// The most metadata entries that are read. Models have less than a hundred.
pub const MOST_METADATA: u64 = 1 << 14;
/// The most tensors that are read. The largest models have some thousands.
pub const MOST_TENSORS: u64 = 1 << 17;
/// The most bytes of a text. The longest are chat templates.
pub const LONGEST_TEXT: u64 = 1 << 24;
/// The most elements of a list. The longest are the merges of a vocabulary.
pub const LONGEST_LIST: u64 = 1 << 24;
/// The most axes of a tensor.
pub(crate) const MOST_AXES: u32 = 4;
/// How many bytes the place of a tensor is a multiple of, where the metadata does not say it.
pub(crate) const DEFAULT_ALIGNMENT: u64 = 32;

/// What a file says of one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// How its elements are stored.
    pub kind: TensorType,
    /// Its shape, the axis of neighbouring elements last. Files state the axes the other way round.
    pub shape: Vec<usize>,
    /// Where its bytes are in the file.
    pub bytes: Range<u64>,
}

/// The beginning of a file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Header {
    /// The metadata.
    pub metadata: Metadata,
    /// The tensors, in the order of the file.
    pub tensors: Vec<TensorInfo>,
}

/// Why a header was not read.
#[derive(Debug)]
pub(crate) enum ReadError {
    Io(io::Error),
    Problem(Problem),
}

impl From<Problem> for ReadError {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

type Result<T> = std::result::Result<T, ReadError>;

impl Header {
    /// Reads the header of a file with `size` bytes from its beginning. No more memory is taken than the file has bytes.
    pub(crate) fn read(reader: impl Read, size: u64) -> Result<Self> {
        let mut input = Input { reader, position: 0, size };
        let version = version(&mut input)?;
        if !(2..=3).contains(&version) {
            // Version 3 with its highest byte first.
            let swapped = (1..=3).contains(&version.swap_bytes());
            return Err(if swapped { Problem::BigEndian } else { Problem::Version(version) }.into());
        }
        let tensors = input.count("tensors", MOST_TENSORS)?;
        let entries = input.count("metadata entries", MOST_METADATA)?;
        let mut metadata = Metadata::default();
        for index in 0..entries {
            let key = input.text(|| format!("the key of metadata entry {index}"))?;
            let value = value(&mut input, &key)?;
            metadata.insert(key, value)?;
        }
        let infos =
            (0..tensors).map(|index| Unplaced::read(&mut input, index)).collect::<Result<Vec<_>>>()?;
        let alignment = alignment(&metadata)?;
        let start = input.position.next_multiple_of(alignment);
        let tensors = placed(infos, start, size, alignment)?;
        Ok(Self { metadata, tensors })
    }
}

fn version(input: &mut Input<impl Read>) -> Result<u32> {
    if input.size < 4 || input.array(|| "the first bytes".to_owned())? != *b"GGUF" {
        return Err(Problem::Magic.into());
    }
    input.u32(|| "the version".to_owned())
}

/// The bytes of a file, read once from front to back.
struct Input<R> {
    reader: R,
    position: u64,
    size: u64,
}

impl<R: Read> Input<R> {
    /// Fills `bytes`, for which the file must have enough left.
    fn fill(&mut self, bytes: &mut [u8], inside: impl FnOnce() -> String) -> Result<()> {
        let length = bytes.len() as u64;
        if length > self.size - self.position {
            return Err(Problem::Truncated { inside: inside(), end: self.size }.into());
        }
        self.reader.read_exact(bytes).map_err(ReadError::Io)?;
        self.position += length;
        Ok(())
    }

    /// This many bytes, behind those that `all` has.
    fn append(&mut self, length: u64, all: &mut Vec<u8>, inside: impl FnOnce() -> String) -> Result<()> {
        // Checked first, so that a wrong length takes no memory.
        if length > self.size - self.position {
            return Err(Problem::Truncated { inside: inside(), end: self.size }.into());
        }
        let start = all.len();
        all.resize(start + length as usize, 0);
        self.fill(&mut all[start..], inside)
    }

    fn array<const N: usize>(&mut self, inside: impl FnOnce() -> String) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes, inside)?;
        Ok(bytes)
    }

    fn u32(&mut self, inside: impl FnOnce() -> String) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(inside)?))
    }

    fn u64(&mut self, inside: impl FnOnce() -> String) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(inside)?))
    }

    fn count(&mut self, what: &'static str, most: u64) -> Result<u64> {
        let found = self.u64(|| format!("the number of {what}"))?;
        if found > most { Err(Problem::TooMany { what, found, most }.into()) } else { Ok(found) }
    }

    fn text(&mut self, inside: impl Fn() -> String) -> Result<String> {
        let mut bytes = Vec::new();
        self.append_text(&mut bytes, &inside)?;
        String::from_utf8(bytes).map_err(|_| Problem::Utf8 { inside: inside() }.into())
    }

    /// The bytes of a text, behind those that `all` has.
    fn append_text(&mut self, all: &mut Vec<u8>, inside: impl Fn() -> String) -> Result<()> {
        let length = u64::from_le_bytes(self.array(&inside)?);
        if length > LONGEST_TEXT {
            return Err(
                Problem::TooMany { what: "bytes of a text", found: length, most: LONGEST_TEXT }.into()
            );
        }
        self.append(length, all, inside)
    }
}

fn value_type(input: &mut Input<impl Read>, key: &str) -> Result<ValueType> {
    let number = input.u32(|| format!("metadata {key:.100}"))?;
    let unknown = || Problem::ValueType { key: key.to_owned(), number };
    Ok(ValueType::from_number(number).ok_or_else(unknown)?)
}

fn value(input: &mut Input<impl Read>, key: &str) -> Result<Value> {
    let inside = || format!("metadata {key:.100}");
    Ok(match value_type(input, key)? {
        ValueType::Integer { bytes, signed } => {
            let mut all = Vec::new();
            input.append(bytes as u64, &mut all, inside)?;
            Value::Integer(integer(&all, signed))
        }
        ValueType::Float32 => Value::Float(f32::from_le_bytes(input.array(inside)?).into()),
        ValueType::Float64 => Value::Float(f64::from_le_bytes(input.array(inside)?)),
        ValueType::Bool => Value::Bool(input.array::<1>(inside)? != [0]),
        ValueType::Text => Value::Text(input.text(inside)?),
        ValueType::List => list(input, key)?,
    })
}

fn list(input: &mut Input<impl Read>, key: &str) -> Result<Value> {
    let inside = || format!("metadata {key:.100}");
    let kind = value_type(input, key)?;
    if kind == ValueType::List {
        return Err(Problem::Nested { key: key.to_owned() }.into());
    }
    let length = input.count("elements of a list", LONGEST_LIST)?;
    if kind == ValueType::Text {
        return texts(input, length, inside);
    }
    let mut bytes = Vec::new();
    input.append(length * kind.bytes() as u64, &mut bytes, inside)?;
    let elements = bytes.chunks_exact(kind.bytes());
    Ok(match kind {
        // A number beyond i64::MAX is no id and no size.
        ValueType::Integer { signed, .. } => Value::Integers(
            elements.map(|bytes| i64::try_from(integer(bytes, signed)).unwrap_or(i64::MAX)).collect(),
        ),
        ValueType::Float32 => {
            Value::Floats(elements.map(|bytes| f32::from_le_bytes(padded(bytes))).collect())
        }
        ValueType::Float64 => {
            Value::Floats(elements.map(|bytes| f64::from_le_bytes(padded(bytes)) as f32).collect())
        }
        _ => Value::Bools(bytes.iter().map(|&byte| byte != 0).collect()),
    })
}

fn texts(input: &mut Input<impl Read>, length: u64, inside: impl Fn() -> String) -> Result<Value> {
    if length > (input.size - input.position) / ValueType::Text.bytes() as u64 {
        return Err(Problem::Truncated { inside: inside(), end: input.size }.into());
    }
    let (mut all, mut ends) = (Vec::new(), Vec::with_capacity(length as usize));
    for _ in 0..length {
        input.append_text(&mut all, &inside)?;
        ends.push(all.len());
    }
    let texts = String::from_utf8(all).ok().and_then(|all| Texts::new(all, ends));
    Ok(Value::Texts(texts.ok_or_else(|| Problem::Utf8 { inside: inside() })?))
}

/// An integer of up to 8 bytes.
fn integer(bytes: &[u8], signed: bool) -> i128 {
    let unused = 64 - 8 * bytes.len() as u32;
    let shifted = u64::from_le_bytes(padded(bytes)) << unused;
    if signed { (shifted.cast_signed() >> unused).into() } else { (shifted >> unused).into() }
}

/// These bytes, and then zeros.
fn padded<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut all = [0; N];
    all[..bytes.len()].copy_from_slice(bytes);
    all
}

/// A tensor whose bytes begin at an offset from the first tensor's.
struct Unplaced {
    name: String,
    kind: TensorType,
    shape: Vec<usize>,
    offset: u64,
    length: u64,
}

impl Unplaced {
    fn read(input: &mut Input<impl Read>, index: u64) -> Result<Self> {
        let name = input.text(|| format!("the name of tensor {index}"))?;
        let inside = || format!("tensor {name:.100}");
        let axes = input.u32(inside)?;
        if axes > MOST_AXES {
            let (found, most) = (axes.into(), MOST_AXES.into());
            return Err(Problem::TooMany { what: "axes of a tensor", found, most }.into());
        }
        let dimensions = (0..axes).map(|_| input.u64(inside)).collect::<Result<Vec<_>>>()?;
        let number = input.u32(inside)?;
        let offset = input.u64(inside)?;
        let Some(kind) = TensorType::from_number(number) else {
            return Err(Problem::TensorType { name, number }.into());
        };
        match shape(kind, &dimensions) {
            Ok((shape, length)) => Ok(Self { name, kind, shape, offset, length }),
            Err(problem) => Err(Problem::Shape { name, dimensions, problem }.into()),
        }
    }
}

/// The shape of a tensor with these dimensions, and its bytes.
fn shape(kind: TensorType, dimensions: &[u64]) -> std::result::Result<(Vec<usize>, u64), &'static str> {
    let size = |&size: &u64| i32::try_from(size).ok().filter(|&size| size > 0).map(|size| size as usize);
    let too_large = "each must be between 1 and 2147483647";
    let shape: Option<Vec<usize>> = dimensions.iter().rev().map(size).collect();
    let shape = shape.ok_or(too_large)?;
    let row =
        kind.row_bytes(*shape.last().unwrap_or(&1)).ok_or("a row must have whole blocks of its type")?;
    let rows = &shape[..shape.len().saturating_sub(1)];
    let length = rows.iter().try_fold(row, |product, &size| product.checked_mul(size));
    Ok((shape, length.ok_or("it is too large")? as u64))
}

fn alignment(metadata: &Metadata) -> Result<u64> {
    let key = "general.alignment";
    let alignment = metadata.integer(key)?.unwrap_or(DEFAULT_ALIGNMENT as i64);
    match u64::try_from(alignment) {
        Ok(alignment) if alignment.is_power_of_two() && (8..=1 << 20).contains(&alignment) => Ok(alignment),
        _ => {
            let (found, needed) = (alignment.to_string(), "a power of two from 8 to 1048576".to_owned());
            Err(Problem::Metadata { key: key.to_owned(), found, needed }.into())
        }
    }
}

/// Checks that the bytes of the tensors lie inside of the file, aligned, and do not overlap. The first byte of the tensors is
/// `start`.
fn placed(tensors: Vec<Unplaced>, start: u64, size: u64, alignment: u64) -> Result<Vec<TensorInfo>> {
    let mut names = BTreeSet::new();
    let mut infos = Vec::with_capacity(tensors.len());
    for Unplaced { name, kind, shape, offset, length } in tensors {
        if !names.insert(name.clone()) {
            return Err(Problem::Twice { what: "tensor", name }.into());
        }
        let wrong = |name, problem| Problem::Place { name, begin: offset, problem };
        if !offset.is_multiple_of(alignment) {
            return Err(wrong(name, format!("this must be a multiple of {alignment}")).into());
        }
        let begin = start.checked_add(offset);
        let end = begin.and_then(|begin| begin.checked_add(length)).filter(|&end| end <= size);
        let (Some(begin), Some(end)) = (begin, end) else {
            return Err(wrong(name, format!("its {length} bytes do not end inside of the file")).into());
        };
        infos.push(TensorInfo { name, kind, shape, bytes: begin..end });
    }
    let mut places: Vec<&TensorInfo> = infos.iter().collect();
    places.sort_by_key(|info| info.bytes.start);
    for pair in places.windows(2) {
        let (first, second) = (pair[0], pair[1]);
        if second.bytes.start < first.bytes.end {
            let (begin, problem) =
                (second.bytes.start - start, format!("{:.100} has some of them", first.name));
            return Err(Problem::Place { name: second.name.clone(), begin, problem }.into());
        }
    }
    Ok(infos)
}
