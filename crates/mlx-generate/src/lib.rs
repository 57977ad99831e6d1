//! From a prompt to a stream of tokens.
//!
//! API. A [`Session`] is a cache with the tokens that it has read, and [`Session::step`] is the one way by which tokens get
//! into it. [`generate`] reads a prompt into a session, in chunks, and returns an iterator that decodes one token at a
//! time. [`Batch`] decodes several sequences together, and [`generate_speculative`] checks several drafted tokens at once.
//! All three choose tokens in the same way and end for the same [reasons](FinishReason), and callers can bring
//! [`LogitsProcessor`]s of their own to each.
//!
//! To serve many users, keep one [`Batch`] and add the prompt of each user when it arrives: the users then share every call
//! of the model.
//!
//! ```
//! use mlx_causal_lm::CausalLm;
//! use mlx_generate::{GenerateError, GenerateOptions, Session, generate};
//! use mlx_kvcache::CacheOptions;
//!
//! # #[allow(dead_code)]
//! fn answer(model: &mut dyn CausalLm, prompt: &[u32], stop_tokens: &[u32]) -> Result<Vec<u32>, GenerateError> {
//!     let mut session = Session::new(model.new_cache(&CacheOptions::default())?);
//!     let options = GenerateOptions { max_tokens: 20, ..GenerateOptions::new(stop_tokens) };
//!     generate(model, &mut session, prompt, options)?.map(|token| Ok(token?.id)).collect()
//! }
//! ```

mod batch;
mod cancel;
mod chooser;
mod perplexity;
mod sampling;
mod sequence;
mod session;
mod speculative;
mod stream;
mod token;

use std::ops::ControlFlow;

use mlx_causal_lm::CausalLm;
use mlx_kvcache::{CacheError, CacheFileError};
use mlx_rs::error::Exception;

use sequence::Sequence;

pub use batch::{Batch, BatchToken, RowId};
pub use cancel::Cancel;
pub use perplexity::{Perplexity, PerplexityOptions, perplexity};
pub use sampling::{
    CloneProcessor, Dry, History, LogitsProcessor, Penalizer, Penalties, Penalty, ProcessorError, Sampler,
    Sampling, TokenSet, Xtc,
};
pub use session::{HiddenStates, KvQuantization, Reuse, Session, StepOptions, default_prefill_chunk};
pub use speculative::{
    Draft, DraftModel, PromptLookup, Proposal, Speculation, SpeculativeStream, generate_speculative,
    generate_speculative_with_progress,
};
pub use stream::{TokenStream, Tokens};
pub use token::{FinishReason, Token};

/// Why a prompt cannot be read or continued.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// The prompt has no token.
    #[error("the prompt is empty; a model needs at least one token to continue")]
    EmptyPrompt,
    /// The prompt, behind the tokens that the session has, is longer than the model's context.
    #[error("the prompt has {prompt} tokens{}, and the model's context ends at {context}", already(*cached))]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens that the session has already.
        cached: usize,
        /// The model's context length.
        context: usize,
    },
    /// The model does not have a token of the prompt.
    #[error(
        "token id {id} at position {position} of the prompt is outside the model's vocabulary of {vocab_size}"
    )]
    OutsideVocabulary {
        /// The id.
        id: i64,
        /// Its position in the prompt.
        position: usize,
        /// The size of the model's vocabulary: ids must be below it.
        vocab_size: i32,
    },
    /// An option of sampling or of a penalty is out of its range.
    #[error("{option} is {found}, and must be {expected}")]
    Option {
        /// The name of the option.
        option: &'static str,
        /// The value that was given.
        found: String,
        /// The values that are possible.
        expected: String,
    },
    /// The sequence has to be read again, or its ids are needed, and the ids of its first tokens are not known.
    #[error(
        "the first {tokens} tokens of the cache have to be read again, and the cache came without their ids, as mlx-lm's \
         files do; make the cache again with this program"
    )]
    UnknownTokens {
        /// How many tokens the cache came with.
        tokens: i32,
    },
    /// A cache has not read as many tokens as it should have.
    #[error("a cache of {found} tokens, where one of {expected} is needed")]
    CachedTokens {
        /// How many tokens the cache has read.
        found: i32,
        /// How many tokens it should have read.
        expected: i32,
    },
    /// A text is too short to score a token.
    #[error("a piece of {tokens} tokens, and at least {needed} are needed to score one")]
    TooFewTokens {
        /// How many tokens a piece has.
        tokens: usize,
        /// How many tokens are needed.
        needed: usize,
    },
    /// The model's logits are not numbers.
    #[error(
        "the model's logits are not finite numbers: its weights are damaged, or its dtype is too narrow for them"
    )]
    NotANumber,
    /// The probabilities of a draft's tokens are not numbers.
    #[error(
        "the probabilities of the draft's tokens are not numbers: the weights of the draft model are damaged, or its \
         dtype is too narrow for them"
    )]
    DraftNotANumber,
    /// Every token was made impossible.
    #[error(
        "no token is possible here: logit biases, penalties and the minimum number of tokens forbid all of them, or are \
         so large that no token is likelier than another"
    )]
    NoTokenPossible,
    /// A [`LogitsProcessor`] reported an error.
    #[error("a logits processor failed")]
    Processor {
        /// Its error.
        source: ProcessorError,
    },
    /// A sequence of a [`Batch`] failed, and has left it.
    #[error("row {row} of the batch")]
    Row {
        /// The sequence.
        row: RowId,
        /// Why it failed.
        source: Box<GenerateError>,
    },
    /// An array that was not computed yet comes from another thread.
    #[error(
        "MLX computes an array on the thread that made it, and this one came from another thread before it was \
         computed; evaluate it before it is sent (a model is, unless it was loaded with `lazy`)"
    )]
    OtherThread,
    /// A session has several rows, where one is needed.
    #[error("this needs a session of one row, and there are {rows}")]
    Rows {
        /// How many rows it has.
        rows: i32,
    },
    /// A session could not be read from a file or written to one.
    #[error(transparent)]
    CacheFile(#[from] CacheFileError),
    /// The progress callback or the [`Cancel`] handle asked to stop.
    #[error("cancelled while reading the prompt")]
    Cancelled,
    /// The cache reported an error.
    #[error(transparent)]
    Cache(CacheError),
    /// MLX reported an error.
    #[error("{}", mlx_files::without_source_place(.0.what()))]
    Mlx(Exception),
}

