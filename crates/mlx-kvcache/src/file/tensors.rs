//! A safetensors file as tensors and metadata.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use mlx_files::Partial;
use mlx_rs::error::Exception;
use mlx_rs::{Array, Dtype};
use safetensors::tensor::{Metadata, TensorInfo};

use super::mlx_lm::FIRST_CLASS;
use super::{CHECKSUM, CacheFileError, RECORD};

/// The limit of the format itself. It also bounds what a broken length makes this program allocate.
const LONGEST_HEADER: u64 = 100_000_000;

/// Bytes of the largest cache file. It is read into memory as a whole.
const LARGEST_FILE: u64 = 256 << 30;

/// All that a file holds.
#[derive(Debug, Default)]
pub(super) struct Tensors {
    pub(super) tensors: BTreeMap<String, Array>,
    pub(super) metadata: BTreeMap<String, String>,
}

impl Tensors {
    /// The CRC-32 of every tensor and of every entry but the checksum itself, in the order of their names.
    pub(super) fn checksum(&self) -> Result<String, Exception> {
        let mut crc = crc32fast::Hasher::new();
        let mut text = |text: &str| {
            crc.update(&(text.len() as u64).to_le_bytes());
            crc.update(text.as_bytes());
        };
        for (key, value) in self.metadata.iter().filter(|(key, _)| *key != CHECKSUM) {
            text(key);
            text(value);
        }
        for (name, array) in &self.tensors {
            let form = format!("{name} {:?} {:?}", array.dtype(), array.shape());
            crc.update(form.as_bytes());
            crc.update(slice(&bytes(array)?)?);
        }
        Ok(format!("{:08x}", crc.finalize()))
    }
}

/// The bytes of an array, evaluated and in the order of its elements.
fn bytes(array: &Array) -> Result<Array, Exception> {
    if array.size() == 0 {
        return Ok(Array::from_slice::<u8>(&[], &[0]));
    }
    let bytes = array.reshape(&[-1])?.contiguous()?.view_dtype(Dtype::Uint8)?;
    bytes.eval()?;
    Ok(bytes)
}

/// What the header says of an array whose bytes begin here.
fn info(array: &Array, begin: usize) -> Result<TensorInfo, Exception> {
    let dtype = match array.dtype() {
        Dtype::Bool => safetensors::Dtype::BOOL,
        Dtype::Int32 => safetensors::Dtype::I32,
        Dtype::Uint32 => safetensors::Dtype::U32,
        Dtype::Float16 => safetensors::Dtype::F16,
        Dtype::Bfloat16 => safetensors::Dtype::BF16,
        Dtype::Float32 => safetensors::Dtype::F32,
        other => return Err(Exception::custom(format!("a cache of {other:?} cannot be saved"))),
    };
    let shape = array.shape().iter().map(|&size| size as usize).collect();
    Ok(TensorInfo { dtype, shape, data_offsets: (begin, begin + array.nbytes()) })
}

fn slice(bytes: &Array) -> Result<&[u8], Exception> {
    if bytes.size() == 0 {
        return Ok(&[]); // MLX has no memory for it
    }
    bytes.try_as_slice::<u8>().map_err(|e| Exception::custom(e.to_string()))
}

/// Writes the file beside its place, and moves it there when it is whole.
pub(super) fn write(file: &Path, contents: &Tensors) -> Result<(), CacheFileError> {
    // The widest numbers first, so that each lies at a multiple of its width.
    let mut arrays: Vec<_> = contents.tensors.iter().collect();
    arrays.sort_by_key(|(_, array)| std::cmp::Reverse(array.item_size()));
    let (mut tensors, mut end) = (Vec::with_capacity(arrays.len()), 0);
    for (name, array) in &arrays {
        let info = info(array, end)?;
        end = info.data_offsets.1;
        tensors.push(((*name).clone(), info));
    }
    let entries: HashMap<String, String> =
        contents.metadata.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
    let header = Metadata::new(Some(entries), tensors).map_err(io::Error::other);
    let header = header.and_then(|header| Ok(serde_json::to_vec(&header)?));

    let written = Partial::file(file).and_then(|partial| {
        let mut header = header?;
        // As the format asks for: tensors begin at a multiple of eight bytes.
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut out = BufWriter::new(partial.as_file());
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        // One at a time: their bytes may be copies.
        for (_, array) in arrays {
            let bytes = bytes(array).map_err(io::Error::other)?;
            out.write_all(slice(&bytes).map_err(io::Error::other)?)?;
        }
        out.flush()?;
        drop(out);
        partial.commit()
    });
    written.map_err(|source| CacheFileError::Io { doing: "writing", file: file.into(), source })
}

