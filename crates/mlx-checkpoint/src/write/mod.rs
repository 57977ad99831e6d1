//! Writing a checkpoint folder: config, companions and tensors.

mod shards;

use std::fs::{self, File};
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use mlx_files::Partial;
use mlx_layers::Quantization;
use mlx_rs::Array;
use serde_json::Value;

use crate::checkpoint::Checkpoint;
use crate::convert::options::LARGEST_SHARD;
use crate::error::CheckpointError;
use crate::files::{is_present, read_text};
use crate::names::TensorNames;
pub use shards::Progress;
use shards::{OnProgress, failed, write_json, write_tensors};

/// The extensions of the files that belong to a model beside its config and its tensors: tokenizer, chat template,
/// generation config.
const COMPANIONS: [&str; 7] = ["json", "jsonl", "jinja", "model", "tiktoken", "txt", "py"];

/// The file of a folder that has the stop tokens.
const GENERATION: &str = "generation_config.json";

/// What is written into a folder.
pub(crate) struct Contents {
    pub(crate) config: Value,
    /// In any order.
    pub(crate) tensors: Vec<(String, Array)>,
    /// Number of parameters of the model.
    pub(crate) parameters: usize,
    pub(crate) largest_shard: u64,
}

impl Checkpoint {
    /// Writes a checkpoint folder with these tensors, the config of this checkpoint and the files of its tokenizer.
    ///
    /// `names` comes from the architecture of the model. At the place of `folder` there must be nothing or an empty folder:
    /// everything is written beside it and renamed at the end. If the model was [`fused`](Self::fused) into full precision,
    /// the config loses its quantization.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Exists`], or [`CheckpointError::Write`] with the file that cannot be written.
    pub fn save_as<'p>(
        &self,
        folder: impl AsRef<Path>,
        tensors: impl IntoIterator<Item = (impl AsRef<str>, &'p Array)>,
        names: &TensorNames,
    ) -> Result<(), CheckpointError> {
        let tensors: Vec<_> =
            tensors.into_iter().map(|(key, array)| (key.as_ref().to_owned(), array.clone())).collect();
        let mut config = self.saved_config()?;
        if let Some(config) = config.as_object_mut().filter(|_| self.is_dequantized()) {
            config.remove("quantization");
            config.remove("quantization_config");
        } else {
            let layers: Vec<String> = tensors
                .iter()
                .filter_map(|(key, _)| key.strip_suffix(".scales").map(str::to_owned))
                .collect();
            self.check_no_blocks(&layers)?;
        }
        let parameters =
            parameter_count(&tensors, |layer| self.quantization_of(layer).filter(|_| !self.is_dequantized()));
        let contents = Contents { config, tensors, parameters, largest_shard: LARGEST_SHARD };
        self.write(folder.as_ref(), contents, names, &mut |_| ControlFlow::Continue(())).map(drop)
    }

    /// The config as mlx-lm saves it: without the name of another place and the config of a vision part, which is not
    /// written, and with the stop tokens of the generation config.
    pub(crate) fn saved_config(&self) -> Result<Value, CheckpointError> {
        let generation: Value = match self.generation_config()? {
            Some(text) => serde_json::from_str(&text).unwrap_or_default(),
            None => Value::Null,
        };
        let mut config = self.config.clone();
        let Some(keys) = config.as_object_mut() else { return Ok(config) };
        keys.remove("_name_or_path");
        keys.remove("vision_config");
        if let Some(eos) = generation.get("eos_token_id").filter(|eos| is_given(eos)) {
            keys.insert("eos_token_id".to_owned(), eos.clone());
        }
        let quantization = keys.get("quantization").or_else(|| keys.get("quantization_config")).cloned();
        if let Some(quantization) = quantization.filter(|quantization| !quantization.is_null()) {
            keys.insert("quantization".to_owned(), quantization.clone());
            keys.insert("quantization_config".to_owned(), quantization);
        }
        Ok(config)
    }

    /// The text of the generation config, which has the stop tokens.
    fn generation_config(&self) -> Result<Option<String>, CheckpointError> {
        if let Some((_, text)) = self.companions.iter().find(|(name, _)| name == Path::new(GENERATION)) {
            return Ok(Some(text.clone()));
        }
        let file = self.path().join(GENERATION);
        if !self.path().is_dir() || !is_present(&file)? {
            return Ok(None);
        }
        read_text(&file, |file| CheckpointError::NoConfig { file }).map(Some)
    }

