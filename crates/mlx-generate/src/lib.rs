//! From a prompt to a stream of tokens.
//!
//! API. A [`Session`] is a cache with the tokens that it has read. [`generate`] reads a prompt into it, in
//! pieces, and answers with an iterator that decodes one token at a time. While the caller looks at a
//! token, the device already works on the next one.

mod batch;
mod cancel;
mod chooser;
mod perplexity;
mod sampling;
mod session;
mod speculative;
mod stream;

use std::ops::ControlFlow;

use mlx_causal_lm::CausalLm;
use mlx_kvcache::{CacheError, CacheFileError};
use mlx_rs::error::Exception;

use chooser::Chooser;

pub use batch::{Batch, BatchToken, RowId};
pub use cancel::Cancel;
pub use perplexity::{Perplexity, PerplexityOptions, perplexity};
pub use sampling::{Dry, History, Penalizer, Penalties, Penalty, Sampler, Sampling, Xtc};
pub use session::{KvQuantization, PREFILL_CHUNK, Reuse, Session};
pub use speculative::{
    Draft, DraftModel, Guess, PromptLookup, Speculation, SpeculativeStream, generate_speculative,
};
pub use stream::{FinishReason, Token, TokenStream, Tokens};

/// Why a prompt is not continued.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// There is nothing to continue.
    #[error("the prompt is empty; a model needs at least one token to continue")]
    EmptyPrompt,
    /// The prompt and what the session has leave no room for a token.
    #[error("the prompt has {prompt} tokens{}, and the model's context ends at {context}", already(*cached))]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens that the session has already.
        cached: usize,
        /// The model's context length.
        context: usize,
    },
    /// A token that the model does not have.
    #[error(
        "token id {id} at position {position} of the prompt is outside the model's vocabulary of {vocab_size}"
    )]
    OutsideVocabulary {
        /// The id.
        id: i64,
        /// Its place in the prompt.
        position: usize,
        /// Ids must be below this.
        vocab_size: i32,
    },
    /// An option of sampling or of a penalty is out of its range.
    #[error("{option} is {found}, and must be {expected}")]
    Option {
        /// Its name.
        option: &'static str,
        /// The value that was given.
        found: String,
        /// What it must be.
        expected: String,
    },
    /// The sequence has to be read again, and its first tokens are not known.
    #[error(
        "the first {tokens} tokens of the cache have to be read again, and the cache came without their ids, as mlx-lm's \
         files do; make the cache again with this program"
    )]
    UnknownTokens {
        /// How many the cache came with.
        tokens: i32,
    },
    /// A cache of another number of tokens than were said to be in it.
    #[error("a cache of {found} tokens, where one of {expected} is needed")]
    CachedTokens {
        /// What the cache holds.
        found: i32,
        /// What it has to hold.
        expected: i32,
    },
    /// There is no token to score.
    #[error("a piece of {tokens} tokens, and at least {needed} are needed to score one")]
    TooFewTokens {
        /// How many there are in a piece.
        tokens: usize,
        /// How many are needed.
        needed: usize,
    },
    /// The model's answer is no probability.
    #[error(
        "the model's logits are not finite numbers: its weights are damaged, or its dtype is too narrow for them"
    )]
    NotANumber,
    /// A draft's proposals come from no probabilities.
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
    /// A sequence of a [`Batch`] failed, and has left it.
    #[error("row {} of the batch", row.number())]
    Row {
        /// Which one.
        row: RowId,
        /// Why.
        source: Box<GenerateError>,
    },
    /// An array that was not computed yet has come from another thread.
    #[error(
        "MLX computes an array on the thread that made it, and this one came from another thread before it was \
         computed; evaluate it before it is sent (a model is, unless it was loaded with `lazy`)"
    )]
    OtherThread,
    /// Something that one sequence has was asked of a batch.
    #[error("this needs a session of one row, and there are {rows}")]
    Rows {
        /// How many there are.
        rows: i32,
    },
    /// A file of a session.
    #[error(transparent)]
    CacheFile(#[from] CacheFileError),
    /// The progress callback or the [`Cancel`] handle asked to stop.
    #[error("cancelled while reading the prompt")]
    Cancelled,
    /// The cache refused an operation.
    #[error(transparent)]
    Cache(CacheError),
    /// MLX refused an operation.
    #[error(transparent)]
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

/// What MLX says where an array waits for work of a thread that is not this one.
const OTHER_THREAD: &str = "There is no Stream(";

fn already(cached: usize) -> String {
    if cached == 0 { String::new() } else { format!(" after the {cached} that were read before") }
}

/// How to continue a prompt.
#[derive(Debug, Clone)]
pub struct GenerateOptions {
    /// Stop after this many tokens.
    pub max_tokens: usize,
    /// Stop after one of these.
    pub stop_tokens: Vec<u32>,
    /// Before this many tokens, stop tokens are impossible.
    pub min_tokens: usize,
    /// What the logits are changed by.
    pub penalties: Penalties,
    /// How a token is drawn.
    pub sampling: Sampling,
    /// How many [`alternatives`](Token::alternatives) a token comes with.
    pub top_logprobs: usize,
    /// Tokens of the prompt that are read in one call; [`PREFILL_CHUNK`] unless something else is asked for. Larger
    /// pieces need more memory.
    pub prefill_chunk: usize,
    /// What happens where the model's context ends.
    pub overflow: Overflow,
    /// Stops the prompt or the stream from elsewhere.
    pub cancel: Cancel,
}

/// What happens where a sequence comes to the end of the context that the model was made for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Overflow {
    /// The stream ends with [`FinishReason::ContextFull`]; a longer prompt is an error.
    #[default]
    Stop,
    /// It goes on. Meant for caches with a [`Limit`](mlx_kvcache::Limit), whose layers slide: they keep the first
    /// tokens and the newest ones, so that memory stays what it is. (Xiao et al., *Efficient Streaming Language Models with
    /// Attention Sinks*, <https://arxiv.org/abs/2309.17453>; positions go on counting, as in mlx-lm.)
    Slide,
}

