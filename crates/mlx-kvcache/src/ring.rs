//! Where the tokens of a rotating cache lie, in numbers alone.

use std::ops::Range;

/// The sizes of a rotating cache, in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// Tokens that a query sees at most: sinks, and the newest ones with itself.
    pub(crate) max_size: i32,
    /// Sinks: the first tokens, which stay.
    pub(crate) keep: i32,
    /// Tokens that can be taken back at any time.
    pub(crate) rewind: i32,
}

impl Sizes {
    /// Tokens that a query sees besides the sinks, itself included.
    pub(crate) fn window(self) -> i32 {
        self.max_size - self.keep
    }

    /// Slots behind the sinks: the window, and what lies behind it when tokens are taken back.
    pub(crate) fn ring(self) -> i32 {
        self.window() + self.rewind
    }

    /// All slots.
    pub(crate) fn slots(self) -> i32 {
        self.keep + self.ring()
    }
}

/// Which step lies in which slot.
///
/// The first `keep` slots hold the sinks, which are the steps below `keep`. The slots behind them are
/// a ring: the steps from `start` on lie in it one after the other, the first in slot `keep + head`,
/// and the one after the last slot in slot `keep` again. While nothing has been overwritten, a step
/// lies in the slot of its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ring {
    pub(crate) sizes: Sizes,
    /// Slots that there are.
    pub(crate) room: i32,
    /// The oldest step in the ring; `keep` while none has been overwritten.
    pub(crate) start: i32,
    /// Its place in the ring.
    pub(crate) head: i32,
}

/// What an append does to the slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// The new tokens are written where free or outlived ones lie.
    InPlace {
        /// First lay out the steps from this one on in order, and nothing else.
        compact: Option<i32>,
        /// Then add slots, up to so many.
        room: i32,
    },
    /// The sinks, the steps from this one on, and the new tokens behind them become the new slots.
    Concatenate {
        /// The oldest step that one of the new tokens sees.
        from: i32,
    },
}

impl Ring {
    pub(crate) fn new(sizes: Sizes) -> Self {
        Self { sizes, room: 0, start: sizes.keep, head: 0 }
    }

    /// A ring that holds the steps from `start` up to `end` in order.
    pub(crate) fn ordered(sizes: Sizes, start: i32, end: i32) -> Self {
        let ring = Self { sizes, room: 0, start, head: 0 };
        Self { room: ring.used(end), ..ring }
    }

    /// Whether these numbers can be those of a ring where the next step is `end`, or why not.
    pub(crate) fn check(&self, end: i32) -> Result<(), String> {
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
    pub(crate) fn lost(&self) -> bool {
        self.start > self.sizes.keep
    }

    /// Steps in the ring, where the next one is `end`.
    pub(crate) fn held(&self, end: i32) -> i32 {
        (end - self.start).max(0)
    }

    /// The number of slots that attention reads where the next step is `end`: the used ones, as long as
    /// they are the first ones.
    pub(crate) fn used(&self, end: i32) -> i32 {
        if self.head > 0 {
            return self.room;
        }
        if end < self.sizes.keep { end } else { self.sizes.keep + self.held(end) }
    }

    /// The slots of these steps of the ring, in the order of the steps: one run, or two where they go
    /// round.
    pub(crate) fn slots(&self, steps: Range<i32>) -> [Range<i32>; 2] {
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
    pub(crate) fn plan(&self, now: i32, tokens: i32) -> (Change, Self) {
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
            after.room = (after.room + crate::full::STEP).max(needed).min(self.sizes.slots());
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
    pub(crate) fn back(&self, now: i32, tokens: i32) -> Result<Self, i32> {
        let Sizes { keep, .. } = self.sizes;
        let then = now - tokens;
        if then == 0 {
            return Ok(Self::new(self.sizes));
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
