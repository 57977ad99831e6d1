//! Tensors as arrays of MLX: from the bytes of a file, and to a file.
//!
//! MLX reads whole safetensors files itself (`Array::load_safetensors`), lazily. This is for tensors of files that MLX
//! refuses, for bytes that have to be checked first, and for writing one array after another.

use std::collections::BTreeMap;
use std::io::{self, Write};

use mlx_rs::error::Exception;
use mlx_rs::{Array, Dtype as MlxDtype};

use crate::{Dtype, Header};

impl Dtype {
    /// How MLX's arrays of a dtype are stored.
    pub fn of(dtype: MlxDtype) -> Self {
        match dtype {
            MlxDtype::Bool => Self::BOOL,
            MlxDtype::Uint8 => Self::U8,
            MlxDtype::Uint16 => Self::U16,
            MlxDtype::Uint32 => Self::U32,
            MlxDtype::Uint64 => Self::U64,
            MlxDtype::Int8 => Self::I8,
            MlxDtype::Int16 => Self::I16,
            MlxDtype::Int32 => Self::I32,
            MlxDtype::Int64 => Self::I64,
            MlxDtype::Float16 => Self::F16,
            MlxDtype::Bfloat16 => Self::BF16,
            MlxDtype::Float32 => Self::F32,
            MlxDtype::Float64 => Self::F64,
            MlxDtype::Complex64 => Self::C64,
        }
    }

    /// The dtype of MLX that has the same numbers, if there is one.
    pub fn mlx(self) -> Option<MlxDtype> {
        Some(match self {
            Self::BOOL => MlxDtype::Bool,
            Self::U8 => MlxDtype::Uint8,
            Self::U16 => MlxDtype::Uint16,
            Self::U32 => MlxDtype::Uint32,
            Self::U64 => MlxDtype::Uint64,
            Self::I8 => MlxDtype::Int8,
            Self::I16 => MlxDtype::Int16,
            Self::I32 => MlxDtype::Int32,
            Self::I64 => MlxDtype::Int64,
            Self::F16 => MlxDtype::Float16,
            Self::BF16 => MlxDtype::Bfloat16,
            Self::F32 => MlxDtype::Float32,
            Self::F64 => MlxDtype::Float64,
            Self::C64 => MlxDtype::Complex64,
            _ => return None,
        })
    }
}

/// An array of this dtype and shape from its bytes in a file, perhaps not computed yet.
///
/// # Errors
///
/// Where the dtype is none of MLX's, the shape does not fit the bytes, or there are more than MLX can index.
pub fn from_bytes(bytes: &[u8], dtype: Dtype, shape: &[usize]) -> Result<Array, Exception> {
    let too_large = || Exception::custom(format!("{} bytes are more than MLX can index", bytes.len()));
    let length = |length: usize| i32::try_from(length).map_err(|_| too_large());
    let mlx = dtype.mlx().ok_or_else(|| Exception::custom(format!("MLX has no dtype {dtype:?}")))?;
    let shape: Vec<i32> = shape.iter().map(|&size| length(size)).collect::<Result<_, _>>()?;
    if bytes.is_empty() && shape.contains(&0) {
        return mlx_rs::ops::zeros_dtype(&shape, mlx);
    }
    // For some steps all elements are one axis. Its bytes may be more than an axis can be long, its elements may not.
    length(bytes.len() * 8 / dtype.bits())?;
    let flat = match bytes.as_chunks::<4>() {
        (words, []) => {
            let words: Vec<u32> = words.iter().map(|&word| u32::from_le_bytes(word)).collect();
            Array::from_slice(&words, &[length(words.len())?])
        }
        _ => Array::from_slice(bytes, &[length(bytes.len())?]),
    };
    flat.view_dtype(mlx)?.reshape(&shape)
}

/// Computes an array, and calls `use_bytes` with its bytes as a file has them: in the order of the elements.
///
/// # Errors
///
/// What MLX reports; where the bytes of the last axis are more than MLX can index.
pub fn with_bytes<R>(array: &Array, use_bytes: impl FnOnce(&[u8]) -> R) -> Result<R, Exception> {
    if array.size() == 0 {
        return Ok(use_bytes(&[])); // MLX has no memory for it
    }
    // The array keeps its axes, since all of its bytes may be more than one axis can be long.
    let last = array.shape().last().map_or(1, |&size| size as usize);
    if i32::try_from(last * array.item_size()).is_err() {
        return Err(Exception::custom(format!(
            "an axis of {last} elements has more bytes than MLX can index"
        )));
    }
    let array = if array.ndim() == 0 { &array.reshape(&[1])? } else { array };
    let bytes = array.contiguous()?.view_dtype(MlxDtype::Uint8)?;
    bytes.eval()?;
    let slice = bytes.try_as_slice::<u8>().map_err(|e| Exception::custom(e.to_string()))?;
    Ok(use_bytes(slice))
}

/// Writes a file of these arrays, in this order. Each is computed when its turn comes, and dropped when it is written.
///
/// `before_each` is told the key of each array before it is computed; an error of it stops the writing.
///
/// # Errors
///
/// Those of `out` and `before_each`; one that holds an [`Exception`] where an array cannot be computed; one that holds a
/// [`HeaderError`](crate::HeaderError) where the arrays cannot stand in one file.
pub fn write(
    out: &mut impl Write,
    metadata: &BTreeMap<String, String>,
    arrays: Vec<(String, Array)>,
    mut before_each: impl FnMut(&str) -> io::Result<()>,
) -> io::Result<()> {
    let shape = |array: &Array| array.shape().iter().map(|&size| size as usize).collect();
    let tensors = arrays.iter().map(|(key, array)| (key.clone(), Dtype::of(array.dtype()), shape(array)));
    out.write_all(&Header::new(metadata.clone(), tensors)?.to_bytes()?)?;
    for (key, array) in arrays {
        before_each(&key)?;
        with_bytes(&array, |bytes| out.write_all(bytes)).map_err(io::Error::other)??;
    }
    Ok(())
}
