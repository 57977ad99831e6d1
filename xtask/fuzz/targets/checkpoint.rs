//! The header of a safetensors file, as that of a checkpoint.

#![no_main]

use std::fs;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use mlx_checkpoint::Checkpoint;
use tempfile::TempDir;

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), r#"{"model_type": "phi3"}"#).unwrap();
    folder
});

fuzz_target!(|bytes: &[u8]| {
    fs::write(FOLDER.path().join("model.safetensors"), bytes).unwrap();
    if let Ok(checkpoint) = Checkpoint::open(FOLDER.path()) {
        let _ = checkpoint.tensors().map(|tensors| tensors.finish(|_| false).map_err(|e| e.to_string()));
    }
});
