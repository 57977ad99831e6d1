//! One safetensors file: its header, a single tensor, and writing one.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use mlx_rs::Array;
use mlx_safetensors::{Dtype, Header, HeaderError, arrays};

use crate::error::CheckpointError;
use crate::text::{of_mlx, shortened};

/// The dtypes of parameters that are not quantized, as messages list them.
pub(crate) const FLOATS: &str = "F32, F16 or BF16";

/// What is known of a tensor before it is read.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorInfo {
    /// How its elements are stored.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
    pub(crate) place: Place,
}

/// Where a tensor comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// A safetensors file.
    File {
        /// Its index in [`Checkpoint::files`](crate::Checkpoint::files).
        file: usize,
        /// Where in the file the first byte is.
        start: u64,
    },
    /// A [`TensorSource`](crate::TensorSource) makes it.
    Source,
}

impl TensorInfo {
    /// A tensor that a [`TensorSource`](crate::TensorSource) makes.
    pub fn made(dtype: Dtype, shape: Vec<usize>) -> Self {
        Self { dtype, shape, place: Place::Source }
    }

    /// The file that holds it, and where in the file its first byte is; `None` for a tensor that a source makes.
    pub(crate) fn in_file(&self) -> Option<(usize, u64)> {
        match self.place {
            Place::File { file, start } => Some((file, start)),
            Place::Source => None,
        }
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The shape as MLX counts. A header with a longer axis is refused when it is read.
    pub(crate) fn mlx_shape(&self) -> Vec<i32> {
        self.shape.iter().map(|&size| size as i32).collect()
    }
}

/// Whether a tensor of this dtype may be a parameter that is not quantized.
pub(crate) fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

/// Reads and checks the header of the file with this index. The data is not read.
pub(crate) fn read_header(
    path: &Path,
    index: usize,
) -> Result<BTreeMap<String, TensorInfo>, CheckpointError> {
    let io = |source| CheckpointError::Io { file: path.to_path_buf(), source };
    let file = mlx_files::open(path).map_err(io)?;
    let header = Header::read(&file).map_err(|e| match e {
        HeaderError::Io(source) => io(source),
        e => {
            let problem = shortened(&e.to_string()).into_owned();
            CheckpointError::Safetensors { file: path.to_path_buf(), problem }
        }
    })?;
    let info = |tensor: &mlx_safetensors::TensorInfo| TensorInfo {
        dtype: tensor.dtype,
        shape: tensor.shape.clone(),
        place: Place::File { file: index, start: header.data_start() + tensor.bytes.start },
    };
    Ok(header.tensors().iter().map(|(key, tensor)| (key.clone(), info(tensor))).collect())
}

/// Reads one tensor of a file that MLX refuses to open.
///
/// # Errors
///
/// Why it cannot be read, in words.
pub(crate) fn read_tensor(path: &Path, start: u64, info: &TensorInfo) -> Result<Array, String> {
    if !(is_float(info.dtype) || matches!(info.dtype, Dtype::U32 | Dtype::U8)) {
        return Err(format!("no parameter has the dtype {:?}", info.dtype));
    }
    let bytes = read_bytes(path, start, info)?;
    arrays::from_bytes(&bytes, info.dtype, &info.shape).map_err(|e| of_mlx(&e))
}

/// Reads the bytes of one tensor.
///
/// # Errors
///
/// Why they cannot be read, in words.
pub(crate) fn read_bytes(path: &Path, start: u64, info: &TensorInfo) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0; info.elements() * info.dtype.bits() / 8];
    let mut file = mlx_files::open(path).map_err(|e| e.to_string())?;
    file.seek(SeekFrom::Start(start)).map_err(|e| e.to_string())?;
    file.read_exact(&mut bytes).map_err(|e| e.to_string())?;
    Ok(bytes)
}

/// Whether a tensor holds the frequencies of a rotation. Older versions of transformers saved them; they follow from the
/// config, and nothing reads them.
pub(crate) fn is_frequencies(key: &str) -> bool {
    let module = key.strip_suffix(".inv_freq").and_then(|path| path.rsplit('.').next());
    module.is_some_and(|module| module.starts_with("rotary_emb"))
}

/// Warns once for a whole folder that such tensors are ignored.
pub(crate) fn warn_frequencies(folder: &Path, mut keys: Vec<String>) {
    keys.sort();
    if let Some(key) = keys.first() {
        let (folder, key, count) = (folder.display(), shortened(key), keys.len());
        tracing::warn!(
            "{folder}: {key} has no use, and is ignored, as are all such tensors ({count}): the config says how the \
             model rotates"
        );
    }
}

/// Writes a file of parameters with the metadata that mlx-lm writes and transformers asks for. `before_each` is told the key
/// of each before it is computed.
pub(crate) fn write_parameters(
    out: &mut impl Write,
    tensors: Vec<(String, Array)>,
    before_each: impl FnMut(&str) -> io::Result<()>,
) -> io::Result<()> {
    use mlx_rs::Dtype::{Bfloat16, Float16, Float32, Uint8, Uint32};
    let dtypes = [Float32, Float16, Bfloat16, Uint32, Uint8];
    if let Some((key, array)) = tensors.iter().find(|(_, array)| !dtypes.contains(&array.dtype())) {
        return Err(io::Error::other(format!("{key} is {:?}, which no parameter may be", array.dtype())));
    }
    let metadata = BTreeMap::from([("format".to_owned(), "mlx".to_owned())]);
    arrays::write(out, &metadata, tensors, before_each)
}
