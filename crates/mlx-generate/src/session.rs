//! A sequence of tokens, and the cache of those that a model has read.
//!
//! Everything above a model reads its tokens through [`Session::step`]: streams, batches, speculation, draft models and
//! perplexity. A session of several rows that come and go is in `rows.rs`, and the turns of a conversation are in
//! `turn.rs`.

mod hidden;
mod rows;
mod turn;

use std::ops::ControlFlow;

use mlx_causal_lm::{CausalLm, Logits};
use mlx_kvcache::{CacheError, ModelCache};
use mlx_rs::error::Exception;
use mlx_rs::ops::concatenate;
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::transforms::async_eval;
use mlx_rs::{Array, Device, DeviceType, Dtype, Stream, with_stream};

use crate::{GenerateError, as_i32, check_ids};
pub use hidden::HiddenStates;
use rows::Row;
pub use turn::{KvQuantization, Reuse};

/// How many tokens of a prompt are read in one call by default, on MLX's default device.
///
/// On a GPU this is mlx-lm's 2048. On the CPU, attention writes all scores of a chunk to memory, so that larger chunks are
/// slower and need more memory: there it is 512, as `docs/performance-notes.md` shows.
pub fn default_prefill_chunk() -> usize {
    if is_on_gpu() { 2048 } else { 512 }
}

fn is_on_gpu() -> bool {
    matches!(Device::try_default().and_then(|device| device.get_type()), Ok(DeviceType::Gpu))
}

/// How many of the last tokens of a prompt are read in one call that returns the logits behind the prompt.
///
/// With the kernels of the CPU that is the whole last chunk: reading the last token alone would read all weights once more.
/// Elsewhere it is the last token alone, as in mlx-lm, so that the logits have the same bits.
pub(crate) fn tail_of_prompt(tokens: usize, chunk: usize) -> usize {
    if mlx_sys::cpu_kernels::is_enabled() && !is_on_gpu() {
        tokens.saturating_sub(1) % chunk.max(1) + 1
    } else {
        1
    }
}

/// A session keeps its tokens in at most this many arrays. Decoding adds one array for each token, and they are joined
/// when the limit is reached.
const MOST_PARTS: usize = 512;

/// The most drafted tokens that a cache with windows makes room for, since the room takes memory in each layer. Longer drafts
/// are hardly ever accepted as a whole; when tokens of one are taken back, the session reads the text again.
const MOST_ROOM_FOR_DRAFTS: usize = 1024;

/// A cache with the tokens that it has read.
///
/// Some models rotate their keys by the length of the whole sequence (LongRoPE): when a sequence grows over a certain
/// length, or is cut back below it, the cached keys are wrong. A session knows its tokens, so it reads them again, and
/// the logits are always those of one pass over the whole sequence. Callers use all models in the same way; most models
/// never read a token twice.
///
/// A session may move to another thread at any time, and so may a [`Batch`](crate::Batch) and a stream: every array that
/// they hold is computed, or the device is computing it.
///
/// A session may have several rows, which get their tokens together. Rows of different lengths are put together with
/// [`join`](Self::join) and taken out with [`keep_rows`](Self::keep_rows) and [`row`](Self::row).
///
/// ```no_run
/// use mlx_causal_lm::{CausalLm, Logits};
/// use mlx_generate::Session;
/// use mlx_kvcache::CacheOptions;
/// use mlx_rs::Array;
///
/// # fn f(model: &mut dyn CausalLm) -> Result<(), Box<dyn std::error::Error>> {
/// let mut session = Session::new(model.new_cache(&CacheOptions::default())?);
/// let logits = session.read(model, &Array::from_slice(&[3_u32, 1, 4], &[1, 3]), Logits::Last)?; // [1, 1, V]
/// session.trim(1)?; // forgets the 4
/// assert_eq!(session.offset(), 2);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Session {
    cache: ModelCache,
    /// The cache without tokens, for reading the sequence again. None where the cache came with tokens.
    empty: Option<ModelCache>,
    /// How many tokens the cache came with. Their ids are not known.
    unknown: i32,
    /// The tokens after those, uint32 `[B, n]` each, in order. Rows that are shorter than the longest row are padded with
    /// zeros on the left.
    tokens: Vec<Array>,
    /// The number of all tokens, of the longest row. The cache may have read fewer: the last ones are then read before
    /// any new token is.
    length: i32,
    /// The rows, where they have been joined: their lengths may differ. Empty otherwise.
    joined: Vec<Row>,
    /// When keys and values are quantized, and whether they are.
    quantization: Option<KvQuantization>,
    is_quantized: bool,
    /// How many tokens its user can take back at any time where the cache has windows. Room for drafted tokens comes on top.
    rewind: i32,
}

