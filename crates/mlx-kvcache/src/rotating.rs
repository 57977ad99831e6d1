//! The cache that keeps the first and the newest tokens.

use std::ops::Range;

use mlx_attn_masks::{AttentionMask, MaskError};
use mlx_rs::Array;

use crate::buffers::{Buffers, Form};
use crate::full::{differ, held_like, quantize};
use crate::ring::{Change, Ring, Sizes};
use crate::rows::Rows;
use crate::{CacheError, CacheState, KeysValues, KvCache, Quantization};

/// A cache of bounded size: sliding-window attention, or any attention with a limit on its memory.
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
/// one by one. With [`rewind`](Self::with_rewind) the ring is longer by as many tokens as shall be
/// taken back at any time, and the mask hides them until then.
///
/// # Reference
///
/// Sliding windows: Beltagy et al., *Longformer*, section 3.1 (<https://arxiv.org/abs/2004.05150>).
/// Sinks: Xiao et al., *Efficient Streaming Language Models with Attention Sinks*, section 3.2
/// (<https://arxiv.org/abs/2309.17453>); unlike there, tokens keep the positions that they had.
#[derive(Debug, Clone)]
pub struct RotatingKvCache {
    quantization: Option<Quantization>,
    rows: Rows,
    ring: Ring,
    form: Option<Form>,
    buffers: Option<Buffers>,
}

impl RotatingKvCache {
    /// An empty cache in which a query sees at most `max_size` tokens.
    ///
    /// # Errors
    ///
    /// [`CacheError::Sizes`] where `max_size` is below 1.
    pub fn new(max_size: i32) -> Result<Self, CacheError> {
        Self::with_sizes(Sizes { max_size, keep: 0, rewind: 0 })
    }

    /// Of the `max_size` tokens, the first `keep` are sinks.
    ///
    /// # Errors
    ///
    /// [`CacheError::Sizes`] where `keep` is negative or leaves no room for the newest token, and
    /// [`CacheError::NotEmpty`] once tokens were appended.
    pub fn with_keep(self, keep: i32) -> Result<Self, CacheError> {
        self.check_empty("keep")?;
        let sized = Self::with_sizes(Sizes { keep, ..self.ring.sizes })?;
        Ok(Self { ring: sized.ring, ..self })
    }

    /// Besides the `max_size` tokens, `rewind` more are held, so that at any time one can go back by as
    /// many tokens from the furthest position that was reached, and the window is complete again.
    ///
    /// A cache that holds tokens keeps them; from then on it holds as many more.
    ///
    /// # Errors
    ///
    /// [`CacheError::Sizes`] where `rewind` is negative or the sum of all sizes is too large.
    pub fn with_rewind(self, rewind: i32) -> Result<Self, CacheError> {
        let sizes = Self::with_sizes(Sizes { rewind, ..self.ring.sizes })?.ring.sizes;
        let now = self.rows.steps();
        let Some(held) = self.buffers.as_ref().filter(|_| sizes != self.ring.sizes) else {
            return Ok(Self { ring: Ring { sizes, ..self.ring }, ..self });
        };
        let from = self.ring.start.max(now - sizes.ring());
        let held = self.in_order(held, from)?;
        held.eval()?;
        Ok(Self { ring: Ring::ordered(sizes, from, now), buffers: Some(held), ..self })
    }

    fn check_empty(&self, what: &'static str) -> Result<(), CacheError> {
        match self.rows.steps() {
            0 => Ok(()),
            offset => Err(CacheError::NotEmpty { what, offset }),
        }
    }

    /// With keys and values quantized as they come.
    ///
    /// # Errors
    ///
    /// [`CacheError::Quantized`] where the cache is quantized in another way already.
    pub fn quantized(mut self, quantization: Quantization) -> Result<Self, CacheError> {
        self.quantize(quantization)?;
        Ok(self)
    }

    /// For a batch of prompts that are filled up on the left to one length, with this much padding
    /// before each.
    ///
    /// # Errors
    ///
    /// [`CacheError::Padding`] where a number is negative, or none is 0, and [`CacheError::NotEmpty`] once
    /// tokens were appended.
    pub fn with_left_padding(self, padding: &[i32]) -> Result<Self, CacheError> {
        self.check_empty("left padding")?;
        Ok(Self { rows: Rows::padded(padding)?, ..self })
    }

    fn with_sizes(sizes: Sizes) -> Result<Self, CacheError> {
        let Sizes { max_size, keep, rewind } = sizes;
        // So that no sum of a size and a padding can overflow.
        let sum = max_size.checked_add(rewind).filter(|&sum| sum < 1 << 30);
        if keep < 0 || keep >= max_size || rewind < 0 || sum.is_none() {
            return Err(CacheError::Sizes { max_size, keep, rewind });
        }
        let (rows, ring) = (Rows::new(), Ring::new(sizes));
        Ok(Self { quantization: None, rows, ring, form: None, buffers: None })
    }