/// Whether a cache may be written to this path: there is nothing, or an empty file, or a cache.
pub(super) fn check_replaceable(path: &Path) -> Result<(), CacheFileError> {
    let io = |source| CacheFileError::Io { doing: "writing", file: path.into(), source };
    if !mlx_files::is_present(path).map_err(io)? {
        return Ok(());
    }
    let mut file = mlx_files::open(path).map_err(io)?;
    let is_cache = |header: Metadata| {
        let entries = header.metadata().as_ref();
        entries.is_some_and(|entries| entries.contains_key(RECORD) || entries.contains_key(FIRST_CLASS))
    };
    if file.metadata().map_err(io)?.len() == 0
        || read_header(path, &mut file).is_ok_and(|(header, _)| is_cache(header))
    {
        return Ok(());
    }
    Err(CacheFileError::NotReplaced { file: path.into() })
}

/// The header of a file, and how many bytes follow it.
fn read_header(path: &Path, file: &mut File) -> Result<(Metadata, u64), CacheFileError> {
    let io = |source| CacheFileError::Io { doing: "reading", file: path.into(), source };
    let damaged = |problem: String| CacheFileError::Damaged { file: PathBuf::from(path), problem };

    let size = file.metadata().map_err(io)?.len();
    if size > LARGEST_FILE {
        return Err(damaged(format!("it has {size} bytes, and may have at most {LARGEST_FILE}")));
    }
    if size < 8 {
        return Err(damaged(format!("it has {size} bytes, and the length of the header alone takes 8")));
    }
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(io)?;
    let length = u64::from_le_bytes(length);
    if length > LONGEST_HEADER || length > size - 8 {
        return Err(damaged(format!("its header would have {length} bytes, and the file has {size}")));
    }
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header).map_err(io)?;
    let header =
        serde_json::from_slice(&header).map_err(|e| damaged(format!("its header cannot be read: {e}")))?;
    Ok((header, size - 8 - length))
}

/// Reads a file, after everything was checked that its header says.
pub(super) fn read(path: &Path, mut file: File) -> Result<Tensors, CacheFileError> {
    let io = |source| CacheFileError::Io { doing: "reading", file: path.into(), source };
    let damaged = |problem: String| CacheFileError::Damaged { file: PathBuf::from(path), problem };

    let (header, data) = read_header(path, &mut file)?;
    let mut places: Vec<_> = header.tensors().into_iter().collect();
    places.sort_by_key(|(_, info)| info.data_offsets);
    let mut end = 0;
    for (name, info) in &places {
        let (begin, this_end) = info.data_offsets;
        let elements = info.shape.iter().try_fold(1_usize, |product, &size| product.checked_mul(size));
        let bits = elements.and_then(|elements| elements.checked_mul(info.dtype.bitsize()));
        if begin != end || begin > this_end || bits != (this_end - begin).checked_mul(8) {
            return Err(damaged(format!("{name} does not fill the {begin}..{this_end} that it is given")));
        }
        let beyond = |size: &usize| i32::try_from(*size).is_err();
        if elements.as_ref().is_none_or(beyond) || info.shape.iter().any(beyond) {
            return Err(damaged(format!("{name} has shape {:?}, beyond what MLX can index", info.shape)));
        }
        end = this_end;
    }
    if end as u64 != data {
        return Err(damaged(format!("its tensors take {end} bytes, and {data} follow the header")));
    }

    let mut contents = Tensors::default();
    contents.metadata.extend(header.metadata().clone().unwrap_or_default());
    for (name, info) in places {
        let mut bytes = vec![0; info.data_offsets.1 - info.data_offsets.0];
        file.read_exact(&mut bytes).map_err(io)?;
        let array = array(&bytes, info.dtype, &info.shape)?;
        let array =
            array.ok_or_else(|| damaged(format!("{name} has dtype {:?}, as no cache has", info.dtype)))?;
        contents.tensors.insert(name, array);
    }
    Ok(contents)
}

/// An array of these bytes; `None` for a dtype that caches do not have.
fn array(bytes: &[u8], dtype: safetensors::Dtype, shape: &[usize]) -> Result<Option<Array>, Exception> {
    use safetensors::Dtype as Stored;
    let dtype = match dtype {
        Stored::BOOL => Dtype::Bool,
        Stored::I32 => Dtype::Int32,
        Stored::I64 => Dtype::Int64,
        Stored::U32 => Dtype::Uint32,
        Stored::F16 => Dtype::Float16,
        Stored::BF16 => Dtype::Bfloat16,
        Stored::F32 => Dtype::Float32,
        _ => return Ok(None),
    };
    let shape: Vec<i32> = shape.iter().map(|&size| size as i32).collect();
    if bytes.is_empty() {
        return mlx_rs::ops::zeros_dtype(&shape, dtype).map(Some);
    }
    // The bytes of one tensor may be more than an axis can be long, but their elements are not.
    let (wide, rest) = (bytes.len() / 4, bytes.len() % 4);
    let flat = if rest == 0 {
        let words: Vec<u32> = bytes
            .chunks_exact(4)
            .map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
            .collect();
        Array::from_slice(&words, &[wide as i32])
    } else {
        Array::from_slice(bytes, &[bytes.len() as i32])
    };
    let array = flat.view_dtype(dtype)?.reshape(&shape)?;
    array.eval()?;
    Ok(Some(array))
}
