//! Language models on MLX: one facade over one crate per architecture.
//!
//! API. [`load`] loads a model from a checkpoint folder that transformers or mlx-lm wrote. Cargo features choose the
//! architectures: a build with one of them compiles nothing of the others. The features `generate` and `tokenizer` add
//! the decode loop and the conversion between text and token ids.
//!
//! | feature | adds |
//! |---|---|
//! | `gemma2` | the architecture Gemma 2 (`model_type` `gemma2`) |
//! | `gemma3` | the architecture Gemma 3 (`model_type` `gemma3_text`, and the language model of `gemma3`) |
//! | `granite` | the architecture Granite (`model_type` `granite`) |
//! | `lille-130m` | the architecture Lille-130M (`model_type` `lille-130m`) |
//! | `llama` | the architecture Llama (`model_type` `llama` and `mistral`) |
//! | `ministral3` | the architecture Ministral 3 (`model_type` `ministral3`, and the language model of `mistral3`) |
//! | `olmo2` | the architecture OLMo 2 (`model_type` `olmo2`) |
//! | `olmo3` | the architecture OLMo 3 (`model_type` `olmo3`) |
//! | `phi3` | the architecture Phi-3 (`model_type` `phi3`) |
//! | `qwen2` | the architecture Qwen 2 (`model_type` `qwen2`) |
//! | `qwen3` | the architecture Qwen 3 (`model_type` `qwen3`) |
//! | `smollm3` | the architecture SmolLM3 (`model_type` `smollm3`) |
//! | `architectures` | all of the above |
//! | `generate` | the module `generate`: prefill, decode loop, sampling |
//! | `tokenizer` | the module `tokenizer`: text to token ids and back, chat templates |
//! | `generate` and `tokenizer` | the module `text`: tokens with their text, stop strings |
//!
//! No feature is on by default.
//!
#![cfg_attr(
    all(feature = "generate", feature = "tokenizer"),
    doc = r#"
```no_run
use mlx_models::generate::{GenerateOptions, Session, generate};
use mlx_models::tokenizer::Tokenizer;
use mlx_models::{CacheOptions, text};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut model = mlx_models::load("path/to/checkpoint")?;
    let tokenizer = Tokenizer::from_folder("path/to/checkpoint")?;
    let prompt = tokenizer.encode("Once upon a time")?;
    let mut session = Session::new(model.new_cache(&CacheOptions::default())?);
    let options = GenerateOptions::new(tokenizer.stop_tokens());
    let tokens = generate(&mut *model, &mut session, &prompt, options)?;
    for piece in text::with_text(tokens, &tokenizer).stop_at(["The end"])? {
        print!("{}", piece?.text);
    }
    Ok(())
}
```

# Where to find what

| for | use |
|---|---|
| tokens one by one, with their text | [`generate::generate`], [`text::with_text`] |
| many users at once | [`text::TextBatch`], on [`generate::Batch`] |
| a conversation that keeps its cache, a cache in a file | [`generate::Session`], with `turn_to`, `save` and `load` |
| several tokens per call of the model | [`generate::generate_speculative`] |
| hidden states: of the last layer, for embeddings, or of every layer | [`generate::Session::hidden_states`]; [`trace`] for the output of every part of a model |
| a rule of your own about which tokens come next | [`generate::LogitsProcessor`] |
| a tokenizer of your own | [`tokenizer::Tokenizer::from_vocabulary`] |
| an architecture of your own | [`Architectures::with`] |
| the GPU or the CPU | [`device::select`] |

```no_run
# use mlx_models::CacheOptions;
# use mlx_models::generate::Session;
# use mlx_models::tokenizer::Tokenizer;
# fn main() -> Result<(), Box<dyn std::error::Error>> {
# let mut model = mlx_models::load("path/to/checkpoint")?;
# let tokenizer = Tokenizer::from_folder("path/to/checkpoint")?;
let ids = tokenizer.encode("A text to embed")?;
let tokens = mlx_rs::Array::from_slice(&ids, &[1, ids.len() as i32]); // [B, L]
let mut session = Session::new(model.new_cache(&CacheOptions::default())?);
let states = session.hidden_states(&mut *model, &tokens)?;
let embedding = states.last.mean_axis(1, false)?; // [B, D], the mean over the text
let after_block_3 = &states.layers[4]; // [B, L, D]; the first of the layers is the embedded tokens
# Ok(())
# }
```
"#
)]