    /// Tokens that a query sees at most.
    pub fn max_size(&self) -> i32 {
        self.ring.sizes.max_size
    }

    /// How many of the first tokens stay visible.
    pub fn keep(&self) -> i32 {
        self.ring.sizes.keep
    }

    /// How many of the newest tokens can be taken back at any time.
    pub fn rewind(&self) -> i32 {
        self.ring.sizes.rewind
    }

    /// How keys and values are quantized.
    pub fn quantization(&self) -> Option<Quantization> {
        self.quantization
    }

    /// The buffers after this change, with `new` in them.
    fn changed(&self, change: Change, after: Ring, new: Buffers, tokens: i32) -> Result<Buffers, CacheError> {
        let now = self.rows.steps();
        let end = now + tokens;
        let mut buffers = match (change, &self.buffers) {
            (Change::Concatenate { .. }, None) => new.contiguous()?,
            (Change::Concatenate { from }, Some(held)) => {
                Buffers::concatenate(&[self.in_order(held, from)?, new.clone()])?
            }
            (Change::InPlace { compact, room }, held) => {
                let held = match (held, compact) {
                    (Some(held), Some(from)) => Some(self.in_order(held, from)?),
                    (held, _) => held.clone(),
                };
                let more = room - held.as_ref().map_or(0, Buffers::places);
                let mut buffers = match held {
                    Some(held) if more > 0 => held.pad(0, more)?,
                    Some(held) => held,
                    None => new.zeros(room)?,
                };
                let mut at = 0;
                for slots in runs(after, now..end) {
                    let length = slots.end - slots.start;
                    buffers.write(slots, &new.range(at..at + length)?)?;
                    at += length;
                }
                buffers
            }
        };
        self.write_sinks(&mut buffers, &new, now..end)?;
        Ok(buffers)
    }

    /// The sinks of padded rows come at a later step than their slots say, and are written there on top
    /// of the padding.
    fn write_sinks(&self, buffers: &mut Buffers, new: &Buffers, steps: Range<i32>) -> Result<(), CacheError> {
        for (row, &padding) in self.rows.padding().iter().enumerate().filter(|(_, padding)| **padding > 0) {
            let positions = (steps.start - padding).max(0)..(steps.end - padding).min(self.keep());
            if !positions.is_empty() {
                let at = positions.start + padding - steps.start;
                let sinks = new.range(at..at + (positions.end - positions.start))?;
                buffers.write_row(row as i32, positions, &sinks)?;
            }
        }
        Ok(())
    }

    /// The sinks, then the steps from this one on, in order.
    fn in_order(&self, held: &Buffers, from: i32) -> Result<Buffers, CacheError> {
        let (now, keep) = (self.rows.steps(), self.keep());
        let [first, second] = self.ring.slots(from..now.max(from));
        if self.ring.head == 0 && from == self.ring.start {
            return Ok(held.range(0..self.ring.used(now))?);
        }
        let parts = [held.range(0..now.min(keep))?, held.range(first)?, held.range(second)?];
        Ok(Buffers::concatenate(&parts)?)
    }

    /// The sinks alone, with zeros up to `length` places, and the steps of the ring from this one on, which
    /// may begin before the oldest that is held: there, and as if `later` steps later, stand zeros.
    fn aligned(&self, held: &Buffers, sinks: i32, from: i32) -> Result<Buffers, CacheError> {
        let now = self.rows.steps();
        let have = from.max(self.ring.start).min(now.max(from));
        let [first, second] = self.ring.slots(have..now.max(have));
        let own = now.min(self.keep()).min(sinks);
        let before = (have - from).min(now.max(from) - from).max(0);
        Ok(Buffers::concatenate(&[
            held.range(0..own)?,
            held.zeros(sinks - own + before)?,
            held.range(first)?,
            held.range(second)?,
        ])?)
    }

