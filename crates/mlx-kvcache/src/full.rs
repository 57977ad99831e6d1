//! The cache that keeps every token.

use mlx_attn_masks::{AttentionMask, CausalMask};
use mlx_quantization::Mode;
use mlx_rs::Array;

use crate::buffers::{Buffers, Form};
use crate::rows::Rows;
use crate::{CacheError, CacheState, KeysValues, KvCache, Quantization};

/// Places are added this many at a time, so that most appends write into a buffer that is there.
/// mlx-lm uses the same number; with another, sums over a head could round differently.
pub(crate) const STEP: i32 = 256;

/// A cache of every token: full attention.
///
/// The buffers have room for a multiple of 256 tokens. An append writes into the next places: MLX
/// reuses the memory, since nobody else holds the buffer by then, and no token is copied again.
///
/// With a [window](Self::with_window) the mask hides what lies further back, and the tokens stay:
/// more memory than a [`RotatingKvCache`](crate::RotatingKvCache), for taking back as many as one
/// likes.
#[derive(Debug, Clone)]
pub struct FullKvCache {
    window: Option<i32>,
    quantization: Option<Quantization>,
    rows: Rows,
    form: Option<Form>,
    buffers: Option<Buffers>,
}

impl Default for FullKvCache {
    fn default() -> Self {
        Self::new()
    }
}

impl FullKvCache {
    /// An empty cache, which takes its shape and dtypes from the first append.
    pub fn new() -> Self {
        Self { window: None, quantization: None, rows: Rows::new(), form: None, buffers: None }
    }

    /// With a mask that shows each query itself and the `window - 1` tokens before it.
    ///
    /// # Errors
    ///
    /// [`CacheError::Window`] for a window below 1.
    pub fn with_window(self, window: i32) -> Result<Self, CacheError> {
        if window < 1 {
            return Err(CacheError::Window { window });
        }
        Ok(Self { window: Some(window), ..self })
    }

    /// With keys and values quantized as they come.
    ///
    /// # Errors
    ///
    /// [`CacheError::Groups`] and [`CacheError::Quantized`] where tokens are held that cannot be quantized
    /// so.
    pub fn quantized(mut self, quantization: Quantization) -> Result<Self, CacheError> {
        self.quantize(quantization)?;
        Ok(self)
    }

    /// An empty cache for a batch of prompts that are filled up on the left to one length, with this
    /// much padding before each.
    ///
    /// # Errors
    ///
    /// [`CacheError::Padding`] where a number is negative, or none is 0.
    pub fn left_padded(padding: &[i32]) -> Result<Self, CacheError> {
        Ok(Self { rows: Rows::padded(padding)?, ..Self::new() })
    }

    /// The window of the mask, in tokens.
    pub fn window(&self) -> Option<i32> {
        self.window
    }

    /// How keys and values are quantized.
    pub fn quantization(&self) -> Option<Quantization> {
        self.quantization
    }

    /// Room for `tokens` more tokens behind what is held.
    fn with_room(&self, new: &Buffers, tokens: i32) -> Result<Buffers, CacheError> {
        let used = self.rows.steps();
        let more = tokens.saturating_add(STEP - 1) / STEP * STEP;
        let Some(held) = &self.buffers else { return Ok(new.zeros(more)?) };
        if self.rows.after(tokens)? <= held.places() {
            return Ok(held.clone());
        }
        // What is held ends at the offset, so that the places stay in the order of the tokens.
        Ok(Buffers::concatenate(&[held.range(0..used)?, new.zeros(more)?])?)
    }

    /// The arrays of the tokens that are held, and nothing behind them.
    pub(crate) fn used(&self) -> Result<Option<Buffers>, CacheError> {
        let steps = self.rows.steps();
        let held = self.buffers.as_ref().filter(|_| steps > 0);
        held.map(|held| Ok(held.range(0..steps)?)).transpose()
    }

    pub(crate) fn rows(&self) -> &Rows {
        &self.rows
    }

    pub(crate) fn form(&self) -> Option<Form> {
        self.form
    }

    /// A cache that holds these tokens.
    pub(crate) fn from_parts(
        window: Option<i32>,
        quantization: Option<Quantization>,
        rows: Rows,
        held: Option<(Form, Buffers)>,
    ) -> Self {
        let (form, buffers) = held.unzip();
        Self { window, quantization, rows, form, buffers }
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
        kept.buffers = match &self.buffers {
            Some(held) if self.rows.steps() > later => {
                let held = held.range(later..self.rows.steps())?.rows(&rows)?;
                held.eval()?;
                Some(held)
            }
            _ => None,
        };
        Ok(kept)
    }

