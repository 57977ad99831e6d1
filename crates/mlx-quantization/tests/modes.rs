//! Each mode against what MLX answers in Python, and what is refused.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::{BTreeSet, HashMap};

use mlx_quantization::{
    Mode, Quantization, QuantizedArray, UnknownQuantization, dequantize, quantize, quantized_matmul,
};
use mlx_rs::{Array, Dtype};
use mlx_testing::{on_cpu, on_recording_device};

/// `xtask/python/make_quantization_fixtures.py`.
fn fixture() -> HashMap<String, Array> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    Array::load_safetensors(folder.join("modes.safetensors")).unwrap()
}

/// Floats are near on another device than the recording one. Codes are equal on every CPU; on a GPU a weight that lies
/// between two codes may get either of them, so there nine of ten words must be equal.
#[track_caller]
fn assert_equal(found: &Array, expected: &Array, what: &str) {
    assert_eq!((found.dtype(), found.shape()), (expected.dtype(), expected.shape()), "{what}");
    let is_float = matches!(found.dtype(), Dtype::Float32 | Dtype::Float16 | Dtype::Bfloat16);
    let equal = if on_recording_device() || (!is_float && on_cpu()) {
        found.eq_values(expected).unwrap()
    } else if is_float {
        let [found, expected] = [found, expected].map(|array| array.as_dtype(Dtype::Float32).unwrap());
        found.all_close(&expected, 1e-2, 1e-2, None).unwrap()
    } else {
        let same = found.eq(expected).unwrap().as_dtype(Dtype::Float32).unwrap();
        same.mean(None).unwrap().item_exact::<f32>() > 0.9
    };
    assert!(equal, "{what}");
}

#[test]
fn every_mode_answers_as_mlx_does() {
    mlx_testing::stock_mlx();
    let tensors = fixture();
    let cases: BTreeSet<&str> = tensors.keys().map(|key| key.split_once('.').unwrap().0).collect();
    assert_eq!(cases.len(), 27);
    for case in cases {
        let tensor = |name: &str| &tensors[&format!("{case}.{name}")];
        let mut parts = case.split('_');
        let mut part = || parts.next().unwrap();
        let (mode, bits, group_size) = (part(), part().parse().unwrap(), part().parse().unwrap());
        let quantization = Quantization::named(mode, bits, group_size).unwrap();
        assert_eq!(quantization.has_biases(), mode == "affine");

        let found = quantize(tensor("w"), quantization).unwrap();
        assert_equal(&found.packed, tensor("packed"), case);
        assert_equal(&found.scales, tensor("scales"), case);
        assert_eq!(found.biases.is_some(), quantization.has_biases());
        if let Some(biases) = &found.biases {
            assert_equal(biases, tensor("biases"), case);
        }

        // The recorded codes, of which all devices make the same numbers.
        let biases = quantization.has_biases().then(|| tensor("biases").clone());
        let (packed, scales) = (tensor("packed").clone(), tensor("scales").clone());
        let q = QuantizedArray { packed, scales, biases, quantization };
        assert_equal(&dequantize(&q).unwrap(), tensor("dequantized"), case);
        assert_equal(&quantized_matmul(tensor("x"), &q, true).unwrap(), tensor("y"), case);
        assert_equal(&quantized_matmul(tensor("x_t"), &q, false).unwrap(), tensor("y_t"), case);
    }
}

#[test]
fn sizes_that_a_mode_does_not_have_are_errors() {
    for (mode, bits, group_size) in
        [("affine", 7, 64), ("affine", 4, 16), ("mxfp4", 8, 32), ("mxfp8", 4, 32), ("nvfp4", 4, 32)]
    {
        let error = Quantization::named(mode, bits, group_size).unwrap_err();
        assert!(matches!(error, UnknownQuantization::Sizes { .. }), "{error}");
        assert!(error.to_string().contains(mode), "{error}");
    }
    let error = Quantization::named("int8", 8, 64).unwrap_err();
    assert_eq!(error.to_string(), "mode \"int8\" is not known; known are affine, mxfp4, mxfp8, nvfp4");
    for known in [Quantization::MXFP4, Quantization::MXFP8, Quantization::NVFP4] {
        assert_eq!(Quantization::new(known.mode(), known.bits(), known.group_size()), Ok(known));
    }
    assert_eq!(Quantization::affine(4, 64).unwrap().to_string(), "affine of 4 bits in groups of 64");
}