    /// The mask for `queries` tokens that were appended so.
    fn mask_after(&self, after: Ring, queries: i32) -> Result<AttentionMask, CacheError> {
        let Sizes { keep, .. } = after.sizes;
        let (now, end) = (self.rows.steps(), self.rows.after(queries)?);
        let window = after.sizes.window();

        // Padding that lies before everything that is held needs no rows of its own.
        let padded = self
            .rows
            .padding()
            .iter()
            .any(|&padding| padding > 0 && padding.saturating_add(keep) > after.start);
        let slots = after.used(end);
        if !padded {
            // The last query sees the oldest token of the ring, so that every query does.
            let all = after.held(end) <= window;
            let no_gap = after.head == 0 || after.held(end) == after.room - keep;
            if all && queries == 1 && no_gap {
                return Ok(AttentionMask::None);
            }
            if all && after.head == 0 {
                return Ok(AttentionMask::causal(queries));
            }
        }

        let rows: Vec<i32> = if padded { self.rows.padding().to_vec() } else { vec![0] };
        let shape = [rows.len() as i32, 1, queries, slots];
        let entries = shape.iter().try_fold(1_i32, |product, &n| product.checked_mul(n));
        let Some(entries) = entries else {
            return Err(MaskError::TooLarge { rows: rows.len(), queries, offset: slots - queries }.into());
        };
        let mut visible = vec![false; entries as usize];
        let lines = rows.iter().flat_map(|&padding| (now..end).map(move |step| (padding, step)));
        for (line, (padding, step)) in visible.chunks_exact_mut(slots as usize).zip(lines) {
            let mut show = |slots: Range<i32>| line[slots.start as usize..slots.end as usize].fill(true);
            let position = step - padding;
            show(0..(position + 1).clamp(0, keep)); // sinks
            let oldest = after.start.max(step - window + 1).max(padding.saturating_add(keep));
            after.slots(oldest..(step + 1).max(oldest)).into_iter().for_each(&mut show);
        }
        Ok(AttentionMask::Array(Array::from_slice(&visible, if padded { &shape } else { &shape[2..] })))
    }

    pub(crate) fn rows(&self) -> &Rows {
        &self.rows
    }

    pub(crate) fn form(&self) -> Option<Form> {
        self.form
    }

    pub(crate) fn ring(&self) -> Ring {
        self.ring
    }

    /// A cache that holds these tokens.
    pub(crate) fn from_parts(
        ring: Ring,
        quantization: Option<Quantization>,
        rows: Rows,
        held: Option<(Form, Buffers)>,
    ) -> Self {
        let (form, buffers) = held.unzip();
        Self { quantization, rows, ring, form, buffers }
    }

    /// The slots to save and what lies in them: no free ones behind, and all of them where a step was lost,
    /// which is how mlx-lm knows that the ring is full. Free ones then stand where the oldest would.
    pub(crate) fn to_save(&self) -> Result<(Ring, Option<Buffers>), CacheError> {
        let (now, Sizes { keep, .. }) = (self.rows.steps(), self.ring.sizes);
        let Some(held) = self.buffers.as_ref().filter(|_| now > 0) else {
            return Ok((Ring::new(self.ring.sizes), None));
        };
        let used = self.ring.used(now);
        let free = self.ring.sizes.slots() - used;
        if self.ring.lost() && self.ring.head == 0 && free > 0 {
            let parts = [held.range(0..keep)?, held.zeros(free)?, held.range(keep..used)?];
            let sizes = self.ring.sizes;
            let ring = Ring { room: sizes.slots(), head: free % sizes.ring(), ..self.ring };
            return Ok((ring, Some(Buffers::concatenate(&parts)?)));
        }
        Ok((Ring { room: used, ..self.ring }, Some(held.range(0..used)?)))
    }

    /// The one row that there is, no longer as a batch.
    pub(crate) fn single(self) -> Self {
        Self { rows: self.rows.single(), ..self }
    }

    pub(crate) fn batch(&self) -> usize {
        self.rows.count().or(self.form.map(|form| form.batch as usize)).unwrap_or(1)
    }

    pub(crate) fn filter(&self, rows: &[usize]) -> Result<Self, CacheError> {
        let (time, later) = self.rows.filter(rows, self.batch())?;
        let mut kept = Self { rows: time, ..self.clone() };
        let rows: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
        kept.form = self.form.map(|form| Form { batch: rows.len() as i32, ..form });
        let Some(held) = &self.buffers else { return Ok(kept) };
        let overlong = self.ring.room > self.ring.sizes.slots();
        if later == 0 && !overlong {
            kept.buffers = Some(held.rows(&rows)?);
        } else if kept.rows.steps() == 0 {
            (kept.buffers, kept.form, kept.ring) = (None, None, Ring::new(self.ring.sizes));
        } else {
            // What a longer call left, and the steps in which only rows were sinks that are gone.
            let oldest = self.rows.steps() - self.ring.sizes.ring();
            let from = self.ring.start.max(oldest).max(self.keep().saturating_add(later));
            let end = kept.rows.steps();
            kept.ring = Ring::ordered(self.ring.sizes, from - later, end);
            let held = self.aligned(held, end.min(self.keep()), from)?;
            kept.buffers = Some(held.rows(&rows)?);
        }
        kept.buffers.iter().try_for_each(Buffers::eval)?;
        Ok(kept)
    }

