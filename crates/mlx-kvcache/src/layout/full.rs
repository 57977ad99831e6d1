//! The layout that keeps every token: the token of step n lies in slot n.

use std::fmt;

use mlx_attn_masks::{AttentionMask, CausalMask};

use super::{Layout, LayoutRecord, STEP, TokenLayout};
use crate::buffers::Buffers;
use crate::rows::Rows;
use crate::{CacheError, LayerKind, Limit};

/// Every token stays: the layout for full attention.
///
/// The buffers have room for a multiple of 256 tokens. An append writes into the next free slots in place:
/// MLX reuses the buffer, because nothing else holds it, so no token is copied.
///
/// With a [window](Self::with_window) the mask hides older tokens, but they stay. This takes more memory
/// than a [`Ring`](crate::Ring), but any number of tokens can be trimmed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Full {
    window: Option<i32>,
}

impl Full {
    /// A layout without a window: every query sees all tokens before it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a window: each query sees itself and the `window - 1` tokens before it.
    ///
    /// # Errors
    ///
    /// [`CacheError::Window`] for a window below 1.
    pub fn with_window(self, window: i32) -> Result<Self, CacheError> {
        if window < 1 {
            return Err(CacheError::Window { window });
        }
        Ok(Self { window: Some(window) })
    }

    /// The window of the mask, in tokens.
    pub fn window(&self) -> Option<i32> {
        self.window
    }

    /// The layout with the numbers of a file. The error says which numbers contradict each other.
    pub(super) fn restore(window: Option<i32>, end: i32, slots: i32) -> Result<Self, String> {
        if slots < end || window.is_some_and(|window| window < 1) {
            return Err(format!("{end} tokens in {slots} slots with window {window:?}"));
        }
        Ok(Self { window })
    }
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.window {
            Some(window) => write!(f, "all tokens with a window of {window}"),
            None => f.write_str("all tokens"),
        }
    }
}

impl TokenLayout for Full {
    fn empty(&self) -> Layout {
        Layout::Full(*self)
    }

    /// All tokens can be trimmed at any time.
    fn with_rewind(&self, rewind: i32) -> Result<Layout, CacheError> {
        if rewind < 0 {
            return Err(CacheError::Negative { tokens: rewind });
        }
        Ok(Layout::Full(*self))
    }

    /// A layout without a window gets that of the layer: files of mlx-lm that hold all tokens do not say it.
    fn fit(&self, kind: LayerKind, limit: Option<Limit>) -> Option<Layout> {
        let fits = match kind {
            LayerKind::Sliding { window } => window > 0 && self.window.is_none_or(|found| found == window),
            LayerKind::Full => self.window.is_none() && limit.is_none(),
        };
        let window = if let LayerKind::Sliding { window } = kind { Some(window) } else { None };
        fits.then_some(Layout::Full(Self { window }))
    }

    fn append(
        &self,
        rows: &Rows,
        held: Option<&Buffers>,
        new: &Buffers,
    ) -> Result<(Layout, Buffers), CacheError> {
        let (start, tokens) = (rows.steps(), new.slots());
        let end = rows.after(tokens)?;
        let more = tokens.saturating_add(STEP - 1) / STEP * STEP;
        let mut room = match held {
            None => new.zeros(more)?,
            Some(held) if end <= held.slots() => held.clone(),
            // Free slots before the new ones are cut off, so that slots stay in the order of the tokens.
            Some(held) => Buffers::concatenate(&[held.range(0..start)?, new.zeros(more)?])?,
        };
        room.write(start..end, new)?;
        Ok((Layout::Full(*self), room))
    }

    fn slots_read(&self, end: i32) -> i32 {
        end
    }

    fn mask(&self, rows: &Rows, queries: i32) -> Result<AttentionMask, CacheError> {
        let mask = CausalMask::new(queries).offset(rows.steps()).window(self.window);
        if rows.padding().is_empty() {
            return Ok(mask.build()?);
        }
        // The padding may be longer than the part of the prompt that was read so far.
        let keys = rows.after(queries.max(0))?;
        let padding: Vec<i32> = rows.padding().iter().map(|&row| row.min(keys)).collect();
        Ok(mask.left_padding(&padding).build()?)
    }

    fn trim(&self, _: i32, _: i32) -> Result<Layout, CacheError> {
        Ok(Layout::Full(*self))
    }

    fn oldest_left(&self) -> Option<i32> {
        None
    }

    /// Always, so that the free slots are dropped together with the other rows.
    fn filter_moves(&self, _: i32) -> bool {
        true
    }

    fn in_order(&self, _: Option<i32>, _: i32) -> (Layout, i32) {
        (Layout::Full(*self), 0)
    }

    fn gather(&self, held: &Buffers, now: i32, _: i32, earlier: i32) -> Result<Buffers, CacheError> {
        let tokens = held.range((-earlier).max(0)..now)?;
        Ok(tokens.pad(earlier.max(0), 0)?)
    }

    fn to_save(&self, now: i32, held: &Buffers) -> Result<(Layout, Buffers), CacheError> {
        Ok((Layout::Full(*self), held.range(0..now)?))
    }

    fn record(&self) -> LayoutRecord {
        LayoutRecord::Full { window: self.window }
    }
}
