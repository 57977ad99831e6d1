//! Writing a checkpoint folder.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use mlx_files::Partial;
use mlx_layers::Quantization;
use mlx_rs::{Array, Dtype};
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::{Value, json};

use crate::safetensors_file::without_place;
use crate::{Checkpoint, CheckpointError, TensorDtype, is_present, read_text};

/// Bytes of one tensor file, as in mlx-lm.
pub(crate) const LARGEST_SHARD: u64 = 5 << 30;

/// What of a folder belongs to the model beside config and tensors: tokenizer, chat template, generation config.
const COMPANIONS: [&str; 7] = ["json", "jsonl", "jinja", "model", "tiktoken", "txt", "py"];

/// How far the writing of a folder has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The layer that is being written, by its key.
    pub layer: &'a str,
    /// Its number, from one on.
    pub number: usize,
    /// How many there are.
    pub total: usize,
}

/// Told of each layer; answers whether to go on.
pub(crate) type OnProgress<'a> = &'a mut dyn FnMut(Progress<'_>) -> ControlFlow<()>;

/// What is written into a folder.
pub(crate) struct Contents {
    pub(crate) config: Value,
    /// In no order.
    pub(crate) tensors: Vec<(String, Array)>,
    /// How many numbers they stand for.
    pub(crate) parameters: usize,
    pub(crate) largest_shard: u64,
}

impl Checkpoint {
    /// Writes a checkpoint folder with this one's config and these tensors, and the files of the tokenizer.
    ///
    /// There must be nothing yet, or an empty folder: everything is written beside it, and renamed at the end. Where
    /// the model was [`fused`](Self::fused) into full precision, the config loses its quantization.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Exists`], or [`CheckpointError::Write`] with the file that cannot be written.
    pub fn save_as<'p>(
        &self,
        folder: impl AsRef<Path>,
        tensors: impl IntoIterator<Item = (impl AsRef<str>, &'p Array)>,
    ) -> Result<(), CheckpointError> {
        let tensors: Vec<_> =
            tensors.into_iter().map(|(key, array)| (key.as_ref().to_owned(), array.clone())).collect();
        let mut config = self.saved_config()?;
        if let Some(config) = config.as_object_mut().filter(|_| self.is_dequantized()) {
            config.remove("quantization");
            config.remove("quantization_config");
        }
        let parameters =
            parameter_count(&tensors, |layer| self.quantization_of(layer).filter(|_| !self.is_dequantized()));
        let contents = Contents { config, tensors, parameters, largest_shard: LARGEST_SHARD };
        self.write(folder.as_ref(), contents, &mut |_| ControlFlow::Continue(())).map(drop)
    }

    /// The config as mlx-lm saves it: without what only names another place or a part that is not written, and with
    /// the ends of a turn that the generation config names.
    pub(crate) fn saved_config(&self) -> Result<Value, CheckpointError> {
        let generation = self.folder.join("generation_config.json");
        let generation = if is_present(&generation)? {
            let read = |file| CheckpointError::NoConfig { file };
            serde_json::from_str(&read_text(&generation, read)?).unwrap_or_default()
        } else {
            Value::Null
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

    /// Writes everything beside `folder`, and renames it. Returns the names of the tensor files.
    pub(crate) fn write(
        &self,
        folder: &Path,
        contents: Contents,
        progress: OnProgress<'_>,
    ) -> Result<Vec<String>, CheckpointError> {
        is_free(folder)?;
        // Without a slash at its end.
        let folder = &*folder.components().collect::<PathBuf>();
        let write = |e| failed(folder, &e);
        if let Some(parent) = folder.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            fs::create_dir_all(parent).map_err(write)?;
        }
        // What could not be written whole is removed again.
        let partial = Partial::folder(folder).map_err(write)?;
        let written = self.write_into(partial.path(), contents, progress)?;
        partial.commit().map_err(write)?;
        Ok(written)
    }

    fn write_into(
        &self,
        folder: &Path,
        contents: Contents,
        progress: OnProgress<'_>,
    ) -> Result<Vec<String>, CheckpointError> {
        write_json(&folder.join("config.json"), &contents.config)?;
        // First, since what cannot be copied is known at once.
        self.copy_companions(folder)?;
        let Contents { tensors, parameters, largest_shard, .. } = contents;
        write_tensors(folder, tensors, parameters, largest_shard, progress)
    }

    fn copy_companions(&self, folder: &Path) -> Result<(), CheckpointError> {
        let read = |source| CheckpointError::Io { file: self.folder.clone(), source };
        for entry in fs::read_dir(&self.folder).map_err(read)? {
            let file = entry.map_err(read)?.path();
            let extension = file.extension().unwrap_or_default().to_string_lossy();
            let name = file.file_name().unwrap_or_default();
            let ours = name == "config.json" || name.to_string_lossy().ends_with(".index.json");
            if ours || !COMPANIONS.contains(&&*extension) || file.is_dir() {
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

/// Whether a folder can be written at this place.
///
/// # Errors
///
/// [`CheckpointError::Exists`] unless there is nothing, or a folder with nothing in it.
pub(crate) fn is_free(folder: &Path) -> Result<(), CheckpointError> {
    let is_empty = || fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none());
    if folder.symlink_metadata().is_ok() && !is_empty() {
        return Err(CheckpointError::Exists { folder: folder.to_path_buf() });
    }
    Ok(())
}

/// What Python takes for true: mlx-lm asks so whether a generation config names the end of a turn.
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

/// How many numbers these tensors stand for, quantized ones as what they were.
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

/// The names in checkpoints of language models in the order in which mlx-lm writes them. Which tensors lie in which of
/// several files follows from it.
#[rustfmt::skip]
const CUSTOMARY: [&str; 29] = [
    "embed_tokens", "tok_embeddings", "layers", "self_attn", "attention", "mlp", "feed_forward",
    "q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj", "out_proj", "q_norm", "k_norm",
    "gate_proj", "gate_up_proj", "down_proj", "up_proj", "input_layernorm", "post_attention_layernorm",
    "pre_feedforward_layernorm", "post_feedforward_layernorm", "norm", "lm_head",
    "weight", "scales", "biases", "bias",
];

/// The order of mlx-lm: blocks by their numbers, and names as they are customary.
fn customary_order(a: &str, b: &str) -> Ordering {
    /// Where a name stands below its parent, before what else stands there.
    fn place<'a>(parent: &str, name: &'a str) -> (usize, usize, &'a str) {
        let names: &[&str] = match parent {
            // The one network whose parts come in another order.
            "feed_forward" => &["norm", "gate_proj", "up_proj", "down_proj"],
            _ => &CUSTOMARY,
        };
        let of = |name| names.iter().position(|&known| known == name);
        // What is not known is a part of the whole, such as `model`, before its head.
        let unknown = of("lm_head").map_or(usize::MAX, |head| 2 * head - 1);
        (of(name).map_or(unknown, |known| 2 * known), name.parse().unwrap_or(usize::MAX), name)
    }
    let mut parent = "";
    let (mut a, mut b) = (a.split('.'), b.split('.'));
    loop {
        match (a.next(), b.next()) {
            (Some(x), Some(y)) if x == y => parent = x,
            (Some(x), Some(y)) => return place(parent, x).cmp(&place(parent, y)),
            (x, y) => return x.cmp(&y),
        }
    }
}

/// Tensors in one file or in several, and an index. Each is computed when its turn comes, and dropped when it is written.
fn write_tensors(
    folder: &Path,
    mut tensors: Vec<(String, Array)>,
    parameters: usize,
    largest_shard: u64,
    progress: OnProgress<'_>,
) -> Result<Vec<String>, CheckpointError> {
    tensors.sort_by(|(a, _), (b, _)| customary_order(a, b));
    let total: usize = tensors.iter().map(|(_, array)| array.nbytes()).sum();
    let layer_of = |key: &str| key.rsplit_once('.').map_or(key, |(layer, _)| layer).to_owned();
    let mut layers: Vec<String> = tensors.iter().map(|(key, _)| layer_of(key)).collect();
    layers.dedup();
    let layers = layers.len();

    let mut shards: Vec<Vec<(String, Array)>> = Vec::new();
    let mut size = 0;
    for (key, array) in tensors {
        let bytes = array.nbytes() as u64;
        match shards.last_mut() {
            Some(shard) if size + bytes <= largest_shard => {
                size += bytes;
                shard.push((key, array));
            }
            _ => {
                size = bytes;
                shards.push(vec![(key, array)]);
            }
        }
    }

    let count = shards.len();
    let (mut names, mut weight_map) = (Vec::new(), BTreeMap::new());
    let (mut done, mut layer) = (0, None);
    for (i, shard) in shards.into_iter().enumerate() {
        let name = match count {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
        };
        weight_map.extend(shard.iter().map(|(key, _)| (key.clone(), name.clone())));
        let file = folder.join(&name);
        let mut stopped = false;
        let mut writing = |key: &str| {
            let found = layer_of(key);
            if layer.as_ref() != Some(&found) {
                done += 1;
                stopped |= progress(Progress { layer: &found, number: done, total: layers }).is_break();
                layer = Some(found);
            }
            if stopped { Err(io::ErrorKind::Interrupted.into()) } else { Ok(()) }
        };
        let result = File::create_new(&file).and_then(|out| {
            let mut out = BufWriter::with_capacity(1 << 20, out);
            write_safetensors(&mut out, shard, &mut writing)?;
            out.into_inner()?.sync_all()
        });
        if stopped {
            return Err(CheckpointError::Stopped);
        }
        result.map_err(|e| failed(&file, &e))?;
        names.push(name);
    }
    let metadata = json!({ "total_size": total, "total_parameters": parameters });
    let index = json!({ "metadata": metadata, "weight_map": weight_map });
    write_json(&folder.join("model.safetensors.index.json"), &index)?;
    Ok(names)
}

/// Writes one file, tensor by tensor, and says so before each.
pub(crate) fn write_safetensors(
    out: &mut impl Write,
    tensors: Vec<(String, Array)>,
    writing: &mut dyn FnMut(&str) -> io::Result<()>,
) -> io::Result<()> {
    let (mut infos, mut end) = (Vec::with_capacity(tensors.len()), 0);
    for (key, array) in &tensors {
        let shape = array.shape().iter().map(|&size| size as usize).collect();
        let data_offsets = (end, end + array.nbytes());
        end = data_offsets.1;
        infos.push((key.clone(), TensorInfo { dtype: stored_as(array.dtype())?, shape, data_offsets }));
    }
    let metadata = HashMap::from([("format".to_owned(), "mlx".to_owned())]);
    let header = Metadata::new(Some(metadata), infos).map_err(io::Error::other)?;
    let mut header = serde_json::to_vec(&header)?;
    // As the format asks for: tensors begin at a multiple of eight bytes.
    header.resize(header.len().next_multiple_of(8), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    for (key, array) in tensors {
        writing(&key)?;
        if array.size() > 0 {
            // MLX has no memory for an empty one.
            let bytes = bytes(&array)?;
            out.write_all(bytes.try_as_slice().map_err(io::Error::other)?)?;
        }
    }
    Ok(())
}

/// The bytes of an array, evaluated and in the order of its elements.
fn bytes(array: &Array) -> io::Result<Array> {
    let flat = array.reshape(&[-1]).and_then(|flat| flat.contiguous()?.view_dtype(Dtype::Uint8));
    let bytes = flat.and_then(|bytes| bytes.eval().map(|()| bytes));
    bytes.map_err(|e| io::Error::other(without_place(&e.to_string())))
}

fn stored_as(dtype: Dtype) -> io::Result<TensorDtype> {
    Ok(match dtype {
        Dtype::Float32 => TensorDtype::F32,
        Dtype::Float16 => TensorDtype::F16,
        Dtype::Bfloat16 => TensorDtype::BF16,
        Dtype::Uint32 => TensorDtype::U32,
        Dtype::Uint8 => TensorDtype::U8,
        other => return Err(io::Error::other(format!("{other:?} is no dtype of a parameter"))),
    })
}

fn write_json(file: &Path, json: &Value) -> Result<(), CheckpointError> {
    fs::write(file, format!("{json:#}\n")).map_err(|e| failed(file, &e))
}

/// A file that is written beside its place; only a regular file is replaced.
pub(crate) fn partial_file(file: &Path) -> Result<Partial, CheckpointError> {
    Partial::file(file).map_err(|e| failed(file, &e))
}

/// Puts what was written into its place.
pub(crate) fn commit(partial: Partial, file: &Path) -> Result<(), CheckpointError> {
    partial.commit().map_err(|e| failed(file, &e))
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

    #[test]
    fn a_full_disk_is_an_error_of_the_operating_system() {
        /// As a disk with so many bytes left.
        struct Disk(usize);

        impl Write for Disk {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
                Ok(bytes.len())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }

        let tensors = || vec![("a".to_owned(), Array::ones::<f32>(&[100]).unwrap())];
        let write = |room| write_safetensors(&mut Disk(room), tensors(), &mut |_| Ok(()));
        for room in [0, 10, 300] {
            assert_eq!(write(room).unwrap_err().kind(), io::ErrorKind::StorageFull, "{room}");
        }
        write(1000).unwrap();
    }

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
