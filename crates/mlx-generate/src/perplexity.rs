//! Perplexity: how well a model predicts a text.

use std::ops::{ControlFlow, Range};

use mlx_causal_lm::{CausalLm, Logits};
use mlx_kvcache::CacheOptions;
use mlx_rs::error::Exception;
use mlx_rs::ops::indexing::take_along_axis;
use mlx_rs::{Array, Dtype};

use crate::session::PREFILL_CHUNK;
use crate::{GenerateError, Session, check_ids};

/// What [`perplexity`] found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Perplexity {
    /// The mean of `-ln p` over the scored tokens, in nats.
    pub mean_nll: f64,
    /// The standard error of that mean. It takes the tokens for independent, which they are not: a lower bound.
    pub standard_error: f64,
    /// Tokens that were scored.
    pub tokens: usize,
}

impl Perplexity {
    /// `exp` of the mean: among how many equally likely tokens the model hesitates on average.
    pub fn perplexity(&self) -> f64 {
        self.mean_nll.exp()
    }
}

/// How a text is cut into pieces for [`perplexity`]. Each piece is read with an empty cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PerplexityOptions {
    /// Tokens of a piece, [`begin`](Self::begin) and [`context`](Self::context) included.
    pub piece: usize,
    /// The token that every piece begins with, for models that were trained so: the beginning-of-text token. Without
    /// one, the first token of a piece is predicted from nothing and not scored.
    pub begin: Option<u32>,
    /// How many tokens of a piece are those at the end of the piece before it, which are read again and not scored
    /// again: every token, but those at the beginning of the text, is scored behind at least so many. 0 reads each
    /// token once.
    pub context: usize,
    /// Whether the rest of the text, shorter than a piece, is scored as well. A text shorter than a piece always is.
    pub with_rest: bool,
}

impl Default for PerplexityOptions {
    /// Pieces of 512 tokens without a token of their own, and the rest: without the rest, the figures are those of
    /// mlx-lm's `perplexity` command.
    fn default() -> Self {
        Self { piece: 512, begin: None, context: 0, with_rest: true }
    }
}

impl PerplexityOptions {
    /// The pieces of a text of so many tokens: where each begins and ends, and from where on it is scored.
    fn pieces(&self, length: usize) -> Result<Vec<(Range<usize>, usize)>, GenerateError> {
        let has_begin = usize::from(self.begin.is_some());
        let room = self.piece.saturating_sub(has_begin);
        let shortest = 2 - has_begin;
        let tokens = room.min(length);
        if tokens < shortest {
            return Err(GenerateError::TooFewTokens { tokens, needed: shortest });
        }
        if self.context >= room {
            return Err(GenerateError::Option {
                option: "context",
                found: self.context.to_string(),
                expected: format!("less than the {room} tokens of a piece"),
            });
        }
        let mut pieces = Vec::new();
        let mut done = 0;
        while done < length {
            let start = done.saturating_sub(self.context);
            let end = (start + room).min(length);
            let is_whole = end - start == room || start == 0;
            // Nothing comes before the first token of a piece, unless it has a beginning of its own.
            let scored = done.max(start + 1 - has_begin);
            if (is_whole || self.with_rest) && scored < end {
                pieces.push((start..end, scored));
            }
            done = end;
        }
        Ok(pieces)
    }
}

/// The perplexity of a text of these ids, without a token that is put around it. The callback hears how many tokens
/// were read, of how many, and may stop it.
///
/// The log-probabilities are computed in float32 whatever the dtype of the logits, and added in float64.
///
/// # Errors
///
/// [`GenerateError::TooFewTokens`] where there is no token to score; [`GenerateError::Option`] for a context that
/// fills a piece; [`GenerateError::NotANumber`] where the model answers with NaN;
/// [`GenerateError::OutsideVocabulary`]; [`GenerateError::Cancelled`] where the callback asked to stop.
///
/// # Reference
///
/// Jelinek et al., *Perplexity, a measure of the difficulty of speech recognition tasks*
/// (<https://doi.org/10.1121/1.2016299>).
pub fn perplexity(
    model: &mut dyn CausalLm,
    text: &[u32],
    options: PerplexityOptions,
    mut progress: impl FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<Perplexity, GenerateError> {
    let pieces = options.pieces(text.len())?;
    check_ids(model, text)?;
    check_ids(model, options.begin.as_slice())?;
    let (mut sum, mut squares, mut tokens) = (0.0_f64, 0.0_f64, 0);
    let mut tell = |read| match progress(read, text.len()) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(GenerateError::Cancelled),
    };
    tell(0)?;
    for (place, scored) in pieces {
        let mut session = Session::new(model.new_cache(&CacheOptions::default())?);
        let piece: Vec<u32> = options.begin.iter().chain(&text[place.clone()]).copied().collect();
        // The token at `i + 1` of the piece is predicted at `i`. Before the first that is scored no logits are needed.
        let unscored = piece.len() - (place.end - scored) - 1;
        let (context, read) = piece[..piece.len() - 1].split_at(unscored);
        session.prepare(model, context.len() as i32 + read.len() as i32)?;
        for part in context.chunks(PREFILL_CHUNK) {
            session.append(model, &row(part), Logits::None)?;
            session.tidy()?;
        }
        let next = &piece[unscored + 1..];
        let mut read_to = scored;
        for (part, next) in read.chunks(PREFILL_CHUNK).zip(next.chunks(PREFILL_CHUNK)) {
            for nll in surprise(&mut session, model, part, next)? {
                if nll.is_nan() {
                    return Err(GenerateError::NotANumber);
                }
                (sum, squares, tokens) = (sum + nll, squares + nll * nll, tokens + 1);
            }
            session.tidy()?;
            read_to += part.len();
            tell(read_to)?;
        }
        tell(place.end)?;
    }
    tell(text.len())?;
    let count = tokens as f64;
    let mean = sum / count;
    let variance = (squares / count - mean * mean).max(0.0) * count / (count - 1.0).max(1.0);
    Ok(Perplexity { mean_nll: mean, standard_error: (variance / count).sqrt(), tokens })
}

/// `-ln p` of each token of `next`, in nats.
fn surprise(
    session: &mut Session,
    model: &mut dyn CausalLm,
    part: &[u32],
    next: &[u32],
) -> Result<Vec<f64>, GenerateError> {
    let length = part.len() as i32;
    let logits = session.append(model, &row(part), Logits::All)?;
    let logits = logits.squeeze_axes(&[0])?.as_dtype(Dtype::Float32)?; // [L, V]
    let chosen = take_along_axis(&logits, Array::from_slice(next, &[length, 1]), -1)?;
    let nll = logits.logsumexp_axis(-1, true)?.subtract(chosen)?;
    let nll = nll.try_as_slice::<f32>().map_err(|e| Exception::custom(e.to_string()))?;
    Ok(nll.iter().map(|&nll| f64::from(nll)).collect())
}

fn row(tokens: &[u32]) -> Array {
    Array::from_slice(tokens, &[1, tokens.len() as i32])
}
