//! Quantized layers compared with layers that have the dequantized weights.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::HashMap;

use approx::assert_relative_eq;
use mlx_layers::{Embedding, Linear, ParameterSource, Parameters, Quantization};
use mlx_quantization::{dequantize, quantize};
use mlx_rs::module::{Module, ModuleParameters};
use mlx_rs::{Array, Dtype};
use mlx_testing::{assert_same_on_cpu, tensor};

struct Given {
    parameters: HashMap<&'static str, Array>,
    quantization: Option<Quantization>,
}

impl ParameterSource for Given {
    fn parameter(&mut self, key: &str, shape: &[i32]) -> Array {
        let parameter = self.parameters.remove(key).unwrap();
        assert_eq!(parameter.shape(), shape, "{key}");
        parameter
    }

    fn quantization(&mut self, layer: &str, _columns: i32) -> Option<Quantization> {
        assert_eq!(layer, "layer");
        self.quantization
    }
}

const SHAPE: [i32; 2] = [24, 128];

fn weight() -> Array {
    let values: Vec<f32> = (0..24 * 128).map(|i| ((i * 61 % 257) as f32 - 128.0) / 90.0).collect();
    Array::from_slice(&values, &SHAPE)
}

/// The sources of two layers: one with the quantized weight, one with the dequantized weight.
fn both(quantization: Quantization) -> [Given; 2] {
    let packed = quantize(&weight(), quantization).unwrap();
    let whole = dequantize(&packed).unwrap().as_dtype(Dtype::Float32).unwrap();
    let mut parameters = HashMap::from([("layer.weight", packed.packed), ("layer.scales", packed.scales)]);
    parameters.extend(packed.biases.map(|biases| ("layer.biases", biases)));
    [
        Given { parameters, quantization: Some(quantization) },
        Given { parameters: HashMap::from([("layer.weight", whole)]), quantization: None },
    ]
}

fn affine(bits: i32, group_size: i32) -> Quantization {
    Quantization::affine(bits, group_size).unwrap()
}

#[track_caller]
fn assert_close(quantization: Quantization, found: &Array, expected: &Array) {
    // The results are in half precision where the scales are.
    let found = tensor(&found.as_dtype(Dtype::Float32).unwrap()).named(quantization);
    assert_relative_eq!(found, tensor(expected), epsilon = 1e-4, max_relative = 1e-4);
}

#[test]
fn a_quantized_linear_layer_is_one_with_rounded_weights() {
    let x = Array::from_slice(
        &(0..3 * 128).map(|i| (i % 19) as f32 / 9.0 - 1.0).collect::<Vec<_>>(),
        &[1, 3, 128],
    );
    for quantization in Quantization::all() {
        let [packed, whole] = both(quantization).map(|mut source| {
            let mut layer = Linear::new(Parameters::root(&mut source).at("layer"), SHAPE[1], SHAPE[0]);
            layer.forward(&x).unwrap()
        });
        assert_eq!(packed.shape(), [1, 3, 24]);
        assert_close(quantization, &packed, &whole);
    }
}

#[test]
fn a_quantized_embedding_is_one_with_rounded_rows_both_ways() {
    let tokens = Array::from_slice(&[3_u32, 0, 23, 3], &[2, 2]);
    let hidden = Array::ones::<f32>(&[1, 1, 128]).unwrap();
    for (quantization, dtype) in [(affine(4, 64), Dtype::Float32), (Quantization::NVFP4, Dtype::Bfloat16)] {
        let [packed, whole] = both(quantization).map(|mut source| {
            let mut table = Embedding::new(Parameters::root(&mut source).at("layer"), SHAPE[0], SHAPE[1]);
            (table.forward(&tokens).unwrap(), table.as_linear(&hidden).unwrap())
        });
        assert_eq!((packed.0.shape(), packed.0.dtype()), (&[2, 2, 128][..], dtype));
        let rows = packed.0.as_dtype(Dtype::Float32).unwrap();
        assert_same_on_cpu(tensor(&rows), tensor(&whole.0));
        assert_close(quantization, &packed.1, &whole.1);
    }
}

#[test]
fn parameters_have_the_names_of_a_checkpoint() {
    let [mut packed, _] = both(affine(4, 64));
    let table = Embedding::new(Parameters::root(&mut packed).at("layer"), SHAPE[0], SHAPE[1]);
    let flat = table.parameters().flatten();
    let mut names: Vec<&str> = flat.keys().map(|name| &**name).collect();
    names.sort_unstable();
    assert_eq!(names, ["biases", "scales", "weight"]);
}
