//! Messages from the lines that a user or a script writes.

use std::io::{self, BufRead, ErrorKind, Read};

use mlx_files::LARGEST_TEXT;
use rustyline::error::ReadlineError;

use crate::style::say;

/// Reads a message of one or several lines with `line`, which gets the prompt to show. If the input ends in the middle of a
/// message, the message is what was read.
pub(super) fn read_message(
    mut line: impl FnMut(&str) -> Result<String, ReadlineError>,
) -> Result<String, ReadlineError> {
    let mut text = line("> ")?;
    if text.trim() == "\"\"\"" {
        let mut lines = Vec::new();
        loop {
            match line(". ") {
                Ok(end) if end.trim() == "\"\"\"" => return Ok(lines.join("\n")),
                Ok(next) => lines.push(next),
                Err(ReadlineError::Eof) if !lines.is_empty() => return Ok(lines.join("\n")),
                Err(e) => return Err(e),
            }
        }
    }
    while let Some(open) = text.strip_suffix('\\') {
        text = match line(". ") {
            Ok(next) => format!("{open}\n{next}"),
            Err(ReadlineError::Eof) => return Ok(open.to_owned()),
            Err(e) => return Err(e),
        };
    }
    Ok(text)
}

/// The next line of a file or pipe, without its line break. Bytes that are not UTF-8 become replacement characters, and a
/// note says so.
pub(super) fn line(input: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut bytes = Vec::new();
    input.take(LARGEST_TEXT).read_until(b'\n', &mut bytes)?;
    if bytes.is_empty() {
        return Ok(None);
    }
    if bytes.len() as u64 == LARGEST_TEXT && bytes.last() != Some(&b'\n') {
        let problem = format!("a line is longer than {LARGEST_TEXT} bytes");
        return Err(io::Error::new(ErrorKind::InvalidData, problem));
    }
    let end = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    let end = end.strip_suffix(b"\r").unwrap_or(end);
    let text = String::from_utf8_lossy(end);
    if matches!(text, std::borrow::Cow::Owned(_)) {
        say("note: a line has bytes that are not UTF-8 text; they are read as replacement characters");
    }
    Ok(Some(text.into_owned()))
}
