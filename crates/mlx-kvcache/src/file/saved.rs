//! Reading a cache from a file, and checking that it fits a model.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mlx_rs::Dtype;

use super::entries::{CHECKSUM, RECORD};
use super::error::CacheFileError;
use super::made_by::MadeBy;
use super::mlx_lm;
use super::record::{LayerRecord, OriginRecord, Record};
use super::tensors::read;
use crate::buffers::check_groups;
use crate::{CacheError, CacheOptions, KvCache, LayerSpec, Layout, ModelCache};

/// A cache that was read from a file.
#[derive(Debug, Clone)]
pub struct SavedCache {
    file: PathBuf,
    layers: Vec<KvCache>,
    model_type: Option<String>,
    /// Whether the file has the entry `0.mlx_models`.
    is_ours: bool,
    made_by: Option<OriginRecord>,
    tokens: Vec<u32>,
    metadata: BTreeMap<String, String>,
}

impl SavedCache {
    /// Reads a file that [`ModelCache::save`] or mlx-lm's `save_prompt_cache` (0.32) wrote, and checks all of
    /// it.
    ///
    /// # Errors
    ///
    /// A [`CacheFileError`] that names the file and the problem. A changed bit in keys or values is only
    /// found in files with a checksum, which files of mlx-lm do not have.
    pub fn read(file: impl AsRef<Path>) -> Result<Self, CacheFileError> {
        let path = file.as_ref();
        let opened = mlx_files::open(path).map_err(|source| CacheFileError::Io {
            doing: "opening",
            file: path.into(),
            source,
        })?;
        let contents = read(path, opened)?;
        let metadata = mlx_lm::users_metadata(&contents.metadata);
        let file = path.to_path_buf();
        let damaged = |problem: String| CacheFileError::Damaged { file: path.into(), problem };
        let Some(record) = contents.metadata.get(RECORD) else {
            if contents.metadata.contains_key(CHECKSUM) {
                return Err(damaged(format!("it has a checksum but no entry {RECORD}")));
            }
            let layers = mlx_lm::read_layers(path, &contents)?;
            let model_type = metadata.get("model_type").cloned();
            let (is_ours, made_by, tokens) = (false, None, Vec::new());
            return Self { file, layers, model_type, is_ours, made_by, tokens, metadata }.checked();
        };

        let record = Record::from_json(record).map_err(|found| match found {
            Ok(version) => CacheFileError::Version { file: path.into(), found: version },
            Err(problem) => damaged(problem),
        })?;
        if contents.metadata.get(CHECKSUM) != Some(&contents.checksum()?) {
            return Err(damaged("its checksum does not fit its contents".to_owned()));
        }
        let layer = |(i, layer): (usize, &LayerRecord)| {
            let problem = |problem: String| CacheFileError::Layer { file: path.into(), layer: i, problem };
            layer.restore(i, &contents).map_err(problem)
        };
        let layers: Vec<KvCache> = record.layers.iter().enumerate().map(layer).collect::<Result<_, _>>()?;
        let Record { model_type, made_by, tokens, .. } = record;
        let (model_type, is_ours) = (Some(model_type), true);
        Self { file, layers, model_type, is_ours, made_by, tokens, metadata }.checked()
    }

    /// An error if there are no layers, or if layers hold different numbers of rows or tokens.
    fn checked(self) -> Result<Self, CacheFileError> {
        let Some(first) = self.layers.first() else {
            let problem = "it has no layers".to_owned();
            return Err(CacheFileError::NoCache { file: self.file, problem });
        };
        let offset = first.offset();
        if !self.tokens.is_empty() && i32::try_from(self.tokens.len()) != Ok(offset) {
            let problem = format!("it has {} token ids for {offset} tokens", self.tokens.len());
            return Err(CacheFileError::Damaged { file: self.file, problem });
        }
        let rows = |layer: &KvCache| (layer.batch(), layer.offsets().to_vec());
        let expected = rows(first);
        for (i, layer) in self.layers.iter().enumerate() {
            let found = rows(layer);
            if found != expected {
                let words =
                    |(rows, offsets): (usize, Vec<i32>)| format!("{rows} rows with tokens up to {offsets:?}");
                let problem = format!("it has {}, and layer 0 {}", words(found), words(expected));
                return Err(CacheFileError::Layer { file: self.file, layer: i, problem });
            }
        }
        Ok(self)
    }

    /// An error if another model made the cache, or if this model needs to know and the file does not say.
    fn check_origin(&self, made_by: MadeBy) -> Result<(), CacheFileError> {
        let file = self.file.clone();
        let MadeBy { model_type, weights, config, adapters, unlike_mlx_lm } = made_by;
        if let Some(found) = self.model_type.as_deref().filter(|&found| found != model_type) {
            let found = found.to_owned();
            return Err(CacheFileError::Model { file, expected: model_type, found });
        }
        let Some(found) = &self.made_by else {
            let problem = if self.is_ours {
                Some("an older version of this program wrote it; make the cache again".to_owned())
            } else {
                unlike_mlx_lm
            };
            return problem.map_or(Ok(()), |problem| Err(CacheFileError::UnknownOrigin { file, problem }));
        };
        for (what, is_same) in [
            ("weights", found.weights == weights),
            ("adapters", found.adapters == adapters),
            ("settings (config.json, LongRoPE's rule)", found.config == config),
        ] {
            if !is_same {
                return Err(CacheFileError::MadeBy { file, what });
            }
        }
        Ok(())
    }

