//! The architectures that models are loaded with.

use std::ops::ControlFlow;
use std::path::Path;

use mlx_causal_lm::{Architecture, CausalLm, LoadError, LoadOptions};
use mlx_checkpoint::{Adapters, Checkpoint, ConvertOptions, Converted, GgufLayers, Progress, Weights};
use mlx_files::without_source_place;
use mlx_rs::transforms::eval_params;

use crate::FuseOptions;
#[cfg(feature = "tokenizer")]
use crate::{FileKind, GgufOptions, WriteGgufError, WrittenGguf};

/// The architectures that models are loaded with: those of this build, and [your own](Self::with).
///
/// An architecture of your own implements [`CausalLm`], for example with the components of the architectures here:
/// `mlx-layers`, `mlx-norms`, `mlx-rope`, `mlx-kvcache`. Everything that takes a model then works with it.
///
/// ```no_run
/// use mlx_models::{Architecture, Architectures, LoadError, TensorNames};
/// # fn load_mine(
/// #     _: &mlx_models::Checkpoint,
/// #     _: &mlx_models::LoadOptions,
/// # ) -> Result<Box<dyn mlx_models::CausalLm>, LoadError> {
/// #     Err(LoadError::config("mine", std::fmt::Error))
/// # }
///
/// # fn main() -> Result<(), LoadError> {
/// // `load_mine` makes the model of a checkpoint.
/// let mine = Architecture {
///     model_types: &["mine"],
///     name: "Mine",
///     released: &[],
///     load: load_mine,
///     names: TensorNames::default(),
/// };
/// let model = Architectures::default().with(mine).load("path/to/checkpoint")?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default)]
pub struct Architectures {
    /// The newest last.
    own: Vec<Architecture>,
}

impl Architectures {
    /// Adds an architecture of your own. It is used for all of its `model_type`s, also for those that an earlier one or one
    /// of this project has.
    #[must_use]
    pub fn with(mut self, architecture: Architecture) -> Self {
        self.own.push(architecture);
        self
    }

