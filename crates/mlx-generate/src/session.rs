//! A sequence of tokens, and the cache of those that a model has read.

mod turn;

use std::ops::ControlFlow;

use mlx_causal_lm::{CausalLm, Logits};
use mlx_kvcache::{CacheError, ModelCache};
use mlx_rs::error::Exception;
use mlx_rs::ops::concatenate;
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::transforms::async_eval;
use mlx_rs::{Array, Dtype};

use crate::{GenerateError, as_i32, check_ids};
pub use turn::{KvQuantization, Reuse};

/// Tokens of a prompt that are read in one call unless something else is asked for.
///
/// On a Mac's GPU mlx-lm's choice, 2048. On MLX's CPU device, where attention writes all scores of a piece to memory,
/// 512: larger pieces are slower there and need more memory, as `docs/performance.md` shows.
pub const PREFILL_CHUNK: usize = if cfg!(target_vendor = "apple") { 2048 } else { 512 };

/// A session keeps its tokens in at most so many arrays, so that decoding them one by one stays cheap.
const MOST_PARTS: usize = 512;

/// A cache with the tokens that it has read.
///
/// Some models rotate their keys by the length of the whole sequence (LongRoPE): once a sequence grows
/// over a certain length, or is cut back below it, what was cached is wrong. A session knows the tokens,
/// so it then reads them again, and its answers are always those of one pass over the whole sequence.
/// All models are used in the same way; most of them never read anything twice.
///
/// A session may move to another thread at any time, and so may a [`Batch`](crate::Batch) and the streams: everything
/// that they hold is computed, or the device works on it.
///
/// A batch is a session of several rows, which get their tokens together.
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
/// session.trim(1)?; // as if the 4 had never come
/// assert_eq!(session.offset(), 2);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Session {
    cache: ModelCache,
    /// The cache without tokens, to begin again; none where the cache came with tokens.
    empty: Option<ModelCache>,
    /// Tokens that the cache came with.
    unknown: i32,
    /// The tokens after those, uint32 `[B, n]` each, in order.
    tokens: Vec<Array>,
    /// The number of all of them. Those that the cache has not read, the last ones, are read before
    /// anything else is.
    length: i32,
    /// When keys and values become few bits, and whether they are.
    quantization: Option<KvQuantization>,
    is_quantized: bool,
}

impl Session {
    /// A session on this cache.
    ///
    /// The cache may hold tokens already, though it cannot tell which; if they have to be read again,
    /// that is an error. [`resume`](Self::resume) is for those who know them.
    pub fn new(cache: ModelCache) -> Self {
        let unknown = cache.offset().max(0);
        let empty = (unknown == 0).then(|| cache.clone());
        let tokens = Vec::new();
        Self { cache, empty, unknown, tokens, length: unknown, quantization: None, is_quantized: false }
    }

    /// A session on a cache that has read these tokens, int32 or uint32 `[B, T]`, to their end: one that was
    /// kept in a file, for instance. `empty` is a cache of the same kind without tokens, to begin again with
    /// where that is needed.
    ///
    /// # Errors
    ///
    /// [`GenerateError::CachedTokens`] where the cache has not read so many tokens, or `empty` any.
    pub fn resume(cache: ModelCache, tokens: &Array, empty: &ModelCache) -> Result<Self, GenerateError> {
        let length = if tokens.ndim() == 2 { tokens.dim(1) } else { 0 };
        for (expected, cache) in [(length, &cache), (0, empty)] {
            if cache.offset() != expected {
                return Err(GenerateError::CachedTokens { found: cache.offset(), expected });
            }
        }
        let tokens = if length > 0 { vec![tokens.as_dtype(Dtype::Uint32)?] } else { Vec::new() };
        let empty = Some(empty.clone());
        let session =
            Self { cache, empty, unknown: 0, tokens, length, quantization: None, is_quantized: false };
        session.start()?;
        Ok(session)
    }

    /// The tokens of the sequence, of the longest row: the position of the next one.
    pub fn offset(&self) -> i32 {
        self.length
    }

    /// The tokens of the sequence, uint32 `[B, T]`, without those that the cache came with; none before the
    /// first.
    ///
    /// # Errors
    ///
    /// What MLX reports.
    pub fn tokens(&self) -> Result<Option<Array>, GenerateError> {
        match &self.tokens[..] {
            [] => Ok(None),
            [all] => Ok(Some(all.clone())),
            pieces => {
                let all = concatenate(pieces, 1)?;
                async_eval([&all])?;
                Ok(Some(all))
            }
        }
    }

