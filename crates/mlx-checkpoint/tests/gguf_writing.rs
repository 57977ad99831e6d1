//! What is told of a GGUF file that is written, and of a model that cannot be.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use mlx_checkpoint::{Checkpoint, GgufLayers, GgufOptions, WrittenGguf};
use mlx_gguf::{FileKind, Gguf};
use mlx_rs::Array;

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../xtask/cases").join(name)
}

/// Writes the model of a case, or of a file with the same weights. `is_same` is what the architecture would say of the file.
fn write(case: &Path, from: &Path, out: &Path, kind: FileKind, is_same: bool) -> Result<WrittenGguf, String> {
    let parameters = Array::load_safetensors(case.join("model.safetensors")).unwrap().into_iter().collect();
    let name = out.file_stem().map(|name| name.to_str().unwrap().to_owned());
    let options = GgufOptions { kind, name, tokenizer: Vec::new() };
    let checkpoint = Checkpoint::open_with(from, GgufLayers::Dequantized).unwrap();
    let written =
        checkpoint.write_gguf(out, parameters, &options, |_| is_same, |_| ControlFlow::Continue(()));
    written.map_err(|e| e.to_string())
}

#[test]
fn a_window_that_llama_cpp_does_not_have_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let case = case("hf_mistral_window");
    let error = write(&case, &case, &folder.path().join("x.gguf"), FileKind::F16, false).unwrap_err();
    assert!(error.contains("sliding_window is 6, and llama.cpp has no window for mistral"), "{error}");
}

#[test]
fn a_file_from_a_file_keeps_its_name_and_tells_of_its_layers() {
    let folder = tempfile::tempdir().unwrap();
    let case = case("qwen3_bf16_whole");
    // The folder of the file is made.
    let (small, large) = (folder.path().join("new/small.gguf"), folder.path().join("large.gguf"));
    let written = write(&case, &case, &small, FileKind::Q8_0, true).unwrap();
    assert_eq!((written.dequantized, written.file_bytes), (0, fs::metadata(&small).unwrap().len()));
    assert!(written.file_bytes > written.bytes, "{written:?}");
    let in_blocks = written.types.iter().filter(|(kind, _)| kind.block_elements() > 1);
    let layers: usize = in_blocks.map(|(_, layers)| layers).sum();
    assert!(layers > 0, "{written:?}");

    let renamed = folder.path().join("other.gguf");
    fs::rename(&small, &renamed).unwrap();
    assert_eq!(write(&case, &renamed, &large, FileKind::BF16, true).unwrap().dequantized, layers);
    let file = Gguf::open(&large).unwrap();
    assert_eq!(file.metadata().text("general.name").unwrap(), Some("small"));
}
