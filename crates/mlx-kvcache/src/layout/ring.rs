//! The layout that keeps the first and the newest tokens, in numbers: which token lies in which slot.
//! `ring_arrays.rs` moves the arrays.

use std::fmt;
use std::ops::Range;

use super::STEP;
use crate::CacheError;

/// The first tokens and the newest tokens stay: the layout for sliding-window attention, or for full
/// attention with a limit on its memory. mlx-lm calls it a rotating cache.
///
/// A query sees at most `max_size` tokens: the first `keep` tokens, called attention sinks, and the newest
/// `max_size - keep` tokens, including itself. This holds for every query, however the tokens are divided
/// into calls:
///
/// ```text
/// query i sees key j   when   j <= i  and  ( j < keep  or  i - j < max_size - keep )
/// ```
///
/// A new token overwrites the oldest token that is not a sink, so single tokens move no other token. With a
/// [rewind](crate::KvCache::with_rewind) the ring is longer by the number of tokens that can be trimmed at
/// any time, and the mask hides the oldest tokens until a trim makes them visible again.
///
/// # Reference
///
/// Sliding windows: Beltagy et al., *Longformer*, section 3.1 (<https://arxiv.org/abs/2004.05150>).
/// Sinks: Xiao et al., *Efficient Streaming Language Models with Attention Sinks*, section 3.2
/// (<https://arxiv.org/abs/2309.17453>); unlike in that paper, tokens keep their positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ring {
    // The first `keep` slots hold the sinks, which are the steps below `keep`. The other slots are the
    // ring: step `start` lies in slot `keep + head`, and the following steps in the following slots. After
    // the last slot comes slot `keep` again. While no step has been overwritten, step n lies in slot n.
    pub(super) sizes: Sizes,
    /// The number of slots in the buffers.
    pub(super) room: i32,
    /// The oldest step in the ring; `keep` while none has been overwritten.
    pub(super) start: i32,
    /// The slot of that step, counted from the first slot behind the sinks.
    pub(super) head: i32,
}

/// The sizes of a ring, in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sizes {
    /// The most tokens that a query sees: the sinks, and the newest tokens including its own.
    pub(super) max_size: i32,
    /// The number of sinks: the first tokens, which stay.
    pub(super) keep: i32,
    /// The number of tokens that can be trimmed at any time.
    pub(super) rewind: i32,
}

impl Sizes {
    /// The most tokens that a query sees besides the sinks, including its own.
    pub(super) fn window(self) -> i32 {
        self.max_size - self.keep
    }

    /// The number of slots behind the sinks: for the window, and for older tokens that a trim makes visible
    /// again.
    pub(super) fn ring(self) -> i32 {
        self.window() + self.rewind
    }

    /// The number of all slots.
    pub(super) fn slots(self) -> i32 {
        self.keep + self.ring()
    }
}

/// How an append changes the slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// The new tokens are written into free slots and over tokens that no query sees any more.
    InPlace {
        /// Before that, only the sinks and the steps from this one on are kept, in order.
        compact: Option<i32>,
        /// Then slots are added, until there are this many.
        room: i32,
    },
    /// New buffers are made of the sinks, the steps from `from` on, and the new tokens, in this order.
    Concatenate {
        /// The oldest step that one of the new queries sees.
        from: i32,
    },
}

impl Ring {
    /// A ring in which a query sees at most `max_size` tokens, without sinks.
    ///
    /// # Errors
    ///
    /// [`CacheError::Sizes`] if `max_size` is below 1 or not below 2^30.
    pub fn new(max_size: i32) -> Result<Self, CacheError> {
        Self::sized(max_size, 0, 0)
    }

    /// A ring where `keep` of the `max_size` tokens are sinks: the first tokens, which stay.
    ///
    /// # Errors
    ///
    /// [`CacheError::Sizes`] if `keep` is negative or leaves no room for the newest token.
    pub fn with_keep(self, keep: i32) -> Result<Self, CacheError> {
        Self::sized(self.sizes.max_size, keep, self.sizes.rewind)
    }

    /// The most tokens that a query sees.
    pub fn max_size(&self) -> i32 {
        self.sizes.max_size
    }

    /// The number of sinks: the first tokens, which stay.
    pub fn keep(&self) -> i32 {
        self.sizes.keep
    }

    /// How many of the newest tokens can be trimmed at any time.
    pub fn rewind(&self) -> i32 {
        self.sizes.rewind
    }

    /// An empty ring of these sizes.
    pub(super) fn sized(max_size: i32, keep: i32, rewind: i32) -> Result<Self, CacheError> {
        // The limit keeps sums of a size and a padding from overflowing.
        let sum = max_size.checked_add(rewind).filter(|&sum| sum < 1 << 30);
        if keep < 0 || keep >= max_size || rewind < 0 || sum.is_none() {
            return Err(CacheError::Sizes { max_size, keep, rewind });
        }
        Ok(Self::without_tokens(Sizes { max_size, keep, rewind }))
    }

