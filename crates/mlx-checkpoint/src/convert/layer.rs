//! A layer while it is converted.

use std::collections::BTreeMap;

use mlx_layers::Quantization;
use mlx_quantization::{QuantizedArray, QuantizedView, dequantize, quantize};
use mlx_rs::error::Exception;
use mlx_rs::{Array, Dtype};

use super::options::FloatDtype;

/// The parameters of one layer, by the last part of their keys.
#[derive(Debug, Default)]
pub(super) struct Layer {
    pub(super) parts: BTreeMap<String, Array>,
    /// How its weight is quantized.
    pub(super) quantization: Option<Quantization>,
}

impl Layer {
    /// The length of the rows of the weight; `None` if it is quantized or not a matrix.
    pub(super) fn columns(&self) -> Option<i32> {
        let shape = self.parts.get("weight")?.shape();
        (shape.len() == 2 && self.quantization.is_none()).then(|| shape[1])
    }

    pub(super) fn cast(&mut self, dtype: FloatDtype) -> Result<(), Exception> {
        for array in self.parts.values_mut() {
            if matches!(array.dtype(), Dtype::Float32 | Dtype::Float16 | Dtype::Bfloat16) {
                *array = array.as_dtype(dtype.mlx())?;
            }
        }
        Ok(())
    }

    pub(super) fn quantize(&mut self, quantization: Quantization) -> Result<(), Exception> {
        let Some(weight) = self.parts.get("weight") else { return Ok(()) };
        let QuantizedArray { packed, scales, biases, .. } = quantize(weight, quantization)?;
        self.parts.insert("weight".to_owned(), packed);
        self.parts.insert("scales".to_owned(), scales);
        self.parts.extend(biases.map(|biases| ("biases".to_owned(), biases)));
        self.quantization = Some(quantization);
        Ok(())
    }

    pub(super) fn dequantize(&mut self) -> Result<(), Exception> {
        let (Some(quantization), Some(packed), Some(scales)) =
            (self.quantization, self.parts.get("weight"), self.parts.get("scales"))
        else {
            return Ok(());
        };
        let biases = self.parts.get("biases");
        let whole = dequantize(QuantizedView { packed, scales, biases, quantization })?;
        self.parts.insert("weight".to_owned(), whole);
        self.parts.remove("scales");
        self.parts.remove("biases");
        self.quantization = None;
        Ok(())
    }
}
