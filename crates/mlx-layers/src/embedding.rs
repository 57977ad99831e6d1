//! The embedding table.

use mlx_quantization::{QuantizedArray, dequantize};
use mlx_rs::error::{Exception, Result};
use mlx_rs::module::{Module, ModuleParamMut, ModuleParamRef, ModuleParameters};
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::ops::{clip, minimum};
use mlx_rs::{Array, Dtype};

use crate::{AdaptedLayer, Linear, Parameters};

/// A row of features for each token, with the table in full precision or quantized.
///
/// The table of an embedding is the weight of a linear layer read the other way: row `t` is the
/// features of token `t`, and the product with all rows says how much a vector is like each token.
/// Models with tied embeddings use one table for both, so this is that layer, with a lookup.
#[derive(Debug, Clone)]
pub struct Embedding {
    table: Linear,
}

impl Embedding {
    /// A table of `vocab_size` rows of `dims` features, its parameters taken from the source.
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

    /// The ids, with those that lie outside of the table moved to its ends.
    ///
    /// MLX reads whatever lies behind a table where an id is beyond it. Whether one is, only the device knows, and
    /// asking would end the work that runs ahead; one or two small operations more make sure that none is.
    fn inside(&self, tokens: &Array) -> Result<Array> {
        let last = self.table.weight.shape().first().map_or(0, |rows| rows - 1);
        match tokens.dtype() {
            Dtype::Uint32 => minimum(tokens, Array::from_slice(&[last.unsigned_abs()], &[])),
            Dtype::Int32 => clip(tokens, (0, last)),
            Dtype::Uint8 | Dtype::Uint16 | Dtype::Uint64 | Dtype::Int8 | Dtype::Int16 | Dtype::Int64 => {
                clip(tokens.as_dtype(Dtype::Int64)?, (0, last))
            }
            _ => Ok(tokens.clone()), // no ids, which MLX says itself
        }
    }

    /// The rows without what an adapter changes.
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

    /// Token ids of any shape to their rows, with one more axis: `[B, L]` to `[B, L, D]`.
    ///
    /// The rows have the dtype of the table (or, quantized, of its scales; bfloat16 in the modes of small
    /// floats). An error where the ids are no whole numbers. An id outside the table is not noticed here, since that
    /// would need the ids on the host: it gives the first row or the last.
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

/// The parameters are those of the table, without a name in between: `weight`, not `table.weight`.
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
