//! The embedding table: rows, and ids outside of the table.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use mlx_layers::{Embedding, ParameterSource, Parameters, Quantization};
use mlx_quantization::quantize;
use mlx_rs::module::Module;
use mlx_rs::{Array, Dtype};
use mlx_testing::tensor;

const ROWS: i32 = 40;

/// A table whose elements all differ.
struct Table(Option<Quantization>);

impl Table {
    fn whole() -> Array {
        let values: Vec<f32> = (0..ROWS * 64).map(|i| (i as f32).sin()).collect();
        Array::from_slice(&values, &[ROWS, 64])
    }
}

impl ParameterSource for Table {
    fn parameter(&mut self, key: &str, _: &[i32]) -> Array {
        let Some(quantization) = self.0 else { return Self::whole() };
        let quantized = quantize(&Self::whole(), quantization).unwrap();
        match key {
            "weight" => quantized.packed,
            "scales" => quantized.scales,
            _ => quantized.biases.unwrap(),
        }
    }

    fn quantization(&mut self, _: &str, _: i32) -> Option<Quantization> {
        self.0
    }
}

fn ids(ids: &[i64], dtype: Dtype) -> Array {
    Array::from_slice(ids, &[1, ids.len() as i32]).as_dtype(dtype).unwrap()
}

/// MLX would read memory behind the table for an id that is beyond it.
#[test]
fn ids_outside_the_table_are_clipped() {
    for quantization in [None, Some(Quantization::affine(4, 32).unwrap()), Some(Quantization::MXFP4)] {
        let mut embedding = Embedding::new(Parameters::root(&mut Table(quantization)), ROWS, 64);
        let mut rows = |tokens: &Array| embedding.forward(tokens).unwrap();
        for (dtype, outside, inside) in [
            (Dtype::Uint32, [3, 40, 4_000_000_000, 39], [3, 39, 39, 39]),
            (Dtype::Int32, [3, 40, i64::from(i32::MAX), i64::from(i32::MIN)], [3, 39, 39, 0]),
            (Dtype::Int64, [3, -1, i64::MAX, i64::MIN], [3, 0, 39, 0]),
            (Dtype::Uint8, [3, 255, 40, 0], [3, 39, 39, 0]),
            (Dtype::Int8, [3, 127, -1, -128], [3, 39, 0, 0]),
            (Dtype::Uint16, [3, 65_535, 40, 0], [3, 39, 39, 0]),
        ] {
            let [found, expected] = [ids(&outside, dtype), ids(&inside, Dtype::Int32)].map(|ids| rows(&ids));
            assert_eq!(tensor(&found), tensor(&expected), "{quantization:?} {dtype:?}");
        }
    }
}

#[test]
fn ids_are_whole_numbers() {
    let mut embedding = Embedding::new(Parameters::root(&mut Table(None)), ROWS, 64);
    assert!(embedding.forward(&ids(&[1, 2], Dtype::Float32)).is_err());
}

#[test]
fn a_row_is_the_row_of_the_table() {
    let mut embedding = Embedding::new(Parameters::root(&mut Table(None)), ROWS, 64);
    let rows = embedding.forward(&ids(&[0, 39, 7], Dtype::Uint32)).unwrap();
    assert_eq!(rows.shape(), [1, 3, 64]);
    let values: Vec<f32> = [0, 39, 7]
        .iter()
        .flat_map(|row| (0..64).map(move |i| row * 64 + i))
        .map(|i| (i as f32).sin())
        .collect();
    assert_eq!(rows.try_as_slice::<f32>().unwrap(), values);
}
