//! Checkpoint folders.
//!
//! API for authors of architectures. A checkpoint is a folder as Hugging Face's transformers and mlx-lm write it:
//! `config.json`, and tensors in one or several safetensors files. [`Checkpoint::open`] reads the config and the headers
//! of the tensor files, but not the tensors. A model is then built from [`Checkpoint::tensors`], and
//! [`CheckpointTensors::finish`] reports every tensor that is missing, left over or wrongly shaped in one error.
//!
//! ```no_run
//! use mlx_checkpoint::Checkpoint;
//! use mlx_layers::{Linear, Parameters};
//!
//! # fn main() -> Result<(), mlx_checkpoint::CheckpointError> {
//! let checkpoint = Checkpoint::open("path/to/checkpoint")?;
//! let mut tensors = checkpoint.tensors()?;
//! let lm_head = Linear::new(Parameters::root(&mut tensors).at("lm_head"), 64, 256);
//! tensors.finish(|key| key.contains("rotary_emb"))?; // an error if any other tensor is left over
//! # Ok(())
//! # }
//! ```
//!
//! | to | use |
//! |---|---|
//! | build a model with [`Adapters`] | [`Checkpoint::with_adapters`] |
//! | build a model with its adapters added to the weights | [`Checkpoint::fused`] |
//! | build a model from a folder that AWQ, GPTQ, FP8 or compressed-tensors quantized | [`Checkpoint::open`] |
//! | build a model from files of another form | [`TensorSource`], [`Checkpoint::with_source`] |
//! | write a model as a checkpoint | [`Checkpoint::save_as`] |
//! | write a model quantized, in full precision or in another dtype | [`Checkpoint::convert`] |
//! | write a model as a GGUF file | [`Checkpoint::write_gguf`] |
//!
//! This crate knows layers by their keys and shapes. What is particular to a model comes from its architecture: the
//! tensors that it ignores ([`CheckpointTensors::finish`]), and the order and the names in which its tensors are written
//! ([`TensorNames`]).

mod adapters;
mod checkpoint;
mod convert;
mod error;
mod files;
mod forms;
mod gguf;
mod head;
mod import;
mod names;
mod quantization;
mod safetensors_file;
mod source;
mod tensor_files;
mod tensors;
mod text;
mod write;

pub use adapters::{AdapterConfig, AdapterKind, Adapters};
pub use checkpoint::Checkpoint;
pub use convert::{
    ConvertError, ConvertOptions, Converted, FloatDtype, GgufOptions, LayerChoice, QuantizeOptions, Recipe,
    Weights, WrittenGguf,
};
pub use error::{CheckpointError, TensorProblem};
pub use gguf::GgufLayers;
pub use mlx_safetensors::Dtype as TensorDtype;
pub use names::{Renaming, TensorNames};
pub use safetensors_file::TensorInfo;
pub use source::TensorSource;
pub use tensors::CheckpointTensors;
pub use write::Progress;

/// Compiles the README's example.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
