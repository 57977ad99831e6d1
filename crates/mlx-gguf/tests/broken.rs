//! Files that are broken: each is an error that names what is wrong.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::error::Error;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use mlx_gguf::{Gguf, TensorType};
use proptest::prelude::*;

/// A file, piece by piece. It does not need to be valid.
#[derive(Clone)]
struct Builder {
    version: u32,
    tensors: u64,
    entries: u64,
    bytes: Vec<u8>,
}

fn file() -> Builder {
    Builder { version: 3, tensors: 0, entries: 0, bytes: Vec::new() }
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

impl Builder {
    /// A metadata entry with this type of value.
    fn entry(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.entries += 1;
        self.bytes.extend([text(key), kind.to_le_bytes().to_vec(), value.to_vec()].concat());
        self
    }

    fn integer(self, key: &str, value: u32) -> Self {
        self.entry(key, 4, &value.to_le_bytes())
    }

    fn tensor(mut self, name: &str, dimensions: &[u64], kind: u32, offset: u64) -> Self {
        self.tensors += 1;
        self.bytes.extend(text(name));
        self.bytes.extend((dimensions.len() as u32).to_le_bytes());
        self.bytes.extend(dimensions.iter().flat_map(|size| size.to_le_bytes()));
        self.bytes.extend([&kind.to_le_bytes()[..], &offset.to_le_bytes()].concat());
        self
    }

    /// The whole file, with this many bytes of tensors.
    fn end(&self, tensors: usize) -> Vec<u8> {
        let mut all = b"GGUF".to_vec();
        all.extend(self.version.to_le_bytes());
        all.extend([self.tensors.to_le_bytes(), self.entries.to_le_bytes()].concat());
        all.extend(&self.bytes);
        if tensors > 0 {
            all.resize(all.len().next_multiple_of(32) + tensors, 7);
        }
        all
    }
}

fn open(bytes: &[u8]) -> Result<Gguf, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    fs::write(&path, bytes).unwrap();
    Gguf::open(&path).map_err(|error| message(&error))
}

