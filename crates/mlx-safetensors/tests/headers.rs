//! Headers against the crate `safetensors`, and files that nothing may be read from.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::{BTreeMap, HashMap};

use mlx_safetensors::{Dtype, Header, HeaderError, LONGEST_HEADER};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::select;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

const DTYPES: [Dtype; 22] = [
    Dtype::BOOL,
    Dtype::F4,
    Dtype::F6_E2M3,
    Dtype::F6_E3M2,
    Dtype::U8,
    Dtype::I8,
    Dtype::F8_E5M2,
    Dtype::F8_E4M3,
    Dtype::F8_E8M0,
    Dtype::F8_E4M3FNUZ,
    Dtype::F8_E5M2FNUZ,
    Dtype::I16,
    Dtype::U16,
    Dtype::F16,
    Dtype::BF16,
    Dtype::I32,
    Dtype::U32,
    Dtype::F32,
    Dtype::C64,
    Dtype::F64,
    Dtype::I64,
    Dtype::U64,
];

/// The dtype of the other crate with the same name.
fn of_crate(dtype: Dtype) -> safetensors::Dtype {
    serde_json::from_str(&format!("\"{dtype:?}\"")).unwrap()
}

/// A file with this text as its header and `data` zeros behind it.
fn file(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat()
}

fn read(file: &[u8]) -> Result<Header, HeaderError> {
    Header::read_from(&mut &file[..], file.len() as u64)
}

/// Texts of metadata, and tensors by key, dtype and shape, whose elements fill whole bytes.
type Content = (BTreeMap<String, String>, Vec<(String, Dtype, Vec<usize>)>);

fn content() -> impl Strategy<Value = Content> {
    let tensor = (select(DTYPES.to_vec()), vec(0_usize..5, 0..4)).prop_map(|(dtype, mut shape)| {
        // A multiple of 8 elements fills bytes, whatever the dtype.
        if dtype.bits() % 8 != 0 {
            shape.push(8);
        }
        (dtype, shape)
    });
    let tensors = btree_map("[a-z.\"é]{1,8}", tensor, 0..6).prop_map(|tensors| {
        tensors.into_iter().map(|(key, (dtype, shape))| (key, dtype, shape)).collect::<Vec<_>>()
    });
    (btree_map(".{0,4}", ".{0,8}", 0..3), tensors.prop_shuffle())
}

/// The same tensors in both readers: metadata, and each tensor by key, dtype, shape and bytes.
fn assert_alike(ours: &Header, theirs: &safetensors::tensor::Metadata) {
    let metadata: HashMap<String, String> = ours.metadata().clone().into_iter().collect();
    assert_eq!(metadata, theirs.metadata().clone().unwrap_or_default());
    assert_eq!(ours.tensors().len(), theirs.tensors().len());
    for (key, tensor) in ours.tensors() {
        let other = theirs.info(key).unwrap();
        let (begin, end) = other.data_offsets;
        assert_eq!(other.dtype, of_crate(tensor.dtype), "{key}");
        assert_eq!((&other.shape, begin as u64..end as u64), (&tensor.shape, tensor.bytes.clone()), "{key}");
    }
}