/// How [`Session::step`] reads its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepOptions {
    /// Which positions need logits.
    pub logits: Logits,
    /// How many tokens of the same text later steps will read. A model that rotates by the length of the sequence
    /// (LongRoPE) then rotates for the whole text from its first step on, and reads nothing twice.
    pub more: usize,
    /// How many tokens are read in one call where the session has to read earlier tokens again; `None` stands for
    /// [`default_prefill_chunk`].
    pub chunk: Option<usize>,
}

impl Default for StepOptions {
    /// The logits of the last position, no more tokens, and chunks of [`default_prefill_chunk`] tokens.
    fn default() -> Self {
        Self { logits: Logits::Last, more: 0, chunk: None }
    }
}

/// What a call of the model returns for its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Output {
    Logits(Logits),
    /// The hidden states of all tokens, that the head works on.
    Hidden,
}

/// How many tokens a [part](Session::prefill_part) of a text has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    /// All tokens that were read, also those that were read again.
    pub(crate) read: usize,
    /// The tokens that were read for the first time.
    pub(crate) new: usize,
    /// How many tokens are left to read of the text, again or for the first time.
    pub(crate) left: usize,
}

impl Session {
    /// A session on this cache.
    ///
    /// The cache may hold tokens already. Their ids are then not known, and it is an error if they have to be read again.
    /// Use [`resume`](Self::resume) where the ids are known.
    pub fn new(cache: ModelCache) -> Self {
        let unknown = cache.offset().max(0);
        let empty = (unknown == 0).then(|| cache.clone());
        let rewind = cache.rewind().unwrap_or(0);
        Self {
            cache,
            empty,
            unknown,
            tokens: Vec::new(),
            length: unknown,
            joined: Vec::new(),
            quantization: None,
            is_quantized: false,
            rewind,
        }
    }

    /// A session on a cache that has read exactly these tokens, int32 or uint32 `[B, T]`: one that was kept in a file,
    /// for example. `empty` is a cache of the same kind without tokens, for reading the tokens again where that is needed.
    ///
    /// # Errors
    ///
    /// [`GenerateError::CachedTokens`] where the cache has read another number of tokens, or `empty` has read any.
    pub fn resume(cache: ModelCache, tokens: &Array, empty: &ModelCache) -> Result<Self, GenerateError> {
        let length = length_of(tokens);
        for (expected, cache) in [(length, &cache), (0, empty)] {
            if cache.offset() != expected {
                return Err(GenerateError::CachedTokens { found: cache.offset(), expected });
            }
        }
        let tokens = if length > 0 { vec![tokens.as_dtype(Dtype::Uint32)?] } else { Vec::new() };
        let rewind = empty.rewind().unwrap_or(0);
        let session =
            Self { tokens, length, unknown: 0, empty: Some(empty.clone()), rewind, ..Self::new(cache) };
        session.start()?;
        Ok(session)
    }

    /// How many tokens the sequence has, which is the position of the next one. Of the longest row, where there are
    /// several.
    pub fn offset(&self) -> i32 {
        self.length
    }