    /// A ring of these sizes without tokens.
    pub(super) fn without_tokens(sizes: Sizes) -> Self {
        Self { sizes, room: 0, start: sizes.keep, head: 0 }
    }

    /// A ring that holds the steps from `start` up to `end` in order.
    pub(super) fn ordered(sizes: Sizes, start: i32, end: i32) -> Self {
        let ring = Self { sizes, room: 0, start, head: 0 };
        Self { room: ring.used(end), ..ring }
    }

    /// Checks that these numbers can be those of a ring where `end` is the next step. The error says which
    /// numbers contradict each other.
    pub(super) fn check(&self, end: i32) -> Result<(), String> {
        let Self { sizes, room, start, head } = *self;
        let ring = room - sizes.keep;
        let in_order =
            head == 0 && start >= sizes.keep && start <= end.max(sizes.keep) && self.used(end) <= room;
        let round =
            head > 0 && room == sizes.slots() && head < ring && start >= sizes.keep && self.held(end) <= ring;
        // The ring must hold the whole window of the next token.
        let complete = start <= (end - (sizes.window() - 1)).max(sizes.keep);
        if (in_order || round) && complete {
            return Ok(());
        }
        Err(format!(
            "{end} tokens in {room} slots with {} sinks, where the oldest token after the sinks is {start}, in slot {}",
            sizes.keep,
            i64::from(sizes.keep) + i64::from(head)
        ))
    }

    /// Whether a step after the sinks has been overwritten.
    pub(super) fn lost(&self) -> bool {
        self.start > self.sizes.keep
    }

    /// The number of steps in the ring, where `end` is the next step.
    pub(super) fn held(&self, end: i32) -> i32 {
        (end - self.start).max(0)
    }

    /// The number of slots that attention reads, where `end` is the next step: the slots up to the last used
    /// one, or all slots once the ring has wrapped.
    pub(super) fn used(&self, end: i32) -> i32 {
        if self.head > 0 {
            return self.room;
        }
        if end < self.sizes.keep { end } else { self.sizes.keep + self.held(end) }
    }

    /// The slots of these steps, which lie behind the sinks, in the order of the steps. The second range is
    /// not empty if the steps continue in the first slot of the ring.
    pub(super) fn slots(&self, steps: Range<i32>) -> [Range<i32>; 2] {
        let Sizes { keep, .. } = self.sizes;
        let ring = self.room - keep;
        if steps.is_empty() {
            return [0..0, 0..0];
        }
        let first = (self.head + (steps.start - self.start)) % ring;
        let end = first + (steps.end - steps.start);
        [keep + first..keep + end.min(ring), keep..keep + (end - ring).max(0)]
    }

    /// How to append `tokens` tokens, where `now` is the next step, and the ring after that.
    pub(super) fn plan(&self, now: i32, tokens: i32) -> (Change, Self) {
        let Sizes { keep, rewind, .. } = self.sizes;
        let (window, ring) = (self.sizes.window(), self.sizes.ring());
        let end = now + tokens;
        // In a longer call, a token would overwrite tokens that an earlier query of the call sees.
        if tokens > rewind + 1 {
            let from = self.start.max(now - (window - 1));
            return (Change::Concatenate { from }, Self::ordered(self.sizes, from, end));
        }
        // A longer call has left more slots than the ring has.
        let (compact, mut after) = if self.room - keep > ring {
            let from = self.start.max(now - ring);
            (Some(from), Self::ordered(self.sizes, from, now))
        } else {
            (None, *self)
        };
        let needed = after.held(end).min(ring).max(0) + keep.min(end);
        if needed > after.room {
            after.room = (after.room + STEP).max(needed).min(self.sizes.slots());
        }
        let gone = after.held(end) - (after.room - keep).max(0);
        if gone > 0 {
            after.start += gone;
            after.head = (after.head + gone) % (after.room - keep);
        }
        (Change::InPlace { compact, room: after.room }, after)
    }

    /// The ring after a trim of `tokens` tokens, where `now` is the next step before it. The error is how many
    /// of the newest steps the ring would have to hold for that.
    pub(super) fn back(&self, now: i32, tokens: i32) -> Result<Self, i32> {
        let Sizes { keep, .. } = self.sizes;
        let then = now - tokens;
        if then == 0 {
            return Ok(Self::without_tokens(self.sizes));
        }
        if then <= keep {
            return Ok(Self { start: keep, head: 0, ..*self });
        }
        // The oldest step that the next token sees.
        let oldest = (then - (self.sizes.window() - 1)).max(keep);
        if self.start > oldest {
            return Err(now - oldest);
        }
        Ok(*self)
    }
}

impl fmt::Display for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sizes { max_size, keep, rewind } = self.sizes;
        write!(f, "at most {max_size} tokens")?;
        match (keep, rewind) {
            (0, 0) => Ok(()),
            (_, 0) => write!(f, " with {keep} sinks"),
            (0, _) => write!(f, " with a rewind of {rewind}"),
            _ => write!(f, " with {keep} sinks and a rewind of {rewind}"),
        }
    }
}
