//! Writing a checkpoint folder.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use mlx_rs::Array;
use serde_json::{Value, json};

use crate::safetensors_file::without_place;
use crate::{Checkpoint, CheckpointError};

/// Bytes of one tensor file, as in mlx-lm and transformers.
const LARGEST_SHARD: usize = 5 << 30;

/// What of a folder belongs to the model beside config and tensors: tokenizer, chat template, generation config.
const COMPANIONS: [&str; 5] = ["json", "jinja", "model", "txt", "py"];

impl Checkpoint {
    /// Writes a checkpoint folder with this one's config and these tensors, and the files of the tokenizer.
    ///
    /// The folder must not exist: everything is written beside it, and renamed at the end. Where the model was
    /// [`fused`](Self::fused) into full precision, the config loses its quantization.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Exists`], or [`CheckpointError::Write`] with the file that cannot be written.
    pub fn save_as<'p>(
        &self,
        folder: impl AsRef<Path>,
        tensors: impl IntoIterator<Item = (impl AsRef<str>, &'p Array)>,
    ) -> Result<(), CheckpointError> {
        let folder = folder.as_ref();
        if folder.exists() {
            return Err(CheckpointError::Exists { folder: folder.to_path_buf() });
        }
        // Without a slash at its end, behind which the other name would lie inside.
        let folder = &*folder.components().collect::<PathBuf>();
        let mut partial = folder.as_os_str().to_owned();
        partial.push(format!(".partial-{}", std::process::id()));
        let partial = PathBuf::from(partial);
        let tensors = tensors.into_iter().map(|(key, array)| (key.as_ref().to_owned(), array));
        let written = self.write_into(&partial, tensors.collect(), LARGEST_SHARD);
        let written = written.and_then(|()| fs::rename(&partial, folder).map_err(|e| failed(folder, &e)));
        if written.is_err() {
            // What could not be written whole is of no use, and that it may stay is no other error.
            let _ = fs::remove_dir_all(&partial);
        }
        written
    }

    fn write_into(
        &self,
        folder: &Path,
        tensors: BTreeMap<String, &Array>,
        largest_shard: usize,
    ) -> Result<(), CheckpointError> {
        fs::create_dir_all(folder).map_err(|e| failed(folder, &e))?;
        let mut config = self.config.clone();
        if let Some(config) = config.as_object_mut().filter(|_| self.is_dequantized()) {
            config.remove("quantization");
            config.remove("quantization_config");
        }
        write_json(&folder.join("config.json"), &config)?;
        write_tensors(folder, tensors, largest_shard)?;
        self.copy_companions(folder)
    }

    fn copy_companions(&self, folder: &Path) -> Result<(), CheckpointError> {
        let read = |source| CheckpointError::Io { file: self.folder.clone(), source };
        for entry in fs::read_dir(&self.folder).map_err(read)? {
            let file = entry.map_err(read)?.path();
            let extension = file.extension().unwrap_or_default().to_string_lossy();
            let name = file.file_name().unwrap_or_default();
            let ours = ["config.json", "model.safetensors.index.json"].iter().any(|ours| name == *ours);
            if file.is_file() && !ours && COMPANIONS.contains(&&*extension) {
                fs::copy(&file, folder.join(name)).map_err(|e| failed(&file, &e))?;
            }
        }
        Ok(())
    }
}

/// Tensors in one file, or in several with an index.
fn write_tensors(
    folder: &Path,
    tensors: BTreeMap<String, &Array>,
    largest_shard: usize,
) -> Result<(), CheckpointError> {
    let total: usize = tensors.values().map(|array| array.nbytes()).sum();
    let mut shards: Vec<BTreeMap<String, &Array>> = Vec::new();
    let mut size = 0;
    for (key, array) in tensors {
        match shards.last_mut() {
            Some(shard) if size + array.nbytes() <= largest_shard => {
                size += array.nbytes();
                shard.insert(key, array);
            }
            _ => {
                size = array.nbytes();
                shards.push(BTreeMap::from([(key, array)]));
            }
        }
    }
    let count = shards.len();
    let mut weight_map = BTreeMap::new();
    for (i, shard) in shards.into_iter().enumerate() {
        let name = match count {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
        };
        let file = folder.join(&name);
        let metadata = std::collections::HashMap::from([("format".to_owned(), "mlx".to_owned())]);
        Array::save_safetensors(&shard, &metadata, &file)
            .map_err(|e| CheckpointError::Write { file, problem: without_place(&e.to_string()) })?;
        weight_map.extend(shard.into_keys().map(|key| (key, name.clone())));
    }
    if count == 1 {
        return Ok(());
    }
    let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
    write_json(&folder.join("model.safetensors.index.json"), &index)
}

fn write_json(file: &Path, json: &Value) -> Result<(), CheckpointError> {
    fs::write(file, format!("{json:#}\n")).map_err(|e| failed(file, &e))
}

/// Writes a file beside its place and then puts it there, so that nobody sees half of it. `write` is given a path
/// with the same extension.
pub(crate) fn write_in_place(
    file: &Path,
    write: impl FnOnce(&Path) -> Result<(), String>,
) -> Result<(), CheckpointError> {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let partial = file.with_file_name(format!("partial-{}-{name}", std::process::id()));
    let written = write(&partial).and_then(|()| fs::rename(&partial, file).map_err(|e| e.to_string()));
    written.map_err(|problem| {
        // Nothing is left to do for a file that cannot be removed.
        let _ = fs::remove_file(&partial);
        CheckpointError::Write { file: file.to_path_buf(), problem }
    })
}

fn failed(file: &Path, e: &io::Error) -> CheckpointError {
    CheckpointError::Write { file: file.to_path_buf(), problem: e.to_string() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn what_is_too_large_for_one_file_is_written_in_shards_that_load() {
        let ones = |n: i32| Array::ones::<f32>(&[n]).unwrap();
        let arrays = [("a", ones(10)), ("b", ones(10)), ("c", ones(30)), ("d", ones(5))];
        let tensors = || arrays.iter().map(|(key, array)| ((*key).to_owned(), array)).collect();
        for (largest, files) in [(1000, 1), (80, 3), (1, 4)] {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("config.json"), r#"{"model_type": "test"}"#).unwrap();
            write_tensors(folder.path(), tensors(), largest).unwrap();
            let checkpoint = Checkpoint::open(folder.path()).unwrap();
            assert_eq!(checkpoint.files().len(), files);
            assert_eq!(checkpoint.headers().keys().collect::<Vec<_>>(), ["a", "b", "c", "d"]);
        }
    }
}
