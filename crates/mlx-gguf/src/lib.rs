//! GGUF files: their metadata, their tensors, and the numbers of quantized tensors.
//!
//! API: usable without the rest of this workspace, and without MLX. A GGUF file holds a whole model: what the config and the
//! tokenizer of a checkpoint folder say is in its metadata, and its tensors are quantized in blocks, each tensor in a type of
//! its own ([`TensorType`]).
//!
//! | bytes | content |
//! |---|---|
//! | 4 | `GGUF` |
//! | 4 | the version: 2 or 3 |
//! | 8, 8 | the numbers of tensors and of metadata entries |
//! | | for each entry its key, type and value |
//! | | for each tensor its name, dimensions, type and place |
//! | | the bytes of the tensors, each at a multiple of `general.alignment` |
//!
//! ```no_run
//! use mlx_gguf::Gguf;
//!
//! let model = Gguf::open("gemma-3-270m-q4_k_m.gguf")?;
//! println!("{:?}", model.metadata().text("general.architecture")?);
//! for tensor in model.tensors() {
//!     println!("{} {:?} {}", tensor.info.name, tensor.info.shape, tensor.info.kind);
//! }
//! if let Some(norm) = model.tensor("output_norm.weight") {
//!     let weight: Vec<f32> = model.numbers(norm)?;
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`Writer`] writes such a file, and [`quantize`] makes blocks of numbers.
//!
//! A file may come from anywhere: sizes, counts, places and names are checked before they are used, and limits bound what is
//! read ([`MOST_TENSORS`] and so on).
//!
//! # Reference
//!
//! The format's description, <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

mod dequantize;
mod error;
mod file;
mod header;
mod metadata;
mod mixture;
pub mod model;
mod parallel;
mod quantize;
mod types;
mod value_type;
mod writer;

pub use dequantize::dequantize;
pub use error::{GgufError, Problem};
pub use file::{Gguf, Tensor};
pub use header::{LONGEST_LIST, LONGEST_TEXT, MOST_METADATA, MOST_TENSORS, TensorInfo};
pub use metadata::{Metadata, Texts, Value};
pub use mixture::FileKind;
pub use parallel::in_parallel;
pub use quantize::{QuantizeError, quantize};
pub use types::TensorType;
pub use writer::{NewTensor, WriteError, Writer};

/// Compiles the README's example.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
