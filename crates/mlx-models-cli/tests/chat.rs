//! Conversations through a pipe.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mlx-models"));
    command.env("XDG_CACHE_HOME", concat!(env!("CARGO_TARGET_TMPDIR"), "/cache"));
    // On the CPU: the demos are in bfloat16, where rounding decides between tokens that are equally likely, and a GPU
    // rounds several tokens in one call otherwise than one by one.
    command.env("MLX_MODELS_DEVICE", "cpu");
    command
}

fn chat(options: &[&str], input: &[u8]) -> Output {
    let mut command = program();
    command.args(["chat", "--model", "demo:gemma3"]).args(options);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

/// The answers, one for each line.
fn answers(options: &[&str], input: &[u8]) -> Vec<String> {
    let output = chat(options, input);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// The text that `generate` continues a prompt with.
fn generate(prompt: &str) -> String {
    let output = program()
        .args(["generate", "--model", "demo:gemma3", "--verbose", "false", "-m", "8", "--prompt", prompt])
        .output()
        .unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().trim_end_matches('\n').to_owned()
}

const FIRST: &str = "Once upon a time";
const SECOND: &str = "The dog and the cat";

#[test]
fn a_message_that_was_undone_is_not_answered() {
    let (first, second) = (generate(FIRST), generate(SECOND));
    assert_ne!(first, second);
    for command in ["/reset", "/undo"] {
        let input = format!("{FIRST}\n{command}\n{SECOND}\n");
        assert_eq!(answers(&["-m", "8"], input.as_bytes()), [&*first, &*second], "{command}");
    }
    // /retry answers the same message again.
    let input = format!("{FIRST}\n/undo\n{SECOND}\n/retry\n");
    assert_eq!(answers(&["-m", "8"], input.as_bytes()), [&*first, &*second, &*second]);
}

#[test]
fn a_message_without_a_final_line_break_is_answered() {
    let (first, second) = (generate(FIRST), generate(SECOND));
    assert_eq!(answers(&["-m", "8"], format!("\"\"\"\n{FIRST}").as_bytes()), [&*first]);
    assert_eq!(answers(&["-m", "8"], format!("{SECOND}\\").as_bytes()), [&*second]);
    assert_eq!(answers(&["-m", "8"], b"\"\"\""), [""; 0]);
}

#[test]
fn invalid_utf8_does_not_end_the_chat() {
    let output = chat(&["-m", "8"], format!("{FIRST}\n/undo\nab").as_bytes());
    assert!(output.status.success());
    let input = [FIRST.as_bytes(), b"\n/undo\n\xff\xfe\n/undo\n", SECOND.as_bytes(), b"\r\n"].concat();
    let found = answers(&["-m", "8"], &input);
    assert_eq!((&*found[0], &**found.last().unwrap()), (&*generate(FIRST), &*generate(SECOND)));
    assert_eq!(found.len(), 3);
    let errors = chat(&["-m", "1"], b"\xff\n").stderr;
    assert!(String::from_utf8(errors).unwrap().contains("not UTF-8 text"));
}

#[test]
fn a_conversation_replaces_no_other_file() {
    let folder = TempDir::new().unwrap();
    let name = folder.path().join("kept");
    let save = format!("{FIRST}\n/save {}\n", name.display());
    // The second time replaces the conversation.
    for _ in 0..2 {
        assert!(chat(&["-m", "2"], save.as_bytes()).status.success());
    }
    let (conversation, cache) = (name.with_extension("json"), name.with_extension("safetensors"));
    assert!(conversation.is_file() && cache.is_file());
    let files = || fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(files(), 2);

    let weights = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/gemma3/model.safetensors");
    fs::copy(&weights, &cache).unwrap();
    let output = chat(&["-m", "2"], save.as_bytes());
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("kept.safetensors"));
    assert_eq!(fs::read(&cache).unwrap(), fs::read(&weights).unwrap());

    fs::remove_file(&cache).unwrap();
    fs::write(&conversation, "{\"model_type\": \"gemma3\"}").unwrap();
    let output = chat(&["-m", "2"], save.as_bytes());
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("something other than a conversation"));
    assert_eq!(fs::read_to_string(&conversation).unwrap(), "{\"model_type\": \"gemma3\"}");
    assert_eq!(files(), 1);
}

