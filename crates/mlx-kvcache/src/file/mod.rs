//! Caches on disk: one safetensors file, which mlx-lm reads as well where it has the kind.
//!
//! mlx-lm's `save_prompt_cache` writes the state of layer `i` as tensors `i.0`, `i.1`, ..., numbers
//! among them, and in the metadata the user's entries under `0.`, the class of each layer under `1.`,
//! and under `2.` which tensors stand for numbers. Our files are such files, with two entries more:
//!
//! | entry | holds |
//! |---|---|
//! | `0.mlx_models` | JSON: version, what made it, token ids, and the numbers of each layer |
//! | `0.mlx_models_crc32` | a checksum of all tensors and all other entries |

mod mlx_lm;
mod record;
mod tensors;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use mlx_rs::Dtype;
use mlx_rs::error::Exception;

use crate::{CacheError, CacheOptions, KvCache, LayerKind, LayerSpec, Layout, ModelCache};
use record::{LayerRecord, OriginRecord, Record};
use tensors::{Tensors, check_replaceable, read, write};

/// The version of the entry `0.mlx_models` that this crate writes. Version 1 did not say what made a file.
const VERSION: u32 = 2;
const RECORD: &str = "0.mlx_models";
const CHECKSUM: &str = "0.mlx_models_crc32";

/// What makes keys and values: a cache is of use only to the model that made it, with the same weights, rotation,
/// windows and adapters.
///
/// `mlx_causal_lm::made_by` answers with that of a model. A model type alone (`"phi3".into()`) is enough for those who
/// see to the rest themselves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MadeBy {
    /// The `model_type` of the checkpoint's config.
    pub model_type: String,
    /// A digest of the weights, how they are quantized included.
    pub weights: String,
    /// A digest of what the config says: rotation, windows, scales.
    pub config: String,
    /// A digest of the adapters, where there are any.
    pub adapters: Option<String>,
    /// Why caches cannot be exchanged with mlx-lm, as the end of a sentence: it computes other keys and values for a
    /// sequence of this length, or the model has adapters, which mlx-lm's files do not name. A cache of such a model is
    /// saved so that mlx-lm refuses it, and files of mlx-lm are refused.
    pub unlike_mlx_lm: Option<String>,
}

impl From<&str> for MadeBy {
    fn from(model_type: &str) -> Self {
        Self { model_type: model_type.to_owned(), ..Self::default() }
    }
}

/// What a file says, as messages show it.
fn shortened(text: &str) -> std::borrow::Cow<'_, str> {
    mlx_files::shortened(text, 240)
}

