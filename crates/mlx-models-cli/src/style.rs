//! A little colour, on a terminal only, and none where `NO_COLOR` asks for that (<https://no-color.org>).

use std::env;
use std::io::{self, IsTerminal};

/// What a text is to a reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// Something went wrong: bold and red, as in the errors of wrong arguments.
    Error,
    /// Here one may write.
    Prompt,
    /// Beside the matter.
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

    /// The text in this style, wherever it goes.
    pub(crate) fn paint(self, text: &str) -> String {
        format!("{}{text}\x1b[0m", self.code())
    }

    /// The text for standard error.
    pub(crate) fn for_stderr(self, text: &str) -> String {
        if wanted(io::stderr().is_terminal(), |name| env::var_os(name)) {
            self.paint(text)
        } else {
            text.to_owned()
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
