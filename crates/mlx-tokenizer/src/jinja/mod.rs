//! Jinja2 as transformers runs it for chat templates: an immutable sandbox with `trim_blocks`, `lstrip_blocks`, loop
//! controls and `{% generation %}`.
//! This is our own engine instead of a crate, for two reasons. Templates are untrusted programs, so each
//! operation must state its cost before it runs. And their output becomes a prompt, so numbers, texts and lists
//! must print exactly as in Python. A template passes through [`lexer`], [`parser`] and [`eval`]; [`value`]
//! contains the values, [`store`] those that live as long as the rendering, and [`run`] the limits.

mod args;
mod ast;
mod attributes;
mod compare;
mod costs;
pub(crate) mod dumps;
mod elements;
mod error;
mod eval;
mod filters;
mod format;
mod html;
mod lexer;
mod methods;
mod names;
mod numbers;
mod ops;
mod parser;
pub(crate) mod python;
mod repr;
mod run;
mod sequences;
mod store;
mod tests;
mod texts;
mod value;
mod wrap;

use std::rc::Rc;

pub(crate) use error::{Error, ErrorKind, Result};
pub(crate) use value::{Dict, Value};

/// A variable of a template.
pub(crate) type Variables = Vec<(Rc<str>, Value)>;

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
        store::end();
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
    let root = Rc::new(value::Scope::default());
    for (name, value) in variables()? {
        root.set(&name, value)?;
    }
    let result = eval::Interpreter { template: &template, root: Rc::clone(&root), clock }.run();
    // A macro holds its scope, so the variables must be dropped to break the cycle.
    drop(root.variables.take());
    result
}
