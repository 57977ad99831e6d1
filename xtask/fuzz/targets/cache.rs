//! A prompt cache.

#![no_main]

use std::fs;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use mlx_kvcache::SavedCache;
use tempfile::TempDir;

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().unwrap());

fuzz_target!(|bytes: &[u8]| {
    let file = FOLDER.path().join("cache.safetensors");
    fs::write(&file, bytes).unwrap();
    let _ = SavedCache::read(&file).map_err(|e| e.to_string());
});