    /// The type of the model that made the cache, if the file says it.
    pub fn model_type(&self) -> Option<&str> {
        self.model_type.as_deref()
    }

    /// The ids of the tokens in the cache; empty if they were not saved.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Further entries of the file, such as those given to mlx-lm's `save_prompt_cache`.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The caches of the layers, first layer first.
    pub fn layers(&self) -> &[KvCache] {
        &self.layers
    }

    /// The cache without any check against a model.
    pub fn into_cache(self) -> ModelCache {
        let mut cache = ModelCache::new(self.layers);
        // Some rotations depend on the expected length of the sequence.
        cache.expect(self.made_by.map_or(0, |made_by| made_by.expected.max(0)));
        cache
    }

    /// The cache for a model with these layers, whose keys and values have this dtype, as
    /// [`ModelCache::for_layers`] would make it with these options.
    ///
    /// If the file says which model made it, that must be `made_by`. Files of mlx-lm do not say it. They are
    /// accepted, unless mlx-lm computes other keys and values than this model or the model has adapters
    /// ([`MadeBy::unlike_mlx_lm`]).
    ///
    /// If the options ask for it, dense keys and values are quantized, and rings get a longer rewind, which
    /// works after as many tokens were appended. A layer with a window may be a [`Full`](crate::Full) cache in
    /// the file. The padding of a batch is that of the file; the options' padding is ignored.
    ///
    /// # Errors
    ///
    /// [`CacheFileError::Model`], [`CacheFileError::MadeBy`], [`CacheFileError::UnknownOrigin`],
    /// [`CacheFileError::Layers`] or [`CacheFileError::Mismatch`] if the cache is another model's or was made
    /// with another limit, and [`CacheFileError::Cache`] if it cannot become what the options ask for.
    pub fn into_cache_for(
        mut self,
        made_by: impl Into<MadeBy>,
        layers: &[LayerSpec],
        dtype: Dtype,
        options: &CacheOptions,
    ) -> Result<ModelCache, CacheFileError> {
        let file = self.file.clone();
        self.check_origin(made_by.into())?;
        if self.layers.len() != layers.len() {
            let (expected, found) = (layers.len(), self.layers.len());
            return Err(CacheFileError::Layers { file, expected, found });
        }
        for (i, (layer, spec)) in self.layers.iter_mut().zip(layers).enumerate() {
            fit(layer, spec, dtype, options).map_err(|misfit| match misfit {
                Misfit::Cache(error) => error.into(),
                Misfit::Differs { what, expected, found } => {
                    CacheFileError::Mismatch { file: file.clone(), layer: i, what, expected, found }
                }
            })?;
        }
        Ok(self.into_cache())
    }
}

/// Why a model cannot use a layer of a file.
enum Misfit {
    Differs { what: &'static str, expected: String, found: String },
    Cache(CacheError),
}

impl From<CacheError> for Misfit {
    fn from(error: CacheError) -> Self {
        Self::Cache(error)
    }
}

/// Checks a layer of a file against the model, and applies the options to it.
fn fit(layer: &mut KvCache, spec: &LayerSpec, dtype: Dtype, options: &CacheOptions) -> Result<(), Misfit> {
    let Some(layout) = layer.layout().rules().fit(spec.kind, options.limit) else {
        let expected = Layout::for_layer(spec.kind, options.limit)?.to_string();
        return differs("a cache of", expected, layer.layout());
    };
    layer.set_layout(layout);
    *layer = layer.clone().with_rewind(options.rewind.max(0))?;

    if let Some(quantization) = options.quantization.or(layer.quantization()) {
        if check_groups(spec.key_dim, spec.value_dim, quantization).is_err() {
            let dims = format!("heads of {} and {} features", spec.key_dim, spec.value_dim);
            return differs("quantization as", dims, quantization);
        }
        layer.quantize(quantization)?;
    }
    let Some(form) = layer.form() else { return Ok(()) };
    for (what, expected, found) in [
        ("heads:", spec.heads, form.heads),
        ("a head_dim of keys of", spec.key_dim, form.key_dim),
        ("a head_dim of values of", spec.value_dim, form.value_dim),
    ] {
        if expected != found {
            return differs(what, expected.to_string(), found);
        }
    }
    for found in [form.key_dtype, form.value_dtype] {
        if found != dtype {
            return differs("the dtype", format!("{dtype:?}"), format!("{found:?}"));
        }
    }
    Ok(())
}

fn differs(what: &'static str, expected: String, found: impl ToString) -> Result<(), Misfit> {
    Err(Misfit::Differs { what, expected, found: found.to_string() })
}