fn message(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

const F32: u32 = 0;

#[test]
fn a_small_file_is_read() {
    let small = file().integer("general.alignment", 8).tensor("a", &[2, 3], F32, 0).tensor("b", &[], F32, 24);
    let model = open(&small.end(28)).unwrap();
    assert_eq!(model.tensor("a").unwrap().info.shape, [3, 2]);
    assert_eq!(model.numbers(model.tensor("b").unwrap()).unwrap().len(), 1);
    assert_eq!(open(&file().end(0)).unwrap().tensors().count(), 0);
    let old = Builder { version: 2, ..small };
    assert_eq!(open(&old.end(28)).unwrap().tensors().count(), 2);
}

#[test]
fn every_kind_of_damage_is_named() {
    let with = |change: fn(&mut Builder)| {
        let mut file = file();
        change(&mut file);
        file
    };
    let list = |kind: u32, length: u64| [&kind.to_le_bytes()[..], &length.to_le_bytes()].concat();
    let a = |offset| file().tensor("a", &[4], F32, offset);
    for (bytes, expected) in [
        (b"".to_vec(), "it does not begin with GGUF"),
        (b"GGU".to_vec(), "it does not begin with GGUF"),
        (b"PK\x03\x04 and so on".to_vec(), "it does not begin with GGUF"),
        (b"GGUF".to_vec(), "ends at byte 4, inside of the version"),
        (with(|file| file.version = 1).end(0), "GGUF version 1, and only versions 2 and 3"),
        (with(|file| file.version = 77).end(0), "GGUF version 77, and only"),
        (with(|file| file.version = 3_u32.swap_bytes()).end(0), "a big-endian GGUF file"),
        (with(|file| file.tensors = 1).end(0), "inside of the name of tensor 0"),
        (with(|file| file.tensors = u64::MAX).end(0), "18446744073709551615 tensors, and at most 131072"),
        (with(|file| file.entries = 1_000_000).end(0), "1000000 metadata entries, and at most 16384"),
        (with(|file| file.entries = 1).end(0), "inside of the key of metadata entry 0"),
        (file().integer("a", 1).integer("a", 1).end(0), "metadata a occurs twice"),
        (file().entry("a", 13, &[]).end(0), "metadata a: value type 13 is unknown"),
        (file().entry("a", 8, &u64::MAX.to_le_bytes()).end(0), "18446744073709551615 bytes of a text"),
        (file().entry("a", 8, &9_u64.to_le_bytes()).end(0), "inside of metadata a"),
        (
            file().entry("a", 8, &[&1_u64.to_le_bytes()[..], &[255]].concat()).end(0),
            "metadata a is not UTF-8",
        ),
        (file().entry("a", 9, &list(9, 1)).end(0), "metadata a: an array of arrays"),
        (file().entry("a", 9, &list(14, 1)).end(0), "value type 14 is unknown"),
        (file().entry("a", 9, &list(8, 1 << 23)).end(0), "inside of metadata a"),
        (file().entry("a", 9, &list(10, 1 << 23)).end(0), "inside of metadata a"),
        (file().entry("a", 9, &list(0, 1 << 60)).end(0), "elements of a list, and at most 16777216"),
        (file().integer("general.alignment", 0).end(0), "general.alignment is 0, and must be a power of two"),
        (file().integer("general.alignment", 48).end(0), "general.alignment is 48"),
        (file().entry("general.alignment", 8, &text("x")).end(0), "is \"x\", and must be an integer"),
        (file().tensor("a", &[1; 5], F32, 0).end(4), "5 axes of a tensor, and at most 4"),
        (
            file().tensor("a", &[4, 0], F32, 0).end(4),
            "tensor a has dimensions [4, 0]: each must be between 1",
        ),
        (file().tensor("a", &[1 << 40], F32, 0).end(4), "[1099511627776]: each must be between 1"),
        (file().tensor("a", &[0x7fff_ffff; 4], F32, 0).end(4), "it is too large"),
        (file().tensor("a", &[48], 2, 0).end(64), "dimensions [48]: a row must have whole blocks"),
        (file().tensor("a", &[32], 20, 0).end(64), "tensor a has type IQ4_NL; known are F32, F16, Q4_0"),
        (file().tensor("a", &[32], 99, 0).end(64), "tensor a has type number 99; known are"),
        (a(0).end(15), "from 0 on of the tensors: its 16 bytes do not end inside"),
        (a(32).end(16), "from 32 on of the tensors: its 16 bytes do not end inside"),
        (a(1 << 63).end(16), "its 16 bytes do not end inside"),
        (a(u64::MAX - 31).end(16), "its 16 bytes do not end inside"),
        (a(8).end(64), "from 8 on of the tensors: this must be a multiple of 32"),
        (a(0).tensor("a", &[4], F32, 32).end(64), "tensor a occurs twice"),
        (
            a(0).tensor("b", &[4], F32, 0).end(64),
            "tensor b has the bytes from 0 on of the tensors: a has some",
        ),
    ] {
        let error = open(&bytes).unwrap_err();
        assert!(error.contains(expected), "{error}, and not {expected}");
        assert!(error.contains("model.gguf"), "{error}");
    }
}

#[test]
fn other_things_than_files_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    assert!(Gguf::open(folder.path()).is_err());
    assert!(Gguf::open(folder.path().join("nothing.gguf")).is_err());
}

/// `NAME-0000K-of-0000N.gguf`, with one tensor each.
fn parts(folder: &Path, count: u32) -> Vec<PathBuf> {
    let part = |number: u32| {
        let path = folder.join(format!("m-{:05}-of-{count:05}.gguf", number + 1));
        let part = file().integer("split.no", number).integer("split.count", count);
        let part = part.integer("split.tensors.count", count).integer("only", number);
        fs::write(&path, part.tensor(&format!("t{number}"), &[2], F32, 0).end(8)).unwrap();
        path
    };
    (0..count).map(part).collect()
}