/// The text of an answer ends before the stop string, and so do the tokens that the next answer continues.
#[test]
fn a_stop_string_ends_the_text_and_its_tokens() {
    let folder = TempDir::new().unwrap();
    let name = folder.path().join("kept");
    let name = name.to_str().unwrap();
    let options = ["-m", "20", "--stop", " fox"];
    let whole = answers(&options, format!("{FIRST}\n/save {name}\n{SECOND}\n").as_bytes());
    assert!(whole[0].ends_with(" little"), "{whole:?}");
    let loaded = answers(&options, format!("/load {name}\n{SECOND}\n").as_bytes());
    assert_eq!(loaded[0], whole[1]);
}

/// A JSON list of other objects is not a conversation.
#[test]
fn a_json_list_that_is_not_a_conversation_is_not_replaced() {
    let folder = TempDir::new().unwrap();
    let list = folder.path().join("list.json");
    fs::write(&list, r#"[{"a": 1}]"#).unwrap();
    let save = format!("{FIRST}\n/save {}\n", folder.path().join("list").display());
    assert!(!chat(&["-m", "2"], save.as_bytes()).status.success());
    assert_eq!(fs::read_to_string(&list).unwrap(), r#"[{"a": 1}]"#);
    // If one of the two files cannot be written, neither is.
    let weights = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/gemma3/model.safetensors");
    fs::copy(weights, folder.path().join("weights.safetensors")).unwrap();
    let save = format!("{FIRST}\n/save {}\n", folder.path().join("weights").display());
    assert!(!chat(&["-m", "2"], save.as_bytes()).status.success());
    assert!(!folder.path().join("weights.json").exists());
    // A broken link in place of the cache is an error.
    fs::write(folder.path().join("said.json"), r#"[{"role": "user", "content": "a"}]"#).unwrap();
    std::os::unix::fs::symlink("nowhere", folder.path().join("said.safetensors")).unwrap();
    let output = chat(&["-m", "2"], format!("/load {}\n", folder.path().join("said").display()).as_bytes());
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stderr).contains("link to nowhere"));
}

/// A cache file of mlx-lm has no token ids, so the messages are read again.
#[test]
fn a_cache_without_ids_is_read_again() {
    let folder = TempDir::new().unwrap();
    let name = folder.path().join("kept");
    let save = format!("{FIRST}\n/save {}\n{SECOND}\n", name.display());
    let expected = answers(&["-m", "6"], save.as_bytes());
    let cache = name.with_extension("safetensors");
    let bytes = fs::read(&cache).unwrap();
    let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&bytes[8..end]).unwrap();
    header["__metadata__"].as_object_mut().unwrap().retain(|key, _| !key.starts_with("0.mlx_models"));
    let header = header.to_string().into_bytes();
    fs::write(&cache, [&(header.len() as u64).to_le_bytes()[..], &header, &bytes[end..]].concat()).unwrap();
    // Without the entries of this program, the file looks like one of mlx-lm, which has no such ring caches.
    let text = fs::read(&cache).unwrap();
    let load = format!("/load {}\n{SECOND}\n", name.display());
    let output = chat(&["-m", "6"], load.as_bytes());
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    if String::from_utf8_lossy(&text).contains("RotatingKvCache") {
        assert!(errors.contains("is a RotatingKvCache, which is not supported"), "{errors}");
    } else {
        assert!(errors.contains("the messages are read again"), "{errors}");
        assert_eq!(String::from_utf8(output.stdout).unwrap().trim_end(), expected[1]);
    }
}
