//! The cache of one layer.

use mlx_attn_masks::AttentionMask;
use mlx_quantization::Mode;
use mlx_rs::Array;

use crate::buffers::{Buffers, Form};
use crate::rows::Rows;
use crate::{CacheError, KeysValues, Layout, Quantization};

/// The keys and values that one attention layer keeps.
///
/// An operation that fails leaves the cache unchanged. A clone is cheap, because it shares the arrays; the
/// first append to either of the two copies them.
///
/// A cache may move to another thread once its [arrays](Self::arrays) are evaluated, for example with
/// [`ModelCache::eval`](crate::ModelCache::eval): MLX computes pending arrays only on the thread that
/// created them.
///
/// # Shapes
///
/// Legend: B batch, H key-value heads, L tokens of this call, S tokens that attention reads, D
/// features of a head (keys and values may differ in D).
#[derive(Debug, Clone)]
pub struct KvCache {
    layout: Layout,
    quantization: Option<Quantization>,
    rows: Rows,
    held: Option<Held>,
}

/// The keys and values of at least one token.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    pub(crate) form: Form,
    pub(crate) buffers: Buffers,
}

impl KvCache {
    /// An empty cache with the settings of this layout. The first append determines the number of heads,
    /// their sizes and the dtypes.
    pub fn new(layout: impl Into<Layout>) -> Self {
        let layout = layout.into().rules().empty();
        Self { layout, quantization: None, rows: Rows::new(), held: None }
    }

    /// Makes room so that at least `rewind` tokens can be trimmed at any time, counted from the furthest
    /// position that was reached. A full cache can always trim all tokens. A ring holds this many more tokens,
    /// which the mask hides.
    ///
    /// The tokens that the cache holds stay. A ring that has already overwritten tokens cannot get them
    /// back, so it can trim `rewind` tokens only after as many were appended.
    ///
    /// # Errors
    ///
    /// [`CacheError::Negative`] or [`CacheError::Sizes`] where `rewind` is negative, and
    /// [`CacheError::Sizes`] where the sum of all sizes is too large.
    pub fn with_rewind(self, rewind: i32) -> Result<Self, CacheError> {
        let empty = self.layout.rules().with_rewind(rewind)?;
        self.with_layout(empty)
    }

    /// Makes the room for trims as large or as small as that of another cache, so that the two can be
    /// [merged](Self::merge).
    ///
    /// # Errors
    ///
    /// [`CacheError::Merge`] for caches of layouts that differ in more than this room, or of different quantizations.
    pub fn with_rewind_of(self, other: &Self) -> Result<Self, CacheError> {
        let (ours, theirs) = (self.layout.rules().empty(), other.layout.rules().empty());
        let is_like = match (ours, theirs) {
            (Layout::Ring(ours), Layout::Ring(theirs)) => {
                (ours.max_size(), ours.keep()) == (theirs.max_size(), theirs.keep())
            }
            (ours, theirs) => ours == theirs,
        };
        if !is_like {
            differ("layouts", theirs, ours, Layout::to_string)?;
        }
        differ("quantization", other.quantization, self.quantization, quantization_name)?;
        self.with_layout(theirs)
    }

    /// The same tokens in another layout, given without tokens, as far as it has room for them.
    fn with_layout(mut self, empty: Layout) -> Result<Self, CacheError> {
        if empty == self.layout.rules().empty() {
            return Ok(self);
        }
        self.layout = match &mut self.held {
            None => empty,
            Some(held) => {
                let now = self.rows.steps();
                let (layout, first) = empty.rules().in_order(self.layout.rules().oldest_left(), now);
                held.buffers = self.layout.rules().gather(&held.buffers, now, first, 0)?;
                held.buffers.eval()?;
                layout
            }
        };
        Ok(self)
    }

    /// Quantizes the tokens that are held, and those that will be appended.
    ///
    /// # Errors
    ///
    /// Those of [`quantize`](Self::quantize).
    pub fn quantized(mut self, quantization: Quantization) -> Result<Self, CacheError> {
        self.quantize(quantization)?;
        Ok(self)
    }

