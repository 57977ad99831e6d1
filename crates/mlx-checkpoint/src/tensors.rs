//! Binding a checkpoint's tensors to a model's parameters.

use std::collections::HashMap;

use mlx_layers::{AdaptedLayer, AdapterParameters, Form, ParameterSource, Quantization};
use mlx_rs::Array;
use mlx_rs::error::Exception;

use crate::adapters::AdapterTensors;
use crate::safetensors_file::without_place;
use crate::{Checkpoint, CheckpointError, TensorDtype, TensorProblem};

/// The tensors of a checkpoint while a model is built from them.
///
/// Each may be taken once. What the model asks for and the checkpoint does not have in that shape
/// is noted and replaced by zeros; [`finish`](Self::finish) turns the notes into an error.
#[derive(Debug)]
pub struct CheckpointTensors<'a> {
    checkpoint: &'a Checkpoint,
    left: HashMap<String, Array>,
    /// The tensors among them that came with the adapters, with how each is stored.
    replaced: HashMap<String, TensorDtype>,
    adapters: Option<AdapterTensors>,
    problems: Vec<TensorProblem>,
    /// Why layers could not be brought into the checkpoint's form.
    refused: Vec<TensorProblem>,
}

impl<'a> CheckpointTensors<'a> {
    pub(crate) fn open(checkpoint: &'a Checkpoint) -> Result<Self, CheckpointError> {
        // MLX refuses a whole file because of one of these, so that not even one that would be ignored
        // can be passed over.
        let unknown: Vec<TensorProblem> = checkpoint
            .headers()
            .iter()
            .filter(|(_, info)| info.dtype == TensorDtype::F64)
            .map(|(key, info)| TensorProblem::Dtype {
                key: key.clone(),
                expected: FLOATS,
                found: format!("{:?}", info.dtype),
            })
            .collect();
        if !unknown.is_empty() {
            let folder = checkpoint.folder().to_path_buf();
            return Err(CheckpointError::Tensors { folder, problems: unknown });
        }
        let mut left = HashMap::new();
        for file in checkpoint.files() {
            // MLX opens the file and reads a tensor's bytes when the tensor is evaluated.
            let tensors = Array::load_safetensors(file).map_err(|e| CheckpointError::Unreadable {
                file: file.clone(),
                problem: without_place(&e.to_string()),
            })?;
            left.extend(tensors);
        }
        let adapters = checkpoint.adapters.as_ref();
        let mut adapters =
            adapters.map(|adapters| AdapterTensors::open(adapters, checkpoint.headers())).transpose()?;
        let replacements =
            adapters.as_mut().map_or_else(Vec::new, |adapters| adapters.replacements(checkpoint.headers()));
        let mut replaced = HashMap::new();
        for (key, tensor, dtype) in replacements {
            replaced.insert(key.clone(), dtype);
            left.insert(key, tensor);
        }
        Ok(Self { checkpoint, left, replaced, adapters, problems: Vec::new(), refused: Vec::new() })
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
        let left = self.left.into_keys().filter(|key| !self.replaced.contains_key(key) && !ignored(key));
        self.problems.extend(left.map(|key| TensorProblem::Unexpected { key }));
        if self.problems.is_empty() {
            self.adapters.map_or(Ok(()), AdapterTensors::finish)?;
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
        let Some(tensor) = self.left.remove(key) else {
            self.problems.push(TensorProblem::Missing { key: key.to_owned(), shape: shape.to_vec() });
            return None;
        };
        if tensor.shape() != shape {
            self.problems.push(TensorProblem::Shape {
                key: key.to_owned(),
                expected: shape.to_vec(),
                found: tensor.shape().to_vec(),
            });
            return None;
        }
        let replaced = self.replaced.get(key).copied();
        let stored = replaced.or_else(|| self.checkpoint.headers().get(key).map(|info| info.dtype));
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
        Some(tensor)
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
        let quantization = self.checkpoint.quantization_of(layer)?;
        if columns % quantization.group_size() == 0 {
            return Some(quantization);
        }
        // Taken in full precision, its weight is then listed with the shape that it should have.
        None
    }
    fn adapter(&mut self, layer: &str, kind: AdaptedLayer) -> Option<AdapterParameters> {
        self.adapters.as_mut()?.take(layer, kind)
    }

    fn form(&self) -> Form {
        self.checkpoint.form
    }

    fn refuse(&mut self, layer: &str, problem: Exception) {
        let problem = without_place(&problem.to_string());
        self.refused.push(TensorProblem::Refused { key: layer.to_owned(), problem });
    }
}
