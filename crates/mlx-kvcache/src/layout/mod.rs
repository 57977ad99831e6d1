//! Layouts: where the tokens of a cache lie. Each layout has its own file.
//!
//! The trait [`TokenLayout`] lists what a cache asks of its layout. To add a layout, add a file with a
//! type that implements the trait, and a variant of [`Layout`] and of [`LayoutRecord`] in this file.

mod full;
mod ring;
mod ring_arrays;

use std::fmt;

use mlx_attn_masks::AttentionMask;
use serde::{Deserialize, Serialize};

use crate::buffers::Buffers;
use crate::rows::Rows;
use crate::{CacheError, LayerKind, Limit};

pub use full::Full;
pub use ring::Ring;

/// Slots are added this many at a time, so that most appends write into an existing buffer. mlx-lm uses
/// the same number; with another number, sums over a head could round differently.
const STEP: i32 = 256;

/// Where the tokens of a [`KvCache`](crate::KvCache) lie, which tokens stay, and which of them a query sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Layout {
    /// Every token stays.
    Full(Full),
    /// The first tokens and the newest tokens stay.
    Ring(Ring),
}

/// What a cache asks of its layout.
///
/// A *slot* is an index on the third axis of the buffers. A *step* is the number of a token in the count
/// that all rows of a batch share (see [`Rows`]). `now` is the next step before an operation, `end` the
/// next step after it.
pub(crate) trait TokenLayout: fmt::Display {
    /// The same settings without tokens.
    fn empty(&self) -> Layout;

    /// The same settings without tokens, but at least `rewind` tokens can be trimmed at any time.
    fn with_rewind(&self, rewind: i32) -> Result<Layout, CacheError>;

    /// This layout for a layer of this kind, where `limit` is the limit on layers of full attention, or `None`
    /// if such a layer cannot use it. The tokens do not move.
    fn fit(&self, kind: LayerKind, limit: Option<Limit>) -> Option<Layout>;

    /// Adds the tokens of `new` to those of `held`. Returns the layout and the buffers after that.
    ///
    /// The caller drops the old buffers before the new ones are computed, so that MLX writes in place.
    fn append(
        &self,
        rows: &Rows,
        held: Option<&Buffers>,
        new: &Buffers,
    ) -> Result<(Layout, Buffers), CacheError>;

    /// How many slots attention reads, beginning with the first.
    fn slots_read(&self, end: i32) -> i32;

    /// The mask for the next `queries` tokens over the slots that attention reads after they were appended.
    fn mask(&self, rows: &Rows, queries: i32) -> Result<AttentionMask, CacheError>;

    /// The layout after the newest `tokens` tokens were forgotten. There are at least as many.
    fn trim(&self, now: i32, tokens: i32) -> Result<Layout, CacheError>;

    /// The oldest step that the layout holds, or `None` if no step was overwritten. Steps that always stay
    /// do not count.
    fn oldest_left(&self) -> Option<i32>;

    /// Whether a filter of rows must lay out the tokens again. Step 0 of the remaining rows is `later` steps
    /// later than that of the batch.
    fn filter_moves(&self, later: i32) -> bool;

    /// This layout with its steps in order up to `end`, and the first of these steps. It holds as many steps
    /// as it has room for, but none before `oldest_left`. Steps that always stay do not count.
    fn in_order(&self, oldest_left: Option<i32>, end: i32) -> (Layout, i32);

    /// The buffers for a layout that is [in order](Self::in_order): the steps that always stay, and the steps
    /// from `first` on, with zeros for steps that this layout does not hold.
    ///
    /// `first` is counted in steps of the new layout, whose step 0 is `earlier` steps before that of this
    /// layout (after it if negative).
    fn gather(&self, held: &Buffers, now: i32, first: i32, earlier: i32) -> Result<Buffers, CacheError>;

    /// The layout and the buffers for a file, without free slots behind the tokens.
    fn to_save(&self, now: i32, held: &Buffers) -> Result<(Layout, Buffers), CacheError>;

    /// The numbers of this layout for a file.
    fn record(&self) -> LayoutRecord;
}

impl Layout {
    /// The layout for a layer of this kind: a [`Ring`] for a layer with a window, or if layers of full
    /// attention have a limit; otherwise [`Full`].
    ///
    /// # Errors
    ///
    /// [`CacheError::Sizes`] for a window below 1 or sizes of the limit that contradict each other.
    pub fn for_layer(kind: LayerKind, limit: Option<Limit>) -> Result<Self, CacheError> {
        match (kind, limit) {
            (LayerKind::Sliding { window }, _) => Ring::new(window).map(Self::Ring),
            (LayerKind::Full, Some(Limit { max_size, keep })) => {
                Ring::new(max_size)?.with_keep(keep).map(Self::Ring)
            }
            (LayerKind::Full, None) => Ok(Self::Full(Full::new())),
        }
    }

    /// This layout as the trait that all layouts implement.
    pub(crate) fn rules(&self) -> &dyn TokenLayout {
        match self {
            Self::Full(full) => full,
            Self::Ring(ring) => ring,
        }
    }
}

/// The tokens that the layout keeps, as messages show them.
impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.rules().fmt(f)
    }
}

impl From<Full> for Layout {
    fn from(full: Full) -> Self {
        Self::Full(full)
    }
}

impl From<Ring> for Layout {
    fn from(ring: Ring) -> Self {
        Self::Ring(ring)
    }
}

/// The numbers of a layout in a cache file. Their names and order are part of the file format.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum LayoutRecord {
    /// Those of a [`Full`].
    Full { window: Option<i32> },
    /// Those of a [`Ring`]: its sizes, the oldest step in it, and the slot of this step, counted from the
    /// first slot behind the sinks.
    Rotating { max_size: i32, keep: i32, rewind: i32, start: i32, head: i32 },
}

impl LayoutRecord {
    /// The class name in a file for a layer that mlx-lm does not support or must not use.
    pub(crate) fn class(&self) -> &'static str {
        match self {
            Self::Full { .. } => "FullKvCache",
            Self::Rotating { .. } => "RotatingKvCache",
        }
    }

    /// The layout with these numbers, where `end` is the next step and the buffers have `slots` slots. The
    /// error says which numbers contradict each other.
    pub(crate) fn restore(self, end: i32, slots: i32) -> Result<Layout, String> {
        match self {
            Self::Full { window } => Full::restore(window, end, slots).map(Layout::Full),
            Self::Rotating { max_size, keep, rewind, start, head } => {
                let empty = Ring::sized(max_size, keep, rewind).map_err(|e| e.to_string())?;
                let ring = Ring { room: slots, start, head, ..empty };
                ring.check(end)?;
                Ok(Layout::Ring(ring))
            }
        }
    }
}
