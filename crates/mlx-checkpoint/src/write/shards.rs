//! Writing tensors to one or several files, with an index.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::ops::ControlFlow;
use std::path::Path;

use mlx_rs::Array;
use serde_json::{Value, json};

use crate::error::CheckpointError;
use crate::safetensors_file::write_parameters;

/// Progress of the writing of a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The key of the layer that is written next.
    pub layer: &'a str,
    /// Its number, counted from 1.
    pub number: usize,
    /// Number of all layers.
    pub total: usize,
}

/// Is told of each layer, and answers whether to go on.
pub(crate) type OnProgress<'a> = &'a mut dyn FnMut(Progress<'_>) -> ControlFlow<()>;

/// Writes tensors to one file or to several, and an index. Each tensor is computed when its turn comes, and dropped when it
/// is written. Returns the names of the files.
pub(super) fn write_tensors(
    folder: &Path,
    tensors: Vec<(String, Array)>,
    parameters: usize,
    largest_shard: u64,
    progress: OnProgress<'_>,
) -> Result<Vec<String>, CheckpointError> {
    let bytes: usize = tensors.iter().map(|(_, array)| array.nbytes()).sum();
    let mut layers: Vec<&str> = tensors.iter().map(|(key, _)| layer_of(key)).collect();
    layers.dedup();
    let mut told = Told { layer: None, number: 0, total: layers.len(), progress, stopped: false };

    let shards = shards(tensors, largest_shard);
    let count = shards.len();
    let (mut names, mut weight_map) = (Vec::new(), BTreeMap::new());
    for (i, shard) in shards.into_iter().enumerate() {
        let name = match count {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
        };
        weight_map.extend(shard.iter().map(|(key, _)| (key.clone(), name.clone())));
        let file = folder.join(&name);
        let result = write_shard(&file, shard, &mut told);
        if told.stopped {
            return Err(CheckpointError::Stopped);
        }
        result.map_err(|e| failed(&file, &e))?;
        names.push(name);
    }
    let metadata = json!({ "total_size": bytes, "total_parameters": parameters });
    let index = json!({ "metadata": metadata, "weight_map": weight_map });
    write_json(&folder.join("model.safetensors.index.json"), &index)?;
    Ok(names)
}

/// The layer of a parameter.
fn layer_of(key: &str) -> &str {
    key.rsplit_once('.').map_or(key, |(layer, _)| layer)
}

/// Tensors in groups of at most `largest` bytes, in their order. A larger tensor is a group of its own.
fn shards(tensors: Vec<(String, Array)>, largest: u64) -> Vec<Vec<(String, Array)>> {
    let mut shards: Vec<Vec<(String, Array)>> = Vec::new();
    let mut size = 0;
    for (key, array) in tensors {
        let bytes = array.nbytes() as u64;
        match shards.last_mut() {
            Some(shard) if size + bytes <= largest => {
                size += bytes;
                shard.push((key, array));
            }
            _ => {
                size = bytes;
                shards.push(vec![(key, array)]);
            }
        }
    }
    shards
}

/// What the caller was told of the layers so far.
struct Told<'a> {
    layer: Option<String>,
    number: usize,
    total: usize,
    progress: OnProgress<'a>,
    stopped: bool,
}

impl Told<'_> {
    /// Tells the caller if a key is the first of its layer. Fails if the caller has stopped the writing.
    fn of(&mut self, key: &str) -> io::Result<()> {
        let layer = layer_of(key);
        if self.layer.as_deref() != Some(layer) {
            self.number += 1;
            let progress = Progress { layer, number: self.number, total: self.total };
            self.stopped |= (self.progress)(progress).is_break();
            self.layer = Some(layer.to_owned());
        }
        if self.stopped { Err(io::ErrorKind::Interrupted.into()) } else { Ok(()) }
    }
}

fn write_shard(file: &Path, tensors: Vec<(String, Array)>, told: &mut Told<'_>) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(1 << 20, File::create_new(file)?);
    write_parameters(&mut out, tensors, |key| told.of(key))?;
    out.into_inner()?.sync_all()
}

/// Writes a JSON file with a line for each value, as mlx-lm does.
pub(super) fn write_json(file: &Path, json: &Value) -> Result<(), CheckpointError> {
    fs::write(file, format!("{json:#}\n")).map_err(|e| failed(file, &e))
}

/// The error for a file that cannot be written.
pub(super) fn failed(file: &Path, e: &io::Error) -> CheckpointError {
    let problem = mlx_files::without_source_place(&e.to_string());
    CheckpointError::Write { file: file.to_path_buf(), problem }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use crate::checkpoint::Checkpoint;

    #[test]
    fn what_is_too_large_for_one_file_is_written_in_shards_that_load() {
        let ones = |n: i32| Array::ones::<f32>(&[n]).unwrap();
        let tensors =
            || [("a", 10), ("b", 10), ("c", 30), ("d", 5)].map(|(key, n)| (key.to_owned(), ones(n)));
        for (largest, files) in [(1000, 1), (80, 3), (1, 4)] {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("config.json"), r#"{"model_type": "test"}"#).unwrap();
            let mut told = Vec::new();
            let names = write_tensors(folder.path(), tensors().to_vec(), 55, largest, &mut |progress| {
                told.push((progress.layer.to_owned(), progress.number, progress.total));
                ControlFlow::Continue(())
            })
            .unwrap();
            assert_eq!(names.len(), files);
            assert_eq!(
                told,
                ["a", "b", "c", "d"]
                    .iter()
                    .zip(1..)
                    .map(|(key, i)| ((*key).to_owned(), i, 4))
                    .collect::<Vec<_>>()
            );
            let checkpoint = Checkpoint::open(folder.path()).unwrap();
            assert_eq!(checkpoint.files().len(), files);
            assert_eq!(checkpoint.headers().keys().collect::<Vec<_>>(), ["a", "b", "c", "d"]);
            let index = fs::read_to_string(folder.path().join("model.safetensors.index.json")).unwrap();
            let index: Value = serde_json::from_str(&index).unwrap();
            assert_eq!(index["metadata"], json!({ "total_size": 220, "total_parameters": 55 }));
        }
    }
}