#[test]
fn arrays_that_do_not_belong_together_are_errors() {
    let ones = |shape: &[i32]| Array::ones::<f32>(shape).unwrap();
    for mode in Mode::ALL {
        let quantization = match mode {
            Mode::Affine => Quantization::affine(4, 32).unwrap(),
            Mode::Mxfp4 => Quantization::MXFP4,
            Mode::Mxfp8 => Quantization::MXFP8,
            _ => Quantization::NVFP4,
        };
        for wrong in [ones(&[64]), ones(&[2, 40]), ones(&[2, 0]), Array::ones::<i32>(&[2, 64]).unwrap()] {
            assert!(quantize(&wrong, quantization).is_err(), "{mode} {:?}", wrong.shape());
        }
        let right = quantize(&ones(&[4, 64]), quantization).unwrap();
        let refused = |wrong: QuantizedArray, what: &str| {
            assert!(dequantize(&wrong).is_err(), "{mode}: {what}");
            assert!(quantized_matmul(&ones(&[1, 64]), &wrong, true).is_err(), "{mode}: {what}");
        };
        refused(QuantizedArray { packed: ones(&[4, 8]), ..right.clone() }, "floats");
        refused(QuantizedArray { packed: right.packed.reshape(&[-1]).unwrap(), ..right.clone() }, "one axis");
        refused(QuantizedArray { scales: right.scales.reshape(&[2, -1]).unwrap(), ..right.clone() }, "rows");
        refused(QuantizedArray { scales: right.packed.clone(), ..right.clone() }, "length");
        let biases = if right.biases.is_some() { None } else { Some(ones(&[4, 2])) };
        refused(QuantizedArray { biases, ..right.clone() }, "biases");
        for (x, transpose) in [(ones(&[1, 32]), true), (ones(&[1, 64]), false)] {
            assert!(quantized_matmul(&x, &right, transpose).is_err(), "{mode} {transpose}");
        }
    }
    let right = quantize(&ones(&[4, 64]), Quantization::MXFP4).unwrap();
    let integers = Array::ones::<i32>(&[1, 64]).unwrap();
    assert!(quantized_matmul(&integers, &right, true).is_err());
}

/// The kernels and MLX have tables of their own, since they cannot ask this crate.
#[test]
fn the_kernels_and_mlx_have_the_same_sizes() {
    let w = Array::ones::<f32>(&[8, 512]).unwrap();
    for bits in 1..=9 {
        for group_size in [8, 16, 32, 48, 64, 96, 128, 256] {
            let known = Quantization::affine(bits, group_size).is_ok();
            let (words, groups) = ((512 * bits / 32) as usize, (512 / group_size) as usize);
            let (codes, scales) = (vec![0_u32; words], vec![0.0_f32; groups]);
            let matrix = mlx_cpu::QuantizedMatrix::affine(
                &codes,
                &scales,
                &scales,
                1,
                512,
                bits as usize,
                group_size as usize,
            );
            assert_eq!(matrix.is_ok(), known, "kernels: {bits} bits in groups of {group_size}");
            let in_mlx = mlx_rs::ops::quantize(&w, group_size, bits).is_ok();
            assert_eq!(in_mlx, known, "MLX: {bits} bits in groups of {group_size}");
        }
    }
    // In the kernels each of the other modes has one size.
    for quantization in Quantization::all().filter(|quantization| quantization.mode() != Mode::Affine) {
        let columns = 64;
        let [_, words] = quantization.packed_shape([1, columns]);
        let [_, groups] = quantization.groups_shape([1, columns]);
        let (codes, scales) = (vec![0_u32; words as usize], vec![0_u8; groups as usize]);
        let make = match quantization.mode() {
            Mode::Mxfp4 => mlx_cpu::QuantizedMatrix::<f32>::mxfp4,
            Mode::Mxfp8 => mlx_cpu::QuantizedMatrix::<f32>::mxfp8,
            _ => mlx_cpu::QuantizedMatrix::<f32>::nvfp4,
        };
        assert!(make(&codes, &scales, 1, columns as usize).is_ok(), "{quantization}");
    }
}

#[test]
fn every_size_has_its_quantization() {
    assert_eq!(Quantization::all().count(), 6 * 3 + 3);
    for quantization in Quantization::all() {
        let (mode, bits, group_size) = (quantization.mode(), quantization.bits(), quantization.group_size());
        assert_eq!(Quantization::named(mode.name(), bits, group_size), Ok(quantization));
    }
    for mode in Mode::ALL {
        assert!(Quantization::all().any(|quantization| quantization == mode.with_default_sizes()));
    }
    assert_eq!(Mode::Affine.with_default_sizes(), Quantization::affine(4, 64).unwrap());
    assert_eq!(
        Quantization::affine(7, 64).unwrap_err().to_string(),
        "affine quantization has 2, 3, 4, 5, 6 or 8 bits in groups of 32, 64 or 128, and not 7 bits in groups of 64"
    );
}
