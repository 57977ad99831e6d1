//! Files that are written, and what ggml makes of the same numbers.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::num::NonZero;
use std::path::Path;

use mlx_gguf::{Gguf, NewTensor, QuantizeError, TensorType, Value, WriteError, Writer, quantize};

/// The types that are written.
const WRITTEN: [TensorType; 11] = [
    TensorType::F32,
    TensorType::F16,
    TensorType::BF16,
    TensorType::Q4_0,
    TensorType::Q4_1,
    TensorType::Q5_0,
    TensorType::Q5_1,
    TensorType::Q8_0,
    TensorType::Q4_K,
    TensorType::Q5_K,
    TensorType::Q6_K,
];

fn new_tensor(name: &str, kind: TensorType, shape: &[usize]) -> NewTensor {
    NewTensor { name: name.to_owned(), kind, shape: shape.to_vec() }
}

/// The blocks of one tensor's numbers.
fn blocks(kind: TensorType, numbers: &[f32]) -> Result<Vec<u8>, QuantizeError> {
    let mut blocks = Vec::new();
    quantize(kind, numbers, &mut blocks).map(|()| blocks)
}

#[test]
fn blocks_are_those_of_ggml() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/quantized.gguf");
    let model = Gguf::open(fixture).unwrap();
    let numbers = model.numbers(model.tensor("numbers").unwrap()).unwrap();
    for kind in WRITTEN.into_iter().skip(1) {
        let expected = model.read(model.tensor(&kind.to_string()).unwrap()).unwrap();
        let found = blocks(kind, &numbers).unwrap();
        assert_eq!(found.len(), expected.len(), "{kind}");
        for (index, (found, expected)) in
            found.chunks(kind.block_bytes()).zip(expected.chunks(kind.block_bytes())).enumerate()
        {
            assert_eq!(found, expected, "{kind}, block {index}");
        }
    }
}

#[test]
fn numbers_that_a_type_cannot_store_are_refused() {
    for kind in WRITTEN {
        for number in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
            let mut numbers = [0.5; 256];
            numbers[77] = number;
            let error = blocks(kind, &numbers).unwrap_err().to_string();
            let expected = format!("the number {number:?} cannot be stored as {kind}: it is not finite");
            assert_eq!(error, expected);
        }
    }
    for (kind, largest) in [
        (TensorType::F16, 65_504.0),
        (TensorType::BF16, 3.389_531_4e38),
        (TensorType::Q4_0, 65_504.0 * 8.0),
        (TensorType::Q8_0, 65_504.0 * 127.0),
    ] {
        blocks(kind, &[largest; 32]).unwrap();
        let error = blocks(kind, &[largest * 1.003; 32]).unwrap_err();
        assert!(error.to_string().ends_with("it is too large for this type"), "{error}");
    }
    let error = blocks(TensorType::Q6_K, &[1e20; 256]).unwrap_err();
    assert_eq!(error.to_string(), "the number 1e20 cannot be stored as Q6_K: it is too large for this type");
    let error = blocks(TensorType::Q4_K, &[1.0; 128]).unwrap_err();
    assert_eq!(error.to_string(), "128 numbers do not fill whole blocks of Q4_K, which have 256 each");
    let error = blocks(TensorType::MXFP4, &[1.0; 32]).unwrap_err();
    assert_eq!(error.to_string(), "tensors of type MXFP4 can be read and not be written");
}