    /// The cache.
    pub fn cache(&self) -> &ModelCache {
        &self.cache
    }

    /// The cache alone. Where something was interrupted, it has read fewer tokens than the session has.
    pub fn into_cache(self) -> ModelCache {
        self.cache
    }

    /// Reads the next tokens, int32 or uint32 `[B, L]`, and answers with the logits that were asked for, as
    /// [`CausalLm::forward`] does.
    ///
    /// Long calls are cut into pieces of [`PREFILL_CHUNK`] tokens.
    ///
    /// # Errors
    ///
    /// Those of [`CausalLm::forward`]; [`GenerateError::OutsideVocabulary`]; and [`GenerateError::UnknownTokens`]
    /// where tokens have to be read again that the cache came with. The session then has the tokens of those pieces
    /// that were read.
    pub fn read(
        &mut self,
        model: &mut dyn CausalLm,
        tokens: &Array,
        logits: Logits,
    ) -> Result<Array, GenerateError> {
        self.read_in_pieces(model, tokens, logits, PREFILL_CHUNK)
    }

    /// [`read`](Self::read) in pieces of so many tokens.
    ///
    /// # Errors
    ///
    /// Those of [`read`](Self::read).
    pub fn read_in_pieces(
        &mut self,
        model: &mut dyn CausalLm,
        tokens: &Array,
        logits: Logits,
        piece: usize,
    ) -> Result<Array, GenerateError> {
        let length = if tokens.ndim() == 2 { tokens.dim(1) } else { 0 };
        check_vocabulary(model, tokens)?;
        self.prepare(model, length)?;
        while self.catch_up(model, piece)? > 0 {}
        let piece = piece_length(piece);
        if length <= piece {
            let answer = self.append(model, tokens, logits)?;
            async_eval([&answer])?;
            self.start()?;
            return Ok(answer);
        }
        let mut answers = Vec::new();
        let mut start = 0;
        while start < length {
            let end = start.saturating_add(piece).min(length);
            let wanted = if logits == Logits::All || end == length { logits } else { Logits::None };
            let answer = self.append(model, &tokens.try_index((.., start..end))?, wanted)?;
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

    /// Starts the device on everything that the session holds. What was started can be used by another thread, and
    /// what was not only by the thread that asked for it.
    pub(crate) fn start(&self) -> Result<(), GenerateError> {
        Ok(async_eval(self.cache.arrays().chain(&self.tokens))?)
    }

    /// Reads the next tokens of a session of one row without looking at what they are answered with, in pieces of
    /// `piece`: a prompt that is to be kept. The callback hears how many tokens were read, of how many, and may stop it;
    /// what was read stays. Tokens that have to be read again count as well.
    ///
    /// # Errors
    ///
    /// Those of [`read`](Self::read), and [`GenerateError::Cancelled`].
    pub fn read_all(
        &mut self,
        model: &mut dyn CausalLm,
        tokens: &[u32],
        piece: usize,
        mut progress: impl FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<(), GenerateError> {
        check_ids(model, tokens)?;
        self.feed(model, tokens, 0, piece, &mut progress)?;
        Ok(())
    }

    /// Reads tokens that the model has, and answers how many there were to read in all, with `more` to come.
    pub(crate) fn feed(
        &mut self,
        model: &mut dyn CausalLm,
        tokens: &[u32],
        more: usize,
        piece: usize,
        progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<usize, GenerateError> {
        // The model hears the length of the whole text before its first piece.
        let coming = tokens.len() + more;
        let again = self.prepare(model, as_i32(coming))? as usize;
        let total = again + coming;
        let mut tell = |read| match progress(read, total) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(GenerateError::Cancelled),
        };
        let mut read = 0;
        tell(read)?;
        while read < again {
            read += self.catch_up(model, piece)? as usize;
            tell(read)?;
        }
        for piece in tokens.chunks(piece.max(1)) {
            let tokens = Array::from_slice(piece, &[1, piece.len() as i32]);
            self.append(model, &tokens, Logits::None)?;
            self.tidy()?;
            read += piece.len();
            tell(read)?;
        }
        Ok(total)
    }

    /// Forgets the newest `tokens` tokens, or all where there are fewer, and says how many went.
    ///
    /// Where the cache no longer holds what would become visible again, the next call reads the sequence
    /// again.
    ///
    /// # Errors
    ///
    /// As [`ModelCache::trim`] where the cache came with tokens, which cannot be read again.
    pub fn trim(&mut self, tokens: i32) -> Result<i32, GenerateError> {
        if tokens < 0 {
            return Err(CacheError::Negative { tokens }.into());
        }
        let gone = tokens.min(self.length);
        let left = self.length - gone;
        match self.cache.trim((self.cache.offset() - left).max(0)) {
            Ok(_) => {}
            Err(_) if self.empty.is_some() => self.begin_again()?,
            Err(e) => return Err(e.into()),
        }
        let known = (left - self.unknown).max(0);
        self.tokens = match self.tokens()? {
            Some(all) if known > 0 => vec![all.try_index((.., ..known))?],
            _ => Vec::new(),
        };
        self.unknown = self.unknown.min(left);
        self.length = left;
        if left == 0 && self.empty.is_none() {
            self.empty = Some(self.cache.clone());
        }
        self.start()?;
        Ok(gone)
    }

    /// Makes the cache fit for `coming` more tokens: forgets keys that would be rotated wrongly, and says
    /// how long the sequence will be. Answers how many tokens [`catch_up`](Self::catch_up) has to read.
    pub(crate) fn prepare(&mut self, model: &dyn CausalLm, coming: i32) -> Result<i32, GenerateError> {
        let length = self.length.saturating_add(coming);
        let offset = self.cache.offset();
        // What was read was rotated for a sequence of this length.
        let held = offset.max(self.cache.expected());
        if offset > 0 && !self.all_alike(model, held, length) {
            if self.empty.is_none() {
                return Err(GenerateError::UnknownTokens { tokens: self.unknown });
            }
            self.begin_again()?;
        }
        self.cache.expect(length);
        Ok(self.length - self.cache.offset())
    }

    /// Whether in every row the keys of a sequence of `held` tokens serve one of `length`, both counted in
    /// the longest row.
    fn all_alike(&self, model: &dyn CausalLm, held: i32, length: i32) -> bool {
        let offset = self.cache.offset();
        let rows = self.cache.layers().first().map_or(&[][..], |layer| layer.offsets());
        let shorter = rows.iter().map(|row| offset - row);
        shorter.chain([0]).all(|shorter| model.rotates_alike(held - shorter, length - shorter))
    }

    fn begin_again(&mut self) -> Result<(), GenerateError> {
        if let Some(empty) = &self.empty {
            self.cache = empty.clone();
            self.is_quantized = false;
        }
        Ok(())
    }

    /// Reads at most `piece` of the tokens that the cache has not read yet, and answers how many those were.
    pub(crate) fn catch_up(&mut self, model: &mut dyn CausalLm, piece: usize) -> Result<i32, GenerateError> {
        let behind = (self.length - self.cache.offset()).min(piece_length(piece));
        if behind <= 0 {
            return Ok(0);
        }
        let Some(all) = self.tokens()? else { return Ok(0) };
        let start = self.cache.offset() - self.unknown;
        let tokens = all.try_index((.., start..start + behind))?;
        self.tokens = vec![all];
        self.forward(model, &tokens, Logits::None)?;
        self.tidy()?;
        Ok(behind)
    }

    /// Reads the next tokens in one call, after [`prepare`](Self::prepare) and everything there was to catch up.
    pub(crate) fn append(
        &mut self,
        model: &mut dyn CausalLm,
        tokens: &Array,
        logits: Logits,
    ) -> Result<Array, GenerateError> {
        let length = if tokens.ndim() == 2 { tokens.dim(1) } else { 0 };
        let answer = self.forward(model, tokens, logits)?;
        self.tokens.push(tokens.as_dtype(Dtype::Uint32)?);
        self.length += length;
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
        logits: Logits,
    ) -> Result<Array, GenerateError> {
        let answer = model.forward(tokens, &mut self.cache, logits);
        if answer.is_err() {
            // Some layers may have the tokens, and others not.
            self.begin_again()?;
        }
        let answer = answer?;
        self.quantize_if_due()?;
        Ok(answer)
    }

    /// After a piece whose logits nobody reads.
    pub(crate) fn tidy(&self) -> Result<(), GenerateError> {
        self.cache.eval()?;
        Ok(mlx_rs::memory::clear_cache()?)
    }
}

/// Whether the model has all of these tokens: MLX does not notice an id outside the embedding table, and reads
/// what lies there.
fn check_vocabulary(model: &dyn CausalLm, tokens: &Array) -> Result<(), GenerateError> {
    if !matches!(tokens.dtype(), Dtype::Int32 | Dtype::Uint32) || tokens.size() == 0 {
        return Ok(()); // the model says what it needs
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

/// At least one token.
fn piece_length(piece: usize) -> i32 {
    as_i32(piece.max(1))
}
