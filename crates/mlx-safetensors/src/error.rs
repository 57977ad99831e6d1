//! What can be wrong with a header.

use std::io;

/// Why a file has no header that can be trusted, or why tensors cannot be written under one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// The file cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The file is shorter than the number that every safetensors file begins with.
    #[error("it has {size} bytes, and the length of the header alone takes 8")]
    TooShort {
        /// Bytes of the file.
        size: u64,
    },
    /// The header would be longer than the file, or than any header may be.
    #[error("its header would have {length} bytes, and the file has {size}")]
    Length {
        /// Bytes of the header, as its length says.
        length: u64,
        /// Bytes of the file.
        size: u64,
    },
    /// The header is not JSON of the form that the format asks for.
    #[error("its header cannot be read: {0}")]
    Json(#[source] serde_json::Error),
    /// The bytes of a tensor do not begin where those of the tensor before it end.
    #[error("{key} begins at byte {begin} of the tensors, and must begin at byte {expected}")]
    Place {
        /// The tensor's key.
        key: String,
        /// Where its bytes begin.
        begin: u64,
        /// Where they must begin.
        expected: u64,
    },
    /// A tensor has more or fewer bytes than its elements take.
    #[error("{key} does not fill the bytes {begin}..{end} that it is given")]
    Size {
        /// The tensor's key.
        key: String,
        /// Where its bytes begin.
        begin: u64,
        /// Where they end.
        end: u64,
    },
    /// An axis of a tensor is longer than a signed number of 32 bits can say, as which MLX counts.
    #[error("{key} has shape {shape:?}, beyond what MLX can index")]
    Shape {
        /// The tensor's key.
        key: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// More or fewer bytes follow the header than the tensors take.
    #[error("its tensors take {expected} bytes, and {found} follow the header")]
    Data {
        /// Bytes of all tensors.
        expected: u64,
        /// Bytes after the header.
        found: u64,
    },
    /// Two tensors for a new file have one key, or a tensor has the key of the metadata.
    #[error("a file cannot hold two entries of the key {key}")]
    Twice {
        /// The key.
        key: String,
    },
}
