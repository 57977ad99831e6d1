//! An adapter folder: opened, and written.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use mlx_rs::Array;
use serde_json::Value;

use super::config::{AdapterConfig, AdapterKind, RawConfig};
use super::names::MlxLmNames;
use super::peft::{self, PeftConfig};
use crate::error::{CheckpointError, TensorProblem, of_config};
use crate::files::{is_present, read_text};
use crate::forms;
use crate::safetensors_file::{FLOATS, TensorInfo, read_header, write_parameters};
use crate::text::shortened;

/// The name of the config's file, in folders of mlx-lm and of PEFT.
pub(super) const CONFIG: &str = "adapter_config.json";
/// The name of the tensors' file in folders of mlx-lm.
pub(super) const TENSORS: &str = "adapters.safetensors";

/// What the last part of an adapter tensor's key may be.
const LEAVES: [&str; 3] = ["lora_a", "lora_b", "m"];

/// Adapters: those of a folder, or fresh adapters that are to be trained.
#[derive(Debug, Clone)]
pub struct Adapters {
    /// Empty for fresh adapters.
    pub(super) folder: PathBuf,
    pub(super) content: Content,
}

#[derive(Debug, Clone)]
pub(super) enum Content {
    /// Trained adapters of mlx-lm, and the header of their file.
    Trained(AdapterConfig, BTreeMap<String, TensorInfo>),
    /// Adapters that change nothing yet, and the seed of their random numbers.
    Fresh(AdapterConfig, u64),
    /// Whole weights that replace those of a checkpoint.
    Full(BTreeMap<String, TensorInfo>),
    /// Trained adapters of PEFT, and the header of their file.
    Peft(Box<PeftConfig>, BTreeMap<String, TensorInfo>),
}

impl Adapters {
    /// Everything about the adapters except their arrays.
    pub(crate) fn settings(&self) -> String {
        match &self.content {
            Content::Trained(config, _) => format!("{config:?}"),
            Content::Fresh(config, seed) => format!("{config:?} {seed}"),
            Content::Full(_) => "whole weights".to_owned(),
            Content::Peft(config, _) => format!("{config:?}"),
        }
    }

    /// Reads the config of an adapter folder and the header of its tensors.
    ///
    /// A folder of mlx-lm holds `adapter_config.json` and `adapters.safetensors`. Its `fine_tune_type` is `lora`, which
    /// is the default, `dora`, or `full`, where the tensors are whole weights that replace those of the checkpoint. A
    /// folder of PEFT holds `adapter_config.json` with the `peft_type` `LORA`, and `adapter_model.safetensors`.
    ///
    /// # Errors
    ///
    /// A [`CheckpointError`] that names the folder, the file, the key or the tensors at fault. Whether the tensors fit a
    /// model is checked when the model is built.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        let folder = folder.as_ref().to_path_buf();
        if !folder.is_dir() {
            return Err(forms::no_adapter_folder(&folder));
        }
        let config = folder.join(CONFIG);
        let absent = || CheckpointError::NoAdapters { folder: folder.clone(), missing: config.clone() };
        let text = read_text(&config, |_| absent())?;
        let json: Value = serde_json::from_str(&text)
            .map_err(|source| CheckpointError::Json { file: config.clone(), source })?;
        // Otherwise serde would accept an array too, and take its values in the order of the fields.
        if !json.is_object() {
            let problem =
                "it must be a JSON object with fine_tune_type and lora_parameters, or with peft_type";
            return Err(CheckpointError::AdapterConfig { file: config, problem: problem.to_owned() });
        }
        let content = if json.get("peft_type").is_some() {
            let config = PeftConfig::read(&text, &config, &folder)?;
            let header = read_adapter_header(&folder, &folder.join(peft::TENSORS))?;
            Content::Peft(Box::new(config), header)
        } else {
            open_mlx_lm(&folder, &config, &json)?
        };
        Ok(Self { folder, content })
    }

    /// Fresh adapters, to be trained. `lora_a` is random, `lora_b` is zero, and DoRA's magnitudes are those of the
    /// weights, so the adapters do not change what a model computes.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::AdapterConfig`] if a number of the config is out of range.
    pub fn fresh(config: AdapterConfig, seed: u64) -> Result<Self, CheckpointError> {
        let file = PathBuf::from(CONFIG);
        config.check().map_err(|problem| CheckpointError::AdapterConfig { file, problem })?;
        Ok(Self { folder: PathBuf::new(), content: Content::Fresh(config, seed) })
    }

    /// mlx-lm's config of the adapters; `None` for whole weights and for adapters of PEFT.
    pub fn config(&self) -> Option<&AdapterConfig> {
        match &self.content {
            Content::Trained(config, _) | Content::Fresh(config, _) => Some(config),
            Content::Full(_) | Content::Peft(..) => None,
        }
    }

    /// Writes an adapter folder that mlx-lm can load too. Of the model's `parameters` it writes those of adapters, whose
    /// keys end with `lora_a`, `lora_b` or `m`, under the names that mlx-lm gives their layers.
    ///
    /// If the folder already holds the two files, each is replaced in one step.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::AdapterConfig`] if no parameter belongs to an adapter or a number of the config is out of range;
    /// [`CheckpointError::Write`] if a file cannot be written.
    pub fn save<'p>(
        folder: impl AsRef<Path>,
        config: &AdapterConfig,
        parameters: impl IntoIterator<Item = (impl AsRef<str>, &'p Array)>,
    ) -> Result<(), CheckpointError> {
        let folder = folder.as_ref();
        let file = folder.join(CONFIG);
        config.check().map_err(|problem| CheckpointError::AdapterConfig { file: file.clone(), problem })?;
        let parameters: Vec<_> = parameters.into_iter().collect();
        let names = MlxLmNames::of(parameters.iter().map(|(key, _)| key));
        let adapters = parameters.iter().filter(|(key, _)| adapter_leaf(key.as_ref()).is_some());
        let tensors: BTreeMap<String, &Array> =
            adapters.map(|(key, array)| (names.in_adapters(key.as_ref()), *array)).collect();
        if tensors.is_empty() {
            let problem = "the model has no adapters".to_owned();
            return Err(CheckpointError::AdapterConfig { file, problem });
        }
        fs::create_dir_all(folder).map_err(|source| CheckpointError::Write {
            file: folder.to_path_buf(),
            problem: source.to_string(),
        })?;
        let write = |e: io::Error, file: &Path| CheckpointError::Write {
            file: file.to_path_buf(),
            problem: mlx_files::without_source_place(&e.to_string()),
        };
        let target = folder.join(TENSORS);
        let tensors = tensors.into_iter().map(|(key, array)| (key, array.clone())).collect();
        mlx_files::write_with(&target, |out| write_parameters(out, tensors, |_| Ok(())))
            .map_err(|e| write(e, &target))?;
        mlx_files::write(&file, format!("{:#}\n", config.to_json())).map_err(|e| write(e, &file))
    }
}

