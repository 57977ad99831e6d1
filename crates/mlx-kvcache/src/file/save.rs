//! Writing a cache to a file.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use super::entries::{CHECKSUM, RECORD, VERSION};
use super::error::CacheFileError;
use super::made_by::MadeBy;
use super::mlx_lm;
use super::record::{LayerRecord, OriginRecord, Record};
use super::tensors::{Tensors, check_replaceable, write};
use crate::ModelCache;

impl ModelCache {
    /// Writes the cache to a safetensors file for [`SavedCache::read`](super::SavedCache::read).
    ///
    /// mlx-lm's `load_prompt_cache` reads the file too, if mlx-lm has classes for its layers: full or rotating ones, in a
    /// batch or not, and full quantized ones.
    ///
    /// `made_by` is the model that made the cache, or only its type. `tokens` are the ids of the tokens in the cache, or
    /// empty if the file does not need them. An existing cache file stays until the new file is complete; a file that is
    /// not a cache is not replaced.
    ///
    /// # Errors
    ///
    /// [`CacheFileError::Io`]; [`CacheFileError::NotReplaced`]; [`CacheFileError::Tokens`] if the number of `tokens` is
    /// not that of the cache; [`CacheError::Drift`](crate::CacheError::Drift) after a call of the model that failed
    /// halfway; [`CacheFileError::NoCache`] for a cache without layers.
    pub fn save(
        &self,
        file: impl AsRef<Path>,
        made_by: impl Into<MadeBy>,
        tokens: &[u32],
    ) -> Result<(), CacheFileError> {
        self.save_with(file, made_by, tokens, &BTreeMap::new())
    }

    /// As [`save`](Self::save), with further entries, which [`SavedCache::metadata`](super::SavedCache::metadata) and
    /// mlx-lm's `load_prompt_cache` return. The program `mlx_lm.generate` needs two entries: `model`, equal to its
    /// `--model`, and `tokenizer_config`, a JSON object.
    ///
    /// # Errors
    ///
    /// Those of [`save`](Self::save).
    pub fn save_with(
        &self,
        file: impl AsRef<Path>,
        made_by: impl Into<MadeBy>,
        tokens: &[u32],
        metadata: &BTreeMap<String, String>,
    ) -> Result<(), CacheFileError> {
        let made_by = made_by.into();
        let offset = self.offset();
        if !tokens.is_empty() && i32::try_from(tokens.len()) != Ok(offset) {
            return Err(CacheFileError::Tokens { tokens: tokens.len(), offset });
        }
        self.check_aligned()?;
        let path = file.as_ref();
        if self.layers().is_empty() {
            let problem = "there are no layers to save".to_owned();
            return Err(CacheFileError::NoCache { file: path.into(), problem });
        }

        check_replaceable(path)?;
        let mut contents = Tensors::default();
        contents.metadata.extend(metadata.iter().map(|(name, value)| (format!("0.{name}"), value.clone())));
        let (mut classes, mut scalars, mut layers) = (Vec::new(), Vec::new(), Vec::new());
        for (i, cache) in self.layers().iter().enumerate() {
            let (record, buffers) = LayerRecord::of(cache)?;
            let class = mlx_lm::write_layer(i, &record, buffers.as_ref(), &mut contents, &mut scalars)?;
            classes.push(if made_by.unlike_mlx_lm.is_none() { class } else { record.layout.class() });
            layers.push(record);
        }
        let record = Record {
            version: VERSION,
            model_type: made_by.model_type,
            made_by: Some(OriginRecord {
                weights: made_by.weights,
                config: made_by.config,
                adapters: made_by.adapters,
                expected: self.expected(),
            }),
            tokens: tokens.to_vec(),
            layers,
        };
        mlx_lm::write_metadata(&mut contents.metadata, &classes, &scalars);
        let io = |e| CacheFileError::Io { doing: "writing", file: path.into(), source: io::Error::other(e) };
        contents.metadata.insert(RECORD.to_owned(), record.to_json().map_err(io)?);
        let checksum = contents.checksum()?;
        contents.metadata.insert(CHECKSUM.to_owned(), checksum);
        write(path, &contents)
    }
}
