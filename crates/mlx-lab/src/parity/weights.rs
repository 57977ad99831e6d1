//! Weights from a seed: a case can contain a `weights.json` instead of tensors (docs/parity.md, "Weights from a seed").
//!
//! `xtask/python/seeded_weights.py` is the same program in NumPy. A hash of all bytes shows that both generate the same
//! weights.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

use half::{bf16, f16};
use safetensors::tensor::{Dtype, TensorView};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::case::CaseError;

const FILE: &str = "weights.json";
const GENERATOR: &str = "splitmix64-uniform-1";
/// The files that belong to the case, but not to its checkpoint.
const OF_THE_CASE: [&str; 3] = ["case.json", "reference.safetensors", FILE];
/// Scales and offsets are in units of 1 / 4096.
pub(crate) const PARTS: f64 = 4096.0;
/// The bits of a random number, besides its sign.
const BITS: u32 = 23;
/// The largest scale or offset. With this limit, all sums are exact in float64.
const LARGEST_NUMBER: i64 = 1 << 24;
/// The largest number of elements of a case's tensors together. More would be a mistake.
const MOST_ELEMENTS: usize = 1 << 26;

/// `weights.json`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Weights {
    generator: String,
    seed: u64,
    sha256: String,
    /// The tensors of each file, by the files' names.
    files: BTreeMap<String, Vec<Tensor>>,
}

/// A tensor of uniform random numbers from `offset - scale` to `offset + scale`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) dtype: Stored,
    pub(crate) scale: i64,
    pub(crate) offset: i64,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum Stored {
    F32,
    F16,
    Bf16,
}

/// The folder that a case's checkpoint is loaded from.
pub(super) enum CheckpointFolder {
    /// The case's own folder.
    InPlace(PathBuf),
    /// A temporary folder, which is removed when this value is dropped.
    Written(TempDir),
}

impl CheckpointFolder {
    /// The checkpoint of a case: its folder, or, if that contains a `weights.json`, a temporary folder with the other
    /// files and the generated tensors.
    pub(super) fn of(case: &Path) -> Result<Self, CaseError> {
        let file = case.join(FILE);
        if !file.is_file() {
            return Ok(Self::InPlace(case.to_path_buf()));
        }
        let io = |source| CaseError::Io { file: file.clone(), source };
        let text = fs::read(&file).map_err(io)?;
        let weights: Weights =
            serde_json::from_slice(&text).map_err(|source| CaseError::Json { file: file.clone(), source })?;
        let problem = |problem: String| CaseError::Weights { problem };
        if weights.generator != GENERATOR {
            return Err(problem(format!(
                "unknown generator {:?}; known is {GENERATOR:?}",
                weights.generator
            )));
        }
        let folder = tempfile::tempdir().map_err(io)?;
        copy_rest(case, folder.path()).map_err(io)?;
        write(&weights, folder.path()).map_err(problem)?;
        Ok(Self::Written(folder))
    }

    pub(super) fn path(&self) -> &Path {
        match self {
            Self::InPlace(folder) => folder,
            Self::Written(folder) => folder.path(),
        }
    }
}