    pub(crate) fn merge(parts: &[&Self]) -> Result<Self, CacheError> {
        let Some(&first) = parts.first() else { return Err(CacheError::Rows { rows: Vec::new(), batch: 0 }) };
        for part in parts {
            differ("window", first.window, part.window)?;
            differ("quantization", first.quantization, part.quantization)?;
        }
        let rows: Vec<_> = parts.iter().map(|part| (&part.rows, part.batch())).collect();
        let (rows, later) = Rows::merge(&rows)?;
        let like = held_like(parts.iter().map(|part| (part.form, part.buffers.as_ref())))?;
        let Some((form, like)) = like else {
            return Ok(Self { rows, ..first.clone() });
        };
        let batch = parts.iter().map(|part| part.batch() as i32).sum();
        let mut padded = Vec::with_capacity(parts.len());
        for (part, later) in parts.iter().zip(later) {
            padded.push(match part.used()? {
                Some(held) => held.pad(later, 0)?,
                None => like.rows(&vec![0; part.batch()])?.zeros(rows.steps())?,
            });
        }
        let buffers = (rows.steps() > 0).then(|| Buffers::stack(&padded)).transpose()?;
        if let Some(buffers) = &buffers {
            buffers.eval()?;
        }
        let form = Some(Form { batch, ..form });
        Ok(Self { rows, form, buffers, ..first.clone() })
    }
}

/// An error where two caches differ.
pub(crate) fn differ<T: PartialEq + std::fmt::Debug>(
    what: &'static str,
    first: T,
    other: T,
) -> Result<(), CacheError> {
    if first == other {
        return Ok(());
    }
    Err(CacheError::Merge { what, first: format!("{first:?}"), other: format!("{other:?}") })
}

/// The form that all of these have which hold something, with buffers of it.
pub(crate) fn held_like<'a>(
    parts: impl Iterator<Item = (Option<Form>, Option<&'a Buffers>)>,
) -> Result<Option<(Form, &'a Buffers)>, CacheError> {
    let mut like: Option<(Form, &Buffers)> = None;
    for (form, buffers) in parts {
        let (Some(form), Some(buffers)) = (form, buffers) else { continue };
        match like {
            None => like = Some((form, buffers)),
            Some((first, _)) => {
                differ("heads", (first.heads, first.key_dim), (form.heads, form.key_dim))?;
                differ("head_dim of values", first.value_dim, form.value_dim)?;
                let dtypes = |form: Form| (form.key_dtype, form.value_dtype);
                differ("dtypes", dtypes(first), dtypes(form))?;
            }
        }
    }
    Ok(like)
}

impl KvCache for FullKvCache {
    fn offset(&self) -> i32 {
        self.rows.steps()
    }

    fn offsets(&self) -> &[i32] {
        self.rows.offsets()
    }

    fn append(&mut self, keys: &Array, values: &Array) -> Result<KeysValues, CacheError> {
        let (form, length) = Form::of(keys, values, self.form, self.rows.count())?;
        let (start, end) = (self.rows.steps(), self.rows.after(length)?);
        if let Some(quantization) = self.quantization {
            form.check_quantization(quantization)?;
        }
        let new = Buffers::new(keys, values, self.quantization)?;

        let mut room = self.with_room(&new, length)?;
        // From here on the cache holds the new buffers alone, so that MLX writes in place.
        room.write(start..end, &new)?;
        let read = room.range(0..end)?.read()?;

        self.form = Some(form);
        self.buffers = Some(room);
        self.rows.advance(length);
        Ok(read)
    }

    fn mask(&self, queries: i32) -> Result<AttentionMask, CacheError> {
        let mask = CausalMask::new(queries).offset(self.offset()).window(self.window);
        if self.rows.padding().is_empty() {
            return Ok(mask.build()?);
        }
        // Padding may be longer than what was read of the prompt so far.
        let keys = self.rows.after(queries.max(0))?;
        let padding: Vec<i32> = self.rows.padding().iter().map(|&row| row.min(keys)).collect();
        Ok(mask.left_padding(&padding).build()?)
    }

    fn can_trim(&self, tokens: i32) -> Result<i32, CacheError> {
        self.rows.back(tokens)
    }

    fn trim(&mut self, tokens: i32) -> Result<i32, CacheError> {
        let gone = self.can_trim(tokens)?;
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
        CacheState::Full(self.clone())
    }

    fn arrays(&self) -> Vec<&Array> {
        self.buffers.iter().flat_map(Buffers::arrays).collect()
    }
}

/// Whether a cache that is quantized as `found` can become quantized as `asked`.
pub(crate) fn check_quantize(
    form: Option<Form>,
    found: Option<Quantization>,
    asked: Quantization,
) -> Result<(), CacheError> {
    if let Some(found) = found.filter(|&found| found != asked) {
        return Err(CacheError::Quantized { found, asked });
    }
    if asked.mode() != Mode::Affine {
        return Err(CacheError::Mode { found: asked });
    }
    form.map_or(Ok(()), |form| form.check_quantization(asked))
}

/// What a cache holds after a conversion.
type Converted = (Option<Buffers>, Option<Quantization>);

/// Dense buffers to quantized ones; quantized ones stay as they are.
pub(crate) fn quantize(
    held: Option<&Buffers>,
    form: Option<Form>,
    found: Option<Quantization>,
    asked: Quantization,
) -> Result<Converted, CacheError> {
    check_quantize(form, found, asked)?;
    if found.is_some() {
        return Ok((held.cloned(), Some(asked)));
    }
    let buffers = held.map(|held| held.quantize(asked)).transpose()?;
    if let Some(buffers) = &buffers {
        // So that the dense ones can be freed.
        buffers.eval()?;
    }
    Ok((buffers, Some(asked)))
}
