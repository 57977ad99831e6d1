//! How well a model foretells a text.

use std::ops::ControlFlow;

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
    /// The mean of `-ln p` over the foretold tokens, in nats.
    pub mean_nll: f64,
    /// The standard error of that mean, for tokens as independent as they are not: a lower bound.
    pub standard_error: f64,
    /// Tokens that were foretold: all but the first of each piece.
    pub tokens: usize,
}

impl Perplexity {
    /// `exp` of the mean: among how many equally likely tokens the model hesitates on average.
    pub fn perplexity(&self) -> f64 {
        self.mean_nll.exp()
    }
}

/// How a text is cut for [`perplexity`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PerplexityOptions {
    /// Tokens of a piece. Each piece is read with an empty cache, so that its first tokens are foretold from
    /// little; 512 tokens and whole pieces alone are mlx-lm's `perplexity` command, so figures compare.
    pub piece: usize,
    /// Whether the rest of the text, shorter than a piece, counts as well. A text of less than a piece always
    /// does.
    pub with_rest: bool,
}

impl Default for PerplexityOptions {
    fn default() -> Self {
        Self { piece: 512, with_rest: true }
    }
}

/// The perplexity of a text of these ids, with a callback that hears how many tokens were read, of how many,
/// and may stop it.
///
/// The log-probabilities are computed in float32 whatever the dtype of the logits, and added in float64.
///
/// # Errors
///
/// [`GenerateError::TooFewTokens`] where there is no token to foretell: a text or a piece of less than two;
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
    let piece = options.piece.min(text.len());
    if piece < 2 {
        return Err(GenerateError::TooFewTokens { tokens: piece });
    }
    check_ids(model, text)?;
    let pieces = text.chunks(piece).filter(|piece_of_text| {
        piece_of_text.len() == piece || (options.with_rest && piece_of_text.len() >= 2)
    });
    let (mut sum, mut squares, mut tokens, mut read) = (0.0_f64, 0.0_f64, 0, 0);
    let mut tell = |read| match progress(read, text.len()) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(GenerateError::Cancelled),
    };
    tell(0)?;
    for piece in pieces {
        let mut session = Session::new(model.new_cache(&CacheOptions::default())?);
        // Token i + 1 is foretold at position i, by a pass over the whole piece.
        let (read_now, next) = (&piece[..piece.len() - 1], &piece[1..]);
        session.prepare(model, read_now.len() as i32)?;
        for (part, next) in read_now.chunks(PREFILL_CHUNK).zip(next.chunks(PREFILL_CHUNK)) {
            for nll in surprise(&mut session, model, part, next)? {
                (sum, squares, tokens) = (sum + nll, squares + nll * nll, tokens + 1);
            }
            session.tidy()?;
            read += part.len();
            tell(read)?;
        }
        read += 1;
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
    let logits = session.append(model, &Array::from_slice(part, &[1, length]), Logits::All)?;
    let logits = logits.squeeze_axes(&[0])?.as_dtype(Dtype::Float32)?; // [L, V]
    let chosen = take_along_axis(&logits, Array::from_slice(next, &[length, 1]), -1)?;
    let nll = logits.logsumexp_axis(-1, true)?.subtract(chosen)?;
    let nll = nll.try_as_slice::<f32>().map_err(|e| Exception::custom(e.to_string()))?;
    Ok(nll.iter().map(|&nll| f64::from(nll)).collect())
}