    /// Makes the cache one for a batch of prompts that are padded on the left to one length: `padding` has a
    /// number of tokens for each prompt.
    ///
    /// # Errors
    ///
    /// [`CacheError::Padding`] if a number is negative, or none is 0, and [`CacheError::NotEmpty`] after
    /// tokens were appended.
    pub fn with_left_padding(self, padding: &[i32]) -> Result<Self, CacheError> {
        match self.offset() {
            0 => Ok(Self { rows: Rows::padded(padding)?, ..self }),
            offset => Err(CacheError::NotEmpty { what: "left padding", offset }),
        }
    }

    /// Where the tokens lie, with the settings of the layout.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// How keys and values are quantized.
    pub fn quantization(&self) -> Option<Quantization> {
        self.quantization
    }

    /// The number of tokens that were appended, which is the position of the next one. In a batch, that of
    /// the longest row.
    pub fn offset(&self) -> i32 {
        self.rows.steps()
    }

    /// The position of the next token: one number for all rows, or one for each row. It is negative for a
    /// row of which only padding was appended so far.
    pub fn offsets(&self) -> &[i32] {
        self.rows.offsets()
    }

    /// Adds the keys and values of the next L tokens, each `[B, H, L, D]`, and returns all keys and values
    /// that the queries of these tokens read.
    ///
    /// # Dtypes
    ///
    /// float32, float16 or bfloat16. Keys and values may differ, and those of later calls must be as in the first.
    ///
    /// # Errors
    ///
    /// [`CacheError::Shape`] or [`CacheError::Dtype`] if the arrays do not fit each other or the tokens
    /// that the cache holds, [`CacheError::Groups`] if the cache is quantized and they cannot be, and
    /// [`CacheError::TooLong`] after 2^31 - 1 tokens.
    pub fn append(&mut self, keys: &Array, values: &Array) -> Result<KeysValues, CacheError> {
        let (form, length) = Form::of(keys, values, self.form(), self.rows.count())?;
        let end = self.rows.after(length)?;
        if let Some(quantization) = self.quantization {
            form.check_quantization(quantization)?;
        }
        let new = Buffers::new(keys, values, self.quantization)?;

        let held = self.held.as_ref().map(|held| &held.buffers);
        let (layout, buffers) = self.layout.rules().append(&self.rows, held, &new)?;
        let read = buffers.range(0..layout.rules().slots_read(end))?.read()?;

        // From here on the cache holds the new buffers alone, so that MLX writes in place.
        self.held = Some(Held { form, buffers });
        self.layout = layout;
        self.rows.advance(length);
        Ok(read)
    }

    /// The mask for the next [`append`](Self::append) of `queries` tokens, in the smallest form that is
    /// correct.
    ///
    /// # Errors
    ///
    /// [`CacheError::Mask`] for fewer than one query, and for masks of more than 2^31 - 1 entries.
    pub fn mask(&self, queries: i32) -> Result<AttentionMask, CacheError> {
        self.layout.rules().mask(&self.rows, queries)
    }

    /// How many tokens [`trim`](Self::trim) would forget.
    ///
    /// # Errors
    ///
    /// Those of [`trim`](Self::trim).
    pub fn can_trim(&self, tokens: i32) -> Result<i32, CacheError> {
        let gone = self.rows.back(tokens)?;
        self.layout.rules().trim(self.rows.steps(), gone)?;
        Ok(gone)
    }

    /// Forgets the newest `tokens` tokens, or all if there are fewer, and returns how many it forgot. The
    /// cache is then as if they had never been appended.
    ///
    /// # Errors
    ///
    /// [`CacheError::Trim`] if tokens that would become visible again have been overwritten, and
    /// [`CacheError::Negative`] for a negative number.
    pub fn trim(&mut self, tokens: i32) -> Result<i32, CacheError> {
        let gone = self.rows.back(tokens)?;
        self.layout = self.layout.rules().trim(self.rows.steps(), gone)?;
        self.rows.advance(-gone);
        if self.rows.steps() == 0 {
            self.held = None;
        }
        Ok(gone)
    }

