//! The headers of safetensors files.
//!
//! API: usable without the rest of this workspace, and without MLX unless the feature `mlx` is on. A safetensors file
//! is a header, which names the tensors, and then their bytes:
//!
//! | bytes | content |
//! |---|---|
//! | 8 | the length of the header, little-endian |
//! | that length | JSON: for each tensor its dtype, shape and the place of its bytes; texts under `__metadata__` |
//! | the rest | the bytes of the tensors, one tensor after another, without gaps |
//!
//! [`Header::read`] checks everything that can be checked without reading the tensors, so that a file may come from
//! anywhere. [`Header::new`] lays out tensors for a new file, and [`Header::to_bytes`] is what the file begins with.
//!
//! ```
//! use std::collections::BTreeMap;
//! use std::io::Write;
//!
//! use mlx_safetensors::{Dtype, Header};
//!
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("model.safetensors");
//! let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
//! let header = Header::new(metadata, [("bias".to_owned(), Dtype::F32, vec![2])])?;
//! let mut file = std::fs::File::create(&path)?;
//! file.write_all(&header.to_bytes()?)?;
//! file.write_all(&[0; 8])?; // two float32 zeros
//!
//! let header = Header::read(&std::fs::File::open(&path)?)?;
//! let (key, bias) = &header.tensors()[0];
//! assert_eq!((key.as_str(), bias.dtype, &bias.shape[..]), ("bias", Dtype::F32, &[2][..]));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! With the feature `mlx`, `arrays` turns bytes into arrays of MLX and writes arrays to a file.
//!
//! # Reference
//!
//! The format's description, <https://github.com/huggingface/safetensors>, section "Format".

#[cfg(feature = "mlx")]
pub mod arrays;
mod dtype;
mod error;
mod header;

pub use dtype::Dtype;
pub use error::HeaderError;
pub use header::{Header, LONGEST_HEADER, TensorInfo};

/// Compiles the README's example.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