#[test]
fn a_written_file_reads_as_it_was_said() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("all.gguf");
    let metadata = [
        ("general.architecture", Value::Text("llama".to_owned())),
        ("z", Value::Integer(u32::MAX.into())),
        ("a", Value::Integer(-3)),
        ("large", Value::Integer(u64::MAX.into())),
        ("small", Value::Integer(i64::MIN.into())),
        ("number", Value::Float(0.1_f32.into())),
        ("yes", Value::Bool(true)),
        ("ids", Value::Integers(vec![-1, 5])),
        ("long ids", Value::Integers(vec![i64::MAX])),
        ("scores", Value::Floats(vec![-0.5, 1e-6])),
        ("kinds", Value::Bools(vec![true, false])),
        ("texts", Value::Texts(["a", "", "ü€"].into_iter().collect())),
    ]
    .map(|(key, value)| (key.to_owned(), value));
    let tensors: Vec<_> = WRITTEN.map(|kind| new_tensor(&kind.to_string(), kind, &[3, 256])).into();
    let numbers: Vec<f32> = (0..768).map(|i| (i as f32 * 0.37).sin()).collect();
    let mut writer = Writer::create(&path, &metadata, tensors.clone()).unwrap();
    for tensor in &tensors {
        assert_eq!(writer.next_tensor(), Some(tensor));
        // In two pieces.
        writer.append(&numbers[..512]).unwrap();
        writer.append(&numbers[512..]).unwrap();
    }
    assert_eq!(writer.next_tensor(), None);
    writer.finish().unwrap();

    let model = Gguf::open(&path).unwrap();
    for (key, value) in &metadata {
        assert_eq!(model.metadata().get(key), Some(value), "{key}");
    }
    assert_eq!(model.metadata().iter().count(), metadata.len());
    for (tensor, kind) in tensors.iter().zip(WRITTEN) {
        let found = model.tensor(&tensor.name).unwrap();
        assert_eq!((&found.info.shape[..], found.info.kind), (&[3, 256][..], kind));
        assert_eq!(model.read(found).unwrap(), blocks(kind, &numbers).unwrap(), "{kind}");
        assert_eq!(found.info.bytes.start % 32, 0);
    }
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let numbers: Vec<f32> = (0..1_u64 << 18).map(|i| ((i * i) as f32 * 0.001).sin()).collect();
    let files = [1, 3, 64].map(|threads| {
        let path = folder.path().join(format!("{threads}.gguf"));
        let tensor = new_tensor("x", TensorType::Q4_K, &[512, 512]);
        let mut writer =
            Writer::create(&path, &[], vec![tensor]).unwrap().with_threads(NonZero::new(threads).unwrap());
        writer.append(&numbers).unwrap();
        writer.finish().unwrap();
        std::fs::read(path).unwrap()
    });
    assert_eq!(files[0], files[1]);
    assert_eq!(files[0], files[2]);
}

#[test]
fn what_cannot_be_written_is_said_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.gguf");
    let create = |metadata: &[(&str, Value)], tensors: Vec<NewTensor>| {
        let metadata: Vec<_> =
            metadata.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
        Writer::create(&path, &metadata, tensors)
    };
    let tensor = |shape: &[usize]| vec![new_tensor("w", TensorType::Q8_0, shape)];
    for (result, expected) in [
        (
            create(&[("a", Value::Bool(true)), ("a", Value::Bool(true))], vec![]),
            "metadata a: it occurs twice",
        ),
        (
            create(&[("a", Value::Integer(1 << 64))], vec![]),
            "metadata a: 18446744073709551616 does not fit into 64 bits",
        ),
        (create(&[], [tensor(&[32]), tensor(&[32])].concat()), "tensor w: it occurs twice"),
        (
            create(&[], tensor(&[2, 33])),
            "tensor w: the shape [2, 33] cannot be written as Q8_0: a row must have whole blocks",
        ),
        (
            create(&[], tensor(&[0, 32])),
            "tensor w: the shape [0, 32] cannot be written as Q8_0: it is empty or too large",
        ),
        (
            create(&[], tensor(&[1, 1, 1, 1, 32])),
            "tensor w: the shape [1, 1, 1, 1, 32] cannot be written as Q8_0: 1 to 4 axes are needed",
        ),
    ] {
        assert_eq!(result.unwrap_err().to_string(), expected);
    }
    let mut writer = create(&[], tensor(&[2, 32])).unwrap();
    writer.append(&[1.0; 32]).unwrap();
    let error = writer.append(&[1.0; 64]).unwrap_err();
    assert_eq!(error.to_string(), "tensor w: it has 64 numbers, not 96");
    let error = writer.append(&[f32::NAN; 32]).unwrap_err();
    assert!(matches!(&error, WriteError::Quantize { name, .. } if name == "w"), "{error}");
    let error = writer.finish().unwrap_err();
    assert_eq!(error.to_string(), "tensor w: 32 of its 64 numbers were written");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
    drop(create(&[], tensor(&[2, 32])).unwrap());
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
    let error = Writer::create(folder.path(), &[], vec![]).unwrap_err();
    assert!(matches!(error, WriteError::Io { .. }), "{error}");
}
