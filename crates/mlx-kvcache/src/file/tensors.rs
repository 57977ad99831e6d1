//! Reads and writes a safetensors file as tensors and metadata.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use mlx_rs::error::Exception;
use mlx_rs::{Array, Dtype};
use mlx_safetensors::{Dtype as StoredDtype, Header, HeaderError, arrays};

use super::entries::{CHECKSUM, FIRST_CLASS, RECORD};
use super::error::CacheFileError;

/// The largest size of a cache file in bytes. The whole file is read into memory.
const LARGEST_FILE: u64 = 256 << 30;

/// The contents of a file.
#[derive(Debug, Default)]
pub(super) struct Tensors {
    pub(super) tensors: BTreeMap<String, Array>,
    pub(super) metadata: BTreeMap<String, String>,
}

impl Tensors {
    /// The CRC-32 of all tensors and all entries except the checksum, in the order of their names.
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
            arrays::with_bytes(array, |bytes| crc.update(bytes))?;
        }
        Ok(format!("{:08x}", crc.finalize()))
    }
}

/// Whether this crate writes tensors of this dtype.
fn is_written(dtype: Dtype) -> bool {
    use Dtype::{Bfloat16, Bool, Float16, Float32, Int32, Uint32};
    matches!(dtype, Bool | Int32 | Uint32 | Float16 | Bfloat16 | Float32)
}

/// Whether this crate or mlx-lm writes tensors of this dtype.
fn is_read(dtype: StoredDtype) -> bool {
    use StoredDtype::{BF16, BOOL, F16, F32, I32, I64, U32};
    matches!(dtype, BOOL | I32 | I64 | U32 | F16 | BF16 | F32)
}

/// Writes the file. An existing file is replaced when the new one is complete.
pub(super) fn write(file: &Path, contents: &Tensors) -> Result<(), CacheFileError> {
    let mut tensors: Vec<(String, Array)> =
        contents.tensors.iter().map(|(name, array)| (name.clone(), array.clone())).collect();
    if let Some((_, array)) = tensors.iter().find(|(_, array)| !is_written(array.dtype())) {
        return Err(Exception::custom(format!("a cache of {:?} cannot be saved", array.dtype())).into());
    }
    // The dtypes with most bytes first, so that every tensor begins at a multiple of its dtype's size.
    tensors.sort_by_key(|(_, array)| Reverse(array.item_size()));
    let written =
        mlx_files::write_with(file, |out| arrays::write(out, &contents.metadata, tensors, |_| Ok(())));
    written.map_err(|source| CacheFileError::Io { doing: "writing", file: file.into(), source })
}

/// Checks that there is no file at this path, an empty file, or a cache file.
pub(super) fn check_replaceable(path: &Path) -> Result<(), CacheFileError> {
    let io = |source| CacheFileError::Io { doing: "writing", file: path.into(), source };
    if !mlx_files::is_present(path).map_err(io)? {
        return Ok(());
    }
    let file = mlx_files::open(path).map_err(io)?;
    let is_cache = |header: Header| {
        let entries = header.metadata();
        entries.contains_key(RECORD) || entries.contains_key(FIRST_CLASS)
    };
    if file.metadata().map_err(io)?.len() == 0 || read_header(path, &file).is_ok_and(is_cache) {
        return Ok(());
    }
    Err(CacheFileError::NotReplaced { file: path.into() })
}

fn read_header(path: &Path, file: &File) -> Result<Header, CacheFileError> {
    let size = file.metadata().map_err(|source| reading(path, source))?.len();
    if size > LARGEST_FILE {
        return Err(damaged(path, format!("it has {size} bytes, and at most {LARGEST_FILE} are allowed")));
    }
    Header::read(file).map_err(|e| match e {
        HeaderError::Io(source) => reading(path, source),
        e => damaged(path, e.to_string()),
    })
}

/// Checks the header of a file, then reads its tensors.
pub(super) fn read(path: &Path, mut file: File) -> Result<Tensors, CacheFileError> {
    let header = read_header(path, &file)?;
    let mut contents = Tensors { metadata: header.metadata().clone(), tensors: BTreeMap::new() };
    for (name, tensor) in header.tensors() {
        if i32::try_from(tensor.elements()).is_err() {
            let problem = format!("{name} has shape {:?}, which is too large for MLX", tensor.shape);
            return Err(damaged(path, problem));
        }
        if !is_read(tensor.dtype) {
            return Err(damaged(
                path,
                format!("{name} has dtype {:?}, which no cache file has", tensor.dtype),
            ));
        }
    }
    // The bytes of the tensors follow the header in this order.
    for (name, tensor) in header.tensors() {
        let mut bytes = vec![0; (tensor.bytes.end - tensor.bytes.start) as usize];
        file.read_exact(&mut bytes).map_err(|source| reading(path, source))?;
        let array = arrays::from_bytes(&bytes, tensor.dtype, &tensor.shape)?;
        array.eval()?;
        contents.tensors.insert(name.clone(), array);
    }
    Ok(contents)
}

fn reading(path: &Path, source: std::io::Error) -> CacheFileError {
    CacheFileError::Io { doing: "reading", file: path.into(), source }
}

fn damaged(path: &Path, problem: String) -> CacheFileError {
    CacheFileError::Damaged { file: path.into(), problem }
}