#[test]
fn a_model_in_parts_is_read_from_any_of_them() {
    let folder = tempfile::tempdir().unwrap();
    for path in parts(folder.path(), 3) {
        let model = Gguf::open(path).unwrap();
        let names: Vec<&str> = model.tensors().map(|tensor| tensor.info.name.as_str()).collect();
        assert_eq!(names, ["t0", "t1", "t2"]);
        assert_eq!(model.metadata().integer("only").unwrap(), Some(0), "the metadata of the first part");
        assert_eq!(model.numbers(model.tensor("t2").unwrap()).unwrap().len(), 2);
    }
}

/// Parts beside a link are found first, if the link has the name of a part.
#[test]
fn a_link_to_a_part_leads_to_the_others() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let paths = parts(folder.path(), 3);
    let link = other.path().join("model.gguf");
    symlink(&paths[1], &link).unwrap();
    let model = Gguf::open(&link).unwrap();
    assert!(model.files().eq(&paths));
    let beside = folder.path().join("beside.gguf");
    symlink(paths[2].file_name().unwrap(), &beside).unwrap();
    assert_eq!(Gguf::open(&beside).unwrap().tensors().count(), 3);
    let links: Vec<PathBuf> = paths.iter().map(|path| other.path().join(path.file_name().unwrap())).collect();
    paths.iter().zip(&links).for_each(|(path, link)| symlink(path, link).unwrap());
    assert!(Gguf::open(&links[2]).unwrap().files().eq(&links));
    let copy = other.path().join("copy.gguf");
    fs::copy(&paths[0], &copy).unwrap();
    let link = other.path().join("link.gguf");
    symlink(&copy, &link).unwrap();
    let error = Gguf::open(&link).unwrap_err().to_string();
    assert!(error.contains("link.gguf: this is one of 3 parts, and its name must end with"), "{error}");
}

#[test]
fn parts_that_do_not_belong_together_are_errors() {
    let break_one = |break_it: &dyn Fn(&[PathBuf])| {
        let folder = tempfile::tempdir().unwrap();
        let paths = parts(folder.path(), 3);
        break_it(&paths);
        let path = if paths[0].exists() { &paths[0] } else { &folder.path().join("renamed.gguf") };
        message(&Gguf::open(path).unwrap_err())
    };
    let error = break_one(&|paths| fs::remove_file(&paths[1]).unwrap());
    assert!(error.contains("m-00002-of-00003.gguf: "), "{error}");
    let error = break_one(&|paths| assert!(fs::copy(&paths[0], &paths[2]).is_ok()));
    assert!(error.contains("m-00003-of-00003.gguf: metadata split.no is 0, and must be 2"), "{error}");
    let error = break_one(&|paths| fs::rename(&paths[0], paths[0].with_file_name("renamed.gguf")).unwrap());
    assert!(error.contains("this is one of 3 parts, and its name must end with"), "{error}");
    let part = |number: u32| file().integer("split.no", number).integer("split.count", 3);
    let error = break_one(&|paths| fs::write(&paths[2], part(2).end(0)).unwrap());
    assert!(error.contains("the parts have 2 tensors, and split.tensors.count is 3"), "{error}");
    let same = || part(2).tensor("t0", &[2], F32, 0).end(8);
    let error = break_one(&|paths| fs::write(&paths[2], same()).unwrap());
    assert!(error.contains("tensor t0 occurs twice"), "{error}");
    let error =
        break_one(&|paths| fs::write(&paths[0], file().integer("split.count", 70_000).end(0)).unwrap());
    assert!(error.contains("split.count is 70000, and must be between 1 and 1000"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever is changed in a file, it is read or it is an error.
    #[test]
    fn no_change_of_a_file_stops_the_program(
        changes in prop::collection::vec((0_usize..6000, any::<u8>()), 1..6),
        cut in prop::option::of(0_usize..6000),
    ) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/types.gguf");
        let mut bytes = fs::read(path).unwrap();
        bytes.truncate(cut.unwrap_or(bytes.len()));
        for (place, byte) in changes {
            // Most changes hit the header.
            let place = place % 1600;
            if let Some(old) = bytes.get_mut(place) {
                *old = byte;
            }
        }
        if let Ok(model) = open(&bytes) {
            let known: Vec<TensorType> = TensorType::all().collect();
            prop_assert!(model.tensors().all(|tensor| known.contains(&tensor.info.kind)));
        }
    }
}
