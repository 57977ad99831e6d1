//! Compares the tokens of two tokenizers.

use crate::Tokenizer;

/// Two tokenizers use one id for different tokens, so models with these tokenizers cannot exchange ids.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("token {id} is {ours:?} in one tokenizer and {theirs:?} in the other ({conflicts} ids differ)")]
#[non_exhaustive]
pub struct TokenMismatch {
    /// The lowest id that stands for different tokens.
    pub id: u32,
    /// The token of this id in the first tokenizer (`self`).
    pub ours: String,
    /// The token of this id in the other tokenizer.
    pub theirs: String,
    /// The number of ids that stand for different tokens.
    pub conflicts: usize,
}

/// The ids of two tokenizers, without conflicts; see [`Tokenizer::shared_tokens`]. All lists are in ascending
/// order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedTokens {
    shared: Vec<u32>,
    ours_only: Vec<u32>,
    theirs_only: Vec<u32>,
}

impl SharedTokens {
    /// The ids that mean the same token in both tokenizers.
    pub fn ids(&self) -> &[u32] {
        &self.shared
    }

    /// Whether an id means the same token in both tokenizers.
    pub fn contains(&self, id: u32) -> bool {
        self.shared.binary_search(&id).is_ok()
    }

    /// `n` if the shared ids are exactly `0..n`; `None` if there are gaps.
    pub fn all_below(&self) -> Option<u32> {
        let count = u32::try_from(self.shared.len()).ok()?;
        // Ascending and without duplicates, so the last one shows whether there is a gap.
        (self.shared.last().is_none_or(|&last| last < count)).then_some(count)
    }

    /// The ids that only the first tokenizer (`self`) has.
    pub fn ours_only(&self) -> &[u32] {
        &self.ours_only
    }

    /// The ids that only the other tokenizer has.
    pub fn theirs_only(&self) -> &[u32] {
        &self.theirs_only
    }
}

impl Tokenizer {
    /// Compares the meaning of ids in two tokenizers: which ids both have with the same text, and which only
    /// one has. Models with these tokenizers can exchange the shared ids.
    ///
    /// The tables of models are often larger than their vocabularies. The rows after the last id of a tokenizer
    /// mean nothing, and are in no list here.
    ///
    /// # Errors
    ///
    /// [`TokenMismatch`] if one id stands for different tokens.
    pub fn shared_tokens(&self, other: &Self) -> Result<SharedTokens, TokenMismatch> {
        let (ours, mut theirs) = (self.parts.tokens.by_id(), other.parts.tokens.by_id());
        let (mut shared, mut ours_only) = (Vec::new(), Vec::new());
        let mut first: Option<TokenMismatch> = None;
        let mut conflicts = 0;
        for (id, ours) in ours {
            match theirs.remove(&id) {
                None => ours_only.push(id),
                Some(theirs) if theirs == ours => shared.push(id),
                Some(theirs) => {
                    conflicts += 1;
                    first.get_or_insert(TokenMismatch { id, ours, theirs, conflicts });
                }
            }
        }
        match first {
            Some(first) => Err(TokenMismatch { conflicts, ..first }),
            None => Ok(SharedTokens { shared, ours_only, theirs_only: theirs.into_keys().collect() }),
        }
    }
}