/// What a folder of mlx-lm holds, by its config.
fn open_mlx_lm(folder: &Path, config: &Path, json: &Value) -> Result<Content, CheckpointError> {
    let tensors = folder.join(TENSORS);
    if !is_present(&tensors)? {
        return Err(CheckpointError::NoAdapters { folder: folder.to_path_buf(), missing: tensors });
    }
    let refused = |problem: String| CheckpointError::AdapterConfig { file: config.to_path_buf(), problem };
    if let Some(list @ Value::Array(_)) = json.get("lora_parameters") {
        let list = list.to_string();
        let list = shortened(&list);
        return Err(refused(format!("lora_parameters is {list}, and must be an object with rank and scale")));
    }
    let raw: RawConfig = serde_path_to_error::deserialize(json).map_err(|e| of_config(config, e))?;
    let kind = match raw.fine_tune_type.as_str() {
        "lora" => Some(AdapterKind::Lora),
        "dora" => Some(AdapterKind::Dora),
        "full" => None,
        other => {
            let other = format!("{other:?}");
            let other = shortened(&other);
            return Err(refused(format!("fine_tune_type is {other}; known are lora, dora and full")));
        }
    };
    let header = read_adapter_header(folder, &tensors)?;
    Ok(match kind {
        Some(kind) => Content::Trained(AdapterConfig::from_raw(raw, kind, config).map_err(refused)?, header),
        None => Content::Full(header),
    })
}

fn read_adapter_header(folder: &Path, file: &Path) -> Result<BTreeMap<String, TensorInfo>, CheckpointError> {
    let header = read_header(file, 0)?;
    let unknown = header.iter().filter(|(_, info)| !info.dtype.is_read_by_mlx());
    let problems: Vec<_> = unknown
        .map(|(key, info)| TensorProblem::Dtype {
            key: key.clone(),
            expected: FLOATS,
            found: format!("{:?}", info.dtype),
        })
        .collect();
    if problems.is_empty() {
        return Ok(header);
    }
    Err(CheckpointError::Adapters { folder: folder.to_path_buf(), problems })
}

/// The layer of an adapter tensor of mlx-lm, and the last part of the key.
pub(super) fn adapter_leaf(key: &str) -> Option<(&str, &str)> {
    key.rsplit_once('.').filter(|(_, leaf)| LEAVES.contains(leaf))
}
