//! The contract between an architecture and a runtime.
//!
//! API for authors of architectures and of runtimes. An architecture implements [`CausalLm`] and
//! publishes an [`Architecture`]; a runtime (a token loop, a server, a parity check) uses them and
//! never names a model.

mod origin;
mod trace;

use std::fmt::Debug;
use std::path::PathBuf;

use mlx_checkpoint::{Checkpoint, CheckpointError};
use mlx_kvcache::{CacheError, CacheOptions, LayerKind, LayerSpec, ModelCache};
pub use mlx_rope::LongRopeMode;
use mlx_rs::error::Exception;
use mlx_rs::module::ModuleParameters;
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::{Array, Dtype};
pub use origin::{digest, made_by};
pub use trace::{Traced, trace};

/// Which positions of a call need logits.
///
/// The head, a product with the whole vocabulary, is often the largest layer of a model, and most
/// positions of a prompt do not need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Logits {
    /// Every position: for perplexity, training and parity.
    All,
    /// The last position: for the next token.
    Last,
    /// No position: for all but the last piece of a prompt.
    None,
}

/// A decoder-only language model.
///
/// Its parameters, by their keys in a checkpoint, come with [`ModuleParameters`]: a runtime that
/// wants the weights in memory before the first token evaluates them.
///
/// # Shapes
///
/// Legend: B batch, L tokens of this call, D features, V vocabulary.
pub trait CausalLm: ModuleParameters + Debug + Send {
    /// Reads the next tokens, int32 or uint32 `[B, L]`, and answers with the features `[B, L, D]`
    /// that the head works on. The keys and values of the tokens go into the cache.
    ///
    /// Token ids must lie inside the vocabulary: they stay on the device, so this is the caller's
    /// to check, where they come from (`Session` of `mlx-generate` does). An id outside of it is read as the first
    /// or the last of the vocabulary: an answer without meaning, and no memory that is not the model's.
    ///
    /// # Errors
    ///
    /// Where the tokens have not two axes or the cache belongs to another model or batch.
    fn hidden_states(&mut self, tokens: &Array, cache: &mut ModelCache) -> Result<Array, Exception>;

    /// The head: features `[B, L, D]` to logits `[B, L, V]`.
    ///
    /// # Errors
    ///
    /// Where the last axis is not D long.
    fn head(&mut self, hidden: &Array) -> Result<Array, Exception>;

    /// Facts about the model.
    fn info(&self) -> &ModelInfo;

    /// Whether keys that were cached while the sequence had `a` tokens serve one of `b` tokens.
    ///
    /// They do unless the rotation depends on the length of the sequence and there is a border between the
    /// two lengths (LongRoPE). A runtime that comes over it, on whichever side it started, has to read the
    /// sequence again; `Session` of `mlx-generate` does.
    fn rotates_alike(&self, _a: i32, _b: i32) -> bool {
        true
    }

    /// Whether LongRoPE's short factors hold for a sequence of so many `tokens`; no for all other rotations.
    fn has_short_factors_at(&self, _tokens: i32) -> bool {
        false
    }

    /// Why mlx-lm's model of this type computes other keys and values for a sequence of so many `tokens`, as the end of
    /// a sentence; none where it computes the same, which is the rule. Caches of the two cannot be exchanged then.
    fn unlike_mlx_lm(&self, tokens: i32) -> Option<String> {
        let ModelInfo { unlike_mlx_lm, layers, .. } = self.info();
        if let Some(reason) = unlike_mlx_lm.rotation {
            return Some(reason.to_owned());
        }
        if self.has_short_factors_at(tokens) {
            let reason = "mlx-lm rotates with LongRoPE's long factors at every length, this model with the short ones; \
                          make it again, or load the model with mlx-lm's rotation (`--longrope mlx-lm`)";
            return Some(reason.to_owned());
        }
        let windows = layers.iter().filter_map(|layer| match layer.kind {
            LayerKind::Sliding { window } => Some(window),
            LayerKind::Full => None,
        });
        let window = windows.min().filter(|&window| unlike_mlx_lm.ignores_windows && tokens > window)?;
        Some(format!(
            "mlx-lm does not apply this model's window of {window} tokens, so that its keys and values behind more \
             tokens are other ones; make it again"
        ))
    }

    /// An empty cache for this model.
    ///
    /// # Errors
    ///
    /// Where the options contradict each other or the model's heads; the defaults fit every model.
    fn new_cache(&self, options: &CacheOptions) -> Result<ModelCache, CacheError> {
        ModelCache::for_layers(&self.info().layers, options)
    }

    /// Reads the next tokens, `[B, L]`, and answers with the logits that were asked for: `[B, L, V]`
    /// for [`Logits::All`], `[B, 1, V]` for [`Logits::Last`], `[B, 0, V]` for [`Logits::None`].
    ///
    /// # Errors
    ///
    /// Those of [`hidden_states`](Self::hidden_states).
    fn forward(
        &mut self,
        tokens: &Array,
        cache: &mut ModelCache,
        logits: Logits,
    ) -> Result<Array, Exception> {
        let hidden = self.hidden_states(tokens, cache)?;
        let hidden = match logits {
            Logits::All => hidden,
            Logits::Last => hidden.try_index((.., -1.., ..))?,
            Logits::None => {
                let batch = hidden.dim(0);
                return mlx_rs::ops::zeros_dtype(&[batch, 0, self.info().vocab_size], hidden.dtype());
            }
        };
        let logits = self.head(&hidden)?;
        mlx_tap::step("logits", &logits);
        Ok(logits)
    }
}

