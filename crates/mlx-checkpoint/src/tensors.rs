//! Binding a checkpoint's tensors to a model's parameters.

use std::collections::{HashMap, HashSet};

use mlx_layers::{AdaptedLayer, AdapterParameters, Form, ParameterSource, Quantization};
use mlx_rs::Array;
use mlx_rs::error::Exception;
use mlx_safetensors::Dtype;

use crate::adapters::{AdapterTensors, Adapters, Replacement};
use crate::checkpoint::Checkpoint;
use crate::error::{CheckpointError, TensorProblem};
use crate::files::check_regular;
use crate::head::is_head;
use crate::safetensors_file::{FLOATS, TensorInfo, is_float, is_frequencies, warn_frequencies};
use crate::text::of_mlx;

/// The tensors of a checkpoint while a model is built from them.
///
/// Each tensor may be taken once. If the model asks for a tensor that the checkpoint does not have, or has in another
/// shape, this is noted, and the model gets a placeholder; [`finish`](Self::finish) turns the notes into an error.
#[derive(Debug)]
pub struct CheckpointTensors<'a> {
    checkpoint: &'a Checkpoint,
    /// The tensors that were not taken yet.
    left: HashMap<String, Held>,
    /// The tensors of the adapters that take the place of the checkpoint's, with their dtypes in the adapters' file.
    replaced: HashMap<String, Dtype>,
    adapters: Option<AdapterTensors>,
    /// The layers that the model has asked for.
    layers: HashSet<String>,
    /// The layers whose quantization does not fit. This is noted, so their weights are not noted again.
    unfit: HashSet<String>,
    problems: Vec<TensorProblem>,
    /// Why adapters could not be added to the weights of layers.
    refused: Vec<TensorProblem>,
}

/// A tensor that was not taken yet.
#[derive(Debug)]
enum Held {
    /// MLX reads it when it is evaluated.
    Lazy(Array),
    /// It is in a file that MLX refuses, or a source makes it. It is read when it is taken.
    Unread,
}

impl Checkpoint {
    /// The tensors, to build a model from. They are read from disk when they are first used.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Unreadable`] if MLX cannot open a file.
    pub fn tensors(&self) -> Result<CheckpointTensors<'_>, CheckpointError> {
        CheckpointTensors::open(self)
    }
}