    /// Writes everything beside `folder`, and renames it at the end. Returns the names of the tensor files.
    pub(crate) fn write(
        &self,
        folder: &Path,
        contents: Contents,
        names: &TensorNames,
        progress: OnProgress<'_>,
    ) -> Result<Vec<String>, CheckpointError> {
        is_free(folder)?;
        // A path without a slash at its end has a name.
        let folder = &*folder.components().collect::<PathBuf>();
        let write = |e| failed(folder, &e);
        if let Some(parent) = folder.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            fs::create_dir_all(parent).map_err(write)?;
        }
        let partial = Partial::folder(folder).map_err(write)?;
        write_json(&partial.path().join("config.json"), &contents.config)?;
        // Before the tensors, so that a file that cannot be copied fails at once.
        self.copy_companions(partial.path())?;
        let Contents { mut tensors, parameters, largest_shard, .. } = contents;
        tensors.sort_by(|(a, _), (b, _)| names.compare(a, b));
        let files = write_tensors(partial.path(), tensors, parameters, largest_shard, progress)?;
        partial.commit().map_err(write)?;
        Ok(files)
    }

    fn copy_companions(&self, folder: &Path) -> Result<(), CheckpointError> {
        for (name, text) in &self.companions {
            let file = folder.join(name);
            let written =
                file.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&file, text));
            written.map_err(|e| failed(&file, &e))?;
        }
        if !self.path().is_dir() {
            return Ok(()); // a GGUF file, whose tokenizer is in its metadata
        }
        let read = |source| CheckpointError::Io { file: self.path().to_path_buf(), source };
        for entry in fs::read_dir(self.path()).map_err(read)? {
            let file = entry.map_err(read)?.path();
            let extension = file.extension().unwrap_or_default().to_string_lossy();
            let name = file.file_name().unwrap_or_default();
            let ours = name == "config.json" || name.to_string_lossy().ends_with(".index.json");
            let is_companion = self.companions.iter().any(|(given, _)| given == Path::new(name));
            if ours || is_companion || !COMPANIONS.contains(&&*extension) || file.is_dir() {
                continue;
            }
            let read = |source| CheckpointError::Io { file: file.clone(), source };
            let bytes = mlx_files::read(&file, mlx_files::LARGEST_TOKENIZER).map_err(read)?;
            let copy = folder.join(name);
            let copied = File::create_new(&copy).and_then(|mut to| to.write_all(&bytes));
            copied.map_err(|e| failed(&copy, &e))?;
        }
        Ok(())
    }
}

/// Checks that a folder can be written to this place.
///
/// # Errors
///
/// [`CheckpointError::Exists`] unless nothing or an empty folder is there.
pub(crate) fn is_free(folder: &Path) -> Result<(), CheckpointError> {
    let is_empty = || fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none());
    if folder.symlink_metadata().is_ok() && !is_empty() {
        return Err(CheckpointError::Exists { folder: folder.to_path_buf() });
    }
    Ok(())
}

/// Whether Python takes a value for true, as mlx-lm tests whether a generation config has stop tokens.
fn is_given(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(entries) => !entries.is_empty(),
    }
}

/// Number of parameters in these tensors. A quantized layer counts as before it was quantized.
pub(crate) fn parameter_count(
    tensors: &[(String, Array)],
    quantization_of: impl Fn(&str) -> Option<Quantization>,
) -> usize {
    let count = |(key, array): &(String, Array)| {
        let (layer, part) = key.rsplit_once('.').unwrap_or(("", key));
        match (part, quantization_of(layer)) {
            ("weight", Some(quantization)) => array.size() * 32 / quantization.bits() as usize,
            ("scales" | "biases", Some(_)) => 0,
            _ => array.size(),
        }
    };
    tensors.iter().map(count).sum()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn an_empty_folder_is_free_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        is_free(folder.path()).unwrap();
        is_free(&folder.path().join("absent")).unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        for taken in [folder.path(), &file] {
            assert!(matches!(is_free(taken).unwrap_err(), CheckpointError::Exists { .. }));
        }
    }
}
