//! Tensors that are not stored as the model takes them.

use std::collections::BTreeMap;
use std::fmt::Debug;

use mlx_rs::Array;

use crate::TensorInfo;

/// Makes tensors of a checkpoint from files that hold them in another form, such as quantized by another program.
///
/// [`Checkpoint::with_source`](crate::Checkpoint::with_source) takes it. What it makes looks as if MLX had quantized the
/// model: a quantized layer has `weight` (uint32), `scales` and, in the affine mode, `biases`, and the checkpoint's
/// quantization has an entry for it. So nothing else needs to know the other form.
pub trait TensorSource: Debug + Send + Sync {
    /// The tensors that it makes, by key: [`TensorInfo::made`] with the dtype and shape of the result.
    fn tensors(&self) -> BTreeMap<String, TensorInfo>;

    /// Makes one of its tensors. It is called when a model takes the tensor, once for each tensor, so at most one tensor is in
    /// memory twice. The array is computed, and has the dtype and shape that [`tensors`](Self::tensors) says.
    ///
    /// # Errors
    ///
    /// Why the tensor cannot be made, in words.
    fn read(&self, key: &str) -> Result<Array, String>;

    /// Whether a tensor of the checkpoint that no model takes changes nothing: a bias of zeros, which some programs write for
    /// layers without one.
    fn is_needless(&self, _key: &str) -> bool {
        false
    }

    /// The name in a GGUF file of a tensor with this key, or of the weight of the layer with this key; `None` for files of other
    /// forms. The file need not have the tensor.
    fn name_in_gguf(&self, _key: &str) -> Option<String> {
        None
    }

    /// What is worth knowing of the tensors that were made so far, such as a loss of precision: a sentence each. They are
    /// logged when a model has taken its tensors.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }
}
