//! The embedding table.

use mlx_quantization::{QuantizedArray, dequantize};
use mlx_rs::error::{Exception, Result};
use mlx_rs::module::{Module, ModuleParamMut, ModuleParamRef, ModuleParameters};
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::ops::{clip, minimum};
use mlx_rs::{Array, Dtype};

use crate::{AdaptedLayer, Linear, Parameters};

/// A table with a row of features for each token, in full precision or quantized.
///
/// Row `t` holds the features of token `t`. The same table is the weight of a linear layer: its product with a vector is
/// the vector's similarity to each token. Models with tied embeddings use one table for both, so an embedding is a linear
/// layer with a lookup.
#[derive(Debug, Clone)]
pub struct Embedding {
    table: Linear,
}

impl Embedding {
    /// A table of `vocab_size` rows of `dims` features, with parameters from the source.
    pub fn new(parameters: Parameters<'_>, vocab_size: i32, dims: i32) -> Self {
        let kind = |quantization: Option<_>| AdaptedLayer::Embedding {
            rows: vocab_size,
            dims,
            quantized: quantization.is_some(),
        };
        Self { table: Linear::build(parameters, [vocab_size, dims], false, kind) }
    }

    /// The similarity of each vector to each token: logits, for models with tied embeddings.
    ///
    /// `[..., D]` to `[..., V]`.
    ///
    /// # Errors
    ///
    /// Where the last axis is not `D` long.
    pub fn as_linear(&mut self, x: &Array) -> Result<Array> {
        let y = self.table.unadapted(x)?;
        let Some(adapter) = self.table.adapter() else { return Ok(y) };
        match adapter.magnitudes() {
            None => adapter.add_to_similarities(&y, x),
            Some(m) => adapter.magnified_similarities(&y, x, &self.table.whole_weight()?, m),
        }
    }

    /// The ids, clipped to the rows of the table.
    ///
    /// For an id beyond the table MLX would read memory behind it. The ids are on the device, and checking them here
    /// would wait for the device, which otherwise runs ahead; clipping costs one or two small operations.
    fn inside(&self, tokens: &Array) -> Result<Array> {
        let last = self.table.weight.shape().first().map_or(0, |rows| rows - 1);
        match tokens.dtype() {
            Dtype::Uint32 => minimum(tokens, Array::from_slice(&[last.unsigned_abs()], &[])),
            Dtype::Int32 => clip(tokens, (0, last)),
            Dtype::Uint8 | Dtype::Uint16 | Dtype::Uint64 | Dtype::Int8 | Dtype::Int16 | Dtype::Int64 => {
                clip(tokens.as_dtype(Dtype::Int64)?, (0, last))
            }
            _ => Ok(tokens.clone()), // no ids: MLX reports the error
        }
    }

    /// The rows of these tokens, without an adapter.
    fn rows(&self, tokens: &Array) -> Result<Array> {
        let rows = self.table.weight.try_index(tokens)?;
        match (self.table.quantization(), self.table.scales.as_ref()) {
            (Some(quantization), Some(scales)) => {
                let scales = scales.try_index(tokens)?;
                let biases = self.table.biases.as_ref().as_ref().map(|biases| biases.try_index(tokens));
                dequantize(&QuantizedArray {
                    packed: rows,
                    scales,
                    biases: biases.transpose()?,
                    quantization,
                })
            }
            _ => Ok(rows),
        }
    }
}

impl Module<&Array> for Embedding {
    type Output = Array;
    type Error = Exception;

    /// Token ids of any shape to their rows, with one more axis: `[B, L]` to `[B, L, D]`. Ids that are not integers are an
    /// error. An id outside of the table gives the first or the last row.
    ///
    /// The rows have the dtype of the table. The rows of a quantized table have the dtype of its scales, or bfloat16 in
    /// the modes of small floats.
    fn forward(&mut self, tokens: &Array) -> Result<Array> {
        let tokens = &self.inside(tokens)?;
        let rows = self.rows(tokens)?;
        let Some(adapter) = self.table.adapter() else { return Ok(rows) };
        match adapter.magnitudes() {
            None => adapter.add_to_rows(&rows, tokens),
            Some(m) => adapter.magnified_rows(&rows, tokens, m),
        }
    }

    fn training_mode(&mut self, _mode: bool) {}
}

/// The parameters of the table belong to the embedding directly: `weight`, not `table.weight`.
impl ModuleParameters for Embedding {
    fn num_parameters(&self) -> usize {
        self.table.num_parameters()
    }

    fn parameters(&self) -> ModuleParamRef<'_> {
        self.table.parameters()
    }

    fn parameters_mut(&mut self) -> ModuleParamMut<'_> {
        self.table.parameters_mut()
    }

    fn trainable_parameters(&self) -> ModuleParamRef<'_> {
        self.table.trainable_parameters()
    }

    fn freeze_parameters(&mut self, recursive: bool) {
        self.table.freeze_parameters(recursive);
    }

    fn unfreeze_parameters(&mut self, recursive: bool) {
        self.table.unfreeze_parameters(recursive);
    }

    fn all_frozen(&self) -> Option<bool> {
        self.table.all_frozen()
    }

    fn any_frozen(&self) -> Option<bool> {
        self.table.any_frozen()
    }
}
