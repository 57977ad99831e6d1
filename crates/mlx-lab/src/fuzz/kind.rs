//! What the parts of a fuzz run share: the kinds, settings, limits and outcomes of cases.

use std::path::PathBuf;
use std::time::Duration;

/// The memory limit; a case that uses more has a fault. The models are small: the largest case needs a
/// twentieth of this.
pub(super) const LARGEST_MEMORY: u64 = 3 << 30;

/// The kind of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Config,
    Generation,
    Tokenizer,
    TokenizerConfig,
    Template,
    Safetensors,
    Index,
    MlxLmAdapters,
    PeftAdapters,
    PromptCache,
    FileSystem,
    Gguf,
    Options,
    Several,
    Program,
}

impl Kind {
    pub(super) const ALL: [Self; 15] = [
        Self::Config,
        Self::Generation,
        Self::Tokenizer,
        Self::TokenizerConfig,
        Self::Template,
        Self::Safetensors,
        Self::Index,
        Self::MlxLmAdapters,
        Self::PeftAdapters,
        Self::PromptCache,
        Self::FileSystem,
        Self::Gguf,
        Self::Options,
        Self::Several,
        Self::Program,
    ];

    /// The kind of a case with this number: the kinds take turns, and those with the most to find come more
    /// often.
    pub(super) fn of(case: u64) -> Self {
        const MORE: [Kind; 4] = [Kind::Config, Kind::Tokenizer, Kind::Template, Kind::PromptCache];
        let place = (case % (Self::ALL.len() + MORE.len()) as u64) as usize;
        Self::ALL.get(place).copied().unwrap_or_else(|| MORE[place - Self::ALL.len()])
    }

    /// The kind with this name.
    pub(super) fn named(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|kind| kind.name() == name);
        found.ok_or_else(|| format!("known are {}", Self::ALL.map(Self::name).join(", ")))
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Generation => "generation config",
            Self::Tokenizer => "tokenizer",
            Self::TokenizerConfig => "tokenizer config",
            Self::Template => "chat template",
            Self::Safetensors => "safetensors",
            Self::Index => "index of shards",
            Self::MlxLmAdapters => "adapters of mlx-lm",
            Self::PeftAdapters => "adapters of PEFT",
            Self::PromptCache => "prompt cache",
            Self::FileSystem => "not a file",
            Self::Gguf => "GGUF",
            Self::Options => "options",
            Self::Several => "several files",
            Self::Program => "the program",
        }
    }
}

/// The outcome of a case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// There was a result.
    Accepted,
    /// There was an error, with this text.
    Refused(String),
    /// There was a fault.
    Fault(String),
}

/// What cases depend on besides their number.
pub(super) struct Settings {
    /// The seed of the cases.
    pub(super) seed: u64,
    /// The time limit of a case.
    pub(super) longest: Duration,
    /// The program `mlx-models`.
    pub(super) program: PathBuf,
}