    pub(crate) fn merge(parts: &[&Self]) -> Result<Self, CacheError> {
        let Some(&first) = parts.first() else { return Err(CacheError::Rows { rows: Vec::new(), batch: 0 }) };
        let sizes = first.ring.sizes;
        for part in parts {
            differ("sizes", sizes, part.ring.sizes)?;
            differ("quantization", first.quantization, part.quantization)?;
        }
        let rows: Vec<_> = parts.iter().map(|part| (&part.rows, part.batch())).collect();
        let (rows, later) = Rows::merge(&rows)?;
        let empty = Self { rows: rows.clone(), ring: Ring::new(sizes), form: None, buffers: None, ..*first };
        let like = held_like(parts.iter().map(|part| (part.form, part.buffers.as_ref())))?;
        let Some((form, like)) = like else { return Ok(empty) };

        // As much as one cache holds, but nothing that one of them has lost.
        let end = rows.steps();
        let lost = parts.iter().zip(&later).filter(|(part, _)| part.ring.lost());
        let start = lost.map(|(part, later)| part.ring.start + later).max().unwrap_or(sizes.keep);
        let start = start.max(end - sizes.ring()).max(sizes.keep);
        let ring = Ring::ordered(sizes, start, end);

        let sinks = end.min(sizes.keep);
        let mut aligned = Vec::with_capacity(parts.len());
        for (part, later) in parts.iter().zip(later) {
            aligned.push(match &part.buffers {
                Some(held) => part.aligned(held, sinks, start - later)?,
                None => like.rows(&vec![0; part.batch()])?.zeros(ring.room)?,
            });
        }
        let buffers = Buffers::stack(&aligned)?;
        buffers.eval()?;
        let batch = parts.iter().map(|part| part.batch() as i32).sum();
        Ok(Self { rows, ring, form: Some(Form { batch, ..form }), buffers: Some(buffers), ..*first })
    }
}

/// The slots of these steps, sinks and ring, in the order of the steps.
fn runs(ring: Ring, steps: Range<i32>) -> [Range<i32>; 3] {
    let keep = ring.sizes.keep;
    let sinks = steps.start.min(keep)..steps.end.min(keep);
    let [first, second] = ring.slots(steps.start.max(keep)..steps.end.max(keep));
    [sinks, first, second]
}

impl KvCache for RotatingKvCache {
    fn offset(&self) -> i32 {
        self.rows.steps()
    }

    fn offsets(&self) -> &[i32] {
        self.rows.offsets()
    }

    fn append(&mut self, keys: &Array, values: &Array) -> Result<KeysValues, CacheError> {
        let (form, length) = Form::of(keys, values, self.form, self.rows.count())?;
        let end = self.rows.after(length)?;
        if let Some(quantization) = self.quantization {
            form.check_quantization(quantization)?;
        }
        let new = Buffers::new(keys, values, self.quantization)?;

        let (change, after) = self.ring.plan(self.rows.steps(), length);
        // From here on the cache holds the new buffers alone, so that MLX writes in place.
        let buffers = self.changed(change, after, new, length)?;
        let read = buffers.range(0..after.used(end))?.read()?;

        self.form = Some(form);
        self.buffers = Some(buffers);
        self.ring = after;
        self.rows.advance(length);
        Ok(read)
    }

    fn mask(&self, queries: i32) -> Result<AttentionMask, CacheError> {
        if queries < 1 {
            return Err(MaskError::Queries { queries }.into());
        }
        self.rows.after(queries)?;
        let (_, after) = self.ring.plan(self.rows.steps(), queries);
        self.mask_after(after, queries)
    }

    fn can_trim(&self, tokens: i32) -> Result<i32, CacheError> {
        let gone = self.rows.back(tokens)?;
        let now = self.rows.steps();
        match self.ring.back(now, gone) {
            Ok(_) => Ok(gone),
            Err(needed) => Err(CacheError::Trim { tokens, held: self.ring.held(now), needed }),
        }
    }

    fn trim(&mut self, tokens: i32) -> Result<i32, CacheError> {
        let gone = self.can_trim(tokens)?;
        if let Ok(ring) = self.ring.back(self.rows.steps(), gone) {
            self.ring = ring;
        }
        self.rows.advance(-gone);
        if self.rows.steps() == 0 {
            (self.buffers, self.form) = (None, None);
        }
        Ok(gone)
    }

    fn quantize(&mut self, quantization: Quantization) -> Result<(), CacheError> {
        (self.buffers, self.quantization) =
            quantize(self.buffers.as_ref(), self.form, self.quantization, quantization)?;
        Ok(())
    }

    fn state(&self) -> CacheState {
        CacheState::Rotating(self.clone())
    }

    fn arrays(&self) -> Vec<&Array> {
        self.buffers.iter().flat_map(Buffers::arrays).collect()
    }
}