use std::ops::ControlFlow;
use std::path::Path;

pub use architectures::{Architectures, KnownArchitecture, known_architectures};
pub use mlx_causal_lm::{
    Architecture, CausalLm, LoadError, LoadOptions, Logits, LongRopeMode, ModelInfo, Rotation, Traced,
    made_by, trace,
};
pub use mlx_checkpoint::{
    AdapterConfig, AdapterKind, Adapters, Checkpoint, CheckpointError, ConvertError, ConvertOptions,
    Converted, FloatDtype, GgufLayers, GgufOptions, LayerChoice, Progress, QuantizeOptions, Recipe,
    TensorNames, TensorProblem, Weights, WrittenGguf,
};
pub use mlx_gguf::FileKind;
pub use mlx_kvcache::{
    CacheError, CacheFileError, CacheOptions, KvCache, LayerKind, LayerSpec, Limit, MadeBy, ModelCache,
    Quantization, SavedCache, UnknownQuantization, check_destination,
};

mod architectures;
pub mod device;
#[cfg(all(feature = "generate", feature = "tokenizer"))]
pub mod text;

#[cfg(feature = "generate")]
pub use mlx_generate as generate;
#[cfg(feature = "tokenizer")]
pub use mlx_tokenizer as tokenizer;

/// Every `model_type` that this project knows, compiled in or not.
pub fn known_model_types() -> Vec<&'static str> {
    Architectures::default().model_types()
}

/// Loads the model of a checkpoint folder and reads its weights, so that it can be sent to another thread.
///
/// # Errors
///
/// A [`LoadError`] that names the folder, file, key or tensor at fault, or the feature that this build lacks.
pub fn load(folder: impl AsRef<Path>) -> Result<Box<dyn CausalLm>, LoadError> {
    load_with(folder, &LoadOptions::default())
}

/// [`load`] with options. With [`LoadOptions::lazy`] the weights are read from disk when they are first used, so that even a
/// large model loads at once and in little memory.
///
/// # Errors
///
/// Those of [`load`].
pub fn load_with(folder: impl AsRef<Path>, options: &LoadOptions) -> Result<Box<dyn CausalLm>, LoadError> {
    Architectures::default().load_with(folder, options)
}

/// [`load_with`] for a checkpoint that is already open. Adapters in the options replace those of the checkpoint.
///
/// # Errors
///
/// Those of [`load`].
pub fn load_checkpoint(
    checkpoint: &Checkpoint,
    options: &LoadOptions,
) -> Result<Box<dyn CausalLm>, LoadError> {
    Architectures::default().load_checkpoint(checkpoint, options)
}

/// How [`fuse`] writes a model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FuseOptions {
    /// Writes every layer in full precision. Otherwise a quantized layer with an adapter is quantized again in the same way.
    pub dequantize: bool,
}

/// Adds adapters to the weights of a checkpoint, and writes a checkpoint folder that loads without them.
///
/// The weights are those of mlx-lm's `fuse`, bit for bit. `out` must not exist; it appears when it is complete. The
/// tokenizer's files are copied into it.
///
/// # Errors
///
/// Those of [`load_with`], and [`CheckpointError::Exists`] and [`CheckpointError::Write`] for `out`.
pub fn fuse(
    folder: impl AsRef<Path>,
    adapters: impl AsRef<Path>,
    out: impl AsRef<Path>,
    options: &FuseOptions,
) -> Result<(), LoadError> {
    Architectures::default().fuse(folder, adapters, out, options)
}

