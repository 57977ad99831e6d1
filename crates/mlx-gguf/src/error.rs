//! What can be wrong with a file.

use std::io;
use std::path::PathBuf;

use crate::types::unknown_name;

/// Why a GGUF file cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    /// The file cannot be read.
    #[error("{}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The content of the file is wrong.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: Problem,
    },
}

/// What is wrong with the content of a file.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The file does not begin with the four letters of the format.
    #[error("not a GGUF file: it does not begin with GGUF")]
    Magic,
    /// The numbers of the file have their highest byte first.
    #[error("a big-endian GGUF file; convert it with gguf-convert-endian of the Python package gguf")]
    BigEndian,
    /// A version of the format that is not read.
    #[error(
        "GGUF version {0}, and only versions 2 and 3 can be read; convert the model again with llama.cpp of today"
    )]
    Version(u32),
    /// The file ends inside of something.
    #[error("the file ends at byte {end}, inside of {inside}")]
    Truncated {
        /// What is not complete.
        inside: String,
        /// Bytes of the file.
        end: u64,
    },
    /// There is more of something than any model has.
    #[error("{found} {what}, and at most {most} can be read")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How much.
        found: u64,
        /// How much can be read.
        most: u64,
    },
    /// A text is not UTF-8.
    #[error("{inside} is not UTF-8")]
    Utf8 {
        /// The text.
        inside: String,
    },
    /// A metadata value has a type that the format does not know.
    #[error("metadata {key:.100}: value type {number} is unknown")]
    ValueType {
        /// The key.
        key: String,
        /// The type's number.
        number: u32,
    },
    /// An array of arrays.
    #[error("metadata {key:.100}: an array of arrays cannot be read")]
    Nested {
        /// The key.
        key: String,
    },
    /// A key or a tensor occurs twice.
    #[error("{what} {name:.100} occurs twice")]
    Twice {
        /// `metadata` or `tensor`.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// A metadata value is missing or is not what is needed.
    #[error("metadata {key:.100} is {found:.100}, and must be {needed}")]
    Metadata {
        /// The key.
        key: String,
        /// What there is.
        found: String,
        /// What is needed.
        needed: String,
    },
    /// A metadata key that the model needs.
    #[error("metadata {key:.100} is missing")]
    MissingKey {
        /// The key.
        key: String,
    },
    /// A tensor is stored in a type that is not read.
    #[error(
        "tensor {name:.100} has type {}; known are {}. Quantize the model to one of these",
        unknown_name(*number), known()
    )]
    TensorType {
        /// The tensor.
        name: String,
        /// The type's number.
        number: u32,
    },
    /// A tensor has no shape that its type can have.
    #[error("tensor {name:.100} has dimensions {dimensions:?}: {problem}")]
    Shape {
        /// The tensor.
        name: String,
        /// Its dimensions as the file has them, the fastest first.
        dimensions: Vec<u64>,
        /// What is wrong with them.
        problem: &'static str,
    },
    /// The place of a tensor's bytes is wrong.
    #[error("tensor {name:.100} has the bytes from {begin} on of the tensors: {problem}")]
    Place {
        /// The tensor.
        name: String,
        /// Where its bytes begin.
        begin: u64,
        /// What is wrong with it.
        problem: String,
    },
    /// An architecture that is not known.
    #[error("metadata general.architecture is {found:.100?}; known are {known}")]
    Architecture {
        /// The architecture; empty where the file names none.
        found: String,
        /// The architectures that are known.
        known: String,
    },
    /// A metadata key of the architecture that has no known meaning.
    #[error(
        "metadata {key:.100}: models of the architecture {architecture} have no such key, so what it changes is not known"
    )]
    UnknownKey {
        /// The key.
        key: String,
        /// The architecture.
        architecture: &'static str,
    },
    /// A tensor that models of the architecture do not have.
    #[error("tensor {name:.100}: models of the architecture {architecture} have no such tensor")]
    UnknownTensor {
        /// The tensor.
        name: String,
        /// The architecture.
        architecture: &'static str,
    },
    /// A tensor that the model needs.
    #[error("tensor {name} is missing")]
    MissingTensor {
        /// The tensor.
        name: String,
    },
    /// The factors of a rotation are wrong.
    #[error("tensor {name}: {problem}")]
    Factors {
        /// The tensor.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The parts of a model do not belong together.
    #[error("{0}")]
    Parts(String),
}

fn known() -> String {
    let names: Vec<String> = crate::TensorType::all().map(|kind| kind.to_string()).collect();
    names.join(", ")
}