    /// Quantizes the tokens that are held, and those that will be appended.
    ///
    /// # Errors
    ///
    /// [`CacheError::Groups`] if the size of the heads is not a multiple of the quantization group,
    /// [`CacheError::Mode`] for a mode that caches do not support, and [`CacheError::Quantized`] if the
    /// cache is already quantized with other settings.
    pub fn quantize(&mut self, quantization: Quantization) -> Result<(), CacheError> {
        self.check_quantize(quantization)?;
        if let (None, Some(held)) = (self.quantization, &mut self.held) {
            let buffers = held.buffers.quantize(quantization)?;
            buffers.eval()?; // so that the dense ones can be freed
            held.buffers = buffers;
        }
        self.quantization = Some(quantization);
        Ok(())
    }

    /// The error that [`quantize`](Self::quantize) would return.
    pub(crate) fn check_quantize(&self, asked: Quantization) -> Result<(), CacheError> {
        if let Some(found) = self.quantization.filter(|&found| found != asked) {
            return Err(CacheError::Quantized { found, asked });
        }
        if asked.mode() != Mode::Affine {
            return Err(CacheError::Mode { found: asked });
        }
        self.form().map_or(Ok(()), |form| form.check_quantization(asked))
    }

    /// The arrays of keys and values, for evaluating them together with others.
    pub fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.held.iter().flat_map(|held| held.buffers.arrays())
    }

    /// Bytes of the arrays, including free slots.
    pub fn nbytes(&self) -> usize {
        self.arrays().map(Array::nbytes).sum()
    }

    /// A cache of these rows of the batch, in this order, without the padding that all of them have.
    ///
    /// # Errors
    ///
    /// [`CacheError::Rows`] for no rows, or rows that the batch does not have.
    pub fn filter(&self, rows: &[usize]) -> Result<Self, CacheError> {
        let now = self.rows.steps();
        let (kept, later) = self.rows.filter(rows, self.batch())?;
        let empty = Self { layout: self.layout.rules().empty(), rows: kept, held: None, ..*self };
        let Some(held) = self.held.as_ref().filter(|_| empty.offset() > 0) else { return Ok(empty) };

        let rows: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
        let (layout, buffers) = if self.layout.rules().filter_moves(later) {
            let oldest_left = self.layout.rules().oldest_left().map(|oldest| oldest - later);
            let (layout, first) = self.layout.rules().in_order(oldest_left, empty.offset());
            (layout, self.layout.rules().gather(&held.buffers, now, first, -later)?)
        } else {
            (self.layout, held.buffers.clone())
        };
        let buffers = buffers.rows(&rows)?;
        buffers.eval()?;
        let form = Form { batch: rows.len() as i32, ..held.form };
        Ok(Self { layout, held: Some(Held { form, buffers }), ..empty })
    }

    /// One row of the batch as a cache of its own.
    ///
    /// # Errors
    ///
    /// [`CacheError::Rows`] for a row that the batch does not have.
    pub fn row(&self, row: usize) -> Result<Self, CacheError> {
        let one = self.filter(&[row])?;
        Ok(Self { rows: one.rows.single(), ..one })
    }

    /// All rows of these caches as one batch, the rows of the first cache first. Shorter rows are padded on the
    /// left, so the newest tokens of all rows stand side by side.
    ///
    /// The batch can trim as many tokens as every one of the caches could.
    ///
    /// # Errors
    ///
    /// [`CacheError::Merge`] for caches of different layouts, quantizations, heads or dtypes, and
    /// [`CacheError::Rows`] if `caches` is empty.
    pub fn merge(caches: &[&Self]) -> Result<Self, CacheError> {
        let Some(&first) = caches.first() else {
            return Err(CacheError::Rows { rows: Vec::new(), batch: 0 });
        };
        let layout = first.layout.rules().empty();
        for cache in caches {
            differ("layouts", layout, cache.layout.rules().empty(), Layout::to_string)?;
            differ("quantization", first.quantization, cache.quantization, quantization_name)?;
        }
        let rows: Vec<_> = caches.iter().map(|cache| (&cache.rows, cache.batch())).collect();
        let (rows, later) = Rows::merge(&rows)?;
        let Some(like) = common_form(caches)? else {
            return Ok(Self { layout, rows, held: None, ..*first });
        };

        // The newest tokens for which there is room, but none that one of the caches has overwritten.
        let left =
            |(cache, later): (&&Self, &i32)| cache.layout.rules().oldest_left().map(|left| left + later);
        let oldest_left = caches.iter().zip(&later).filter_map(left).max();
        let (layout, first_step) = layout.rules().in_order(oldest_left, rows.steps());
        let slots = layout.rules().slots_read(rows.steps());
        let mut parts = Vec::with_capacity(caches.len());
        for (cache, later) in caches.iter().zip(later) {
            parts.push(match &cache.held {
                Some(held) => {
                    cache.layout.rules().gather(&held.buffers, cache.rows.steps(), first_step, later)?
                }
                None => like.buffers.rows(&vec![0; cache.batch()])?.zeros(slots)?,
            });
        }
        let buffers = Buffers::stack(&parts)?;
        buffers.eval()?;
        let batch = caches.iter().map(|cache| cache.batch() as i32).sum();
        let held = Some(Held { form: Form { batch, ..like.form }, buffers });
        Ok(Self { layout, rows, held, ..*first })
    }

    /// The number of rows of the batch; 1 while it is not known.
    pub(crate) fn batch(&self) -> usize {
        self.rows.count().or(self.form().map(|form| form.batch as usize)).unwrap_or(1)
    }

    /// Shapes and dtypes of keys and values, if there are tokens.
    pub(crate) fn form(&self) -> Option<Form> {
        self.held.as_ref().map(|held| held.form)
    }

    /// Whether both caches have the same masks, now and after the same calls.
    pub(crate) fn masked_like(&self, other: &Self) -> bool {
        self.layout == other.layout && self.rows == other.rows
    }

    pub(crate) fn rows(&self) -> &Rows {
        &self.rows
    }

    /// A cache with these tokens.
    pub(crate) fn from_parts(
        layout: Layout,
        quantization: Option<Quantization>,
        rows: Rows,
        held: Option<Held>,
    ) -> Self {
        Self { layout, quantization, rows, held }
    }

    /// Replaces the layout by one with other settings, under which no token moves.
    pub(crate) fn set_layout(&mut self, layout: Layout) {
        self.layout = layout;
    }

    /// The layout and the buffers for a file, without free slots behind the tokens.
    pub(crate) fn to_save(&self) -> Result<(Layout, Option<Buffers>), CacheError> {
        let Some(held) = &self.held else { return Ok((self.layout.rules().empty(), None)) };
        let (layout, buffers) = self.layout.rules().to_save(self.rows.steps(), &held.buffers)?;
        Ok((layout, Some(buffers)))
    }
}

