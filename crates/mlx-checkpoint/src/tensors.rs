//! Binding a checkpoint's tensors to a model's parameters.

use std::collections::HashMap;

use mlx_layers::{ParameterSource, Quantization};
use mlx_rs::Array;

use crate::{Checkpoint, CheckpointError, TensorDtype, TensorProblem};

/// The tensors of a checkpoint while a model is built from them.
///
/// Each may be taken once. What the model asks for and the checkpoint does not have in that shape
/// is noted and replaced by zeros; [`finish`](Self::finish) turns the notes into an error.
#[derive(Debug)]
pub struct CheckpointTensors<'a> {
    checkpoint: &'a Checkpoint,
    left: HashMap<String, Array>,
    problems: Vec<TensorProblem>,
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
        Ok(Self { checkpoint, left, problems: Vec::new() })
    }

    /// Ends the building of a model. `ignored` names the tensors that a checkpoint may hold though
    /// the model has no use for them.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Tensors`] with every tensor that is missing, left over, or has the wrong
    /// shape or dtype.
    pub fn finish(mut self, ignored: impl Fn(&str) -> bool) -> Result<(), CheckpointError> {
        let left = self.left.into_keys().filter(|key| !ignored(key));
        self.problems.extend(left.map(|key| TensorProblem::Unexpected { key }));
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
        let stored = self.checkpoint.headers().get(key).map(|info| info.dtype);
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
const FLOATS: &str = "F32, F16 or BF16";

/// MLX's message, without the places in its source and in mlx-rs's that it ends with.
fn without_place(message: &str) -> String {
    let end = message.find(" at /").unwrap_or(message.len());
    message[..end].trim_matches('"').to_owned()
}

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
}
