//! The options that name a model, and loading it, for every subcommand that computes with one.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use mlx_models::tokenizer::Tokenizer;
use mlx_models::{CausalLm, Checkpoint, LoadError, LoadOptions, LongRopeMode};

use crate::demo::Source;
use crate::failure::Failure;

/// Options that name a model.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct ModelArguments {
    /// Use this model: a checkpoint folder, a GGUF file, demo:NAME, or a Hub id (owner/name) [default: demo:lille-130m, which tells
    /// stories]
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: Option<Source>,
    /// Apply the adapters (LoRA, DoRA) in this folder, in the format of mlx-lm or PEFT
    #[arg(long, alias = "adapter-path", value_name = "DIR")]
    pub(crate) adapters: Option<PathBuf>,
    /// Choose LongRoPE's factors (Phi-3) by the length of the text, as the paper does, or always use the long factors, as
    /// mlx-lm does
    #[arg(long, value_name = "RULE", default_value = "by-length")]
    pub(crate) longrope: LongRope,
}

/// How LongRoPE chooses its factors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LongRope {
    #[default]
    ByLength,
    MlxLm,
}

impl From<LongRope> for LongRopeMode {
    fn from(rule: LongRope) -> Self {
        match rule {
            LongRope::ByLength => Self::ByLength,
            LongRope::MlxLm => Self::MlxLm,
        }
    }
}

/// A model and its tokenizer.
pub(crate) struct Loaded {
    pub(crate) model: Box<dyn CausalLm>,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) time: Duration,
}

impl ModelArguments {
    /// Loads the model and its tokenizer.
    pub(crate) fn load(self) -> Result<Loaded, Failure> {
        let (folder, options) = self.resolved()?;
        let started = Instant::now();
        // The cheap checks come first: whether the folder holds a model, then its tokenizer, before gigabytes are read.
        let checkpoint = Checkpoint::open(&folder).map_err(LoadError::from)?;
        let tokenizer = Tokenizer::open(&folder)?;
        let model = mlx_models::load_checkpoint(&checkpoint, &options)?;
        Ok(Loaded { model, tokenizer, time: started.elapsed() })
    }

    /// Loads the model without its tokenizer.
    pub(crate) fn load_model(self) -> Result<Box<dyn CausalLm>, Failure> {
        let (folder, options) = self.resolved()?;
        Ok(mlx_models::load_with(folder, &options)?)
    }

    /// The model's folder, which may have to be downloaded, and how it is loaded.
    pub(crate) fn resolved(self) -> Result<(PathBuf, LoadOptions), Failure> {
        let Self { model, adapters, longrope } = self;
        let options = LoadOptions { adapters, long_rope: longrope.into(), ..LoadOptions::default() };
        Ok((model.unwrap_or_default().folder()?, options))
    }
}
