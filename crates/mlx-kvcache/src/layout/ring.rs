//! Where the tokens of a ring lie, in numbers alone; `ring_arrays.rs` moves the arrays.

use std::fmt;
use std::ops::Range;

use super::STEP;
use crate::CacheError;

/// The first tokens and the newest ones stay: sliding-window attention, or any attention with a limit on
/// its memory. mlx-lm calls such a cache a rotating one.
///
/// A query sees at most `max_size` tokens: the first `keep` ones, which are called attention sinks,
/// and the newest `max_size - keep`, itself included. That is the rule for every query, however the
/// tokens are cut into calls:
///
/// ```text
/// query i sees key j   when   j <= i  and  ( j < keep  or  i - j < max_size - keep )
/// ```
///
/// The tokens lie in a ring, and a new one overwrites the oldest: no token is moved while tokens come
/// one by one. With a [rewind](crate::KvCache::with_rewind) the ring is longer by the number of tokens
/// that can be trimmed at any time, and the mask hides the oldest ones until then.
///
/// # Reference
///
/// Sliding windows: Beltagy et al., *Longformer*, section 3.1 (<https://arxiv.org/abs/2004.05150>).
/// Sinks: Xiao et al., *Efficient Streaming Language Models with Attention Sinks*, section 3.2
/// (<https://arxiv.org/abs/2309.17453>); unlike there, tokens keep the positions that they had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ring {
    // The first `keep` slots hold the sinks, which are the steps below `keep`. The slots behind them are
    // a ring: the steps from `start` on lie in it one after the other, the first in slot `keep + head`,
    // and the one after the last slot in slot `keep` again. While nothing has been overwritten, a step
    // lies in the slot of its number.
    pub(super) sizes: Sizes,
    /// The number of slots in the buffers.
    pub(super) room: i32,
    /// The oldest step in the ring; `keep` while none has been overwritten.
    pub(super) start: i32,
    /// Its place in the ring.
    pub(super) head: i32,
}

/// The sizes of a ring, in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sizes {
    /// The most tokens that a query sees: sinks, and the newest ones with itself.
    pub(super) max_size: i32,
    /// Sinks: the first tokens, which stay.
    pub(super) keep: i32,
    /// Tokens that can be trimmed at any time.
    pub(super) rewind: i32,
}

impl Sizes {
    /// Tokens that a query sees besides the sinks, itself included.
    pub(super) fn window(self) -> i32 {
        self.max_size - self.keep
    }

    /// Slots behind the sinks: the window, and the tokens that become visible again after a trim.
    pub(super) fn ring(self) -> i32 {
        self.window() + self.rewind
    }

    /// All slots.
    pub(super) fn slots(self) -> i32 {
        self.keep + self.ring()
    }
}

/// What an append does to the slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// The new tokens are written where free or outlived ones lie.
    InPlace {
        /// First lay out the steps from this one on in order, and nothing else.
        compact: Option<i32>,
        /// Then add slots, up to this many.
        room: i32,
    },
    /// The sinks, the steps from this one on, and the new tokens behind them become the new slots.
    Concatenate {
        /// The oldest step that one of the new tokens sees.
        from: i32,
    },
}

impl Ring {
    /// A ring in which a query sees at most `max_size` tokens, without sinks.
    ///
    /// # Errors
    ///
    /// [`CacheError::Sizes`] where `max_size` is below 1.
    pub fn new(max_size: i32) -> Result<Self, CacheError> {
        Self::sized(max_size, 0, 0)
    }

    /// A ring that keeps the first `keep` of the `max_size` tokens as sinks.
    ///
    /// # Errors
    ///
    /// [`CacheError::Sizes`] where `keep` is negative or leaves no room for the newest token.
    pub fn with_keep(self, keep: i32) -> Result<Self, CacheError> {
        Self::sized(self.sizes.max_size, keep, self.sizes.rewind)
    }

    /// The most tokens that a query sees.
    pub fn max_size(&self) -> i32 {
        self.sizes.max_size
    }

