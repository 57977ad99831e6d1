//! The operations of a ring on arrays: moves tokens to the slots that `ring.rs` computes.

use std::ops::Range;

use mlx_attn_masks::{AttentionMask, MaskError};
use mlx_rs::Array;

use super::ring::{Change, Ring, Sizes};
use super::{Layout, LayoutRecord, TokenLayout};
use crate::buffers::Buffers;
use crate::rows::Rows;
use crate::{CacheError, LayerKind, Limit};

impl TokenLayout for Ring {
    fn empty(&self) -> Layout {
        Layout::Ring(Self::without_tokens(self.sizes))
    }

    fn with_rewind(&self, rewind: i32) -> Result<Layout, CacheError> {
        let rewind = if rewind < 0 { rewind } else { rewind.max(self.rewind()) };
        Self::sized(self.max_size(), self.keep(), rewind).map(Layout::Ring)
    }

    fn fit(&self, kind: LayerKind, limit: Option<Limit>) -> Option<Layout> {
        let asked = match kind {
            LayerKind::Sliding { window } => Some(Limit { max_size: window, keep: 0 }),
            LayerKind::Full => limit,
        };
        let fits = asked == Some(Limit { max_size: self.max_size(), keep: self.keep() });
        fits.then_some(Layout::Ring(*self))
    }

    fn append(
        &self,
        rows: &Rows,
        held: Option<&Buffers>,
        new: &Buffers,
    ) -> Result<(Layout, Buffers), CacheError> {
        let (now, tokens) = (rows.steps(), new.slots());
        let end = rows.after(tokens)?;
        let (change, after) = self.plan(now, tokens);
        let mut buffers = match (change, held) {
            (Change::Concatenate { .. }, None) => new.contiguous()?,
            (Change::Concatenate { from }, Some(held)) => {
                Buffers::concatenate(&[self.gather(held, now, from, 0)?, new.clone()])?
            }
            (Change::InPlace { compact, room }, held) => {
                let held = match (held, compact) {
                    (Some(held), Some(from)) => Some(self.gather(held, now, from, 0)?),
                    (held, _) => held.cloned(),
                };
                let mut buffers = with_room(held, new, room)?;
                let mut at = 0;
                for slots in runs(after, now..end) {
                    let length = slots.end - slots.start;
                    buffers.write(slots, &new.range(at..at + length)?)?;
                    at += length;
                }
                buffers
            }
        };
        self.write_sinks(rows, &mut buffers, new)?;
        Ok((Layout::Ring(after), buffers))
    }

    fn slots_read(&self, end: i32) -> i32 {
        self.used(end)
    }

    fn mask(&self, rows: &Rows, queries: i32) -> Result<AttentionMask, CacheError> {
        if queries < 1 {
            return Err(MaskError::Queries { queries }.into());
        }
        rows.after(queries)?;
        let (_, after) = self.plan(rows.steps(), queries);
        after.mask_after(rows, queries)
    }

    fn trim(&self, now: i32, tokens: i32) -> Result<Layout, CacheError> {
        let held = self.held(now);
        self.back(now, tokens).map(Layout::Ring).map_err(|needed| CacheError::Trim { tokens, held, needed })
    }

    fn oldest_left(&self) -> Option<i32> {
        self.lost().then_some(self.start)
    }

    /// If a longer call has left more slots than the ring has, or if some slots were padding for all remaining
    /// rows.
    fn filter_moves(&self, later: i32) -> bool {
        later > 0 || self.room > self.sizes.slots()
    }

    fn in_order(&self, oldest_left: Option<i32>, end: i32) -> (Layout, i32) {
        let Sizes { keep, .. } = self.sizes;
        let start = oldest_left.unwrap_or(keep).max(end - self.sizes.ring()).max(keep);
        (Layout::Ring(Self::ordered(self.sizes, start, end)), start)
    }

    fn gather(&self, held: &Buffers, now: i32, first: i32, earlier: i32) -> Result<Buffers, CacheError> {
        let Sizes { keep, .. } = self.sizes;
        let from = first - earlier;
        let steps = from..now.max(from);
        let oldest = from.max(self.start).min(steps.end);
        let wanted_sinks = (now + earlier).min(keep);
        let sinks = now.min(wanted_sinks);
        let missing = wanted_sinks - sinks + (oldest - from);
        if missing == 0 && sinks == now.min(keep) && self.head == 0 && oldest == self.start {
            return Ok(held.range(0..self.used(now))?); // the tokens already lie in this order
        }
        let [before, behind] = self.slots(oldest..steps.end);
        Ok(Buffers::concatenate(&[
            held.range(0..sinks)?,
            held.zeros(missing)?,
            held.range(before)?,
            held.range(behind)?,
        ])?)
    }