impl<'a> CheckpointTensors<'a> {
    fn open(checkpoint: &'a Checkpoint) -> Result<Self, CheckpointError> {
        let mut left = HashMap::new();
        for (number, file) in checkpoint.files().iter().enumerate() {
            let is_in_file = |info: &TensorInfo| info.in_file().is_some_and(|(file, _)| file == number);
            let of_file = checkpoint.headers().iter().filter(|(_, info)| is_in_file(info));
            if of_file.clone().next().is_none() {
                continue; // a source reads it
            }
            if !of_file.clone().all(|(_, info)| info.dtype.is_read_by_mlx()) {
                // MLX would refuse the whole file, even if the model ignores the tensor at fault.
                left.extend(of_file.map(|(key, _)| (key.clone(), Held::Unread)));
                continue;
            }
            check_regular(file)?;
            // MLX opens the file and reads a tensor's bytes when the tensor is evaluated.
            let tensors = Array::load_safetensors(file)
                .map_err(|e| CheckpointError::Unreadable { file: file.clone(), problem: of_mlx(&e) })?;
            // A source makes others of those that the headers do not have.
            let tensors =
                tensors.into_iter().filter(|(key, _)| checkpoint.headers().get(key).is_some_and(is_in_file));
            left.extend(tensors.map(|(key, tensor)| (key, Held::Lazy(tensor))));
        }
        let made = checkpoint.headers().iter().filter(|(_, info)| info.in_file().is_none());
        left.extend(made.map(|(key, _)| (key.clone(), Held::Unread)));
        let adapters = checkpoint.adapters.as_ref();
        let mut adapters =
            adapters.map(|adapters| AdapterTensors::open(adapters, checkpoint.headers())).transpose()?;
        let replacements =
            adapters.as_mut().map_or_else(Vec::new, |adapters| adapters.replacements(checkpoint.headers()));
        let mut replaced = HashMap::new();
        for Replacement { key, tensor, stored } in replacements {
            replaced.insert(key.clone(), stored);
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

    /// Ends the building of a model. `ignored` says which tensors a checkpoint may hold although the model does not use
    /// them.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Tensors`], for a GGUF file [`CheckpointError::GgufTensors`], with every tensor that is missing, left over, or has the wrong shape or dtype.
    /// Otherwise [`CheckpointError::Adapters`] with every adapter tensor that is missing, left over or wrong.
    pub fn finish(mut self, ignored: impl Fn(&str) -> bool) -> Result<(), CheckpointError> {
        let path = self.checkpoint.path().display();
        self.checkpoint.notes().iter().for_each(|note| tracing::warn!("{path}: {note}"));
        let replaced = self.replaced.keys().filter(|key| self.left.contains_key(*key));
        if let Some(adapters) = &mut self.adapters {
            replaced.for_each(|key| adapters.unused(key.clone()));
        }
        let mut left: Vec<String> = self.left.into_keys().collect();
        left.retain(|key| !self.replaced.contains_key(key));
        let (frequencies, left): (Vec<_>, Vec<_>) = left.into_iter().partition(|key| is_frequencies(key));
        warn_frequencies(self.checkpoint.path(), frequencies);
        let left = left.into_iter().filter(|key| !ignored(key) && !self.checkpoint.is_needless(key));
        self.problems.extend(left.map(|key| TensorProblem::Unexpected { key }));
        // In a GGUF file only tensors name layers, and these are listed already.
        let is_gguf = self.checkpoint.is_gguf();
        let strange = |layer: &&str| !is_gguf && !self.layers.contains(*layer) && !ignored(layer);
        self.problems.extend(self.checkpoint.quantization.named_layers().filter(strange).map(|layer| {
            let problem = "the config's quantization names it, and the model has no such layer".to_owned();
            TensorProblem::Refused { key: layer.to_owned(), problem }
        }));
        if self.problems.is_empty() {
            let has_head = self.layers.iter().any(|layer| is_head(layer));
            self.adapters.map_or(Ok(()), |adapters| adapters.finish(has_head, &ignored))?;
            // Only now, since adding an adapter also fails if the tensors of the layer are wrong.
            self.problems = self.refused;
        }
        if self.problems.is_empty() {
            return Ok(());
        }
        self.problems.sort_by(|a, b| a.key().cmp(b.key()));
        Err(self.checkpoint.wrong_tensors(self.problems))
    }

    /// Takes the tensor if it has this shape and a dtype that fits; otherwise notes why not.
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
            Held::Unread => info.map_or_else(Vec::new, TensorInfo::mlx_shape),
        };
        if found != shape {
            let (key, expected) = (key.to_owned(), shape.to_vec());
            self.problems.push(TensorProblem::Shape { key, expected, found });
            return None;
        }
        let replaced = self.replaced.get(key).copied();
        let stored = replaced.or_else(|| info.map(|info| info.dtype));
        let (expected, fits) = self.expected_dtype(key);
        if !stored.is_some_and(fits) {
            let found = stored.map_or_else(|| "unknown".to_owned(), |dtype| format!("{dtype:?}"));
            self.problems.push(TensorProblem::Dtype { key: key.to_owned(), expected, found });
            return None;
        }
        match (held, info) {
            (Held::Lazy(tensor), _) => Some(tensor),
            (Held::Unread, None) => None, // does not occur: the keys of such tensors come from headers
            (Held::Unread, Some(info)) => {
                let read = self.checkpoint.read(key, info);
                read.map_err(|problem| {
                    self.problems.push(TensorProblem::Refused { key: key.to_owned(), problem });
                })
                .ok()
            }
        }
    }

    /// The dtypes that a parameter may have, in words and as a test.
    fn expected_dtype(&self, key: &str) -> (&'static str, fn(Dtype) -> bool) {
        let quantization =
            |suffix| key.strip_suffix(suffix).and_then(|layer| self.checkpoint.quantization_of(layer));
        if quantization(".weight").is_some() {
            ("U32", |dtype| dtype == Dtype::U32)
        } else if quantization(".scales").is_some_and(|quantization| !quantization.has_biases()) {
            ("U8", |dtype| dtype == Dtype::U8)
        } else {
            (FLOATS, is_float)
        }
    }
}

impl ParameterSource for CheckpointTensors<'_> {
    fn parameter(&mut self, key: &str, shape: &[i32]) -> Array {
        // Nothing is ever computed with the placeholder, since `finish` fails.
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
        let problem = of_mlx(&problem);
        self.refused.push(TensorProblem::Refused { key: layer.to_owned(), problem });
    }
}
