//! Binding a checkpoint's tensors to a model's parameters.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use mlx_layers::{AdaptedLayer, AdapterParameters, Form, ParameterSource, Quantization};
use mlx_rs::Array;
use mlx_rs::error::Exception;

use crate::adapters::{AdapterTensors, Adapters};
use crate::error::shortened;
use crate::safetensors_file::{check_regular, mlx_reads, read_tensor, without_place};
use crate::{Checkpoint, CheckpointError, TensorDtype, TensorProblem};

/// The tensors of a checkpoint while a model is built from them.
///
/// Each may be taken once. What the model asks for and the checkpoint does not have in that shape
/// is noted and replaced by zeros; [`finish`](Self::finish) turns the notes into an error.
#[derive(Debug)]
pub struct CheckpointTensors<'a> {
    checkpoint: &'a Checkpoint,
    left: HashMap<String, Held>,
    /// The tensors among them that came with the adapters, with how each is stored.
    replaced: HashMap<String, TensorDtype>,
    adapters: Option<AdapterTensors>,
    /// The layers that the model has asked for.
    layers: HashSet<String>,
    /// Those whose quantization does not fit, which is noted; their weights need no other note.
    unfit: HashSet<String>,
    problems: Vec<TensorProblem>,
    /// Why layers could not be brought into the checkpoint's form.
    refused: Vec<TensorProblem>,
}

/// A tensor that was not taken yet.
#[derive(Debug)]
enum Held {
    /// One that MLX reads when it is evaluated.
    Lazy(Array),
    /// One in a file that MLX refuses, which is read when it is taken.
    InFile,
}

impl<'a> CheckpointTensors<'a> {
    pub(crate) fn open(checkpoint: &'a Checkpoint) -> Result<Self, CheckpointError> {
        let mut left = HashMap::new();
        for (number, file) in checkpoint.files().iter().enumerate() {
            let of_file = checkpoint.headers().iter().filter(|(_, info)| info.file == number);
            if !of_file.clone().all(|(_, info)| mlx_reads(info.dtype)) {
                // Some of it MLX does not know. That may be something that the model ignores.
                left.extend(of_file.map(|(key, _)| (key.clone(), Held::InFile)));
                continue;
            }
            check_regular(file)?; // MLX opens whatever is there
            // MLX opens the file and reads a tensor's bytes when the tensor is evaluated.
            let tensors = Array::load_safetensors(file).map_err(|e| CheckpointError::Unreadable {
                file: file.clone(),
                problem: without_place(&e.to_string()),
            })?;
            left.extend(tensors.into_iter().map(|(key, tensor)| (key, Held::Lazy(tensor))));
        }
        let adapters = checkpoint.adapters.as_ref();
        let mut adapters =
            adapters.map(|adapters| AdapterTensors::open(adapters, checkpoint.headers())).transpose()?;
        let replacements =
            adapters.as_mut().map_or_else(Vec::new, |adapters| adapters.replacements(checkpoint.headers()));
        let mut replaced = HashMap::new();
        for (key, tensor, dtype) in replacements {
            replaced.insert(key.clone(), dtype);
            left.insert(key, Held::Lazy(tensor));
        }
        Ok(Self {
            checkpoint,
            left,
            replaced,
            adapters,
            layers: HashSet::new(),
            unfit: HashSet::new(),
            problems: Vec::new(),
            refused: Vec::new(),
        })
    }

    /// Ends the building of a model. `ignored` names the tensors that a checkpoint may hold though
    /// the model has no use for them.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Tensors`] with every tensor that is missing, left over, or has the wrong
    /// shape or dtype. Otherwise [`CheckpointError::Adapters`] with everything of the adapters that the
    /// model or their config has no place for, or that is missing.
    pub fn finish(mut self, ignored: impl Fn(&str) -> bool) -> Result<(), CheckpointError> {
        let replaced = self.replaced.keys().filter(|key| self.left.contains_key(*key));
        if let Some(adapters) = &mut self.adapters {
            replaced.for_each(|key| adapters.unused(key.clone()));
        }
        let mut left: Vec<String> = self.left.into_keys().collect();
        left.retain(|key| !self.replaced.contains_key(key));
        let (frequencies, left): (Vec<_>, Vec<_>) = left.into_iter().partition(|key| is_frequencies(key));
        warn_frequencies(self.checkpoint.folder(), frequencies);
        let left = left.into_iter().filter(|key| !ignored(key));
        self.problems.extend(left.map(|key| TensorProblem::Unexpected { key }));
        let strange = |layer: &&str| !self.layers.contains(*layer) && !ignored(layer);
        self.problems.extend(self.checkpoint.quantization.named_layers().filter(strange).map(|layer| {
            let problem = "the config's quantization names it, and the model has no such layer".to_owned();
            TensorProblem::Refused { key: layer.to_owned(), problem }
        }));
        if self.problems.is_empty() {
            let has_head = self.layers.iter().any(|layer| layer.rsplit('.').next() == Some("lm_head"));
            self.adapters.map_or(Ok(()), |adapters| adapters.finish(has_head, &ignored))?;
            // Last, since a layer is also refused where its tensors are wrong.
            self.problems = self.refused;
        }
        if self.problems.is_empty() {
            return Ok(());
        }
        self.problems.sort_by(|a, b| a.key().cmp(b.key()));
        Err(CheckpointError::Tensors {
            folder: self.checkpoint.folder().to_path_buf(),
            problems: self.problems,
        })
    }