/// Copies the files of a checkpoint that are not tensors: its config, and an index of shards.
fn copy_rest(case: &Path, folder: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(case)? {
        let entry = entry?;
        let of_the_case = OF_THE_CASE.iter().any(|name| entry.file_name() == *name);
        if entry.file_type()?.is_file() && !of_the_case {
            fs::copy(entry.path(), folder.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// Generates the tensors, checks their hash, and writes their files.
fn write(weights: &Weights, folder: &Path) -> Result<(), String> {
    let shapes = weights.files.values().flatten().map(|tensor| {
        let elements = tensor.shape.iter().try_fold(1_usize, |product, &dim| product.checked_mul(dim));
        elements.ok_or_else(|| format!("{}: the shape {:?} is too large", tensor.name, tensor.shape))
    });
    let elements = shapes.sum::<Result<usize, _>>()?;
    if elements > MOST_ELEMENTS {
        return Err(format!("{elements} elements; a case may have at most {MOST_ELEMENTS}"));
    }
    let mut hash = Sha256::new();
    let mut files = Vec::new();
    for (name, tensors) in &weights.files {
        let plain = matches!(*Path::new(name).components().collect::<Vec<_>>(), [Component::Normal(_)]);
        if !plain || !name.ends_with(".safetensors") {
            return Err(format!("{name:?} is not the name of a safetensors file"));
        }
        if folder.join(name).exists() {
            return Err(format!("{name} already exists"));
        }
        let mut made = Vec::with_capacity(tensors.len());
        for tensor in tensors {
            let bytes = bytes(tensor, weights.seed)?;
            hash.update(&bytes);
            made.push((tensor, bytes));
        }
        files.push((name, made));
    }
    let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if found != weights.sha256 {
        return Err(format!("the tensors have the SHA-256 {found}, and {} is expected", weights.sha256));
    }
    for (name, tensors) in &files {
        let views = tensors
            .iter()
            .map(|(tensor, bytes)| Ok((&tensor.name, view(tensor, bytes)?)))
            .collect::<Result<Vec<_>, safetensors::SafeTensorError>>();
        views
            .and_then(|views| safetensors::serialize_to_file(views, None, &folder.join(name)))
            .map_err(|e| format!("writing {name}: {e}"))?;
    }
    Ok(())
}

fn view<'a>(tensor: &Tensor, bytes: &'a [u8]) -> Result<TensorView<'a>, safetensors::SafeTensorError> {
    let dtype = match tensor.dtype {
        Stored::F32 => Dtype::F32,
        Stored::F16 => Dtype::F16,
        Stored::Bf16 => Dtype::BF16,
    };
    TensorView::new(dtype, tensor.shape.clone(), bytes)
}

/// The bytes of a tensor, little-endian. Element i is the output of SplitMix64 after i + 1 steps, starting from the seed
/// and the tensor's name.
pub(crate) fn bytes(tensor: &Tensor, seed: u64) -> Result<Vec<u8>, String> {
    let Tensor { name, scale, offset, .. } = tensor;
    for (key, value) in [("scale", scale), ("offset", offset)] {
        if !(-LARGEST_NUMBER..=LARGEST_NUMBER).contains(value) {
            return Err(format!("{name}: {key} {value} is beyond {LARGEST_NUMBER}"));
        }
    }
    let mut state = seed ^ fnv1a(name);
    let mut bytes = Vec::new();
    for _ in 0..tensor.shape.iter().product() {
        let step = (splitmix64(&mut state) >> (63 - BITS)) as i64 - (1 << BITS);
        // An integer below 2^49: exact, as is its product with a power of two.
        let numerator = scale * step + (offset << BITS);
        let value = (numerator as f64 / (PARTS * f64::from(1 << BITS))) as f32;
        match tensor.dtype {
            Stored::F32 => bytes.extend(value.to_le_bytes()),
            Stored::F16 => bytes.extend(f16::from_f32(value).to_le_bytes()),
            Stored::Bf16 => bytes.extend(bf16::from_f32(value).to_le_bytes()),
        }
    }
    Ok(bytes)
}

/// Steele, Lea and Flood: Fast Splittable Pseudorandom Number Generators (2014).
fn splitmix64(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The 64-bit FNV-1a hash of a name's UTF-8 bytes.
fn fnv1a(name: &str) -> u64 {
    let step = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
    name.bytes().fold(0xCBF2_9CE4_8422_2325, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, shape: &[usize], dtype: Stored, scale: i64, offset: i64) -> Tensor {
        Tensor { name: name.to_owned(), shape: shape.to_vec(), dtype, scale, offset }
    }

    #[test]
    fn the_generator_and_the_hash_of_names_are_the_published_ones() {
        // The widely published outputs for the seed 1234567.
        let mut state = 1_234_567;
        let found = [(); 3].map(|()| splitmix64(&mut state));
        assert_eq!(found, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
        // From the authors' test vectors.
        assert_eq!(fnv1a(""), 0xCBF2_9CE4_8422_2325);
        assert_eq!(fnv1a("a"), 0xAF63_DC4C_8601_EC8C);
        assert_eq!(fnv1a("foobar"), 0x8594_4171_F739_67E8);
    }

    #[test]
    fn tensors_are_those_of_python() {
        // The output of `python xtask/python/seeded_weights.py`.
        let words = |dtype, size: usize| -> Vec<u32> {
            let bytes = bytes(&tensor("model.layers.0.weight", &[2, 3], dtype, 1597, 4096), 7).unwrap();
            let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, &byte| word << 8 | u32::from(byte));
            bytes.chunks(size).map(word).collect()
        };
        assert_eq!(
            words(Stored::F32, 4),
            [0x3f89_9ebf, 0x3f9e_d5fb, 0x3f21_c029, 0x3f2b_d2c2, 0x3f87_c6f2, 0x3fa8_ddff]
        );
        assert_eq!(words(Stored::F16, 2), [0x3c4d, 0x3cf7, 0x390e, 0x395f, 0x3c3e, 0x3d47]);
        assert_eq!(words(Stored::Bf16, 2), [0x3f8a, 0x3f9f, 0x3f22, 0x3f2c, 0x3f88, 0x3fa9]);

        let hash = "bb2bb49e02100f045dcacc39f9169e5baf034e536c4dace21e7d9bc780ee14a1".to_owned();
        let files = [("x.safetensors".to_owned(), vec![tensor("a", &[3], Stored::F16, 8192, 0)])];
        let weights =
            Weights { generator: GENERATOR.to_owned(), seed: u64::MAX, sha256: hash, files: files.into() };
        let folder = tempfile::tempdir().unwrap();
        write(&weights, folder.path()).unwrap();
        let file = fs::read(folder.path().join("x.safetensors")).unwrap();
        let read = safetensors::SafeTensors::deserialize(&file).unwrap();
        let read = read.tensor("a").unwrap();
        assert_eq!((read.dtype(), read.shape(), read.data().len()), (Dtype::F16, &[3][..], 6));
        assert_eq!(write(&weights, folder.path()).unwrap_err(), "x.safetensors already exists");
    }

    #[test]
    fn numbers_stay_between_the_bounds_and_reach_their_neighbourhood() {
        let values = |scale, offset| -> Vec<f32> {
            let bytes = bytes(&tensor("x", &[1000], Stored::F32, scale, offset), 3).unwrap();
            bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
        };
        let values = values(2048, 4096);
        assert!(values.iter().all(|value| (0.5..1.5).contains(value)));
        assert!(values.iter().any(|&value| value < 0.51) && values.iter().any(|&value| value > 1.49));
    }

    /// A copy of a case without its reference, to damage.
    fn damaged(from: &str, to: &str) -> Result<CheckpointFolder, CaseError> {
        let (case, copy) =
            (workspace::root().join("xtask/cases/lille_bf16_sharded"), tempfile::tempdir().unwrap());
        for name in ["config.json", "model.safetensors.index.json", FILE] {
            fs::copy(case.join(name), copy.path().join(name)).unwrap();
        }
        let file = copy.path().join(FILE);
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.contains(from), "{from}");
        fs::write(&file, text.replacen(from, to, 1)).unwrap();
        CheckpointFolder::of(copy.path())
    }

    #[test]
    fn a_case_gets_its_checkpoint_in_a_folder_of_its_own() {
        let folder = damaged("", "").unwrap();
        let mut names: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let shards = [1, 2, 3].map(|n| format!("model-0000{n}-of-00003.safetensors"));
        let expected =
            [&["config.json".to_owned()][..], &shards, &["model.safetensors.index.json".to_owned()]];
        assert_eq!(names, expected.concat());
        let path = folder.path().to_path_buf();
        drop(folder);
        assert!(!path.exists());

        let without = workspace::root().join("xtask/cases/lille_q4");
        assert_eq!(CheckpointFolder::of(&without).unwrap().path(), without);
    }

    #[test]
    fn a_case_with_wrong_weights_fails_with_its_reason() {
        let (case, copy) = (workspace::root().join("xtask/cases/lille_f32"), tempfile::tempdir().unwrap());
        for entry in fs::read_dir(&case).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
        }
        let run = |from: &str, to: &str| {
            let text = fs::read_to_string(case.join(FILE)).unwrap();
            assert!(text.contains(from), "{from}");
            fs::write(copy.path().join(FILE), text.replace(from, to)).unwrap();
            super::super::run_case(copy.path(), &super::super::Arguments::default()).unwrap()
        };
        let row = run("", "");
        assert!(row.passed && row.worst == Some(0.0), "{}", row.detail);
        let row = run("\"seed\": 6", "\"seed\": 7");
        assert!(
            !row.passed && row.detail.starts_with("weights.json: the tensors have the SHA-256"),
            "{}",
            row.detail
        );
        // The same bytes in another shape are refused by the loader.
        let row = run("[320, 64]", "[64, 320]");
        assert!(!row.passed && row.detail.contains("tok_embeddings.weight"), "{}", row.detail);
    }

    #[test]
    fn wrong_weights_are_named() {
        for (from, to, problem) in [
            ("splitmix64-uniform-1", "mersenne", "unknown generator \"mersenne\"; known is"),
            ("\"sha256\": \"", "\"sha256\": \"0", "is expected"),
            ("\"seed\": 2", "\"seed\": 3", "the tensors have the SHA-256 "),
            ("[64, 64]", "[64, 65]", "the tensors have the SHA-256 "),
            ("[64, 64]", "[64, -64]", "invalid value"),
            ("[64, 64]", "[4294967296, 4294967296]", "out_proj.weight: the shape [4294967296, 4294967296]"),
            ("[64, 64]", "[65536, 65536]", "a case may have at most 67108864"),
            ("BF16", "F64", "unknown variant `F64`"),
            ("\"scale\": 1596", "\"scale\": 99999999999", "scale 99999999999 is beyond"),
            ("model-00001-of-00003.safetensors", "../x.safetensors", "is not the name of a safetensors file"),
            ("model-00001-of-00003.safetensors", "config.json", "is not the name of a safetensors file"),
            ("\"offset\"", "\"offsets\"", "unknown field `offsets`"),
        ] {
            let Err(error) = damaged(from, to) else { panic!("{from} to {to}") };
            let error = super::super::in_full(&error);
            assert!(error.contains(FILE) && error.contains(problem), "{from}: {error}");
        }
    }
}