/// Why a cache was not saved, or a file is no cache for this model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheFileError {
    /// The file system refused.
    #[error("{doing} {}", file.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The file.
        file: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Not a safetensors file, or not a whole one, or one that was changed.
    #[error("{} is not a whole cache file: {}", file.display(), shortened(problem))]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Tensors, but no cache.
    #[error("{} holds no cache: {}", file.display(), shortened(problem))]
    NoCache {
        /// The file.
        file: PathBuf,
        /// What is missing.
        problem: String,
    },
    /// A kind of cache that is not known here.
    #[error("{}: layer {layer} is a {}, which is not supported; known are {}", file.display(), shortened(class), mlx_lm::CLASSES.join(", "))]
    UnknownKind {
        /// The file.
        file: PathBuf,
        /// The layer, from 0.
        layer: usize,
        /// What the file calls it.
        class: String,
    },
    /// Written by a later version.
    #[error("{} has version {found} of the format, and this program reads up to {VERSION}; it was written by a newer one", file.display())]
    Version {
        /// The file.
        file: PathBuf,
        /// Its version.
        found: u32,
    },
    /// The numbers of a layer contradict its tensors.
    #[error("{}: layer {layer}: {}", file.display(), shortened(problem))]
    Layer {
        /// The file.
        file: PathBuf,
        /// The layer, from 0.
        layer: usize,
        /// What contradicts what.
        problem: String,
    },
    /// A cache of another model.
    #[error("{} was made by a model of type {:?}, and this one is a {expected:?}", file.display(), shortened(found))]
    Model {
        /// The file.
        file: PathBuf,
        /// The type of the model that is loaded.
        expected: String,
        /// The type of the model that made the file.
        found: String,
    },
    /// A cache that other weights, adapters or another config made.
    #[error(
        "{} was made with other {what} than this model's, so that its keys and values are not this model's; make it again",
        file.display()
    )]
    MadeBy {
        /// The file.
        file: PathBuf,
        /// What differs: `weights`, `adapters` or the settings that rotation, windows and scales come from.
        what: &'static str,
    },
    /// A cache that does not say what made it, where that matters.
    #[error("{} does not say what made it, and {problem}", file.display())]
    UnknownOrigin {
        /// The file.
        file: PathBuf,
        /// Why it matters for this model.
        problem: String,
    },
    /// There is a file of another kind at the place where a cache should be written.
    #[error("{} is no cache file, and only those are replaced; choose another name, or remove it", file.display())]
    NotReplaced {
        /// The file.
        file: PathBuf,
    },
    /// A cache of a model with more or fewer layers.
    #[error("{} holds {found} layers, and the model has {expected}", file.display())]
    Layers {
        /// The file.
        file: PathBuf,
        /// Layers of the model.
        expected: usize,
        /// Layers in the file.
        found: usize,
    },
    /// A layer of another kind, shape or dtype than the model's.
    #[error("{}: layer {layer} has {what} {}, and the model needs {expected}", file.display(), shortened(found))]
    Mismatch {
        /// The file.
        file: PathBuf,
        /// The layer, from 0.
        layer: usize,
        /// What differs.
        what: &'static str,
        /// What the model has.
        expected: String,
        /// What the file has.
        found: String,
    },
    /// Token ids that cannot be those of the cache.
    #[error("{tokens} token ids for a cache of {offset} tokens; all of them are needed, or none")]
    Tokens {
        /// Token ids that came.
        tokens: usize,
        /// Tokens that the cache has seen.
        offset: i32,
    },
    /// A cache refused an operation.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// MLX refused an operation.
    #[error(transparent)]
    Mlx(#[from] Exception),
}

/// Whether a cache may be written to this path: there is nothing, or an empty file, or a cache. For those who want to
/// know it before they compute the cache; saving checks it again.
///
/// # Errors
///
/// [`CacheFileError::NotReplaced`] for a file of another kind, [`CacheFileError::Io`] for what is no file.
pub fn check_destination(file: impl AsRef<Path>) -> Result<(), CacheFileError> {
    check_replaceable(file.as_ref())
}

impl ModelCache {
    /// Writes the cache to a safetensors file, for [`SavedCache::read`], and for mlx-lm's
    /// `load_prompt_cache` where it has caches of these kinds: full or rotating, in a batch or not, and
    /// full and quantized.
    ///
    /// `made_by` is what made it, or a model type alone. `tokens` are the ids that the cache has seen, if they shall be
    /// known to the caller that loads it. The file is written beside its place and then moved there: an older one stays until
    /// the new one is whole. A file that is no cache is not replaced.
    ///
    /// # Errors
    ///
    /// [`CacheFileError::Io`]; [`CacheFileError::NotReplaced`]; [`CacheFileError::Tokens`] where `tokens` are not as many as were seen;
    /// [`CacheError::Drift`] in the middle of a call of the model; [`CacheFileError::NoCache`] for a cache
    /// without layers.
    pub fn save(
        &self,
        file: impl AsRef<Path>,
        made_by: impl Into<MadeBy>,
        tokens: &[u32],
    ) -> Result<(), CacheFileError> {
        self.save_with(file, made_by, tokens, &BTreeMap::new())
    }

    /// [`save`](Self::save) with further entries, which [`SavedCache::metadata`] gives back, and mlx-lm's
    /// `load_prompt_cache` too. Its program `mlx_lm.generate` demands two: `model`, which must be what its `--model` says,
    /// and `tokenizer_config`, a JSON object.
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

/// A cache that was read from a file.
#[derive(Debug, Clone)]
pub struct SavedCache {
    file: PathBuf,
    layers: Vec<KvCache>,
    model_type: Option<String>,
    /// Whether it has our own entries.
    is_ours: bool,
    made_by: Option<OriginRecord>,
    tokens: Vec<u32>,
    metadata: BTreeMap<String, String>,
}

impl SavedCache {
    /// Reads a file that [`ModelCache::save`] wrote, or mlx-lm's `save_prompt_cache` (0.32). It is read
    /// and checked as a whole before anything is made of it.
    ///
    /// # Errors
    ///
    /// A [`CacheFileError`] that names the file and what is wrong with it. Whether a bit of the keys and
    /// values was changed can only be told of files that have a checksum, which mlx-lm's have not.
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
                return Err(damaged(format!("it has a checksum, and no entry {RECORD}")));
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
            return Err(damaged("its checksum is not that of its contents".to_owned()));
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

