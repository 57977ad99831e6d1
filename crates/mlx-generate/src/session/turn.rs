//! Sessions across the turns of a conversation, and across runs of a program.

use std::collections::BTreeMap;
use std::path::Path;

use mlx_causal_lm::{CausalLm, made_by};
use mlx_kvcache::{CacheError, CacheOptions, SavedCache};
use mlx_rs::Array;
use mlx_rs::error::Exception;
use mlx_rs::transforms::async_eval;

use super::Session;
use crate::{GenerateError, as_i32, check_ids};

/// What became of the tokens of a session that went to another text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reuse {
    /// All of them are the beginning of the text.
    Continued,
    /// The newest ones were taken back.
    Rewound {
        /// How many.
        tokens: usize,
    },
    /// The cache does not hold what it would need without the newest ones (a window has moved on, or LongRoPE
    /// rotates the text by other factors): the beginning is read again with the next call.
    ReadAgain {
        /// How many tokens that are.
        tokens: usize,
    },
}

impl Session {
    /// Goes to `text`, a whole conversation: keeps what the session and the text have in common from the
    /// first token on, forgets the rest, and answers what is left to read. At least one token is left, since
    /// only what is read is answered.
    ///
    /// For the session of one row that [`generate`](crate::generate) needs. A conversation that goes on is
    /// [`Reuse::Continued`]; one whose earlier turn was edited goes back to the edit, at once where the cache can:
    /// always without windows, and within [`CacheOptions::rewind`] tokens with them.
    ///
    /// ```no_run
    /// # use mlx_causal_lm::CausalLm;
    /// # use mlx_generate::{GenerateOptions, Session, generate};
    /// # fn f(model: &mut dyn CausalLm, session: &mut Session, text: &[u32]) -> Result<(), mlx_generate::GenerateError> {
    /// let (reuse, rest) = session.turn_to(model, text)?;
    /// let answer = generate(model, session, rest, GenerateOptions::default())?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`GenerateError::EmptyPrompt`] for an empty text; [`GenerateError::UnknownTokens`] where the session's
    /// cache came with tokens that it does not know; [`GenerateError::Rows`] for a batch.
    pub fn turn_to<'t>(
        &mut self,
        model: &dyn CausalLm,
        text: &'t [u32],
    ) -> Result<(Reuse, &'t [u32]), GenerateError> {
        let known = self.all_ids()?;
        let most = text.len().checked_sub(1).ok_or(GenerateError::EmptyPrompt)?;
        let kept = known.iter().zip(&text[..most]).take_while(|(known, text)| known == text).count();
        let gone = known.len() - kept;
        self.trim(as_i32(gone))?;

        let held = self.cache.offset();
        let rotated = held.max(self.cache.expected());
        let again = held < self.length || (held > 0 && !self.all_alike(model, rotated, as_i32(text.len())));
        let reuse = match (again, gone) {
            (true, _) => Reuse::ReadAgain { tokens: kept },
            (false, 0) => Reuse::Continued,
            (false, tokens) => Reuse::Rewound { tokens },
        };
        Ok((reuse, &text[kept..]))
    }

    /// The ids of a session of one row, without those that its cache came with.
    ///
    /// # Errors
    ///
    /// [`GenerateError::Rows`] for a batch.
    pub fn ids(&self) -> Result<Vec<u32>, GenerateError> {
        let Some(tokens) = self.tokens()? else { return Ok(Vec::new()) };
        if tokens.dim(0) != 1 {
            return Err(GenerateError::Rows { rows: tokens.dim(0) });
        }
        let tokens = tokens.contiguous()?;
        Ok(tokens.try_as_slice::<u32>().map_err(|e| Exception::custom(e.to_string()))?.to_vec())
    }

    /// The ids of everything that a session of one row has.
    pub(crate) fn all_ids(&self) -> Result<Vec<u32>, GenerateError> {
        match self.unknown {
            0 => self.ids(),
            tokens => Err(GenerateError::UnknownTokens { tokens }),
        }
    }

    /// Writes the cache and the ids of its tokens to a file, for [`load`](Self::load) and for mlx-lm: see
    /// [`ModelCache::save`](mlx_kvcache::ModelCache::save).
    ///
    /// # Errors
    ///
    /// Those of `ModelCache::save`; [`GenerateError::Rows`] for a batch; [`GenerateError::UnknownTokens`] where
    /// the cache came with tokens that it does not know.
    pub fn save(&self, model: &dyn CausalLm, file: impl AsRef<Path>) -> Result<(), GenerateError> {
        self.save_with(model, file, &BTreeMap::new())
    }

    /// [`save`](Self::save) with further entries: see [`ModelCache::save_with`](mlx_kvcache::ModelCache::save_with).
    ///
    /// # Errors
    ///
    /// Those of [`save`](Self::save).
    pub fn save_with(
        &self,
        model: &dyn CausalLm,
        file: impl AsRef<Path>,
        metadata: &BTreeMap<String, String>,
    ) -> Result<(), GenerateError> {
        let mut ids = self.all_ids()?;
        // After something was interrupted, the cache has read fewer.
        ids.truncate(usize::try_from(self.cache.offset()).unwrap_or(0));
        // What is held was rotated for a sequence of this length.
        let length = self.cache.offset().max(self.cache.expected());
        Ok(self.cache.save_with(file, made_by(model, length)?, &ids, metadata)?)
    }

    /// The session in a file, for this model. `options` are those that [`CausalLm::new_cache`] would be given.
    ///
    /// # Errors
    ///
    /// [`GenerateError::CacheFile`] where the file is none, damaged, or of another model, of other weights, adapters or
    /// settings; or where it is mlx-lm's and mlx-lm computes other keys and values than this model.
    pub fn load(
        model: &dyn CausalLm,
        file: impl AsRef<Path>,
        options: &CacheOptions,
    ) -> Result<Self, GenerateError> {
        let saved = SavedCache::read(file)?;
        let tokens = saved.tokens().to_vec();
        let info = model.info();
        let tokens_seen = saved.layers().first().map_or(0, |layer| layer.offset());
        let cache = saved.into_cache_for(made_by(model, tokens_seen)?, &info.layers, info.dtype, options)?;
        if tokens.is_empty() {
            // mlx-lm's files do not have them. Such a session goes on, and does not go back.
            return Ok(Self::new(cache));
        }
        check_ids(model, &tokens)?;
        // Those of a file whose keys are rotated for another length are read again with the next call.
        let row = Array::from_slice(&tokens, &[1, as_i32(tokens.len())]);
        Self::resume(cache, &row, &model.new_cache(options)?)
    }

    /// Quantizes the cache once it has so many tokens; see [`KvQuantization`].
    ///
    /// # Errors
    ///
    /// [`CacheError::Groups`] where heads cannot be cut into the groups of the quantization, and
    /// [`CacheError::Quantized`] where the cache is quantized in another way.
    pub fn quantize_from(
        &mut self,
        model: &dyn CausalLm,
        KvQuantization { quantization, from }: KvQuantization,
    ) -> Result<(), CacheError> {
        // Refused now rather than in the middle of a text.
        for layer in self.cache.layers() {
            if let Some(found) = layer.quantization().filter(|&found| found != quantization) {
                return Err(CacheError::Quantized { found, asked: quantization });
            }
        }
        model.new_cache(&CacheOptions { quantization: Some(quantization), ..CacheOptions::default() })?;
        self.quantization = Some(KvQuantization { quantization, from });
        self.quantize_if_due()
    }

    /// After every call.
    pub(super) fn quantize_if_due(&mut self) -> Result<(), CacheError> {
        match self.quantization {
            Some(KvQuantization { quantization, from })
                if !self.is_quantized && self.cache.offset() >= from =>
            {
                self.cache.quantize(quantization)?;
                self.is_quantized = true;
                Ok(async_eval(self.cache.arrays())?)
            }
            _ => Ok(()),
        }
    }
}

/// Keys and values in few bits, from some length of the sequence on: short texts stay exact, and long ones fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvQuantization {
    /// How.
    pub quantization: mlx_kvcache::Quantization,
    /// From how many tokens on. What was read before is quantized then, too.
    pub from: i32,
}
