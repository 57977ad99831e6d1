//! Reads `case.json` and `reference.safetensors`.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use mlx_kvcache::{CacheError, CacheFileError};
use mlx_models::LoadError;
use mlx_models::generate::GenerateError;
use mlx_rope::{LongRopeMode, RopeError, RopeScaling};
use mlx_rs::Array;
use mlx_rs::error::Exception;
use mlx_sys::cpu_kernels;
use mlx_testing::Tolerance;
use serde::Deserialize;

/// The device on which the results must be exactly equal, unless the case names another one. There, the reference and we
/// run the same MLX build on the same kind of processor.
pub(super) const DEFAULT_DEVICE: &str = "cpu-linux-x86_64";

/// A parity case: what to run, and the results of the reference.
#[derive(Debug)]
pub(super) struct Case {
    pub(super) name: String,
    pub(super) folder: PathBuf,
    /// The program that made the reference, with its version.
    pub(super) oracle: String,
    pub(super) kind: Kind,
    compare: Compare,
    device: String,
    reference: HashMap<String, Array>,
}

/// The kind of a case, with its keys.
#[derive(Debug)]
pub(super) enum Kind {
    Model(ModelCase),
    Rope(RopeCase),
    Cache(CacheCase),
}

/// A checkpoint, and the number of tokens that each call reads.
#[derive(Debug, Deserialize)]
pub(super) struct ModelCase {
    pub(super) calls: Vec<usize>,
    #[serde(default)]
    pub(super) longrope: LongRope,
    /// A folder with adapters, inside the case's folder.
    pub(super) adapters: Option<String>,
    /// Checkpoint folders with the adapters fused into the weights, inside the case's folder.
    #[serde(default)]
    pub(super) fused: Vec<FusedCase>,
}

/// A checkpoint that the reference fused.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FusedCase {
    pub(super) folder: String,
    pub(super) dequantize: bool,
}

/// The arguments of a rotation, and the offsets of its calls.
#[derive(Debug, Deserialize)]
pub(super) struct RopeCase {
    pub(super) rope: RopeArguments,
    pub(super) calls: Vec<RopeCall>,
    #[serde(default)]
    pub(super) longrope: LongRope,
}

/// The arguments of `initialize_rope`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RopeArguments {
    pub(super) dims: i32,
    pub(super) base: f64,
    pub(super) traditional: bool,
    #[serde(deserialize_with = "or_none")]
    pub(super) scaling: RopeScaling,
    pub(super) max_position_embeddings: Option<i32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RopeCall {
    pub(super) offset: Offset,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "an offset is a whole number of 32 bits, or a list with one for each row")]
pub(super) enum Offset {
    One(i32),
    PerRow(Vec<i32>),
}