impl From<CacheError> for GenerateError {
    fn from(error: CacheError) -> Self {
        match error {
            CacheError::Mlx(error) => error.into(),
            error => Self::Cache(error),
        }
    }
}

impl From<Exception> for GenerateError {
    fn from(error: Exception) -> Self {
        if error.what().contains(OTHER_THREAD) { Self::OtherThread } else { Self::Mlx(error) }
    }
}

/// MLX's message where an array depends on work of another thread.
const OTHER_THREAD: &str = "There is no Stream(";

fn already(cached: usize) -> String {
    if cached == 0 { String::new() } else { format!(" after the {cached} that were read before") }
}

/// How to continue a prompt. [`new`](Self::new) makes them from the model's stop tokens.
///
/// ```
/// use mlx_generate::{GenerateOptions, Sampling};
///
/// # let stop_tokens = [2];
/// // With mlx-tokenizer, `stop_tokens` is `tokenizer.stop_tokens()`.
/// let options = GenerateOptions {
///     max_tokens: 100,
///     sampling: Sampling { temperature: 0.7, ..Sampling::default() },
///     ..GenerateOptions::new(&stop_tokens)
/// };
/// assert_eq!(options.stop_tokens, [2]);
/// ```
#[derive(Debug, Clone)]
pub struct GenerateOptions {
    /// Generate at most this many tokens.
    pub max_tokens: usize,
    /// Stop after one of these tokens.
    pub stop_tokens: Vec<u32>,
    /// Generate at least this many tokens: until then, stop tokens are impossible. A processor may end the sequence earlier.
    pub min_tokens: usize,
    /// Built-in changes of the logits.
    pub penalties: Penalties,
    /// The caller's own changes of the logits, applied after the penalties, in this order. Each sequence has its own: a
    /// clone of these options has clones of the processors.
    pub processors: Vec<Box<dyn LogitsProcessor>>,
    /// How a token is drawn.
    pub sampling: Sampling,
    /// How many [`alternatives`](Token::alternatives) each token has.
    pub top_logprobs: usize,
    /// How many tokens of the prompt are read in one call; `None` stands for [`default_prefill_chunk`]. Larger chunks need
    /// more memory.
    pub prefill_chunk: Option<usize>,
    /// What happens at the end of the model's context.
    pub overflow: Overflow,
    /// Stops the prompt or the stream, from another thread for example. A clone of these options has the same handle: give each
    /// row of a batch that is to be stopped alone a new one.
    pub cancel: Cancel,
}

