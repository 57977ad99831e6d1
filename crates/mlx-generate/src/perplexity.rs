//! Perplexity: how well a model predicts a text.

use std::ops::{ControlFlow, Range};

use mlx_causal_lm::{CausalLm, Logits};
use mlx_kvcache::CacheOptions;
use mlx_rs::error::Exception;
use mlx_rs::ops::indexing::take_along_axis;
use mlx_rs::{Array, Dtype};

use crate::{GenerateError, Session, StepOptions, check_ids, default_prefill_chunk};

/// The result of [`perplexity`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Perplexity {
    /// The mean of `-ln p` over the scored tokens, in nats.
    pub mean_nll: f64,
    /// The standard error of that mean, computed as if the tokens were independent. They are not, so it is a lower bound.
    pub standard_error: f64,
    /// Tokens that were scored.
    pub tokens: usize,
}

impl Perplexity {
    /// `exp` of the mean: the number of equally probable tokens that would be as hard to predict.
    pub fn perplexity(&self) -> f64 {
        self.mean_nll.exp()
    }
}

/// How [`perplexity`] cuts a text into pieces. Each piece is read with an empty cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PerplexityOptions {
    /// Tokens of a piece, [`begin`](Self::begin) and [`context`](Self::context) included.
    pub piece: usize,
    /// A token that every piece begins with: the beginning-of-text token, for models that were trained with it. Without
    /// one, the first token of a piece is not scored, since there is nothing to predict it from.
    pub begin: Option<u32>,
    /// How many tokens at the beginning of a piece repeat the end of the piece before it. They are read again as context
    /// and not scored again, so that every token is scored behind at least this many others, except at the beginning of
    /// the text. With 0 each token is read once.
    pub context: usize,
    /// Whether the rest of the text, which is shorter than a piece, is scored too. A text that is shorter than a piece is
    /// always scored.
    pub with_rest: bool,
}

impl Default for PerplexityOptions {
    /// Pieces of 512 tokens, without a beginning-of-text token, and the rest of the text. Without the rest, the numbers are
    /// those of mlx-lm's `perplexity` command.
    fn default() -> Self {
        Self { piece: 512, begin: None, context: 0, with_rest: true }
    }
}

impl PerplexityOptions {
    /// The pieces of a text of `length` tokens: the range of each, and its first token that is scored.
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
            // The first token of a piece can only be scored behind a beginning-of-text token.
            let scored = done.max(start + 1 - has_begin);
            if (is_whole || self.with_rest) && scored < end {
                pieces.push((start..end, scored));
            }
            done = end;
        }
        Ok(pieces)
    }
}

/// Measures a model's perplexity on a text. The ids are those of the text alone, without a beginning-of-text token. The
/// callback gets the number of tokens that were read and their total, and may stop the measurement.
///
/// The log-probabilities are computed in float32, whatever the dtype of the logits, and added in float64.
///
/// # Errors
///
/// [`GenerateError::TooFewTokens`] where there is no token to score; [`GenerateError::Option`] for a context that
/// fills a piece; [`GenerateError::NotANumber`] where the model's logits are NaN;
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
    let mut report = |read| match progress(read, text.len()) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(GenerateError::Cancelled),
    };
    let mut total = Total::default();
    report(0)?;
    for (place, scored) in pieces {
        let piece: Vec<u32> = options.begin.iter().chain(&text[place.clone()]).copied().collect();
        // The logits at `i` predict the token at `i + 1`. Those before the first scored token are not needed.
        let unscored = piece.len() - (place.end - scored) - 1;
        score(model, &piece, unscored, &mut total, &mut |read| report(scored + read))?;
        report(place.end)?;
    }
    report(text.len())?;
    Ok(total.perplexity())
}

/// Scores the tokens of a piece behind the first `unscored + 1`, with an empty cache. `report` gets the number of tokens
/// that were scored.
fn score(
    model: &mut dyn CausalLm,
    piece: &[u32],
    unscored: usize,
    total: &mut Total,
    report: &mut dyn FnMut(usize) -> Result<(), GenerateError>,
) -> Result<(), GenerateError> {
    let mut session = Session::new(model.new_cache(&CacheOptions::default())?);
    let (context, read) = piece[..piece.len() - 1].split_at(unscored);
    let go_on = &mut |_, _| ControlFlow::Continue(());
    let chunk = default_prefill_chunk();
    session.prefill(model, context, read.len(), chunk, go_on)?;
    let mut more = read.len();
    for (tokens, next) in read.chunks(chunk).zip(piece[unscored + 1..].chunks(chunk)) {
        more -= tokens.len();
        let options = StepOptions { logits: Logits::All, more, chunk: Some(chunk) };
        let logits = session.next_logits(model, &row(tokens), options)?; // [1, L, V]
        for nll in negative_log_probabilities(&logits, next)? {
            total.add(nll)?;
        }
        session.tidy()?;
        report(read.len() - more)?;
    }
    Ok(())
}

/// The sum over the tokens that were scored so far.
#[derive(Debug, Default)]
struct Total {
    sum: f64,
    squares: f64,
    tokens: usize,
}

impl Total {
    fn add(&mut self, nll: f64) -> Result<(), GenerateError> {
        if nll.is_nan() {
            return Err(GenerateError::NotANumber);
        }
        self.sum += nll;
        self.squares += nll * nll;
        self.tokens += 1;
        Ok(())
    }

    fn perplexity(&self) -> Perplexity {
        let count = self.tokens as f64;
        let mean = self.sum / count;
        let variance = (self.squares / count - mean * mean).max(0.0) * count / (count - 1.0).max(1.0);
        Perplexity { mean_nll: mean, standard_error: (variance / count).sqrt(), tokens: self.tokens }
    }
}

/// `-ln p` of each token of `next`, in nats, from the logits `[1, L, V]` that predict them.
fn negative_log_probabilities(logits: &Array, next: &[u32]) -> Result<Vec<f64>, GenerateError> {
    let logits = logits.squeeze_axes(&[0])?.as_dtype(Dtype::Float32)?; // [L, V]
    let chosen = take_along_axis(&logits, Array::from_slice(next, &[next.len() as i32, 1]), -1)?;
    let nll = logits.logsumexp_axis(-1, true)?.subtract(chosen)?;
    let nll = nll.try_as_slice::<f32>().map_err(|e| Exception::custom(e.to_string()))?;
    Ok(nll.iter().map(|&nll| f64::from(nll)).collect())
}

fn row(tokens: &[u32]) -> Array {
    Array::from_slice(tokens, &[1, tokens.len() as i32])
}
