//! Messages show very long texts of a file in part.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;

use mlx_kvcache::{CacheError, Full, KvCache, SavedCache};

/// The error for a file with this header and one float32 behind it.
fn message(header: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cache.safetensors");
    let length = (header.len() as u64).to_le_bytes();
    fs::write(&file, [&length, header.as_bytes(), &[0; 4]].concat()).unwrap();
    let mut error: &dyn std::error::Error = &SavedCache::read(&file).unwrap_err();
    let mut message = error.to_string();
    while let Some(source) = error.source() {
        message += &source.to_string();
        error = source;
    }
    message
}

#[test]
fn long_texts_of_a_file_are_cut() {
    let long = "\u{e9}".repeat(100_000);
    let tensor = r#"{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}"#;
    for (part, header) in [
        (
            "unknown variant",
            format!(r#"{{"0.0": {{"dtype": "{long}", "shape": [1], "data_offsets": [0, 4]}}}}"#),
        ),
        ("is a ", format!(r#"{{"__metadata__": {{"1.0": "{long}", "2.0.0": ""}}, "0.0": {tensor}}}"#)),
        ("__metadata__", format!(r#"{{"__metadata__": {{"0.mlx_models": "{long}"}}, "0.0": {tensor}}}"#)),
        ("cache", format!(r#"{{"{long}": {tensor}}}"#)),
    ] {
        let message = message(&header);
        assert!(message.len() < 2000, "{part}: {} bytes: {}", message.len(), &message[..300]);
    }
}

#[test]
fn long_lists_of_numbers_are_cut() {
    let error = KvCache::new(Full::new()).with_left_padding(&vec![-1; 100_000]).unwrap_err();
    assert!(matches!(error, CacheError::Padding { .. }), "{}", &error.to_string()[..100]);
    assert!(error.to_string().len() < 500);
}