impl GenerateOptions {
    /// How many tokens a sequence may have.
    fn longest(&self, model: &dyn CausalLm) -> usize {
        match self.overflow {
            Overflow::Stop => usize::try_from(model.info().context_length).unwrap_or(usize::MAX),
            Overflow::Slide => i32::MAX as usize,
        }
    }
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            max_tokens: 256,
            stop_tokens: Vec::new(),
            min_tokens: 0,
            penalties: Penalties::default(),
            sampling: Sampling::default(),
            top_logprobs: 0,
            prefill_chunk: PREFILL_CHUNK,
            overflow: Overflow::default(),
            cancel: Cancel::default(),
        }
    }
}

/// Reads `prompt` into `session` and answers with the stream of tokens that continue it.
///
/// The session may have tokens already; the prompt then continues them.
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

/// [`generate`] with a callback that hears how many tokens of the prompt were read, of how many,
/// and may stop it. Tokens before the prompt that have to be read again count as part of it.
///
/// # Errors
///
/// Those of [`generate`], and [`GenerateError::Cancelled`] where the callback asked to stop. The
/// session then has the part that was read.
pub fn generate_with_progress<'a>(
    model: &'a mut dyn CausalLm,
    session: &'a mut Session,
    prompt: &[u32],
    options: GenerateOptions,
    mut progress: impl FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<TokenStream<'a>, GenerateError> {
    let chooser = Chooser::new(&options, model.info().vocab_size)?;
    // The last token comes with the first step.
    let chooser = chooser.after(|| {
        let rest = prompt.split_last().map_or(&[][..], |(_, rest)| rest);
        Ok([session.ids()?, rest.to_vec()].concat())
    })?;
    let (last, total) = prefill(model, session, prompt, &options, &mut progress)?;
    let stream = TokenStream::start(model, session, last, chooser, options)?;
    match progress(total, total) {
        ControlFlow::Continue(()) => Ok(stream),
        ControlFlow::Break(()) => Err(GenerateError::Cancelled),
    }
}

/// Reads all of a prompt but its last token, which it answers, and how many tokens there were to read in all.
///
/// The last token is for the first step, alone: its logits are the ones that a token is chosen by.
fn prefill(
    model: &mut dyn CausalLm,
    session: &mut Session,
    prompt: &[u32],
    options: &GenerateOptions,
    progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<(u32, usize), GenerateError> {
    check_prompt(model, session, prompt, options)?;
    let (last, rest) = prompt.split_last().ok_or(GenerateError::EmptyPrompt)?;
    let total = session.feed(model, rest, 1, options.prefill_chunk, &mut |read, total| match options
        .cancel
        .is_cancelled()
    {
        true => ControlFlow::Break(()),
        false => progress(read, total),
    })?;
    Ok((*last, total))
}

fn check_prompt(
    model: &dyn CausalLm,
    session: &Session,
    prompt: &[u32],
    options: &GenerateOptions,
) -> Result<(), GenerateError> {
    if prompt.is_empty() {
        return Err(GenerateError::EmptyPrompt);
    }
    let (cached, context) = (session.offset() as usize, options.longest(model));
    if cached + prompt.len() > context {
        return Err(GenerateError::PromptTooLong { prompt: prompt.len(), cached, context });
    }
    check_ids(model, prompt)
}

/// Whether the model has all of these tokens.
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