    /// The tokens of the sequence, uint32 `[B, T]`, without those that the cache came with; none before the first token.
    /// Where rows of different lengths were joined, zeros stand on the left of the shorter ones.
    ///
    /// # Errors
    ///
    /// What MLX reports.
    pub fn tokens(&self) -> Result<Option<Array>, GenerateError> {
        match &self.tokens[..] {
            [] => Ok(None),
            [all] => Ok(Some(all.clone())),
            parts => {
                let all = concatenate(parts, 1)?;
                async_eval([&all])?;
                Ok(Some(all))
            }
        }
    }

    /// The cache.
    pub fn cache(&self) -> &ModelCache {
        &self.cache
    }

    /// The cache alone. After an interruption it may have read fewer tokens than the session has.
    pub fn into_cache(self) -> ModelCache {
        self.cache
    }

    /// Reads the next tokens, int32 or uint32 `[B, L]`, in one call of the model, and returns the logits that `options`
    /// ask for, as [`CausalLm::forward`] does. The device computes them when this returns; the call does not wait for it.
    ///
    /// A step makes the cache fit for the tokens, reads again what has to be read again, appends the tokens and starts
    /// the device. It does not check that the model has the ids, since it would have to wait for them; [`read`](Self::read)
    /// does.
    ///
    /// # Errors
    ///
    /// Those of [`CausalLm::forward`], and [`GenerateError::UnknownTokens`] where tokens have to be read again that the
    /// cache came with. The session is then as it was before.
    pub fn step(
        &mut self,
        model: &mut dyn CausalLm,
        tokens: &Array,
        options: StepOptions,
    ) -> Result<Array, GenerateError> {
        let logits = self.next_logits(model, tokens, options)?;
        async_eval([&logits])?;
        self.start()?;
        Ok(logits)
    }

    /// A [`step`](Self::step) that leaves it to the caller to start the device, so that the caller can add what it
    /// computes from the logits: the device gets both in one go.
    pub(crate) fn next_logits(
        &mut self,
        model: &mut dyn CausalLm,
        tokens: &Array,
        StepOptions { logits, more, chunk }: StepOptions,
    ) -> Result<Array, GenerateError> {
        self.prepare_and_catch_up(model, length_of(tokens).saturating_add(as_i32(more)), chunk)?;
        self.append(model, tokens, Output::Logits(logits))
    }

    /// Makes the cache fit for `coming` more tokens, and reads again what has to be read again.
    fn prepare_and_catch_up(
        &mut self,
        model: &mut dyn CausalLm,
        coming: i32,
        chunk: Option<usize>,
    ) -> Result<(), GenerateError> {
        self.prepare(model, coming)?;
        if self.is_behind() {
            let chunk = chunk.unwrap_or_else(default_prefill_chunk);
            while self.catch_up(model, chunk)? > 0 {}
        }
        Ok(())
    }

    /// Reads the next tokens, int32 or uint32 `[B, L]`, and returns the logits that were asked for, as
    /// [`CausalLm::forward`] does.
    ///
    /// More than [`default_prefill_chunk`] tokens are read in chunks of that size.
    ///
    /// # Errors
    ///
    /// Those of [`step`](Self::step), and [`GenerateError::OutsideVocabulary`]. The session keeps the chunks that were
    /// read before the error.
    pub fn read(
        &mut self,
        model: &mut dyn CausalLm,
        tokens: &Array,
        logits: Logits,
    ) -> Result<Array, GenerateError> {
        self.read_in_chunks(model, tokens, logits, default_prefill_chunk())
    }

