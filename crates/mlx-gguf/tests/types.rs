//! Files that the Python package gguf wrote, and the numbers that it reads from them.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::Path;

use mlx_gguf::{Gguf, TensorType, Value};

fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

#[test]
fn the_numbers_of_each_type() {
    let model = Gguf::open(fixture("types.gguf")).unwrap();
    let bytes = std::fs::read(fixture("types.f32")).unwrap();
    let mut expected = bytes.chunks_exact(4).map(|bytes| u32::from_le_bytes(bytes.try_into().unwrap()));
    let mut types = Vec::new();
    for tensor in model.tensors() {
        let (name, kind) = (&tensor.info.name, tensor.info.kind);
        assert_eq!(*name, kind.to_string());
        types.push(kind);
        let numbers = model.numbers(tensor).unwrap();
        assert_eq!(numbers.len(), tensor.info.shape.iter().product::<usize>(), "{name}");
        for (index, number) in numbers.iter().enumerate() {
            assert_eq!(Some(number.to_bits()), expected.next(), "{name}, number {index}: {number}");
        }
    }
    assert_eq!(expected.next(), None);
    assert_eq!(types.len(), TensorType::all().count());
}

#[test]
fn shapes_have_the_axis_of_neighbours_last() {
    let model = Gguf::open(fixture("types.gguf")).unwrap();
    let shape = |name| &model.tensor(name).unwrap().info.shape[..];
    assert_eq!((shape("F32"), shape("Q6_K"), shape("MXFP4")), (&[2, 3, 5][..], &[2, 512][..], &[10, 32][..]));
    assert_eq!(model.tensor("Q7_0"), None);
}

#[test]
fn metadata_of_each_type() {
    let model = Gguf::open(fixture("types.gguf")).unwrap();
    let metadata = model.metadata();
    for (key, expected) in [
        ("uint8", Value::Integer(200)),
        ("int8", Value::Integer(-100)),
        ("uint16", Value::Integer(60_000)),
        ("int16", Value::Integer(-30_000)),
        ("uint32", Value::Integer(4_000_000_000)),
        ("int32", Value::Integer(-2_000_000_000)),
        ("uint64", Value::Integer(u64::MAX.into())),
        ("int64", Value::Integer(i64::MIN.into())),
        ("float32", Value::Float(f64::from(0.1_f32))),
        ("float64", Value::Float(0.1)),
        ("bool", Value::Bool(true)),
        ("string", Value::Text("ein Wörtchen".to_owned())),
        ("list.integers", Value::Integers(vec![1, -2, 3])),
        ("list.bytes", Value::Integers(vec![255, 0])),
        ("list.floats", Value::Floats(vec![0.5, -0.25])),
        ("list.bools", Value::Bools(vec![true, false])),
    ] {
        assert_eq!(metadata.get(&format!("test.{key}")), Some(&expected), "{key}");
    }
    let texts = metadata.texts("test.list.texts").unwrap().unwrap();
    assert_eq!(texts.iter().collect::<Vec<_>>(), ["a", "", "ü€"]);
    assert_eq!((texts.len(), texts.get(2), texts.get(3)), (3, Some("ü€"), None));
    assert_eq!(metadata.text("general.architecture").unwrap(), Some("llama"));
    assert_eq!(metadata.text("general.name").unwrap(), None);
    assert_eq!(metadata.number("test.int8").unwrap(), Some(-100.0));
}

#[test]
fn a_value_of_another_type_is_an_error_that_names_both() {
    let model = Gguf::open(fixture("types.gguf")).unwrap();
    let metadata = model.metadata();
    for (error, expected) in [
        (metadata.text("test.uint8").unwrap_err(), "metadata test.uint8 is 200, and must be a text"),
        (
            metadata.integer("test.string").unwrap_err(),
            "metadata test.string is \"ein Wörtchen\", and must be an integer",
        ),
        (
            metadata.integer("test.uint64").unwrap_err(),
            "metadata test.uint64 is 18446744073709551615, and must be an integer",
        ),
        (
            metadata.texts("test.list.integers").unwrap_err(),
            "metadata test.list.integers is a list of 3 integers, and must be a list of texts",
        ),
        (metadata.bool("test.int8").unwrap_err(), "metadata test.int8 is -100, and must be true or false"),
    ] {
        assert_eq!(error.to_string(), expected);
    }
}
