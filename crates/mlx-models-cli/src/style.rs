//! Messages on standard error: how they look, and that they are safe for terminals.
//!
//! All messages go through [`say`], [`Style::for_stderr`], [`Stderr`] or the bar of `progress`. Names and messages that come
//! from files or from a server may contain control sequences, which could change what the user's terminal shows. So each of
//! these functions makes them visible with [`printable`]. Colours are used at terminals only, and not if `NO_COLOR` is set
//! (<https://no-color.org>).

use std::borrow::Cow;
use std::env;
use std::io::{self, IsTerminal, Write};

/// The text with its control characters escaped, such as `\u{1b}` for the escape character.
///
/// Line breaks and tabs stay. Characters that reverse the direction of text are escaped too.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(is_hidden) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if is_hidden(c) { shown.extend(c.escape_unicode()) } else { shown.push(c) }
    }
    Cow::Owned(shown)
}

/// JSON with its hidden characters escaped as JSON escapes them. They can only occur in its strings.
pub(crate) fn printable_json(json: &str) -> Cow<'_, str> {
    if !json.contains(is_hidden) {
        return Cow::Borrowed(json);
    }
    let escaped = |c| if is_hidden(c) { format!("\\u{:04x}", u32::from(c)) } else { c.to_string() };
    Cow::Owned(json.chars().map(escaped).collect())
}

/// Whether a terminal obeys this character instead of showing it.
fn is_hidden(c: char) -> bool {
    (c.is_control() && c != '\n' && c != '\t')
        || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A model's text for standard output: [`printable`] at a terminal, unchanged in a file or pipe.
pub(crate) fn shown(text: &str) -> Cow<'_, str> {
    if io::stdout().is_terminal() { printable(text) } else { Cow::Borrowed(text) }
}

/// Writes a line to standard error.
pub(crate) fn say(text: &str) {
    // An error means that standard error is closed, and there is no other place to report it.
    let _ = writeln!(Stderr, "{text}");
}

/// Writes an error to standard error.
pub(crate) fn say_error(text: &str) {
    let line = format!("{} {}\n", Style::Error.for_stderr("error:"), printable(text));
    let _ = io::stderr().write_all(line.as_bytes());
}

/// Standard error, which makes everything that is written to it [`printable`].
pub(crate) struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        io::stderr().write_all(printable(&text).as_bytes())?;
        Ok(bytes.len())
    }

    fn write_fmt(&mut self, arguments: std::fmt::Arguments<'_>) -> io::Result<()> {
        // In one call, so that the lines of several threads are not mixed.
        self.write_all(arguments.to_string().as_bytes())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The role of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// An error: bold and red, as clap writes errors of arguments.
    Error,
    /// The prompt of a chat.
    Prompt,
    /// Less important text.
    Aside,
}

impl Style {
    fn code(self) -> &'static str {
        match self {
            Self::Error => "\x1b[1;31m",
            Self::Prompt => "\x1b[1;32m",
            Self::Aside => "\x1b[2m",
        }
    }

    /// The text in this style.
    pub(crate) fn paint(self, text: &str) -> String {
        format!("{}{text}\x1b[0m", self.code())
    }

    /// The text for standard error: [`printable`], and in this style if colours are used.
    pub(crate) fn for_stderr(self, text: &str) -> String {
        let text = printable(text);
        if wanted(io::stderr().is_terminal(), |name| env::var_os(name)) {
            self.paint(&text)
        } else {
            text.into_owned()
        }
    }
}

fn wanted<T: AsRef<std::ffi::OsStr>>(terminal: bool, variable: impl Fn(&str) -> Option<T>) -> bool {
    let is_set = |name| variable(name).is_some_and(|value| !value.as_ref().is_empty());
    terminal && !is_set("NO_COLOR") && variable("TERM").is_none_or(|term| term.as_ref() != "dumb")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_written_out() {
        for (text, shown) in [
            ("a\tb\nc \u{e9}\u{1f600}", "a\tb\nc \u{e9}\u{1f600}"),
            ("\x1b]0;title\x07", "\\u{1b}]0;title\\u{7}"),
            ("a\rb\0c\x08\x7f", "a\\u{d}b\\u{0}c\\u{8}\\u{7f}"),
            ("\u{9b}2J\u{85}", "\\u{9b}2J\\u{85}"),
            ("\u{202e}txt.exe\u{2066}", "\\u{202e}txt.exe\\u{2066}"),
        ] {
            assert_eq!(printable(text), shown);
        }
        assert!(matches!(printable("plain"), Cow::Borrowed(_)));
        assert_eq!(Style::Error.for_stderr("\x1b[2J"), "\\u{1b}[2J");
    }

    #[test]
    fn colours_are_for_terminals_that_have_them_and_readers_who_want_them() {
        let with = |name: &'static str, value: &'static str| {
            wanted(true, move |asked: &str| (asked == name).then_some(value))
        };
        assert!(with("TERM", "xterm") && with("NO_COLOR", ""), "an empty variable is none");
        assert!(!with("TERM", "dumb") && !with("NO_COLOR", "1"));
        assert!(!wanted(false, |_| None::<&str>), "a pipe");
        assert_eq!(Style::Aside.paint("a"), "\x1b[2ma\x1b[0m");
    }
}
