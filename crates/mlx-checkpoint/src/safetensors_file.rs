//! The header of a safetensors file.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use mlx_rs::Array;
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use crate::error::shortened;
use crate::{CheckpointError, TensorInfo};

/// The limit of the format itself. It also bounds what a broken length makes this program allocate.
const LONGEST_HEADER: u64 = 100_000_000;

/// The tensors that a file says it holds, as those of the file number `number`. Everything is checked that can be
/// without reading the data: the header, the place of each tensor, and that the file is whole.
pub(crate) fn read_header(path: &Path, number: usize) -> Result<Vec<(String, TensorInfo)>, CheckpointError> {
    let io = |source| CheckpointError::Io { file: path.to_path_buf(), source };
    let broken = |problem: String| {
        let problem = shortened(&problem).into_owned();
        CheckpointError::Safetensors { file: path.to_path_buf(), problem }
    };

    let mut file = mlx_files::open(path).map_err(io)?;
    let size = file.metadata().map_err(io)?.len();
    if size < 8 {
        return Err(broken(format!("it has {size} bytes, and the length of the header alone takes 8")));
    }
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(io)?;
    let length = u64::from_le_bytes(length);
    if length > LONGEST_HEADER || length > size - 8 {
        return Err(broken(format!("its header would have {length} bytes, and the file has {size}")));
    }
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header).map_err(io)?;
    let header: Metadata =
        serde_json::from_slice(&header).map_err(|e| broken(format!("its header cannot be read: {e}")))?;

    let data = size - 8 - length;
    let mut tensors = Vec::new();
    let mut data_end = 0;
    for (key, info) in header.tensors() {
        let (begin, end) = info.data_offsets;
        let elements = info.shape.iter().try_fold(1_usize, |product, &size| product.checked_mul(size));
        let bits = elements.and_then(|elements| elements.checked_mul(info.dtype.bitsize()));
        if begin > end || bits != (end - begin).checked_mul(8) {
            return Err(broken(format!("{key} does not fill the {begin}..{end} that it is given")));
        }
        if info.shape.iter().any(|&size| i32::try_from(size).is_err()) {
            return Err(broken(format!("{key} has shape {:?}, beyond what MLX can index", info.shape)));
        }
        data_end = data_end.max(end as u64);
        let start = 8 + length + begin as u64;
        tensors.push((key, TensorInfo { dtype: info.dtype, shape: info.shape.clone(), file: number, start }));
    }
    if data != data_end {
        return Err(broken(format!("its tensors take {data_end} bytes, and {data} follow the header")));
    }
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(tensors)
}

/// Checks that a file is still a regular one, before MLX opens it by its path.
pub(crate) fn check_regular(path: &Path) -> Result<(), CheckpointError> {
    let opened = mlx_files::open(path);
    opened.map(drop).map_err(|source| CheckpointError::Io { file: path.to_path_buf(), source })
}

/// Whether MLX opens a file that holds a tensor of this dtype. Because of a single one of another it refuses the
/// whole file.
pub(crate) fn mlx_reads(dtype: Dtype) -> bool {
    matches!(
        dtype,
        Dtype::BOOL
            | Dtype::U8
            | Dtype::I8
            | Dtype::U16
            | Dtype::I16
            | Dtype::U32
            | Dtype::I32
            | Dtype::U64
            | Dtype::I64
            | Dtype::F16
            | Dtype::BF16
            | Dtype::F32
            | Dtype::C64
            | Dtype::F8_E4M3
            | Dtype::F8_E8M0
    )
}

/// Reads one tensor of a file that MLX would refuse.
///
/// # Errors
///
/// Why it cannot be read, in words.
pub(crate) fn read_tensor(path: &Path, info: &TensorInfo) -> Result<Array, String> {
    let dtype = match info.dtype {
        Dtype::F32 => mlx_rs::Dtype::Float32,
        Dtype::F16 => mlx_rs::Dtype::Float16,
        Dtype::BF16 => mlx_rs::Dtype::Bfloat16,
        Dtype::U32 => mlx_rs::Dtype::Uint32,
        Dtype::U8 => mlx_rs::Dtype::Uint8,
        other => return Err(format!("dtype {other:?} is none of a parameter")),
    };
    let mut bytes = vec![0; info.elements() * info.dtype.bitsize() / 8];
    let mut file = mlx_files::open(path).map_err(|e| e.to_string())?;
    file.seek(SeekFrom::Start(info.start)).map_err(|e| e.to_string())?;
    file.read_exact(&mut bytes).map_err(|e| e.to_string())?;
    let length = i32::try_from(bytes.len()).map_err(|_| format!("{} bytes are too many", bytes.len()))?;
    let shape: Vec<i32> = info.shape.iter().map(|&size| size as i32).collect();
    let array =
        Array::from_slice(&bytes, &[length]).view_dtype(dtype).and_then(|array| array.reshape(&shape));
    array.map_err(|e| without_place(&e.to_string()))
}

/// An error of MLX as users should see it: without the places in its source and in that of mlx-rs that it ends with, which are
/// paths of the machine that it was built on.
pub fn without_place(message: &str) -> String {
    let end = message.find(" at /").unwrap_or(message.len());
    message[..end].trim_matches('"').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As MLX said it of a file that lost its end after its header was read.
    #[test]
    fn errors_of_mlx_name_no_place_in_its_source() {
        let message = "\"[read] Unable to read from file. at /build/mlx-c/mlx/c/transforms.cpp:73\" at /build/mlx-rs/src/error.rs:9:5";
        assert_eq!(without_place(message), "[read] Unable to read from file.");
        assert_eq!(without_place("[add] shapes do not fit"), "[add] shapes do not fit");
    }
}