/// What happens where a sequence reaches the end of the context that the model was made for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Overflow {
    /// The stream ends with [`FinishReason::ContextFull`]; a longer prompt is an error.
    #[default]
    Stop,
    /// The stream goes on. This is for caches with a [`Limit`](mlx_kvcache::Limit), which keep the first tokens and the
    /// newest ones, so that memory does not grow. (Xiao et al., *Efficient Streaming Language Models with Attention Sinks*,
    /// <https://arxiv.org/abs/2309.17453>; positions go on counting, as in mlx-lm.)
    Slide,
}

impl GenerateOptions {
    /// Greedy decoding of at most 256 tokens, which ends with one of these stop tokens.
    ///
    /// A model that is not stopped after its answer goes on with nonsense. Give `&[]` only where that is wanted, as in a
    /// benchmark of a certain number of tokens.
    pub fn new(stop_tokens: &[u32]) -> Self {
        Self {
            max_tokens: 256,
            stop_tokens: stop_tokens.to_vec(),
            min_tokens: 0,
            penalties: Penalties::default(),
            processors: Vec::new(),
            sampling: Sampling::default(),
            top_logprobs: 0,
            prefill_chunk: None,
            overflow: Overflow::default(),
            cancel: Cancel::default(),
        }
    }

    /// How many tokens of the prompt are read in one call, at least one.
    pub fn chunk(&self) -> usize {
        self.prefill_chunk.unwrap_or_else(default_prefill_chunk).max(1)
    }

    /// How many tokens a sequence may have, its prompt included.
    fn longest(&self, model: &dyn CausalLm) -> usize {
        match self.overflow {
            Overflow::Stop => usize::try_from(model.info().context_length).unwrap_or(usize::MAX),
            Overflow::Slide => i32::MAX as usize,
        }
    }
}

/// Reads `prompt` into `session` and returns the stream of tokens that continue it.
///
/// The session may have tokens already; the prompt then continues them. It must have one row.
///
/// # Errors
///
/// A [`GenerateError`] that names what is wrong with the prompt or the options.
pub fn generate<'a>(
    model: &'a mut dyn CausalLm,
    session: &'a mut Session,
    prompt: &[u32],
    options: GenerateOptions,
) -> Result<TokenStream<'a>, GenerateError> {
    generate_with_progress(model, session, prompt, options, |_, _| ControlFlow::Continue(()))
}

/// [`generate`] with a callback that gets the number of tokens of the prompt that were read and their total, and may stop
/// the reading. Tokens before the prompt that have to be read again are part of both numbers.
///
/// # Errors
///
/// Those of [`generate`], and [`GenerateError::Cancelled`] where the callback asked to stop. The session then keeps what
/// was read.
pub fn generate_with_progress<'a>(
    model: &'a mut dyn CausalLm,
    session: &'a mut Session,
    prompt: &[u32],
    options: GenerateOptions,
    mut progress: impl FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<TokenStream<'a>, GenerateError> {
    let (sequence, total) = Sequence::begin(model, session, prompt, options, &mut progress)?;
    let stream = TokenStream::start(model, session, sequence)?;
    match progress(total, total) {
        ControlFlow::Continue(()) => Ok(stream),
        ControlFlow::Break(()) => Err(GenerateError::Cancelled),
    }
}

/// Checks that the model has all of these tokens.
fn check_ids(model: &dyn CausalLm, ids: &[u32]) -> Result<(), GenerateError> {
    let vocab_size = model.info().vocab_size;
    match ids.iter().position(|&id| i64::from(id) >= i64::from(vocab_size)) {
        Some(position) => {
            Err(GenerateError::OutsideVocabulary { id: ids[position].into(), position, vocab_size })
        }
        None => Ok(()),
    }
}

/// A number of tokens as MLX counts them.
fn as_i32(tokens: usize) -> i32 {
    i32::try_from(tokens).unwrap_or(i32::MAX)
}

/// Compiles the README's example.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(test)]
mod tests {
    use mlx_rs::Array;

    use super::*;

    #[test]
    fn an_error_of_mlx_is_shown_without_its_place_in_the_source() {
        let ones = |length| Array::ones::<f32>(&[length]).unwrap();
        let exception = || ones(2).add(ones(3)).unwrap_err();
        assert!(exception().what().contains(" at /"), "{}", exception());
        for error in [GenerateError::from(exception()), CacheError::from(exception()).into()] {
            assert!(matches!(error, GenerateError::Mlx(_)), "{error:?}");
            let shown = error.to_string();
            assert!(shown.starts_with("[broadcast_shapes] ") && !shown.contains(" at "), "{shown}");
            assert!(std::error::Error::source(&error).is_none());
        }
    }
}