    /// Every `model_type` that is known, compiled in or not.
    pub fn model_types(&self) -> Vec<&'static str> {
        let mut all: Vec<&'static str> = Vec::new();
        let own = self.own.iter().map(|architecture| architecture.model_types);
        for model_type in TABLE.iter().map(|row| row.model_types).chain(own).flatten() {
            if !all.contains(model_type) {
                all.push(model_type);
            }
        }
        all
    }

    /// [`load`](crate::load) with these architectures.
    ///
    /// # Errors
    ///
    /// Those of [`load`](crate::load).
    pub fn load(&self, folder: impl AsRef<Path>) -> Result<Box<dyn CausalLm>, LoadError> {
        self.load_with(folder, &LoadOptions::default())
    }

    /// [`load_with`](crate::load_with) with these architectures.
    ///
    /// # Errors
    ///
    /// Those of [`load`](crate::load).
    pub fn load_with(
        &self,
        folder: impl AsRef<Path>,
        options: &LoadOptions,
    ) -> Result<Box<dyn CausalLm>, LoadError> {
        self.load_checkpoint(&Checkpoint::open(folder)?, options)
    }

    /// [`load_checkpoint`](crate::load_checkpoint) with these architectures.
    ///
    /// # Errors
    ///
    /// Those of [`load`](crate::load).
    pub fn load_checkpoint(
        &self,
        checkpoint: &Checkpoint,
        options: &LoadOptions,
    ) -> Result<Box<dyn CausalLm>, LoadError> {
        let architecture = self.architecture_of(checkpoint)?;
        let model = match &options.adapters {
            None => (architecture.load)(checkpoint, options),
            Some(adapters) => {
                (architecture.load)(&checkpoint.clone().with_adapters(Adapters::open(adapters)?), options)
            }
        }
        .map_err(|error| error.of_checkpoint(checkpoint))?;
        if !options.lazy {
            eval_params(model.parameters())
                .map_err(|e| LoadError::Weights { problem: without_source_place(&e.to_string()) })?;
        }
        Ok(model)
    }

    /// [`fuse`](crate::fuse()) with these architectures.
    ///
    /// # Errors
    ///
    /// Those of [`fuse`](crate::fuse()).
    pub fn fuse(
        &self,
        folder: impl AsRef<Path>,
        adapters: impl AsRef<Path>,
        out: impl AsRef<Path>,
        options: &FuseOptions,
    ) -> Result<(), LoadError> {
        let adapters = Adapters::open(adapters)?;
        let layers = if options.dequantize { GgufLayers::Dequantized } else { GgufLayers::Mlx };
        let checkpoint = with_tokenizer(Checkpoint::open_with(folder, layers)?);
        let checkpoint = checkpoint.with_adapters(adapters).fused(options.dequantize);
        let model = self.load_checkpoint(&checkpoint, &lazily())?;
        let names = self.architecture_of(&checkpoint)?.names;
        Ok(checkpoint.save_as(out, model.parameters().flatten(), &names)?)
    }

    /// [`convert`](crate::convert()) with these architectures.
    ///
    /// # Errors
    ///
    /// Those of [`convert`](crate::convert()).
    pub fn convert(
        &self,
        folder: impl AsRef<Path>,
        adapters: Option<&Path>,
        out: impl AsRef<Path>,
        options: &ConvertOptions,
        progress: impl FnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<Converted, LoadError> {
        let layers = match options.weights {
            Weights::Kept => GgufLayers::Mlx,
            Weights::Quantized(_) | Weights::Dequantized => GgufLayers::Dequantized,
        };
        let mut checkpoint = with_tokenizer(Checkpoint::open_with(folder, layers)?);
        if let Some(adapters) = adapters {
            let dequantize = matches!(options.weights, Weights::Dequantized);
            checkpoint = checkpoint.with_adapters(Adapters::open(adapters)?).fused(dequantize);
        }
        let model = self.load_checkpoint(&checkpoint, &lazily())?;
        let parameters = model.parameters().flatten();
        let parameters =
            parameters.into_iter().map(|(key, array)| (key.to_string(), array.clone())).collect();
        drop(model);
        let names = self.architecture_of(&checkpoint)?.names;
        Ok(checkpoint.convert(out, parameters, &names, options, progress)?)
    }

    /// [`write_gguf`](crate::write_gguf()) with these architectures.
    ///
    /// # Errors
    ///
    /// Those of [`write_gguf`](crate::write_gguf()).
    #[cfg(feature = "tokenizer")]
    pub fn write_gguf(
        &self,
        path: impl AsRef<Path>,
        adapters: Option<&Path>,
        out: impl AsRef<Path>,
        kind: FileKind,
        name: Option<String>,
        progress: impl FnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<WrittenGguf, WriteGgufError> {
        let path = path.as_ref();
        let mut checkpoint = Checkpoint::open_with(path, GgufLayers::Dequantized).map_err(LoadError::from)?;
        if let Some(adapters) = adapters {
            let adapters = Adapters::open(adapters).map_err(LoadError::from)?;
            checkpoint = checkpoint.with_adapters(adapters).fused(true);
        }
        let model = self.load_checkpoint(&checkpoint, &lazily())?;
        let parameters = model.parameters().flatten();
        let parameters =
            parameters.into_iter().map(|(key, array)| (key.to_string(), array.clone())).collect();
        let (rows, digest) = (model.info().vocab_size as usize, model.info().config_digest.clone());
        drop(model);
        let tokenizer = mlx_tokenizer::Tokenizer::open(path)?.gguf_metadata(path, rows)?;
        let options = GgufOptions { kind, name, tokenizer };
        let is_same = |meant: Checkpoint| {
            let meant = self.load_checkpoint(&meant, &lazily());
            meant.is_ok_and(|meant| meant.info().config_digest == digest)
        };
        let written = checkpoint.write_gguf(out, parameters, &options, is_same, progress);
        Ok(written.map_err(LoadError::from)?)
    }

    fn architecture_of(&self, checkpoint: &Checkpoint) -> Result<Architecture, LoadError> {
        let model_type = checkpoint.model_type();
        let is_for_it = |architecture: &&Architecture| architecture.model_types.contains(&model_type);
        if let Some(own) = self.own.iter().rev().find(is_for_it) {
            return Ok(*own);
        }
        let row = TABLE.iter().find(|row| row.model_types.contains(&model_type));
        let row = row.ok_or_else(|| LoadError::UnknownModelType {
            found: model_type.chars().take(100).collect(),
            known: self.model_types(),
        })?;
        row.compiled_in.ok_or_else(|| LoadError::NotCompiledIn {
            model_type: model_type.to_owned(),
            feature: row.feature,
        })
    }
}

/// The checkpoint with the files of its tokenizer, where it is a GGUF file. Without them the written folder has no tokenizer,
/// which is a warning: the model itself is whole.
fn with_tokenizer(checkpoint: Checkpoint) -> Checkpoint {
    if checkpoint.path().is_dir() {
        return checkpoint;
    }
    #[cfg(feature = "tokenizer")]
    let files = mlx_tokenizer::Tokenizer::open(checkpoint.path()).and_then(|tokenizer| tokenizer.files());
    #[cfg(not(feature = "tokenizer"))]
    let files = Err::<Vec<_>, _>("this build lacks the feature tokenizer");
    match files {
        Ok(files) => checkpoint.with_companions(files),
        Err(problem) => {
            let path = checkpoint.path().display();
            tracing::warn!("{path}: the folder is written without a tokenizer, since {problem}");
            checkpoint
        }
    }
}

/// The options for writing a model: all of its weights at once may not fit into memory.
fn lazily() -> LoadOptions {
    LoadOptions { lazy: true, ..LoadOptions::default() }
}

/// An architecture of this project, compiled into this build or not.
#[derive(Debug, Clone, Copy)]
pub struct KnownArchitecture {
    /// The values of a config's `model_type` that name it.
    pub model_types: &'static [&'static str],
    /// The feature of `mlx-models` that compiles it in.
    pub feature: &'static str,
    /// `None` where this feature is off.
    pub compiled_in: Option<Architecture>,
}