/// Facts about a model that a runtime needs.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelInfo {
    /// The `model_type` of the checkpoint's config.
    pub model_type: String,
    /// Token ids are below this.
    pub vocab_size: i32,
    /// The longest sequence that the model was made for, in tokens.
    pub context_length: i32,
    /// What each layer asks of its cache, first layer first.
    pub layers: Vec<LayerSpec>,
    /// The dtype of activations, and so of logits and of the cache: float32, float16 or bfloat16.
    pub dtype: Dtype,
    /// A [`digest`] of what its config says and keys and values depend on.
    pub config_digest: String,
    /// What its adapters are besides their arrays, such as their scale: what the source of its parameters answers
    /// (`ParameterSource::adapter_settings` of `mlx-layers`). None without adapters.
    pub adapter_settings: Option<String>,
    /// What mlx-lm's model does otherwise.
    pub unlike_mlx_lm: UnlikeMlxLm,
}

/// What mlx-lm 0.32.2 does otherwise with the checkpoint of a model, so that its keys and values are other ones: see
/// [`CausalLm::unlike_mlx_lm`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UnlikeMlxLm {
    /// Why it rotates otherwise, as the end of a sentence.
    pub rotation: Option<&'static str>,
    /// Whether it reads all tokens in layers that have a window.
    pub ignores_windows: bool,
}

impl ModelInfo {
    /// Bytes that the cache keeps for each token, over all layers, while no window is full.
    pub fn cache_bytes_per_token(&self) -> usize {
        let bytes = match self.dtype {
            Dtype::Float16 | Dtype::Bfloat16 => 2,
            _ => 4,
        };
        self.layers.iter().map(LayerSpec::values_per_token).sum::<usize>() * bytes
    }
}

/// The dtype that the activations of a model take on: the one that all of its floating parameters
/// promote to. A single float32 norm makes everything after it float32.
///
/// Adapters do not count, since what they change is rounded to the dtype of what they change; but for DoRA's of
/// an embedding, whose rows are float32 from there on.
pub fn activation_dtype(model: &impl ModuleParameters) -> Dtype {
    let promote = |a: Dtype, b: Dtype| if a == b { a } else { Dtype::Float32 };
    let parameters = model.parameters().flatten();
    let counts = |key: &str| match key.rsplit_once('.') {
        Some((layer, "lora_a")) => {
            is_embedding_of_dora(|leaf| parameters.get(&*format!("{layer}.{leaf}")).copied())
        }
        Some((_, "lora_b" | "m")) => false,
        _ => true,
    };
    let dtypes = parameters.iter().filter(|(key, _)| counts(key)).map(|(_, parameter)| parameter.dtype());
    let floats = dtypes.filter(|dtype| matches!(dtype, Dtype::Float32 | Dtype::Float16 | Dtype::Bfloat16));
    floats.reduce(promote).unwrap_or(Dtype::Float32)
}

/// Whether an adapter is DoRA's and its magnitudes are those of the tokens, along which `lora_a` is as long.
fn is_embedding_of_dora<'a>(leaf: impl Fn(&str) -> Option<&'a Array>) -> bool {
    let (Some(a), Some(b), Some(m)) = (leaf("lora_a"), leaf("lora_b"), leaf("m")) else { return false };
    m.dim(0) == a.dim(0) && m.dim(0) != b.dim(-1)
}

/// Why a checkpoint did not become a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The folder, its config or its tensors.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A config that was read but describes no model of its architecture.
    #[error("config.json of {model_type}")]
    Config {
        /// The architecture.
        model_type: String,
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// MLX could not read the weights.
    #[error("reading the weights: {problem}")]
    Weights {
        /// What MLX says.
        problem: String,
    },
    /// No architecture is known for this `model_type`.
    #[error("unknown model_type {found:?}; known are {}", known.join(", "))]
    UnknownModelType {
        /// What the config says.
        found: String,
        /// All that could be compiled in.
        known: Vec<&'static str>,
    },
    /// The architecture is known but left out of this build.
    #[error("model_type {model_type:?} is not compiled in; build mlx-models with the feature `{feature}`")]
    NotCompiledIn {
        /// What the config says.
        model_type: String,
        /// The feature of `mlx-models` that brings it.
        feature: &'static str,
    },
}

/// What a user wants of a model, whichever it is. A model that has no use for an option is the same without.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// Leaves the weights on disk until they are first used, by the thread that loaded the model: MLX reads them there
    /// and nowhere else. Without it, `mlx_models::load_with` reads them into memory before it answers, and the model
    /// works on every thread. An architecture that is asked directly does not look here, and never reads them.
    pub lazy: bool,
    /// Which of its lists LongRoPE uses when.
    pub long_rope: LongRopeMode,
    /// A folder of adapters for the model, of mlx-lm or PEFT: [`Adapters`](mlx_checkpoint::Adapters). `mlx_models::load_with` puts them
    /// around the checkpoint; an architecture that is asked directly is given
    /// [`Checkpoint::with_adapters`] instead, and does not look here.
    pub adapters: Option<PathBuf>,
}

/// How an architecture builds a model.
pub type Load = fn(&Checkpoint, &LoadOptions) -> Result<Box<dyn CausalLm>, LoadError>;

/// An architecture: which checkpoints it reads, and how.
#[derive(Debug, Clone, Copy)]
pub struct Architecture {
    /// The values of a config's `model_type` that mean this architecture.
    pub model_types: &'static [&'static str],
    /// Builds the model. Its weights are read when they are first used.
    pub load: Load,
}
