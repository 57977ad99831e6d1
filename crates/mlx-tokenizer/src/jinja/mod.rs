//! Jinja2 as transformers runs it for chat templates: an immutable sandbox with `trim_blocks`, `lstrip_blocks`, loop
//! controls and `{% generation %}`.
//! This is our own engine instead of a crate, for two reasons. Templates are untrusted programs, so each
//! operation must state its cost before it runs. And their output becomes a prompt, so numbers, texts and lists
//! must print exactly as in Python. A template passes through [`lexer`], [`parser`] and [`eval`]; [`value`]
//! contains the values, and [`run`] the limits.

mod ast;
mod attributes;
mod eval;
mod filters;
mod format;
mod lexer;
mod methods;
mod ops;
mod parser;
pub(crate) mod python;
mod run;
mod tests;
mod value;
mod wrap;

use std::rc::Rc;

pub(crate) use value::{Dict, Value, sort};

/// A variable of a template.
pub(crate) type Variables = Vec<(Rc<str>, Value)>;

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
        run::made(message.len() + run::OBJECT);
        Self { kind, message, line: None }
    }

    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self::of(ErrorKind::Runtime, message)
    }

    fn syntax(message: impl Into<String>) -> Self {
        Self::of(ErrorKind::Syntax, message)
    }

    pub(crate) fn limit(message: impl Into<String>) -> Self {
        Self::of(ErrorKind::Limit, message)
    }

    fn raised(message: Rc<str>) -> Self {
        Self::of(ErrorKind::Raised, &*message)
    }

    fn is_limit(&self) -> bool {
        self.kind == ErrorKind::Limit
    }

    /// Adds the line, unless the error has one.
    fn at(mut self, line: usize) -> Self {
        self.line.get_or_insert(line);
        self
    }
}

/// The beginning of a template's text, for an error message.
fn short(text: &str) -> String {
    beginning(text, 100)
}

fn beginning(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Counts bytes that are about to be made.
pub(crate) fn make_bytes(count: usize) -> Result<()> {
    run::bytes(count as u64)
}

/// Renders a template. The variables are made on the rendering thread, which has a stack of known size.
///
/// `size` is the approximate size of the variables in bytes; a longer conversation may take more steps.
pub(crate) fn render(
    source: &str,
    size: usize,
    variables: impl FnOnce() -> Result<Variables> + Send,
    clock: &(dyn Fn(&str) -> std::result::Result<String, String> + Sync),
) -> Result<String> {
    let on_thread = || {
        run::begin(size as u64);
        let result = render_here(source, variables, clock);
        run::end();
        result
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("chat-template".to_owned()).stack_size(run::STACK);
        let thread = thread.spawn_scoped(scope, on_thread);
        let thread = thread.map_err(|e| Error::limit(format!("cannot start the rendering thread: {e}")))?;
        thread.join().unwrap_or_else(|_| Err(Error::new("rendering failed because of a bug in this program")))
    })
}

fn render_here(
    source: &str,
    variables: impl FnOnce() -> Result<Variables>,
    clock: &dyn Fn(&str) -> std::result::Result<String, String>,
) -> Result<String> {
    if source.len() > run::LONGEST_TEMPLATE {
        let problem = format!(
            "the template has {} bytes, and may have at most {}",
            source.len(),
            run::LONGEST_TEMPLATE
        );
        return Err(Error::limit(problem).at(1));
    }
    let template = parser::parse(source)?;
    let root = Rc::new(run::Scope::default());
    for (name, value) in variables()? {
        root.set(&name, value)?;
    }
    let result = eval::Interpreter { template: &template, root: Rc::clone(&root), clock }.run();
    // A macro holds its scope, so the variables must be dropped to break the cycle.
    drop(root.variables.take());
    result
}
