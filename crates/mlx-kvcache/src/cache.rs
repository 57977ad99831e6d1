//! The cache of one layer, whatever its layout.

use mlx_attn_masks::AttentionMask;
use mlx_quantization::Mode;
use mlx_rs::Array;

use crate::buffers::{Buffers, Form};
use crate::rows::Rows;
use crate::{CacheError, Full, KeysValues, Layout, Quantization};

/// The keys and values that one attention layer keeps.
///
/// An operation that fails leaves the cache as it was. A clone is cheap: it shares the arrays, and the
/// first of the two that is appended to copies them.
///
/// A cache may move to another thread once it is evaluated ([`ModelCache::eval`](crate::ModelCache::eval),
/// or [`arrays`](Self::arrays)); what MLX has not computed yet can be computed only by the thread that
/// asked for it.
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

/// The keys and values of the tokens; there is at least one.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    pub(crate) form: Form,
    pub(crate) buffers: Buffers,
}

impl KvCache {
    /// An empty cache with the settings of this layout. It takes its shape and dtypes from the first
    /// append.
    pub fn new(layout: impl Into<Layout>) -> Self {
        let layout = layout.into().rules().empty();
        Self { layout, quantization: None, rows: Rows::new(), held: None }
    }

    /// With room to trim at least `rewind` tokens at any time, counted from the furthest position that was
    /// reached. A full cache always has it. A ring keeps this many more tokens, hidden by the mask.
    ///
    /// A cache that holds tokens keeps them; a ring that has already overwritten tokens can go back as far
    /// as asked only once it has read `rewind` more tokens.
    ///
    /// # Errors
    ///
    /// [`CacheError::Negative`] or [`CacheError::Sizes`] where `rewind` is negative, and
    /// [`CacheError::Sizes`] where the sum of all sizes is too large.
    pub fn with_rewind(mut self, rewind: i32) -> Result<Self, CacheError> {
        let empty = self.layout.rules().with_rewind(rewind)?;
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

    /// With keys and values quantized as they come.
    ///
    /// # Errors
    ///
    /// Those of [`quantize`](Self::quantize).
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

    /// The position of the next token: one number for all rows, or one for each. It is negative where a
    /// row has more padding than was read so far.
    pub fn offsets(&self) -> &[i32] {
        self.rows.offsets()
    }

    /// Takes the keys and values of the next L tokens, each `[B, H, L, D]`, and returns everything that the
    /// queries of these tokens read.
    ///
    /// # Errors
    ///
    /// [`CacheError::Shape`] or [`CacheError::Dtype`] where the arrays do not fit each other or what is
    /// held, [`CacheError::Groups`] where they cannot be quantized as the cache is, and
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
        let read = buffers.range(0..layout.rules().places_read(end))?.read()?;

        // From here on the cache holds the new buffers alone, so that MLX writes in place.
        self.held = Some(Held { form, buffers });
        self.layout = layout;
        self.rows.advance(length);
        Ok(read)
    }

    /// Which keys of the next [`append`](Self::append) each of its `queries` tokens may see, in the
    /// smallest form that is right.
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

    /// Forgets the newest `tokens` tokens, or all where there are fewer, and returns how many it forgot.
    /// The cache is then as if they had never come.
    ///
    /// # Errors
    ///
    /// [`CacheError::Trim`] where tokens that would become visible again are no longer held, and
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

    /// Quantizes what is held, and what will come.
    ///
    /// # Errors
    ///
    /// [`CacheError::Groups`] where heads cannot be cut into such groups, [`CacheError::Mode`] for a mode
    /// that caches do not have, and [`CacheError::Quantized`] where the cache is quantized in another way
    /// already.
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

    /// Whether [`quantize`](Self::quantize) would work.
    pub(crate) fn check_quantize(&self, asked: Quantization) -> Result<(), CacheError> {
        if let Some(found) = self.quantization.filter(|&found| found != asked) {
            return Err(CacheError::Quantized { found, asked });
        }
        if asked.mode() != Mode::Affine {
            return Err(CacheError::Mode { found: asked });
        }
        self.form().map_or(Ok(()), |form| form.check_quantization(asked))
    }