/// Writes the model of a checkpoint in another form: quantized, in full precision, of another dtype, with adapters
/// added to its weights.
///
/// The tensors are those of mlx-lm's `convert`, bit for bit (after its `fuse`, where there are adapters), and mlx-lm loads
/// them. `out` must be absent or empty; it appears when it is complete. The tokenizer's files are copied into it. The
/// weights are computed layer by layer while they are written; only adapters are added to all layers first. `progress` is
/// called for each layer and returns whether to continue.
///
/// # Errors
///
/// Those of [`load_with`] and of [`Checkpoint::convert`].
pub fn convert(
    folder: impl AsRef<Path>,
    adapters: Option<&Path>,
    out: impl AsRef<Path>,
    options: &ConvertOptions,
    progress: impl FnMut(Progress<'_>) -> ControlFlow<()>,
) -> Result<Converted, LoadError> {
    Architectures::default().convert(folder, adapters, out, options, progress)
}

/// Writes the model of a checkpoint as a GGUF file for llama.cpp, with adapters added to its weights where there are any. `name` is the
/// name of the model in the file.
///
/// The file's tensors are those that llama.cpp's own programs make of the same weights, byte for byte. It appears at `out`, where nothing
/// may be, when it is complete. `progress` is called for each tensor and returns whether to continue.
///
/// # Errors
///
/// [`WriteGgufError`]: those of [`load_with`] and of [`Checkpoint::write_gguf`], and of the tokenizer.
#[cfg(feature = "tokenizer")]
pub fn write_gguf(
    path: impl AsRef<Path>,
    adapters: Option<&Path>,
    out: impl AsRef<Path>,
    kind: FileKind,
    name: Option<String>,
    progress: impl FnMut(Progress<'_>) -> ControlFlow<()>,
) -> Result<WrittenGguf, WriteGgufError> {
    Architectures::default().write_gguf(path, adapters, out, kind, name, progress)
}

/// Why a GGUF file was not written.
#[cfg(feature = "tokenizer")]
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteGgufError {
    /// The checkpoint, or the file.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] tokenizer::TokenizerError),
}

/// Compiles the example of this crate's README.
#[cfg(all(doctest, feature = "generate", feature = "tokenizer"))]
#[doc = include_str!("../README.md")]
struct Readme;

/// Compiles the example of the repository's README.
#[cfg(all(doctest, feature = "generate", feature = "tokenizer"))]
#[doc = include_str!("../../../README.md")]
struct RepositoryReadme;

/// Compiles the example of `docs/models.md`.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/models.md")]
struct ModelsDocument;

/// Runs the examples of `docs/adapters.md`.
#[cfg(all(doctest, feature = "gemma3"))]
#[doc = include_str!("../../../docs/adapters.md")]
struct AdaptersDocument;

#[cfg(test)]
mod tests {
    use super::*;

    fn folder_of(model_type: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), format!(r#"{{"model_type": "{model_type}"}}"#))
            .unwrap();
        // A safetensors file with no tensors: the length of the header, and the header.
        std::fs::write(folder.path().join("model.safetensors"), b"\x02\0\0\0\0\0\0\0{}").unwrap();
        folder
    }

    #[test]
    fn an_unknown_model_type_lists_the_known() {
        let error = load(folder_of("mamba").path()).unwrap_err();
        assert!(matches!(error, LoadError::UnknownModelType { .. }));
        assert!(
            error.to_string().contains("\"mamba\"") && error.to_string().contains("lille-130m"),
            "{error}"
        );
    }

    #[test]
    #[cfg(not(feature = "lille-130m"))]
    fn an_architecture_that_is_not_compiled_in_names_its_feature() {
        let error = load(folder_of("lille-130m").path()).unwrap_err();
        assert!(matches!(error, LoadError::NotCompiledIn { feature: "lille-130m", .. }), "{error}");
        assert!(error.to_string().contains("feature `lille-130m`"), "{error}");
    }

    #[test]
    #[cfg(feature = "lille-130m")]
    fn a_missing_folder_of_adapters_is_an_error() {
        let folder = folder_of("lille-130m");
        let options = LoadOptions { adapters: Some(folder.path().join("gone")), ..LoadOptions::default() };
        let out = folder.path().join("out");
        for error in [
            load_with(folder.path(), &options).unwrap_err(),
            fuse(folder.path(), folder.path().join("gone"), &out, &FuseOptions::default()).unwrap_err(),
        ] {
            assert!(
                matches!(error, LoadError::Checkpoint(CheckpointError::NoAdapterFolder { .. })),
                "{error:?}"
            );
        }
        assert!(!out.exists());
    }

    #[test]
    #[cfg(feature = "lille-130m")]
    fn an_architecture_that_is_compiled_in_reads_its_config() {
        let error = load(folder_of("lille-130m").path()).unwrap_err();
        assert!(matches!(error, LoadError::Checkpoint(CheckpointError::Config { .. })), "{error:?}");
    }
}
