//! Why a rendering fails.

use std::rc::Rc;

use super::costs::{OBJECT, made};

pub(crate) type Result<T> = std::result::Result<T, Error>;

/// Why rendering failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Error {
    pub(crate) kind: ErrorKind,
    pub(crate) message: String,
    pub(crate) line: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ErrorKind {
    Syntax,
    Runtime,
    /// The template called `raise_exception`.
    Raised,
    /// A limit of this project or of the sandbox was reached.
    Limit,
}

impl Error {
    fn of(kind: ErrorKind, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if kind != ErrorKind::Raised {
            // The message may contain a text as long as the template.
            message = beginning(&message, 1000);
        }
        made(message.len() + OBJECT);
        Self { kind, message, line: None }
    }

    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self::of(ErrorKind::Runtime, message)
    }

    pub(super) fn syntax(message: impl Into<String>) -> Self {
        Self::of(ErrorKind::Syntax, message)
    }

    pub(crate) fn limit(message: impl Into<String>) -> Self {
        Self::of(ErrorKind::Limit, message)
    }

    pub(super) fn raised(message: Rc<str>) -> Self {
        Self::of(ErrorKind::Raised, &*message)
    }

    pub(super) fn is_limit(&self) -> bool {
        self.kind == ErrorKind::Limit
    }

    /// Adds the line, unless the error has one.
    pub(super) fn at(mut self, line: usize) -> Self {
        self.line.get_or_insert(line);
        self
    }
}

/// The beginning of a template's text, for an error message.
pub(super) fn short(text: &str) -> String {
    beginning(text, 100)
}

fn beginning(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
