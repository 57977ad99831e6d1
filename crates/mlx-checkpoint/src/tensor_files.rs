//! Which files of a folder hold the tensors.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::CheckpointError;
use crate::files::{is_present, read_json};
use crate::forms;
use crate::safetensors_file::{TensorInfo, read_header};

/// The tensor files of a folder.
pub(crate) struct TensorFiles {
    pub(crate) files: Vec<PathBuf>,
    /// Each key of the index, with the file that holds it as the index says.
    promised: Vec<(String, PathBuf)>,
}

impl TensorFiles {
    /// `model.safetensors`, or else the shards that the index names, or else every `model*.safetensors`.
    pub(crate) fn find(folder: &Path) -> Result<Self, CheckpointError> {
        let single = folder.join("model.safetensors");
        let index = folder.join("model.safetensors.index.json");
        if is_present(&single)? {
            Ok(Self { files: vec![single], promised: Vec::new() })
        } else if is_present(&index)? {
            Self::of_index(folder, index)
        } else {
            Self::without_index(folder)
        }
    }

    fn of_index(folder: &Path, index: PathBuf) -> Result<Self, CheckpointError> {
        let json = read_json(&index, |_| CheckpointError::NoTensors { folder: folder.to_path_buf() })?;
        let not_an_index = || CheckpointError::Index { file: index.clone() };
        let map = json.get("weight_map").and_then(serde_json::Value::as_object).ok_or_else(not_an_index)?;
        let mut promised = Vec::with_capacity(map.len());
        let mut files = BTreeSet::new();
        for (key, shard) in map {
            // A shard is a file beside the index. A path could lead out of the folder.
            let is_name = |name: &&str| name.ends_with(".safetensors") && !name.contains(['/', '\\']);
            let shard = shard.as_str().filter(is_name).ok_or_else(not_an_index)?;
            let file = folder.join(shard);
            if !files.contains(&file) {
                if !is_present(&file)? {
                    let (shard, key) = (shard.to_owned(), key.clone());
                    return Err(CheckpointError::NoShard { shard, key, index });
                }
                files.insert(file.clone());
            }
            promised.push((key.clone(), file));
        }
        if files.is_empty() {
            return Err(not_an_index());
        }
        Ok(Self { files: files.into_iter().collect(), promised })
    }

    fn without_index(folder: &Path) -> Result<Self, CheckpointError> {
        let io = |source| CheckpointError::Io { file: folder.to_path_buf(), source };
        let mut files = Vec::new();
        for entry in fs::read_dir(folder).map_err(io)? {
            let file = entry.map_err(io)?.path();
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with("model") && name.ends_with(".safetensors") && is_present(&file)? {
                files.push(file);
            }
        }
        if files.is_empty() {
            let absent = CheckpointError::NoTensors { folder: folder.to_path_buf() };
            return Err(forms::without_tensors(folder).unwrap_or(absent));
        }
        files.sort();
        Ok(Self { files, promised: Vec::new() })
    }

    /// The tensors of all files by key. Each is in one file, and in the file that the index says.
    pub(crate) fn read_headers(&self) -> Result<BTreeMap<String, TensorInfo>, CheckpointError> {
        let mut tensors: BTreeMap<String, TensorInfo> = BTreeMap::new();
        for (index, path) in self.files.iter().enumerate() {
            for (key, info) in read_header(path, index)? {
                if let Some(first) = tensors.get(&key).and_then(|first| self.file_of(first)) {
                    let first = first.clone();
                    return Err(CheckpointError::TensorTwice { key, first, second: path.clone() });
                }
                tensors.insert(key, info);
            }
        }
        for (key, shard) in &self.promised {
            let held = tensors.get(key).and_then(|info| self.file_of(info));
            if held != Some(shard) {
                return Err(CheckpointError::NotInShard { key: key.clone(), shard: shard.clone() });
            }
        }
        Ok(tensors)
    }
    fn file_of(&self, info: &TensorInfo) -> Option<&PathBuf> {
        info.in_file().map(|(file, _)| &self.files[file])
    }
}