    /// The arrays that are held, for evaluating them together with others.
    pub fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.held.iter().flat_map(|held| held.buffers.arrays())
    }

    /// Bytes held, free places included.
    pub fn nbytes(&self) -> usize {
        self.arrays().map(Array::nbytes).sum()
    }

    /// These rows of the batch, in this order. What was padding for all of them is dropped.
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

    /// All rows of these caches as one batch, the rows of the first one first. The newest tokens of all
    /// rows come to stand side by side; shorter rows are padded on the left.
    ///
    /// From a batch of rings as many tokens can be trimmed as from each of the caches.
    ///
    /// # Errors
    ///
    /// [`CacheError::Merge`] for caches of different layouts, quantizations, heads or dtypes, and
    /// [`CacheError::Rows`] for no caches.
    pub fn merge(caches: &[&Self]) -> Result<Self, CacheError> {
        let Some(&first) = caches.first() else {
            return Err(CacheError::Rows { rows: Vec::new(), batch: 0 });
        };
        let layout = first.layout.rules().empty();
        for cache in caches {
            differ("layouts", layout, cache.layout.rules().empty(), Layout::to_string)?;
            let name =
                |quantization: &Option<Quantization>| quantization.map_or("none".into(), |q| q.to_string());
            differ("quantization", first.quantization, cache.quantization, name)?;
        }
        let rows: Vec<_> = caches.iter().map(|cache| (&cache.rows, cache.batch())).collect();
        let (rows, later) = Rows::merge(&rows)?;
        let Some(like) = common_form(caches)? else {
            return Ok(Self { layout, rows, held: None, ..*first });
        };

        // As much as one cache holds, but nothing that one of them has lost.
        let left =
            |(cache, later): (&&Self, &i32)| cache.layout.rules().oldest_left().map(|left| left + later);
        let oldest_left = caches.iter().zip(&later).filter_map(left).max();
        let (layout, first_step) = layout.rules().in_order(oldest_left, rows.steps());
        let places = layout.rules().places_read(rows.steps());
        let mut parts = Vec::with_capacity(caches.len());
        for (cache, later) in caches.iter().zip(later) {
            parts.push(match &cache.held {
                Some(held) => {
                    cache.layout.rules().gather(&held.buffers, cache.rows.steps(), first_step, later)?
                }
                None => like.buffers.rows(&vec![0; cache.batch()])?.zeros(places)?,
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

    /// What keys and values look like, once there are any.
    pub(crate) fn form(&self) -> Option<Form> {
        self.held.as_ref().map(|held| held.form)
    }

    /// Whether the masks of the two are the same, now and after the same calls.
    pub(crate) fn masked_like(&self, other: &Self) -> bool {
        self.layout == other.layout && self.rows == other.rows
    }

    pub(crate) fn rows(&self) -> &Rows {
        &self.rows
    }

    /// A cache that holds these tokens.
    pub(crate) fn from_parts(
        layout: Layout,
        quantization: Option<Quantization>,
        rows: Rows,
        held: Option<Held>,
    ) -> Self {
        Self { layout, quantization, rows, held }
    }

    /// Gives the mask of a full cache another window.
    pub(crate) fn set_window(&mut self, full: Full) {
        self.layout = full.into();
    }

    /// What is written to a file: the layout, and its buffers without free places behind the tokens.
    pub(crate) fn to_save(&self) -> Result<(Layout, Option<Buffers>), CacheError> {
        let Some(held) = &self.held else { return Ok((self.layout.rules().empty(), None)) };
        let (layout, buffers) = self.layout.rules().to_save(self.rows.steps(), &held.buffers)?;
        Ok((layout, Some(buffers)))
    }
}

/// An error where two caches differ.
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

/// The form that all of these caches have that hold tokens, with buffers of it.
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
