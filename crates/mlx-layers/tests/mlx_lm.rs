//! The layers give the same bits as mlx-lm, whose results `xtask/python/make_layer_fixtures.py` recorded.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use mlx_layers::{Gate, Linear, ParameterSource, Parameters, Quantization};
use mlx_rs::Array;
use mlx_rs::module::{Module, ModuleParameters};
use mlx_testing::{assert_as_recorded, tensor};

type Tensors = HashMap<String, Array>;

/// The recorded cases, by name.
fn cases(file: &str) -> BTreeMap<String, Tensors> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(file);
    let mut cases: BTreeMap<String, Tensors> = BTreeMap::new();
    for (key, array) in Array::load_safetensors(path).unwrap() {
        let (case, tensor) = key.rsplit_once('.').unwrap();
        cases.entry(case.to_owned()).or_default().insert(tensor.to_owned(), array);
    }
    cases
}

#[track_caller]
fn assert_equal(case: &str, found: &Array, expected: &Array) {
    assert_as_recorded(tensor(found).named(case), tensor(expected));
}

#[test]
fn gates() {
    mlx_testing::stock_mlx();
    let cases = cases("gates.safetensors");
    assert_eq!(cases.len(), 6);
    for (case, tensors) in &cases {
        let gate = if case.starts_with("geglu") { Gate::GeluTanh } else { Gate::Silu };
        let found = gate.apply(&tensors["gate"], &tensors["up"]).unwrap();
        assert_equal(case, &found, &tensors["expected"]);
    }
}

struct Recorded<'a>(&'a Tensors, Option<Quantization>);

impl ParameterSource for Recorded<'_> {
    fn parameter(&mut self, key: &str, shape: &[i32]) -> Array {
        let parameter = self.0[key].clone();
        assert_eq!(parameter.shape(), shape, "{key}");
        parameter
    }

    fn quantization(&mut self, _layer: &str, _columns: i32) -> Option<Quantization> {
        self.1
    }
}

#[test]
fn layers_with_a_bias() {
    mlx_testing::stock_mlx();
    let cases = cases("biases.safetensors");
    assert_eq!(cases.len(), 24);
    for (case, tensors) in &cases {
        let quantization = match case.split('_').nth(1).unwrap() {
            "plain" => None,
            "mxfp4" => Some(Quantization::MXFP4),
            bits => Some(Quantization::affine(bits.parse().unwrap(), 32).unwrap()),
        };
        let mut source = Recorded(tensors, quantization);
        let mut layer = Linear::with_bias(Parameters::root(&mut source), 64, 24, true);
        assert_equal(case, &layer.forward(&tensors["x"]).unwrap(), &tensors["expected"]);

        let parameters = layer.parameters().flatten();
        assert_eq!(parameters.len(), tensors.len() - 2); // all but the input and the expected output
        assert!(parameters.contains_key("bias"));
    }
}