fn quantization_name(quantization: &Option<Quantization>) -> String {
    quantization.map_or("none".into(), |quantization| quantization.to_string())
}

/// An error if the two values differ.
fn differ<T: PartialEq>(
    what: &'static str,
    first: T,
    other: T,
    name: impl Fn(&T) -> String,
) -> Result<(), CacheError> {
    if first == other {
        return Ok(());
    }
    Err(CacheError::Merge { what, first: name(&first), other: name(&other) })
}

/// The tokens of the first cache that has any, after a check that all others have the same form.
fn common_form<'a>(caches: &[&'a KvCache]) -> Result<Option<&'a Held>, CacheError> {
    let mut held = caches.iter().filter_map(|cache| cache.held.as_ref());
    let Some(first) = held.next() else { return Ok(None) };
    for other in held {
        let (a, b) = (first.form, other.form);
        differ("heads", (a.heads, a.key_dim), (b.heads, b.key_dim), |pair| format!("{pair:?}"))?;
        differ("head_dim of values", a.value_dim, b.value_dim, i32::to_string)?;
        let dtypes = |form: Form| (form.key_dtype, form.value_dtype);
        differ("dtypes", dtypes(a), dtypes(b), |pair| format!("{pair:?}"))?;
    }
    Ok(Some(first))
}
