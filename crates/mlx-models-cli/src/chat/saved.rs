//! Saved conversations: the messages as JSON, beside the cache.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use mlx_files::LARGEST_TEXT;
use mlx_models::tokenizer::Message;

/// The files of a saved conversation: its messages, and the cache.
pub(super) fn files(name: &Path) -> (PathBuf, PathBuf) {
    let with = |extension: &str| {
        let mut name = name.as_os_str().to_owned();
        name.push(extension);
        PathBuf::from(name)
    };
    (with(".json"), with(".safetensors"))
}

pub(super) fn read_messages(file: &Path) -> io::Result<Vec<Message>> {
    Ok(serde_json::from_str(&mlx_files::read_to_string(file, LARGEST_TEXT)?)?)
}

/// Fails if another file than a conversation is there, which `/save` must not replace.
pub(super) fn check_is_conversation(file: &Path) -> io::Result<()> {
    let is_one = |messages: Vec<Message>| messages.iter().all(|message| message.role().is_some());
    if mlx_files::is_present(file)? && !read_messages(file).is_ok_and(is_one) {
        let problem =
            "it holds something other than a conversation, and is not replaced; choose another name";
        return Err(io::Error::new(ErrorKind::AlreadyExists, problem));
    }
    Ok(())
}
