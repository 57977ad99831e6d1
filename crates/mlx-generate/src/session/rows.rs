//! Sessions of several rows that come and go, each with its own length.
//!
//! The newest tokens of all rows stand side by side, in the cache and in the session's tokens; shorter rows are padded on
//! the left. Where a row comes over a border between two rotations (LongRoPE), it is read again alone and put back in
//! its place.

use mlx_causal_lm::CausalLm;
use mlx_kvcache::{CacheError, ModelCache};
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::ops::{concatenate, zeros_dtype};
use mlx_rs::{Array, Dtype};

use super::{Session, default_prefill_chunk};
use crate::GenerateError;

/// One of several rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    /// How many tokens it has: the last ones of its line of the session's tokens.
    pub(super) length: i32,
    /// The length of the sequence that its cached keys are rotated for.
    rotated_for: i32,
    /// Whether its tokens have to be read again before any others are.
    pub(super) is_stale: bool,
}

impl Session {
    /// How many rows there are; 1 before the first token.
    pub fn rows(&self) -> usize {
        match &self.joined[..] {
            [] => self.tokens.first().map_or(1, |tokens| tokens.dim(0).max(1) as usize),
            rows => rows.len(),
        }
    }

    /// Adds the rows of another session behind those of this one. The rows may have different lengths; each keeps its
    /// own positions, and no row sees another.
    ///
    /// Both caches must come from the same model and the same options, without padding of their own. A
    /// [`KvQuantization`](crate::KvQuantization) must be the same for both, and starts with the length of the longest row.
    ///
    /// # Errors
    ///
    /// [`GenerateError::UnknownTokens`] where one of the caches came with tokens, which could not be read again;
    /// [`GenerateError::Rows`] for a cache with padding of its own; those of [`ModelCache::merge`]. This session is then
    /// as it was.
    pub fn join(&mut self, model: &mut dyn CausalLm, mut other: Self) -> Result<(), GenerateError> {
        self.read_what_is_missing(model)?;
        other.read_what_is_missing(model)?;
        let joined = [self.rows_apart()?, other.rows_apart()?].concat();
        let length = self.length.max(other.length);
        let tokens = match length {
            0 => Vec::new(),
            _ => vec![concatenate(&[self.padded_tokens(length)?, other.padded_tokens(length)?], 0)?],
        };
        let is_quantized = self.is_quantized || other.is_quantized;
        let mut cache = self.cache.clone();
        if let Some(due) =
            self.quantization.filter(|_| is_quantized && self.quantization == other.quantization)
        {
            cache.quantize(due.quantization)?;
            other.cache.quantize(due.quantization)?;
        }
        cache.extend(&other.cache)?;
        self.cache = cache;
        (self.joined, self.tokens, self.length, self.is_quantized) = (joined, tokens, length, is_quantized);
        self.start()
    }

    /// The session with the options of a cache without tokens, so that its rows can [join](Self::join) others with these
    /// options. Only the rewind may differ before.
    ///
    /// # Errors
    ///
    /// [`GenerateError::UnknownTokens`] and [`GenerateError::Rows`] as in `join`; [`CacheError::Merge`] and
    /// [`CacheError::Layers`] for a cache, or a later [quantization](Self::quantize_from), with other options.
    pub(crate) fn with_options_of(self, empty: ModelCache) -> Result<Self, GenerateError> {
        self.rows_apart()?;
        let cache = self.cache.with_rewind_of(&empty)?;
        let quantized = cache.layers().first().and_then(|layer| layer.quantization());
        if let Some(later) = self.quantization.map(|later| later.quantization)
            && quantized != Some(later)
        {
            let first = quantized.map_or("none".to_owned(), |quantized| quantized.to_string());
            return Err(CacheError::Merge { what: "quantization", first, other: later.to_string() }.into());
        }
        let rewind = empty.rewind().unwrap_or(0);
        Ok(Self { cache, empty: Some(empty), quantization: None, is_quantized: false, rewind, ..self })
    }

    /// Keeps these rows, in this order, and forgets the others.
    ///
    /// # Errors
    ///
    /// [`CacheError::Rows`] for no rows, or for a row that is not there; [`GenerateError::UnknownTokens`] and
    /// [`GenerateError::Rows`] as in [`join`](Self::join).
    pub fn keep_rows(&mut self, rows: &[usize]) -> Result<(), GenerateError> {
        if let [row] = *rows {
            *self = self.row(row)?;
            return Ok(());
        }
        let all = self.rows_apart()?;
        let kept = rows.iter().map(|&row| all.get(row).copied()).collect::<Option<Vec<Row>>>();
        let kept = kept.filter(|kept| !kept.is_empty());
        let kept = kept.ok_or_else(|| CacheError::Rows { rows: rows.to_vec(), batch: all.len() })?;
        // A cache of which nothing is good has no rows to keep.
        if all.iter().any(|row| !row.is_stale) {
            self.cache.filter(rows)?;
        }
        let length = kept.iter().map(|row| row.length).max().unwrap_or(0);
        let lines: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
        let lines = Array::from_slice(&lines, &[lines.len() as i32]);
        self.tokens = match self.tokens()? {
            Some(all) if length > 0 => {
                vec![all.take_axis(lines, 0)?.try_index((.., self.length - length..))?]
            }
            _ => Vec::new(),
        };
        (self.joined, self.length) = (kept, length);
        self.start()
    }

