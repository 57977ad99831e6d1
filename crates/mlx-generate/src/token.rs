//! The tokens of a stream, and why it ends.

/// A token that was generated.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// The natural logarithm of its probability, after penalties and processors, and before the filters and the
    /// temperature.
    pub logprob: f32,
    /// The most probable tokens in its place with the logarithms of their probabilities, the largest first. Their number
    /// is [`GenerateOptions::top_logprobs`](crate::GenerateOptions::top_logprobs).
    pub alternatives: Vec<(u32, f32)>,
    /// Whether a [`Draft`](crate::Draft) proposed it.
    pub drafted: bool,
}

/// Why a sequence ended. Where several reasons hold for its last token, it is the first of them in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FinishReason {
    /// The last token is one of the stop tokens.
    StopToken,
    /// A [`LogitsProcessor`](crate::LogitsProcessor) said that the sequence is complete.
    Complete {
        /// Its place in [`GenerateOptions::processors`](crate::GenerateOptions::processors).
        processor: usize,
    },
    /// It has [`GenerateOptions::max_tokens`](crate::GenerateOptions::max_tokens) tokens.
    MaxTokens,
    /// The model's context is full.
    ContextFull,
    /// Somebody used the [`Cancel`](crate::Cancel) handle. This is looked at before each step, and not for a sequence that
    /// has ended.
    Cancelled,
}

impl FinishReason {
    /// Its name in snake case, for programs that print it.
    pub fn name(self) -> &'static str {
        match self {
            Self::StopToken => "stop_token",
            Self::Complete { .. } => "complete",
            Self::MaxTokens => "max_tokens",
            Self::ContextFull => "context_full",
            Self::Cancelled => "cancelled",
        }
    }
}