    /// Refuses layers at different offsets or of different batches, and files without layers.
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

    /// Refuses what another model made, or may have made where it matters.
    fn check_origin(&self, made_by: MadeBy) -> Result<(), CacheFileError> {
        let file = self.file.clone();
        let MadeBy { model_type, weights, config, adapters, unlike_mlx_lm } = made_by;
        if let Some(found) = self.model_type.as_deref().filter(|&found| found != model_type) {
            let found = found.to_owned();
            return Err(CacheFileError::Model { file, expected: model_type, found });
        }
        let Some(found) = &self.made_by else {
            let problem = if self.is_ours {
                Some("an older version of this program wrote it; make it again".to_owned())
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

    /// The type of the model that made it, where the file says it.
    pub fn model_type(&self) -> Option<&str> {
        self.model_type.as_deref()
    }

    /// The ids of the tokens that it has seen; none where they were not saved.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Further entries, such as mlx-lm's users give to `save_prompt_cache`.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The layers, first layer first.
    pub fn layers(&self) -> &[KvCache] {
        &self.layers
    }

    /// The cache, for whatever model.
    pub fn into_cache(self) -> ModelCache {
        let mut cache = ModelCache::new(self.layers);
        // Some rotations depend on the length that a sequence was expected to have.
        cache.expect(self.made_by.map_or(0, |made_by| made_by.expected.max(0)));
        cache
    }

    /// The cache for this model with these layers, whose keys and values have this dtype, as
    /// [`ModelCache::for_layers`] would make it with these options.
    ///
    /// A file that says what made it must say `made_by`. One of mlx-lm's, which does not, is taken for this model's but
    /// where mlx-lm computes other keys and values, or the model has adapters ([`MadeBy::unlike_mlx_lm`]).
    ///
    /// A layer with a window may have been saved with all of its tokens. Dense keys and values are quantized,
    /// and rings made longer, where the options ask for it; a ring that gets a longer rewind has it from then
    /// on. Of a batch the file knows the padding, so that of the options is not looked at.
    ///
    /// # Errors
    ///
    /// [`CacheFileError::Model`], [`CacheFileError::MadeBy`], [`CacheFileError::UnknownOrigin`],
    /// [`CacheFileError::Layers`] or [`CacheFileError::Mismatch`] where it is another model's or was made with another limit, and [`CacheFileError::Cache`] where it cannot become
    /// what the options ask for.
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

/// Why a layer of a file is not one that the model can use.
enum Misfit {
    Differs { what: &'static str, expected: String, found: String },
    Cache(CacheError),
}

impl From<CacheError> for Misfit {
    fn from(error: CacheError) -> Self {
        Self::Cache(error)
    }
}

/// Makes of a layer of a file what the model needs and the options ask for.
fn fit(layer: &mut KvCache, spec: &LayerSpec, dtype: Dtype, options: &CacheOptions) -> Result<(), Misfit> {
    // mlx-lm's files do not say what window a layer has all of whose tokens they hold.
    if let (Layout::Full(full), LayerKind::Sliding { window }) = (*layer.layout(), spec.kind)
        && full.window().is_none()
    {
        layer.set_window(full.with_window(window)?);
    }
    if !layer.layout().rules().serves(spec.kind, options.limit) {
        let expected = Layout::for_layer(spec.kind, options.limit)?.to_string();
        return differs("a cache of", expected, layer.layout());
    }
    *layer = layer.clone().with_rewind(options.rewind.max(0))?;

    if let Some(quantization) = options.quantization.or(layer.quantization()) {
        if [spec.key_dim, spec.value_dim].iter().any(|dim| dim % quantization.group_size() != 0) {
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