    /// [`read`](Self::read) in chunks of at most `chunk` tokens.
    ///
    /// # Errors
    ///
    /// Those of [`read`](Self::read).
    pub fn read_in_chunks(
        &mut self,
        model: &mut dyn CausalLm,
        tokens: &Array,
        logits: Logits,
        chunk: usize,
    ) -> Result<Array, GenerateError> {
        check_vocabulary(model, tokens)?;
        let length = length_of(tokens);
        if length <= chunk_length(chunk) {
            return self.step(model, tokens, StepOptions { logits, more: 0, chunk: Some(chunk) });
        }
        let mut answers = Vec::new();
        let mut start = 0;
        while start < length {
            let end = start.saturating_add(chunk_length(chunk)).min(length);
            let wanted = if logits == Logits::All || end == length { logits } else { Logits::None };
            let options = StepOptions { logits: wanted, more: (length - end) as usize, chunk: Some(chunk) };
            let answer = self.next_logits(model, &tokens.try_index((.., start..end))?, options)?;
            if wanted == logits {
                answer.eval()?;
                answers.push(answer);
            }
            self.tidy()?;
            start = end;
        }
        let answer = concatenate(&answers, 1)?;
        async_eval([&answer])?;
        self.start()?;
        Ok(answer)
    }

    /// Reads the next tokens of a session of one row in chunks, without their logits: a prompt whose cache is to be kept,
    /// for example. The callback gets the number of tokens that were read and their total, and may stop the reading; the
    /// session keeps what was read. Tokens that have to be read again are part of both numbers.
    ///
    /// # Errors
    ///
    /// Those of [`read`](Self::read), and [`GenerateError::Cancelled`] where the callback asked to stop.
    pub fn read_all(
        &mut self,
        model: &mut dyn CausalLm,
        tokens: &[u32],
        chunk: usize,
        mut progress: impl FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<(), GenerateError> {
        check_ids(model, tokens)?;
        self.prefill(model, tokens, 0, chunk, &mut progress)?;
        Ok(())
    }

    /// Reads tokens that the model has, with `more` tokens of the same text to come, and returns how many tokens there are
    /// in all: those, and what has to be read again.
    pub(crate) fn prefill(
        &mut self,
        model: &mut dyn CausalLm,
        tokens: &[u32],
        more: usize,
        chunk: usize,
        progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<usize, GenerateError> {
        let coming = tokens.len() + more;
        let total = self.prepare(model, as_i32(coming))? as usize + coming;
        let mut report = |read| match progress(read, total) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(GenerateError::Cancelled),
        };
        let (mut read, mut rest) = (0, tokens);
        report(read)?;
        while read + more < total {
            let part = self.prefill_part(model, rest, more, chunk.max(1))?;
            read += part.read;
            rest = &rest[part.new..];
            report(read)?;
        }
        Ok(total)
    }

    /// Reads the next part of a text as [`prefill`](Self::prefill) does: at most `most` tokens, in one call of the model.
    pub(crate) fn prefill_part(
        &mut self,
        model: &mut dyn CausalLm,
        tokens: &[u32],
        more: usize,
        most: usize,
    ) -> Result<Part, GenerateError> {
        let again = self.prepare(model, as_i32(tokens.len() + more))? as usize;
        let (read, new) = if most == 0 {
            (0, 0)
        } else if again > 0 {
            (self.catch_up(model, most)? as usize, 0)
        } else {
            let (ids, rest) = tokens.split_at(most.min(tokens.len()));
            if !ids.is_empty() {
                let options =
                    StepOptions { logits: Logits::None, more: rest.len() + more, chunk: Some(most) };
                self.next_logits(model, &Array::from_slice(ids, &[1, as_i32(ids.len())]), options)?;
                self.tidy()?;
            }
            (ids.len(), ids.len())
        };
        Ok(Part { read, new, left: again + tokens.len() - read })
    }

    /// Forgets the newest `tokens` tokens of every row, or as many as the shortest row has, and returns how many that
    /// were.
    ///
    /// Where the cache no longer holds what would become visible again, the next call reads the sequence again.
    ///
    /// # Errors
    ///
    /// As [`ModelCache::trim`] where the cache came with tokens, which cannot be read again.
    pub fn trim(&mut self, tokens: i32) -> Result<i32, GenerateError> {
        if tokens < 0 {
            return Err(CacheError::Negative { tokens }.into());
        }
        let shortest = self.joined.iter().map(|row| row.length).min().unwrap_or(self.length);
        let gone = tokens.min(shortest);
        let left = self.length - gone;
        match self.cache.trim((self.cache.offset() - left).max(0)) {
            Ok(_) => {}
            Err(_) if self.empty.is_some() => self.begin_again(),
            Err(e) => return Err(e.into()),
        }
        let known = (left - self.unknown).max(0);
        self.tokens = match self.tokens()? {
            Some(all) if known > 0 => vec![all.try_index((.., ..known))?],
            _ => Vec::new(),
        };
        self.unknown = self.unknown.min(left);
        self.length = left;
        self.joined.iter_mut().for_each(|row| row.length -= gone);
        if left == 0 && self.empty.is_none() {
            self.empty = Some(self.cache.clone());
        }
        self.start()?;
        Ok(gone)
    }

    /// Makes room for `most` drafted tokens, which can then be taken back at any time: beside the tokens that the options of
    /// the cache make room for, since those are the user's.
    pub(crate) fn make_room_for_drafts(&mut self, most: usize) -> Result<(), GenerateError> {
        let rewind = self.rewind.saturating_add(as_i32(most.min(MOST_ROOM_FOR_DRAFTS)));
        for cache in [Some(&mut self.cache), self.empty.as_mut()].into_iter().flatten() {
            if cache.rewind().is_some_and(|found| found < rewind) {
                *cache = cache.clone().with_rewind(rewind)?;
            }
        }
        Ok(())
    }

    /// Starts the device on everything that the session holds. Another thread can use what was started; what was not can
    /// only be computed by the thread that asked for it.
    fn start(&self) -> Result<(), GenerateError> {
        Ok(async_eval(self.cache.arrays().chain(&self.tokens))?)
    }

    /// Makes the cache fit for `coming` more tokens: forgets keys that would be rotated for the wrong length, and tells
    /// the cache how long the sequence will be. Returns how many tokens [`catch_up`](Self::catch_up) has to read.
    fn prepare(&mut self, model: &dyn CausalLm, coming: i32) -> Result<i32, GenerateError> {
        let length = self.length.saturating_add(coming);
        if !self.joined.is_empty() {
            self.find_stale_rows(model, coming);
        } else if self.cache.offset() > 0 && !self.all_alike(model, self.rotated_for(), length) {
            if self.empty.is_none() {
                return Err(GenerateError::UnknownTokens { tokens: self.unknown });
            }
            self.begin_again();
        }
        self.cache.expect(length);
        Ok(match &self.joined[..] {
            [] => self.length - self.cache.offset(),
            rows => rows.iter().filter(|row| row.is_stale).map(|row| row.length).sum(),
        })
    }

    /// The length of the sequence that the cached keys are rotated for, of the longest row.
    fn rotated_for(&self) -> i32 {
        self.cache.offset().max(self.cache.expected())
    }

    /// Whether in every row the keys of a sequence of `held` tokens serve a sequence of `length` tokens. Both lengths are
    /// those of the longest row.
    fn all_alike(&self, model: &dyn CausalLm, held: i32, length: i32) -> bool {
        let offset = self.cache.offset();
        let rows = self.cache.layers().first().map_or(&[][..], |layer| layer.offsets());
        let shorter = rows.iter().map(|row| offset - row);
        shorter.chain([0]).all(|shorter| model.rotates_alike(held - shorter, length - shorter))
    }

    /// Empties the cache. The tokens stay, and are read again.
    fn begin_again(&mut self) {
        if let Some(empty) = &self.empty {
            self.cache = empty.clone();
            self.is_quantized = false;
        }
        self.joined.iter_mut().for_each(|row| row.is_stale = true);
    }

    /// Whether there are tokens that the cache has not read yet, or joined rows that have to be read again.
    fn is_behind(&self) -> bool {
        match &self.joined[..] {
            [] => self.cache.offset() < self.length,
            rows => rows.iter().any(|row| row.is_stale),
        }
    }

    /// Reads at most `chunk` of the tokens that the cache has not read yet, or all of them where rows were joined, and
    /// returns how many it read.
    fn catch_up(&mut self, model: &mut dyn CausalLm, chunk: usize) -> Result<i32, GenerateError> {
        if !self.is_behind() {
            return Ok(0);
        }
        if !self.joined.is_empty() {
            return self.read_stale_rows(model, chunk);
        }
        let behind = (self.length - self.cache.offset()).min(chunk_length(chunk));
        let Some(all) = self.tokens()? else { return Ok(0) };
        let start = self.cache.offset() - self.unknown;
        let tokens = all.try_index((.., start..start + behind))?;
        self.tokens = vec![all];
        self.forward(model, &tokens, Output::Logits(Logits::None))?;
        self.tidy()?;
        Ok(behind)
    }

    /// Reads the next tokens in one call, once the cache is prepared and has caught up.
    fn append(
        &mut self,
        model: &mut dyn CausalLm,
        tokens: &Array,
        output: Output,
    ) -> Result<Array, GenerateError> {
        let length = length_of(tokens);
        let answer = self.forward(model, tokens, output)?;
        self.tokens.push(tokens.as_dtype(Dtype::Uint32)?);
        self.length += length;
        self.joined.iter_mut().for_each(|row| row.length += length);
        if self.tokens.len() >= MOST_PARTS
            && let Some(all) = self.tokens()?
        {
            async_eval([&all])?;
            self.tokens = vec![all];
        }
        Ok(answer)
    }

    fn forward(
        &mut self,
        model: &mut dyn CausalLm,
        tokens: &Array,
        output: Output,
    ) -> Result<Array, GenerateError> {
        // Once, and not by each operation: to ask MLX for its default stream takes as long as to make a small node.
        let stream = Stream::thread_local_or_default();
        let answer = with_stream(&stream, || match output {
            Output::Logits(logits) => model.forward(tokens, &mut self.cache, logits),
            Output::Hidden => model.hidden_states(tokens, &mut self.cache),
        });
        if answer.is_err() {
            // Some layers may have read the tokens, and others may not.
            self.begin_again();
        }
        let answer = answer?;
        self.quantize_if_due()?;
        Ok(answer)
    }

    /// Computes what the cache holds, and gives memory back that is not needed: for after a chunk whose logits nobody
    /// reads.
    pub(crate) fn tidy(&self) -> Result<(), GenerateError> {
        self.cache.eval()?;
        Ok(mlx_rs::memory::clear_cache()?)
    }
}

/// Whether the model has all of these tokens. MLX does not report an id outside of the embedding table: it reads another
/// row.
fn check_vocabulary(model: &dyn CausalLm, tokens: &Array) -> Result<(), GenerateError> {
    if !matches!(tokens.dtype(), Dtype::Int32 | Dtype::Uint32) || tokens.size() == 0 {
        return Ok(()); // the model reports what it needs
    }
    let ids = tokens.reshape(&[-1])?.as_dtype(Dtype::Int64)?;
    ids.eval()?;
    let ids = ids.try_as_slice::<i64>().map_err(|e| Exception::custom(e.to_string()))?;
    let vocab_size = model.info().vocab_size;
    match ids.iter().position(|id| !(0..i64::from(vocab_size)).contains(id)) {
        Some(position) => Err(GenerateError::OutsideVocabulary { id: ids[position], position, vocab_size }),
        None => Ok(()),
    }
}

/// L of tokens `[B, L]`. For any other shape 0: the model reports it.
fn length_of(tokens: &Array) -> i32 {
    if tokens.ndim() == 2 { tokens.dim(1) } else { 0 }
}

/// At least one token.
fn chunk_length(chunk: usize) -> i32 {
    as_i32(chunk.max(1))
}
