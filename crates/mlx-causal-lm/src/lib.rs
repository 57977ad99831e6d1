//! The contract between an architecture and a runtime.
//!
//! API for authors of architectures and of runtimes. An architecture implements [`CausalLm`] and publishes an
//! [`Architecture`]. A runtime, such as a decode loop, a server or a parity check, works with these two and never names
//! a model.

mod info;
mod load;
mod origin;
mod trace;

use std::fmt::Debug;

use mlx_kvcache::{CacheError, CacheOptions, LayerKind, ModelCache};
pub use mlx_rope::{LongRopeMode, Rotation};
use mlx_rs::Array;
use mlx_rs::error::Exception;
use mlx_rs::module::ModuleParameters;
use mlx_rs::ops::indexing::TryIndexOp;

pub use info::{ModelInfo, UnlikeMlxLm, activation_dtype};
pub use load::{Architecture, Load, LoadError, LoadOptions, read_config};
pub use origin::{digest, made_by};
pub use trace::{Traced, trace};

/// Which positions of a call need logits.
///
/// The head is a product with the whole vocabulary and often the largest layer of a model. Most positions of a prompt
/// do not need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Logits {
    /// Every position: for perplexity, training and parity.
    All,
    /// The last position: for the next token.
    Last,
    /// No position: for every piece of a prompt except the last.
    None,
}

/// A decoder-only language model.
///
/// The supertrait [`ModuleParameters`] gives its parameters by their keys in a checkpoint. A runtime that wants the
/// weights in memory before the first token evaluates them.
///
/// # Shapes
///
/// Legend: B batch, L tokens of this call, D features, V vocabulary.
pub trait CausalLm: ModuleParameters + Debug + Send {
    /// Reads the next tokens, int32 or uint32 `[B, L]`, and returns the features `[B, L, D]` that the head works on.
    /// The keys and values of the tokens go into the cache.
    ///
    /// The caller checks that the token ids lie inside the vocabulary (`Session` of `mlx-generate` does), because here
    /// they are on the device. An id outside of it is read as the first or the last id: the result has no meaning, but
    /// no memory outside of the model is read.
    ///
    /// # Errors
    ///
    /// Where the tokens do not have two axes, or the cache belongs to another model or batch.
    fn hidden_states(&mut self, tokens: &Array, cache: &mut ModelCache) -> Result<Array, Exception>;

    /// The head: features `[B, L, D]` to logits `[B, L, V]`.
    ///
    /// # Errors
    ///
    /// Where the last axis is not D long.
    fn head(&mut self, hidden: &Array) -> Result<Array, Exception>;

    /// Facts about the model.
    fn info(&self) -> &ModelInfo;

    /// Whether keys that were cached while the sequence had `a` tokens are right for a sequence of `b` tokens.
    ///
    /// They are unless the rotation depends on the length of the sequence and changes between the two lengths
    /// (LongRoPE). A runtime that crosses such a border, in either direction, has to read the sequence again; `Session`
    /// of `mlx-generate` does.
    fn rotates_alike(&self, _a: i32, _b: i32) -> bool {
        true
    }

    /// Whether LongRoPE's short factors apply to a sequence of this many `tokens`; `false` for all other rotations.
    fn has_short_factors_at(&self, _tokens: i32) -> bool {
        false
    }

    /// Why mlx-lm's model of this type computes other keys and values for a sequence of this many `tokens`, as the end
    /// of a sentence. Caches cannot be exchanged with mlx-lm then. `None`, for most models, where mlx-lm computes the
    /// same.
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
            "mlx-lm does not apply this model's window of {window} tokens, so that its keys and values after more \
             tokens differ; make it again"
        ))
    }

    /// An empty cache for this model.
    ///
    /// # Errors
    ///
    /// Where the options contradict each other or do not fit the model's heads. The default options fit every model.
    fn new_cache(&self, options: &CacheOptions) -> Result<ModelCache, CacheError> {
        ModelCache::for_layers(&self.info().layers, options)
    }

    /// Reads the next tokens, `[B, L]`, and returns the logits that were asked for: `[B, L, V]` for [`Logits::All`],
    /// `[B, 1, V]` for [`Logits::Last`], `[B, 0, V]` for [`Logits::None`].
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

/// Compiles the README's example.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