/// A cache, and the operations on it.
#[derive(Debug, Deserialize)]
pub(super) struct CacheCase {
    pub(super) cache: CacheArguments,
    /// The window of a full cache's mask.
    pub(super) window: Option<i32>,
    pub(super) scale: f32,
    pub(super) ops: Vec<CacheOperation>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CacheArguments {
    #[serde(rename = "type")]
    pub(super) kind: CacheType,
    pub(super) max_size: Option<i32>,
    pub(super) keep: Option<i32>,
    pub(super) rewind: Option<i32>,
    pub(super) quantize: Option<CacheQuantization>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum CacheType {
    Full,
    Rotating,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CacheQuantization {
    pub(super) bits: i32,
    pub(super) group_size: i32,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum CacheOperation {
    /// Appends this many tokens, and attends.
    Update { n: i32 },
    /// Removes this many of the newest tokens.
    Trim { n: i32 },
    /// Saves the cache to a file, loads it and continues with the result.
    SaveLoad,
}

/// The rule for LongRoPE: that of transformers (`hf`) or of mlx-lm.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum LongRope {
    #[default]
    Hf,
    MlxLm,
}

impl From<LongRope> for LongRopeMode {
    fn from(rule: LongRope) -> Self {
        match rule {
            LongRope::Hf => Self::ByLength,
            LongRope::MlxLm => Self::MlxLm,
        }
    }
}

/// Reads a scaling; `null` means none.
fn or_none<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<RopeScaling, D::Error> {
    // By way of an object, because an empty list would otherwise count as an object without keys.
    let object: Option<serde_json::Map<String, serde_json::Value>> = Option::deserialize(deserializer)?;
    let Some(object) = object else { return Ok(RopeScaling::Default) };
    serde_json::from_value(object.into()).map_err(serde::de::Error::custom)
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(tag = "mode", rename_all = "lowercase", deny_unknown_fields)]
enum Compare {
    Exact {
        /// The tolerance, absolute and relative, where bits cannot be equal: with kernels, or on another device. Without it,
        /// that of the dtype.
        elsewhere: Option<f64>,
    },
    Close {
        rtol: f64,
        atol: f64,
    },
}

/// The keys of every kind. Each kind reads its other keys itself.
#[derive(Deserialize)]
struct Header {
    name: String,
    kind: String,
    oracle: String,
    compare: Compare,
    device: Option<String>,
}

/// The reason why a case cannot be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(super) enum CaseError {
    #[error("reading {}: {source}", file.display())]
    Io { file: PathBuf, source: std::io::Error },
    #[error("{}: {source}", file.display())]
    Json { file: PathBuf, source: serde_json::Error },
    #[error("unknown kind {found:?}; known are \"model\", \"rope\" and \"cache\"")]
    Kind { found: String },
    #[error("case.json: {problem}")]
    Description { problem: String },
    #[error("reference.safetensors: {problem}")]
    Reference { problem: String },
    #[error("weights.json: {problem}")]
    Weights { problem: String },
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Generate(#[from] GenerateError),
    #[error(transparent)]
    Rope(#[from] RopeError),
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error(transparent)]
    CacheFile(#[from] CacheFileError),
    #[error("MLX: {0}")]
    Mlx(#[from] Exception),
    #[error("a panic, which is a bug: {said}")]
    Panic { said: String },
}

impl Case {
    pub(super) fn read(folder: &Path) -> Result<Self, CaseError> {
        let file = regular(folder.join("case.json"))?;
        let text =
            fs::read_to_string(&file).map_err(|source| CaseError::Io { file: file.clone(), source })?;
        let json = |source| CaseError::Json { file: file.clone(), source };
        let header: Header = serde_json::from_str(&text).map_err(json)?;
        let wrong = |problem: String| Err(CaseError::Description { problem });
        if header.name.is_empty() {
            return wrong("name is empty".to_owned());
        }
        let bounds = match header.compare {
            Compare::Exact { elsewhere } => [elsewhere.unwrap_or(0.0); 2],
            Compare::Close { rtol, atol } => [rtol, atol],
        };
        if let Some(found) = bounds.into_iter().find(|bound| !(bound.is_finite() && *bound >= 0.0)) {
            return wrong(format!("a bound of compare is {found}, and must be 0 or larger"));
        }
        let kind = match header.kind.as_str() {
            "model" => Kind::Model(serde_json::from_str(&text).map_err(json)?),
            "rope" => Kind::Rope(serde_json::from_str(&text).map_err(json)?),
            "cache" => Kind::Cache(serde_json::from_str(&text).map_err(json)?),
            _ => return Err(CaseError::Kind { found: header.kind }),
        };
        let reference = Array::load_safetensors(regular(folder.join("reference.safetensors"))?)
            .map_err(|e| CaseError::Reference { problem: e.to_string() })?;
        Ok(Self {
            name: header.name,
            folder: folder.to_path_buf(),
            oracle: header.oracle,
            kind,
            compare: header.compare,
            device: header.device.unwrap_or_else(|| DEFAULT_DEVICE.to_owned()),
            reference,
        })
    }

    /// A tensor of the reference.
    pub(super) fn tensor(&self, name: &str) -> Result<&Array, CaseError> {
        self.optional_tensor(name)
            .ok_or_else(|| CaseError::Reference { problem: format!("there is no tensor {name}") })
    }

    /// A tensor of the reference that a case need not have.
    pub(super) fn optional_tensor(&self, name: &str) -> Option<&Array> {
        self.reference.get(name)
    }

    /// Whether the case requires the bits of stock MLX.
    pub(super) const fn is_exact(&self) -> bool {
        matches!(self.compare, Compare::Exact { .. })
    }

    /// Whether the case requires the bits of stock MLX's CPU code, and something else computes: our kernels, or a GPU.
    /// They need not give these bits, but must be as close to the exact result.
    pub(super) fn rounds_otherwise(&self) -> bool {
        self.is_exact() && (cpu_kernels::is_enabled() || this_device_kind() == "gpu")
    }

    fn is_exact_here(&self) -> bool {
        self.is_exact() && self.device == this_device() && !cpu_kernels::is_enabled()
    }

    /// The tolerance for a tensor whose reference has this dtype, on this device.
    pub(super) fn tolerance(&self, dtype: mlx_rs::Dtype) -> Tolerance {
        match self.compare {
            Compare::Exact { .. } if self.is_exact_here() => Tolerance::Exact,
            Compare::Exact { elsewhere: Some(bound) } => Tolerance::Close { rtol: bound, atol: bound },
            Compare::Exact { elsewhere: None } => Tolerance::of(dtype),
            Compare::Close { rtol, atol } => Tolerance::Close { rtol, atol },
        }
    }

    /// The comparison as text, for the report.
    pub(super) fn comparison(&self) -> String {
        match self.compare {
            Compare::Exact { .. } if self.is_exact_here() => "exact".to_owned(),
            Compare::Exact { .. } if self.device == this_device() => "close (with kernels)".to_owned(),
            Compare::Exact { .. } => format!("close (exact on {})", self.device),
            Compare::Close { rtol, atol } => format!("close rtol {rtol:e} atol {atol:e}"),
        }
    }
}

/// Checks that this is a regular file, or a link to one. Reading a folder gives an error without its name, and reading a
/// pipe would wait.
fn regular(file: PathBuf) -> Result<PathBuf, CaseError> {
    let source = match fs::metadata(&file) {
        Ok(metadata) if metadata.is_file() => return Ok(file),
        Ok(_) => std::io::Error::other("not a regular file"),
        Err(e) => e,
    };
    Err(CaseError::Io { file, source })
}

/// The device that MLX uses here, in the form of a case's `device`.
pub(super) fn this_device() -> String {
    format!("{}-{}-{}", this_device_kind(), std::env::consts::OS, std::env::consts::ARCH)
}

/// `gpu` or `cpu`.
pub(super) fn this_device_kind() -> &'static str {
    if mlx_rs::Device::default().to_string().contains("gpu") { "gpu" } else { "cpu" }
}
