//! Where the tokens of a cache lie: one file for each layout.
//!
//! [`TokenLayout`] lists what a cache asks of its layout. A new layout is a new file here with a type
//! that implements it, and a variant of [`Layout`] and of [`LayoutRecord`] in this file.

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

/// Places are added this many at a time, so that most appends write into a buffer that is there.
/// mlx-lm uses the same number; with another, sums over a head could round differently.
const STEP: i32 = 256;

/// Where the tokens of a [`KvCache`](crate::KvCache) lie, which of them stay, and so which of them a query
/// sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Layout {
    /// Every token stays.
    Full(Full),
    /// The first tokens and the newest ones stay.
    Ring(Ring),
}

/// What a cache asks of its layout.
///
/// A *place* is an index on the third axis of the buffers. A *step* is the number of a call's token on
/// the time that all rows share (see [`Rows`]); `now` and `end` are the numbers of the next step.
pub(crate) trait TokenLayout: fmt::Display {
    /// The same settings without a token.
    fn empty(&self) -> Layout;

    /// The same settings without a token, where at least `rewind` tokens can be trimmed at any time.
    fn with_rewind(&self, rewind: i32) -> Result<Layout, CacheError>;

    /// Whether the queries of a layer of this kind see what they shall, with this limit on layers of full
    /// attention.
    fn serves(&self, kind: LayerKind, limit: Option<Limit>) -> bool;

    /// The layout and the buffers after `new` was added to what is held.
    ///
    /// The buffers that are written into must not be kept elsewhere, so that MLX writes in place.
    fn append(
        &self,
        rows: &Rows,
        held: Option<&Buffers>,
        new: &Buffers,
    ) -> Result<(Layout, Buffers), CacheError>;

    /// How many places attention reads, from the first one on.
    fn places_read(&self, end: i32) -> i32;

    /// Which of the places that are read after the next `queries` tokens were appended each of these
    /// tokens sees.
    fn mask(&self, rows: &Rows, queries: i32) -> Result<AttentionMask, CacheError>;

    /// The layout after the newest `tokens` tokens were forgotten, of which there are as many.
    fn trim(&self, now: i32, tokens: i32) -> Result<Layout, CacheError>;

    /// The oldest step that is held where older ones were overwritten.
    fn oldest_left(&self) -> Option<i32>;

    /// Whether rows that are taken out of a batch must be laid out in order again, where their time
    /// begins `later` steps later.
    fn filter_moves(&self, later: i32) -> bool;

    /// This layout with the steps up to `end` in order, and the first step in it besides those that
    /// always stay: as many as it holds, but none before `oldest_left`.
    fn in_order(&self, oldest_left: Option<i32>, end: i32) -> (Layout, i32);

    /// The buffers of a layout [in order](Self::in_order): the steps that always stay, and those from
    /// `first` on. The time of the new layout begins `earlier` steps before the time of this one, which
    /// is what `first` is counted in. Zeros stand where this layout holds no token.
    fn gather(&self, held: &Buffers, now: i32, first: i32, earlier: i32) -> Result<Buffers, CacheError>;

    /// What is written to a file: the layout, and its buffers without free places behind the tokens.
    fn to_save(&self, now: i32, held: &Buffers) -> Result<(Layout, Buffers), CacheError>;

    /// The numbers that a file has of this layout.
    fn record(&self) -> LayoutRecord;
}

impl Layout {
    /// The layout for a layer of this kind: a ring for one with a window or a limit, otherwise one that
    /// keeps every token.
    ///
    /// # Errors
    ///
    /// [`CacheError::Sizes`] for a window or a limit that is none.
    pub fn for_layer(kind: LayerKind, limit: Option<Limit>) -> Result<Self, CacheError> {
        match (kind, limit) {
            (LayerKind::Sliding { window }, _) => Ring::new(window).map(Self::Ring),
            (LayerKind::Full, Some(Limit { max_size, keep })) => {
                Ring::new(max_size)?.with_keep(keep).map(Self::Ring)
            }
            (LayerKind::Full, None) => Ok(Self::Full(Full::new())),
        }
    }

    pub(crate) fn rules(&self) -> &dyn TokenLayout {
        match self {
            Self::Full(full) => full,
            Self::Ring(ring) => ring,
        }
    }
}

/// Which tokens it keeps, as messages name them.
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

/// The numbers of a layout as cache files have them. Names and order are part of the file format.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum LayoutRecord {
    /// [`Full`]: the token of each step lies in the place of its number.
    Full { window: Option<i32> },
    /// [`Ring`]: its sizes, the oldest step in it, and where that lies.
    Rotating { max_size: i32, keep: i32, rewind: i32, start: i32, head: i32 },
}

impl LayoutRecord {
    /// The class name of a layer that mlx-lm has no class for, or must not read as one of its own.
    pub(crate) fn class(&self) -> &'static str {
        match self {
            Self::Full { .. } => "FullKvCache",
            Self::Rotating { .. } => "RotatingKvCache",
        }
    }

    /// The layout with these numbers, which has come to the step `end` and has these places, or what
    /// contradicts what.
    pub(crate) fn restore(self, end: i32, places: i32) -> Result<Layout, String> {
        match self {
            Self::Full { window } => Full::restore(window, end, places).map(Layout::Full),
            Self::Rotating { max_size, keep, rewind, start, head } => {
                let empty = Ring::sized(max_size, keep, rewind).map_err(|e| e.to_string())?;
                let ring = Ring { room: places, start, head, ..empty };
                ring.check(end)?;
                Ok(Layout::Ring(ring))
            }
        }
    }
}
