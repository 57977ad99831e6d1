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

/// What [`Session::turn_to`] kept of a session's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reuse {
    /// All of them: the text begins with them.
    Continued,
    /// All but the newest tokens, which were taken back.
    Rewound {
        /// How many tokens were taken back.
        tokens: usize,
    },
    /// The session keeps the common tokens, but the next call reads them again: the cache no longer holds what it would
    /// need (a window has moved on), or LongRoPE rotates the text by other factors.
    ReadAgain {
        /// How many tokens are read again.
        tokens: usize,
    },
}

impl Session {
    /// Makes the session fit for `text`, a whole conversation: keeps the tokens that the session and the text have in
    /// common from the first one on, forgets the rest, and returns the part of the text that is left to read. At least
    /// one token is left, since a model only answers to tokens that it reads.
    ///
    /// The session must have one row, as for [`generate`](crate::generate). A conversation that goes on is
    /// [`Reuse::Continued`]. If an earlier turn was edited, the session goes back to the edit. That takes no reading where
    /// the cache can take the tokens back: always without windows, and within [`CacheOptions::rewind`] tokens with them.
    ///
    /// ```no_run
    /// # use mlx_causal_lm::CausalLm;
    /// # use mlx_generate::{GenerateOptions, Session, generate};
    /// # fn f(model: &mut dyn CausalLm, session: &mut Session, text: &[u32], stop_tokens: &[u32]) -> Result<(), mlx_generate::GenerateError> {
    /// let (reuse, rest) = session.turn_to(model, text)?;
    /// let answer = generate(model, session, rest, GenerateOptions::new(stop_tokens))?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`GenerateError::EmptyPrompt`] for an empty text; [`GenerateError::UnknownTokens`] where the cache came with tokens
    /// whose ids are not known; [`GenerateError::Rows`] for several rows.
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
        let again = held < self.length
            || (held > 0 && !self.all_alike(model, self.rotated_for(), as_i32(text.len())));
        let reuse = match (again, gone) {
            (true, _) => Reuse::ReadAgain { tokens: kept },
            (false, 0) => Reuse::Continued,
            (false, tokens) => Reuse::Rewound { tokens },
        };
        Ok((reuse, &text[kept..]))
    }

    /// The token ids of a session of one row, without those of the tokens that its cache came with.
    ///
    /// # Errors
    ///
    /// [`GenerateError::Rows`] for several rows.
    pub fn ids(&self) -> Result<Vec<u32>, GenerateError> {
        if self.rows() != 1 {
            return Err(GenerateError::Rows { rows: as_i32(self.rows()) });
        }
        let Some(tokens) = self.tokens()? else { return Ok(Vec::new()) };
        let tokens = tokens.contiguous()?;
        Ok(tokens.try_as_slice::<u32>().map_err(|e| Exception::custom(e.to_string()))?.to_vec())
    }

    /// The ids of all tokens of a session of one row.
    pub(crate) fn all_ids(&self) -> Result<Vec<u32>, GenerateError> {
        match self.unknown {
            0 => self.ids(),
            tokens => Err(GenerateError::UnknownTokens { tokens }),
        }
    }

    /// Writes the cache and its token ids to a file that [`load`](Self::load) and mlx-lm can read: see
    /// [`ModelCache::save`](mlx_kvcache::ModelCache::save).
    ///
    /// # Errors
    ///
    /// Those of `ModelCache::save`; [`GenerateError::Rows`] for several rows; [`GenerateError::UnknownTokens`] where the
    /// cache came with tokens whose ids are not known.
    pub fn save(&self, model: &dyn CausalLm, file: impl AsRef<Path>) -> Result<(), GenerateError> {
        self.save_with(model, file, &BTreeMap::new())
    }

    /// [`save`](Self::save) with entries of the caller's own: see [`ModelCache::save_with`](mlx_kvcache::ModelCache::save_with).
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
        // After an interruption the cache has read fewer tokens.
        ids.truncate(usize::try_from(self.cache.offset()).unwrap_or(0));
        Ok(self.cache.save_with(file, made_by(model, self.rotated_for())?, &ids, metadata)?)
    }

    /// Reads a session of this model from a file. `options` are those of [`CausalLm::new_cache`].
    ///
    /// # Errors
    ///
    /// [`GenerateError::CacheFile`] where the file is missing, damaged, or made by another model, other weights, adapters
    /// or settings; or where mlx-lm made it and mlx-lm computes other keys and values than this model.
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
            // mlx-lm's files have no ids. Such a session can be continued, but its tokens cannot be read again.
            return Ok(Self::new(cache));
        }
        check_ids(model, &tokens)?;
        // If the keys of the file are rotated for another length, the next call reads the tokens again.
        let row = Array::from_slice(&tokens, &[1, as_i32(tokens.len())]);
        Self::resume(cache, &row, &model.new_cache(options)?)
    }

    /// Quantizes the cache once it has [`KvQuantization::from`] tokens.
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
        // An error now is better than one in the middle of a text.
        for layer in self.cache.layers() {
            if let Some(found) = layer.quantization().filter(|&found| found != quantization) {
                return Err(CacheError::Quantized { found, asked: quantization });
            }
        }
        model.new_cache(&CacheOptions { quantization: Some(quantization), ..CacheOptions::default() })?;
        self.quantization = Some(KvQuantization { quantization, from });
        self.quantize_if_due()
    }

    /// Quantizes the cache where it has come to that length; called after every call of the model.
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

/// Quantization of keys and values that starts at some length of the sequence: short texts stay exact, and long ones
/// fit into memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvQuantization {
    /// The mode, bits and group size.
    pub quantization: mlx_kvcache::Quantization,
    /// The number of tokens at which it starts. The tokens that were read before are quantized then, too.
    pub from: i32,
}