    /// One row as a session of its own, with a copy of its part of the cache.
    ///
    /// # Errors
    ///
    /// Those of [`keep_rows`](Self::keep_rows).
    pub fn row(&self, row: usize) -> Result<Self, GenerateError> {
        let rows = self.rows_apart()?;
        let Some(&Row { length, rotated_for, is_stale }) = rows.get(row) else {
            return Err(CacheError::Rows { rows: vec![row], batch: rows.len() }.into());
        };
        let mut cache = match &self.empty {
            Some(empty) if is_stale => empty.clone(),
            _ => self.cache.row(row)?,
        };
        cache.expect(rotated_for);
        let line = row as i32;
        let tokens = match self.tokens()? {
            Some(all) if length > 0 => {
                vec![all.try_index((line..line + 1, self.length - length..))?]
            }
            _ => Vec::new(),
        };
        let is_quantized = self.is_quantized && !is_stale;
        let session = Self {
            empty: self.empty.clone(),
            quantization: self.quantization,
            rewind: self.rewind,
            is_quantized,
            tokens,
            length,
            unknown: 0,
            ..Self::new(cache)
        };
        session.start()?;
        Ok(session)
    }

    /// Marks the rows whose keys do not serve a sequence that has `coming` more tokens.
    pub(super) fn find_stale_rows(&mut self, model: &dyn CausalLm, coming: i32) {
        for row in &mut self.joined {
            let length = row.length.saturating_add(coming);
            row.is_stale |= row.length > 0 && !model.rotates_alike(row.rotated_for, length);
            row.rotated_for = length;
        }
    }

    /// Reads the tokens of every stale row again, each row alone, and returns how many tokens that were.
    pub(super) fn read_stale_rows(
        &mut self,
        model: &mut dyn CausalLm,
        chunk: usize,
    ) -> Result<i32, GenerateError> {
        let expected = self.cache.expected();
        let coming = expected - self.length;
        let mut read = 0;
        let mut alone = Vec::with_capacity(self.joined.len());
        for (index, row) in self.joined.iter().enumerate() {
            let mut session = self.row(index)?;
            if row.is_stale {
                session.prepare(model, coming)?;
                while session.catch_up(model, chunk)? > 0 {}
                read += row.length;
            }
            alone.push(session);
        }
        // The longest row may have become quantized, and then all rows are.
        let is_quantized = self.is_quantized || alone.iter().any(|session| session.is_quantized);
        if let Some(quantization) = self.quantization.filter(|_| is_quantized) {
            for session in alone.iter_mut().filter(|session| !session.is_quantized) {
                session.cache.quantize(quantization.quantization)?;
            }
        }
        let mut cache = ModelCache::merge(&alone.iter().map(Self::cache).collect::<Vec<_>>())?;
        cache.expect(expected);
        (self.cache, self.is_quantized) = (cache, is_quantized);
        self.joined.iter_mut().for_each(|row| row.is_stale = false);
        self.start()?;
        Ok(read)
    }

    /// Lets the cache read what it has not read of the session's tokens, after an interruption for example.
    fn read_what_is_missing(&mut self, model: &mut dyn CausalLm) -> Result<(), GenerateError> {
        if self.is_behind() {
            self.prepare(model, 0)?;
            while self.catch_up(model, default_prefill_chunk())? > 0 {}
        }
        Ok(())
    }

    /// The rows, each with its own length, also where they have not been joined.
    fn rows_apart(&self) -> Result<Vec<Row>, GenerateError> {
        if self.empty.is_none() {
            return Err(GenerateError::UnknownTokens { tokens: self.unknown });
        }
        if !self.joined.is_empty() {
            return Ok(self.joined.clone());
        }
        let offsets = self.cache.layers().first().map_or(&[][..], |layer| layer.offsets());
        if offsets.len() > 1 {
            return Err(GenerateError::Rows { rows: offsets.len() as i32 });
        }
        let is_stale = self.cache.offset() < self.length;
        Ok(vec![Row { length: self.length, rotated_for: self.rotated_for(), is_stale }; self.rows()])
    }

    /// The tokens of all rows, uint32 `[B, length]`, with zeros on the left.
    fn padded_tokens(&self, length: i32) -> Result<Array, GenerateError> {
        let rows = self.rows() as i32;
        let tokens = self.tokens()?;
        let held = tokens.as_ref().map_or(0, |tokens| tokens.dim(1));
        let padding = (held < length).then(|| zeros_dtype(&[rows, length - held], Dtype::Uint32));
        let parts: Vec<Array> = padding.transpose()?.into_iter().chain(tokens).collect();
        Ok(concatenate(&parts, 1)?)
    }
}