proptest! {
    #[test]
    fn headers_that_we_write_are_read_here_and_by_safetensors((metadata, tensors) in content()) {
        let header = Header::new(metadata, tensors.clone()).unwrap();
        let start = header.to_bytes().unwrap();
        prop_assert_eq!(start.len() % 8, 0);
        prop_assert_eq!(header.data_start(), start.len() as u64);
        let file = [start, vec![0; header.data_len() as usize]].concat();
        let found = read(&file).unwrap();
        prop_assert_eq!(found.data_start(), header.data_start());
        prop_assert_eq!(found.metadata(), header.metadata());
        let by_key = |header: &Header| header.tensors().iter().cloned().collect::<BTreeMap<_, _>>();
        prop_assert_eq!(by_key(&found), by_key(&header));
        let kept: Vec<_> =
            header.tensors().iter().map(|(key, t)| (key.clone(), t.dtype, t.shape.clone())).collect();
        prop_assert_eq!(kept, tensors);
        assert_alike(&header, &SafeTensors::read_metadata(&file).unwrap().1);
    }

    #[test]
    fn headers_that_safetensors_writes_are_read((metadata, tensors) in content()) {
        let bytes: Vec<Vec<u8>> = tensors
            .iter()
            .map(|(_, dtype, shape)| vec![1; shape.iter().product::<usize>() * dtype.bits() / 8])
            .collect();
        let views = tensors.iter().zip(&bytes).map(|((key, dtype, shape), bytes)| {
            (key, TensorView::new(of_crate(*dtype), shape.clone(), bytes).unwrap())
        });
        // With neither tensors nor texts the crate writes JSON that it cannot read.
        let metadata = (!metadata.is_empty()).then(|| metadata.into_iter().collect());
        let file = safetensors::serialize(views, metadata).unwrap();
        assert_alike(&read(&file).unwrap(), &SafeTensors::read_metadata(&file).unwrap().1);
    }

    /// Headers that are nearly right: one tensor's place, dtype or shape is not, or the file is cut or longer.
    #[test]
    fn wrong_headers_are_refused_as_by_safetensors(
        places in vec((0_u64..12, 0_u64..12), 1..4),
        dtype in select(DTYPES.to_vec()),
        shape in vec(0_usize..5, 0..3),
        data in 0_usize..12,
    ) {
        let entries: Vec<String> = places
            .iter()
            .enumerate()
            .map(|(i, (begin, end))| {
                format!(r#""{i}": {{"dtype": "{dtype:?}", "shape": {shape:?}, "data_offsets": [{begin}, {end}]}}"#)
            })
            .collect();
        let file = file(&format!("{{{}}}", entries.join(",")), data);
        prop_assert_eq!(read(&file).is_ok(), SafeTensors::read_metadata(&file).is_ok());
    }

    #[test]
    fn tensors_and_gaps_are_read_as_by_safetensors(
        sizes in vec(0_usize..4, 1..5),
        gap in -1_i64..2,
        at in 0_usize..5,
    ) {
        let (mut entries, mut end) = (Vec::new(), 0);
        for (i, &size) in sizes.iter().enumerate() {
            let begin = if i == at { end + gap } else { end };
            end = begin + size as i64;
            entries.push(format!(r#""{i}": {{"dtype": "U8", "shape": [{size}], "data_offsets": [{begin}, {end}]}}"#));
        }
        let file = file(&format!("{{{}}}", entries.join(",")), end.max(0) as usize);
        let theirs = SafeTensors::read_metadata(&file).is_ok();
        prop_assert_eq!(read(&file).is_ok(), theirs);
        prop_assert_eq!(theirs, gap == 0 || at >= sizes.len());
    }

    #[test]
    fn any_bytes_are_a_header_or_an_error(bytes in vec(any::<u8>(), 0..64)) {
        let header = file(&String::from_utf8_lossy(&bytes), 0);
        prop_assert_eq!(read(&header).is_ok(), SafeTensors::read_metadata(&header).is_ok());
        prop_assert_eq!(read(&bytes).is_ok(), SafeTensors::read_metadata(&bytes).is_ok());
    }
}

#[test]
fn both_crates_know_the_same_dtypes() {
    for dtype in DTYPES {
        assert_eq!(dtype.bits(), of_crate(dtype).bitsize(), "{dtype:?}");
        assert_eq!(serde_json::to_string(&dtype).unwrap(), format!("\"{dtype:?}\""));
    }
}

/// Each kind of error, by a file that has it.
#[test]
fn errors_say_what_is_wrong() {
    let entry = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#"{{"a": {{"dtype": "{dtype}", "shape": {shape}, "data_offsets": {offsets}}}}}"#)
    };
    for (header, data, expected) in [
        ("[]".to_owned(), 0, "its header cannot be read: invalid type: sequence"),
        (r#"{"a": 1}"#.to_owned(), 0, "its header cannot be read: invalid type: integer"),
        (r#"{"__metadata__": {"a": 1}}"#.to_owned(), 0, "its header cannot be read: invalid type: integer"),
        (
            r#"{"__metadata__": {}, "__metadata__": {}}"#.to_owned(),
            0,
            "its header cannot be read: duplicate field `__metadata__`",
        ),
        (entry("F33", "[1]", "[0, 4]"), 4, "its header cannot be read: unknown variant `F33`"),
        (entry("F32", "[-1]", "[0, 4]"), 4, "its header cannot be read: invalid value: integer `-1`"),
        (entry("F32", "[16]", "[0, 60]"), 60, "a does not fill the bytes 0..60 that it is given"),
        (entry("F32", "[1]", "[4, 0]"), 4, "a does not fill the bytes 4..0 that it is given"),
        (entry("F4", "[3]", "[0, 1]"), 1, "a does not fill the bytes 0..1 that it is given"),
        (
            entry("F32", "[4294967296, 4294967296]", "[0, 0]"),
            0,
            "a does not fill the bytes 0..0 that it is given",
        ),
        (
            entry("F32", "[0, 4294967296]", "[0, 0]"),
            0,
            "a has shape [0, 4294967296], beyond what MLX can index",
        ),
        (entry("F32", "[1]", "[4, 8]"), 8, "a begins at byte 4 of the tensors, and must begin at byte 0"),
        (entry("F32", "[1]", "[0, 4]"), 3, "its tensors take 4 bytes, and 3 follow the header"),
        (entry("F32", "[1]", "[0, 4]"), 5, "its tensors take 4 bytes, and 5 follow the header"),
    ] {
        let error = read(&file(&header, data)).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{header}: {error}");
    }
    for (bytes, expected) in [
        (&[0; 7][..], "it has 7 bytes, and the length of the header alone takes 8"),
        (&u64::MAX.to_le_bytes(), "its header would have 18446744073709551615 bytes, and the file has 8"),
        (b"\x02\0\0\0\0\0\0\0{", "its header would have 2 bytes, and the file has 9"),
    ] {
        assert_eq!(read(bytes).unwrap_err().to_string(), expected);
    }
    // A length beyond the limit is refused before memory is asked for.
    let start = (LONGEST_HEADER + 1).to_le_bytes();
    let error = Header::read_from(&mut &start[..], u64::MAX).unwrap_err();
    assert!(matches!(error, HeaderError::Length { .. }), "{error}");
    // A file that lost its end since its size was asked for.
    let error = Header::read_from(&mut &b"\x02\0\0\0\0\0\0\0{"[..], 10).unwrap_err();
    assert!(matches!(error, HeaderError::Io(_)), "{error}");
}

#[test]
fn what_no_file_can_hold_is_refused_before_it_is_written() {
    let header = |tensors: &[(&str, Dtype, &[usize])]| {
        let tensors = tensors.iter().map(|&(key, dtype, shape)| (key.to_owned(), dtype, shape.to_vec()));
        Header::new(BTreeMap::new(), tensors).unwrap_err().to_string()
    };
    for (tensors, expected) in [
        (
            &[("a", Dtype::U8, &[1][..]), ("a", Dtype::U8, &[2])][..],
            "a file cannot hold two entries of the key a",
        ),
        (&[("__metadata__", Dtype::U8, &[1])], "a file cannot hold two entries of the key __metadata__"),
        (&[("a", Dtype::F4, &[1])], "a does not fill the bytes 0..0 that it is given"),
        (&[("a", Dtype::U8, &[usize::MAX, 2])], "a does not fill the bytes 0..0 that it is given"),
        (&[("a", Dtype::U8, &[1 << 31])], "a has shape [2147483648], beyond what MLX can index"),
    ] {
        assert_eq!(header(tensors), expected);
    }
}

#[test]
fn a_file_is_left_at_the_first_tensor() {
    use std::io::{Read, Write};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    let header = Header::new(BTreeMap::new(), [("a".to_owned(), Dtype::U8, vec![3])]).unwrap();
    let mut file = std::fs::File::create(&path).unwrap();
    file.write_all(&[header.to_bytes().unwrap(), b"abc".to_vec()].concat()).unwrap();
    let mut file = std::fs::File::open(&path).unwrap();
    assert_eq!(Header::read(&file).unwrap(), header);
    let mut rest = String::new();
    file.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "abc");
}