    /// The tensor if it is there as it should be; otherwise a note why not.
    fn take(&mut self, key: &str, shape: &[i32]) -> Option<Array> {
        let held = self.left.remove(key);
        if key.strip_suffix(".weight").is_some_and(|layer| self.unfit.contains(layer)) {
            return None;
        }
        let Some(held) = held else {
            self.problems.push(TensorProblem::Missing { key: key.to_owned(), shape: shape.to_vec() });
            return None;
        };
        let info = self.checkpoint.headers().get(key);
        let found: Vec<i32> = match &held {
            Held::Lazy(tensor) => tensor.shape().to_vec(),
            Held::InFile => info.map_or_else(Vec::new, |info| info.shape.iter().map(|&n| n as i32).collect()),
        };
        if found != shape {
            let (key, expected) = (key.to_owned(), shape.to_vec());
            self.problems.push(TensorProblem::Shape { key, expected, found });
            return None;
        }
        let replaced = self.replaced.get(key).copied();
        let stored = replaced.or_else(|| info.map(|info| info.dtype));
        let quantization =
            |suffix| key.strip_suffix(suffix).and_then(|layer| self.checkpoint.quantization_of(layer));
        let (expected, allowed): (_, &[TensorDtype]) = if quantization(".weight").is_some() {
            ("U32", &[TensorDtype::U32])
        } else if quantization(".scales").is_some_and(|quantization| !quantization.has_biases()) {
            ("U8", &[TensorDtype::U8])
        } else {
            (FLOATS, &[TensorDtype::F32, TensorDtype::F16, TensorDtype::BF16])
        };
        if !stored.is_some_and(|stored| allowed.contains(&stored)) {
            let found = stored.map_or_else(|| "unknown".to_owned(), |dtype| format!("{dtype:?}"));
            self.problems.push(TensorProblem::Dtype { key: key.to_owned(), expected, found });
            return None;
        }
        match (held, info) {
            (Held::Lazy(tensor), _) => Some(tensor),
            (Held::InFile, None) => None, // such a tensor is one of a header
            (Held::InFile, Some(info)) => {
                let read = read_tensor(&self.checkpoint.files()[info.file], info);
                read.map_err(|problem| {
                    self.problems.push(TensorProblem::Refused { key: key.to_owned(), problem });
                })
                .ok()
            }
        }
    }
}

/// Whether a tensor holds the frequencies of a rotation, as older versions of transformers saved them. They follow from
/// the config, and nothing reads them.
pub(crate) fn is_frequencies(key: &str) -> bool {
    let module = key.strip_suffix(".inv_freq").and_then(|path| path.rsplit('.').next());
    module.is_some_and(|module| module.starts_with("rotary_emb"))
}

/// Says once for all of a folder that such tensors are ignored.
pub(crate) fn warn_frequencies(folder: &Path, mut keys: Vec<String>) {
    keys.sort();
    if let Some(key) = keys.first() {
        let (folder, key, count) = (folder.display(), shortened(key), keys.len());
        tracing::warn!(
            "{folder}: {key} has no use, and is ignored, as are all such tensors ({count}): the config says how the \
             model rotates"
        );
    }
}

/// What parameters may be that are not quantized.
pub(crate) const FLOATS: &str = "F32, F16 or BF16";

impl ParameterSource for CheckpointTensors<'_> {
    fn parameter(&mut self, key: &str, shape: &[i32]) -> Array {
        // The placeholder never computes: `finish` fails before anybody could.
        self.take(key, shape).unwrap_or_else(|| Array::from_f32(0.0))
    }

    fn quantization(&mut self, layer: &str, columns: i32) -> Option<Quantization> {
        self.layers.insert(layer.to_owned());
        let quantization = self.checkpoint.quantization_of(layer)?;
        let group_size = quantization.group_size();
        if columns % group_size == 0 {
            return Some(quantization);
        }
        for companion in ["scales", "biases"] {
            self.left.remove(&format!("{layer}.{companion}"));
        }
        self.unfit.insert(layer.to_owned());
        let problem = format!(
            "its rows have {columns} columns, which groups of {group_size} do not divide: the config's quantization \
             needs another group_size for it, or false"
        );
        self.problems.push(TensorProblem::Refused { key: layer.to_owned(), problem });
        None
    }

    fn adapter(&mut self, layer: &str, kind: AdaptedLayer) -> Option<AdapterParameters> {
        self.adapters.as_mut()?.take(layer, kind)
    }

    fn adapter_settings(&self) -> Option<String> {
        self.checkpoint.adapters.as_ref().map(Adapters::settings)
    }

    fn form(&self) -> Form {
        self.checkpoint.form
    }

    fn refuse(&mut self, layer: &str, problem: Exception) {
        let problem = without_place(&problem.to_string());
        self.refused.push(TensorProblem::Refused { key: layer.to_owned(), problem });
    }
}