    /// If a step was overwritten, all slots are saved, because mlx-lm takes a shorter ring for one that has not
    /// wrapped. The free slots then stand before the oldest step.
    fn to_save(&self, now: i32, held: &Buffers) -> Result<(Layout, Buffers), CacheError> {
        let (sizes, used) = (self.sizes, self.used(now));
        let free = sizes.slots() - used;
        if self.lost() && self.head == 0 && free > 0 {
            let parts = [held.range(0..sizes.keep)?, held.zeros(free)?, held.range(sizes.keep..used)?];
            let ring = Self { room: sizes.slots(), head: free % sizes.ring(), ..*self };
            return Ok((Layout::Ring(ring), Buffers::concatenate(&parts)?));
        }
        Ok((Layout::Ring(Self { room: used, ..*self }), held.range(0..used)?))
    }

    fn record(&self) -> LayoutRecord {
        let Self { sizes: Sizes { max_size, keep, rewind }, start, head, .. } = *self;
        LayoutRecord::Rotating { max_size, keep, rewind, start, head }
    }
}

impl Ring {
    /// Writes the sinks of padded rows over the padding in the first slots: in these rows the first tokens come
    /// at a later step than the number of their slot.
    fn write_sinks(&self, rows: &Rows, buffers: &mut Buffers, new: &Buffers) -> Result<(), CacheError> {
        let steps = rows.steps()..rows.steps() + new.slots();
        for (row, &padding) in rows.padding().iter().enumerate().filter(|(_, padding)| **padding > 0) {
            let positions = (steps.start - padding).max(0)..(steps.end - padding).min(self.keep());
            if !positions.is_empty() {
                let at = positions.start + padding - steps.start;
                let sinks = new.range(at..at + (positions.end - positions.start))?;
                buffers.write_row(row as i32, positions, &sinks)?;
            }
        }
        Ok(())
    }

    /// The mask for the next `queries` tokens, where this is the ring after they were appended.
    fn mask_after(&self, rows: &Rows, queries: i32) -> Result<AttentionMask, CacheError> {
        let Sizes { keep, .. } = self.sizes;
        let (now, end) = (rows.steps(), rows.after(queries)?);
        let window = self.sizes.window();

        // If no padding is left in the slots, all rows share one mask.
        let reaches = |&padding: &i32| padding > 0 && padding.saturating_add(keep) > self.start;
        let padded = rows.padding().iter().any(reaches);
        let slots = self.used(end);
        if !padded {
            // If the last query sees the oldest token of the ring, every query does.
            let all = self.held(end) <= window;
            let no_gap = self.head == 0 || self.held(end) == self.room - keep;
            if all && queries == 1 && no_gap {
                return Ok(AttentionMask::None);
            }
            if all && self.head == 0 {
                return Ok(AttentionMask::causal(queries));
            }
        }

        let paddings = if padded { rows.padding() } else { &[0] };
        let shape = [paddings.len() as i32, 1, queries, slots];
        let entries = shape.iter().try_fold(1_i32, |product, &n| product.checked_mul(n));
        let Some(entries) = entries else {
            return Err(MaskError::TooLarge { rows: paddings.len(), queries, offset: slots - queries }.into());
        };
        let mut visible = vec![false; entries as usize];
        let lines = paddings.iter().flat_map(|&padding| (now..end).map(move |step| (padding, step)));
        for (line, (padding, step)) in visible.chunks_exact_mut(slots as usize).zip(lines) {
            let mut show = |slots: Range<i32>| line[slots.start as usize..slots.end as usize].fill(true);
            let position = step - padding;
            show(0..(position + 1).clamp(0, keep)); // sinks
            let oldest = self.start.max(step - window + 1).max(padding.saturating_add(keep));
            self.slots(oldest..(step + 1).max(oldest)).into_iter().for_each(&mut show);
        }
        Ok(AttentionMask::Array(Array::from_slice(&visible, if padded { &shape } else { &shape[2..] })))
    }
}

/// The buffers with free slots added, until there are `room` slots.
fn with_room(held: Option<Buffers>, like: &Buffers, room: i32) -> Result<Buffers, CacheError> {
    let Some(held) = held else { return Ok(like.zeros(room)?) };
    let more = room - held.slots();
    Ok(if more > 0 { held.pad(0, more)? } else { held })
}

/// The slots of these steps, of sinks and of the ring, in the order of the steps.
fn runs(ring: Ring, steps: Range<i32>) -> [Range<i32>; 3] {
    let keep = ring.sizes.keep;
    let sinks = steps.start.min(keep)..steps.end.min(keep);
    let [first, second] = ring.slots(steps.start.max(keep)..steps.end.max(keep));
    [sinks, first, second]
}