    /// How many of the first tokens stay visible.
    pub fn keep(&self) -> i32 {
        self.sizes.keep
    }

    /// How many of the newest tokens can be trimmed at any time.
    pub fn rewind(&self) -> i32 {
        self.sizes.rewind
    }

    /// An empty ring of these sizes.
    pub(super) fn sized(max_size: i32, keep: i32, rewind: i32) -> Result<Self, CacheError> {
        // So that no sum of a size and a padding can overflow.
        let sum = max_size.checked_add(rewind).filter(|&sum| sum < 1 << 30);
        if keep < 0 || keep >= max_size || rewind < 0 || sum.is_none() {
            return Err(CacheError::Sizes { max_size, keep, rewind });
        }
        Ok(Self::without_tokens(Sizes { max_size, keep, rewind }))
    }

    pub(super) fn without_tokens(sizes: Sizes) -> Self {
        Self { sizes, room: 0, start: sizes.keep, head: 0 }
    }

    /// A ring that holds the steps from `start` up to `end` in order.
    pub(super) fn ordered(sizes: Sizes, start: i32, end: i32) -> Self {
        let ring = Self { sizes, room: 0, start, head: 0 };
        Self { room: ring.used(end), ..ring }
    }

    /// Whether these numbers can be those of a ring where the next step is `end`, or why not.
    pub(super) fn check(&self, end: i32) -> Result<(), String> {
        let Self { sizes, room, start, head } = *self;
        let ring = room - sizes.keep;
        let in_order =
            head == 0 && start >= sizes.keep && start <= end.max(sizes.keep) && self.used(end) <= room;
        let round =
            head > 0 && room == sizes.slots() && head < ring && start >= sizes.keep && self.held(end) <= ring;
        // The next token must find its window complete.
        let complete = start <= (end - (sizes.window() - 1)).max(sizes.keep);
        if (in_order || round) && complete {
            return Ok(());
        }
        Err(format!(
            "{end} tokens in {room} slots with {} sinks, of which the oldest one after them, {start}, lies in slot {}",
            sizes.keep,
            i64::from(sizes.keep) + i64::from(head)
        ))
    }

    /// Whether a step between the sinks and the oldest one in the ring is gone.
    pub(super) fn lost(&self) -> bool {
        self.start > self.sizes.keep
    }

    /// Steps in the ring, where the next one is `end`.
    pub(super) fn held(&self, end: i32) -> i32 {
        (end - self.start).max(0)
    }

    /// The number of slots that attention reads where the next step is `end`: the used ones, as long as
    /// they are the first ones.
    pub(super) fn used(&self, end: i32) -> i32 {
        if self.head > 0 {
            return self.room;
        }
        if end < self.sizes.keep { end } else { self.sizes.keep + self.held(end) }
    }

    /// The slots of these steps of the ring, in the order of the steps: one run, or two where they go
    /// round.
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

    /// How `tokens` more tokens get in after the step `now`, and what lies where afterwards.
    pub(super) fn plan(&self, now: i32, tokens: i32) -> (Change, Self) {
        let Sizes { keep, rewind, .. } = self.sizes;
        let (window, ring) = (self.sizes.window(), self.sizes.ring());
        let end = now + tokens;
        // Of a longer call, some query still needs what a later token would overwrite.
        if tokens > rewind + 1 {
            let from = self.start.max(now - (window - 1));
            return (Change::Concatenate { from }, Self::ordered(self.sizes, from, end));
        }
        // A longer call before has left more than there is room for from now on.
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

    /// The ring after going back from step `now` by `tokens`, or how many of the newest steps would have to
    /// be held for it.
    pub(super) fn back(&self, now: i32, tokens: i32) -> Result<Self, i32> {
        let Sizes { keep, .. } = self.sizes;
        let then = now - tokens;
        if then == 0 {
            return Ok(Self::without_tokens(self.sizes));
        }
        if then <= keep {
            return Ok(Self { start: keep, head: 0, ..*self });
        }
        // The next token sees so far back.
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
