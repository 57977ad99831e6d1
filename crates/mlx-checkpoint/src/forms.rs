//! Models in formats that are not supported: errors that say what was found and what to do.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::CheckpointError;
use crate::files::read_json;
use crate::text::shortened;

/// What a GGUF file begins with.
const GGUF: [u8; 4] = *b"GGUF";

/// What the names of PyTorch's files end with.
const PICKLED: [&str; 4] = ["bin", "pt", "pth", "ckpt"];

/// The error for a file that was named instead of a checkpoint folder.
pub(crate) fn of_file(file: &Path) -> Option<CheckpointError> {
    let advice = match extension(file)?.as_str() {
        "safetensors" => "name the folder that it is in, with config.json beside it",
        pickled if PICKLED.contains(&pickled) => {
            return is_file(file).then(|| self::pickled(file, "it is a PyTorch file"));
        }
        _ => return None,
    };
    is_file(file).then(|| other(file, "it is a file of tensors, and a checkpoint is a folder", advice))
}

/// The error for a path that was named as an adapter folder and is not a folder.
pub(crate) fn no_adapter_folder(path: &Path) -> CheckpointError {
    if is_file(path) {
        let advice = "name the folder that it is in, with adapter_config.json beside it";
        return other(path, "it is a file, and adapters are a folder", advice);
    }
    CheckpointError::NoAdapterFolder { folder: path.to_path_buf() }
}

/// The error for a folder without a config, if its other files tell what it is.
pub(crate) fn without_config(folder: &Path) -> Option<CheckpointError> {
    let adapters = folder.join("adapter_config.json");
    if is_file(&adapters) {
        let config = read_json(&adapters, |file| CheckpointError::NoConfig { file }).unwrap_or_default();
        // PEFT's key for the base model, and mlx-lm's.
        let base = ["base_model_name_or_path", "model"].iter().find_map(|key| config.get(*key)?.as_str());
        let base = base.map_or_else(String::new, |base| format!(", which is {}", shortened(base)));
        let advice = format!("load the model that they are for{base}, with --adapters {}", folder.display());
        return Some(other(folder, "it holds adapters, and no model", &advice));
    }
    with_gguf(folder).or_else(|| without_tensors(folder)).or_else(|| {
        let advice = "name the folder that config.json and the weights are in";
        tokenizer_alone(folder).then(|| other(folder, "it holds a tokenizer, and no model", advice))
    })
}

/// The error for a folder without safetensors files, if it holds a model in another format.
pub(crate) fn without_tensors(folder: &Path) -> Option<CheckpointError> {
    with_gguf(folder).or_else(|| {
        // Not every file with such an extension holds weights: trainers write training_args.bin.
        let is_weights = |name: &str, extension: &str| {
            let weights =
                ["pytorch_model", "model", "consolidated"].iter().any(|start| name.starts_with(start));
            weights && PICKLED.contains(&extension)
        };
        (!files(folder, is_weights).is_empty()).then(|| pickled(folder, "its weights are PyTorch files"))
    })
}

fn with_gguf(folder: &Path) -> Option<CheckpointError> {
    match &files(folder, |_, extension| extension == "gguf")[..] {
        [] => None,
        [file] => {
            let advice = format!("name the file: {}", file.display());
            Some(other(folder, "it is a folder with a GGUF file, and no checkpoint", &advice))
        }
        _ => {
            let form = "it is a folder with GGUF files, and no checkpoint";
            Some(other(folder, form, "name one of these files"))
        }
    }
}

fn tokenizer_alone(folder: &Path) -> bool {
    let has_tokenizer = ["tokenizer.model", "tokenizer.json"].iter().any(|name| is_file(&folder.join(name)));
    has_tokenizer && files(folder, |_, extension| extension == "safetensors").is_empty()
}

fn pickled(place: &Path, form: &str) -> CheckpointError {
    let advice = "only safetensors files are read, since unpickling runs code; load the model with transformers and save it \
                  again (save_pretrained), which writes safetensors";
    other(place, form, advice)
}

fn other(place: &Path, form: &str, advice: &str) -> CheckpointError {
    let (form, advice) = (form.to_owned(), advice.to_owned());
    CheckpointError::OtherForm { place: place.to_path_buf(), form, advice }
}

/// Whether this is a GGUF file, by its first bytes or by its name.
pub(crate) fn is_gguf(file: &Path) -> bool {
    let mut start = [0; GGUF.len()];
    let named = extension(file).is_some_and(|extension| extension == "gguf") && is_file(file);
    named || mlx_files::open(file).and_then(|mut file| file.read_exact(&mut start)).is_ok() && start == GGUF
}

fn is_file(file: &Path) -> bool {
    mlx_files::is_present(file).unwrap_or(false)
}

fn extension(file: &Path) -> Option<String> {
    Some(file.extension()?.to_string_lossy().to_lowercase())
}

/// The files of a folder with such a name and extension.
fn files(folder: &Path, wanted: impl Fn(&str, &str) -> bool) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let is_wanted = |file: &PathBuf| {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        extension(file).is_some_and(|extension| wanted(&name, &extension)) && is_file(file)
    };
    entries.flatten().map(|entry| entry.path()).filter(is_wanted).collect()
}