/// The architectures of this project, compiled in or not.
pub fn known_architectures() -> &'static [KnownArchitecture] {
    TABLE
}

/// Makes [`TABLE`] from lines of the form `"feature" => the architecture's constant, ["model_type", ..]`.
macro_rules! table {
    ($($feature:literal => $architecture:path, [$($model_type:literal),+];)+) => {
        const TABLE: &[KnownArchitecture] = &[$(KnownArchitecture {
            model_types: &[$($model_type),+],
            feature: $feature,
            compiled_in: {
                #[cfg(feature = $feature)]
                { Some($architecture) }
                #[cfg(not(feature = $feature))]
                { None }
            },
        }),+];
    };
}

table! {
    "gemma2" => mlx_gemma2::ARCHITECTURE, ["gemma2"];
    "gemma3" => mlx_gemma3::ARCHITECTURE, ["gemma3_text", "gemma3"];
    "granite" => mlx_granite::ARCHITECTURE, ["granite"];
    "lille-130m" => mlx_lille_130m::ARCHITECTURE, ["lille-130m"];
    "llama" => mlx_llama::ARCHITECTURE, ["llama", "mistral"];
    "ministral3" => mlx_ministral3::ARCHITECTURE, ["ministral3", "mistral3"];
    "olmo2" => mlx_olmo2::ARCHITECTURE, ["olmo2"];
    "olmo3" => mlx_olmo3::ARCHITECTURE, ["olmo3"];
    "phi3" => mlx_phi3::ARCHITECTURE, ["phi3"];
    "qwen2" => mlx_qwen2::ARCHITECTURE, ["qwen2"];
    "qwen3" => mlx_qwen3::ARCHITECTURE, ["qwen3"];
    "smollm3" => mlx_smollm3::ARCHITECTURE, ["smollm3"];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_what_the_architectures_say() {
        for row in TABLE {
            if let Some(architecture) = row.compiled_in {
                assert_eq!(architecture.model_types, row.model_types, "{}", row.feature);
            }
        }
    }
}
