//! The limits of a rendering, and the values that live as long as it does.
//!
//! Each rendering has its own thread (see [`super::render`]). So this state is a thread-local variable, and
//! every operation on values can count its cost without an extra parameter.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::value::{Dict, Value};
use super::{Error, Result};

/// The maximum number of steps: an expression, a statement, or an element that is visited. The largest real
/// templates need a few hundred steps per message; this limit is one or two seconds of work.
pub(super) const MOST_STEPS: u64 = 10_000_000;

/// Additional steps for each byte of the conversation, whose length the user chose.
pub(super) const STEPS_PER_BYTE: u64 = 64;

/// The maximum number of bytes that a rendering makes, including values that were freed.
pub(super) const MOST_BYTES: u64 = 256 << 20;

/// Additional bytes for each byte of the conversation.
pub(super) const BYTES_PER_BYTE: u64 = 256;

/// The maximum depth of nested expressions, statements, calls and loops while a template runs. Python has a
/// limit of 1000 frames, which allows about two hundred macros that call each other.
pub(super) const MOST_DEEP: usize = 4000;

/// The stack of the rendering thread. It has 32 KiB for each of the [`MOST_DEEP`] levels, which a build without
/// optimization needs. Memory is only taken for the part that is used.
pub(super) const STACK: usize = 128 << 20;

/// The maximum depth of nested lists, dictionaries and similar values.
pub(super) const MOST_NESTED_VALUES: u32 = 400;

/// The maximum length of a template, in bytes. The longest templates of models have some ten thousand bytes. A
/// syntax tree takes up to a few hundred bytes for each byte of its template.
pub(super) const LONGEST_TEMPLATE: usize = 1 << 20;

/// The maximum number of parameters or arguments in a template's source, and of blocks: each one is searched
/// for among all the others.
pub(super) const MOST_NAMES: usize = 1000;

/// The memory of a list for each element.
pub(super) const ELEMENT: u64 = size_of::<Value>() as u64;

/// The memory of a small object besides its contents: an allocation and reference counts.
pub(super) const OBJECT: usize = 48;

/// The memory of a scope with a few variables, and of each further variable.
const SCOPE: u64 = 512;
const VARIABLE: u64 = 192;

/// The names of a block of a template.
#[derive(Default)]
pub(super) struct Scope {
    pub(super) variables: RefCell<Vec<(Rc<str>, Value)>>,
    pub(super) parent: Option<Rc<Scope>>,
    /// Whether the scope is kept until the end, so that its variables count.
    pub(super) kept: Cell<bool>,
}

/// The state of a `loop` variable.
pub(super) struct Loop {
    pub(super) items: Rc<Vec<Value>>,
    pub(super) index: usize,
    pub(super) depth: usize,
    pub(super) changed: Option<Vec<Value>>,
    /// The `for` statement that it belongs to and its line, if the loop may be called.
    pub(super) recursive: Option<(Rc<super::ast::For>, Rc<Scope>)>,
}

#[derive(Default)]
struct Run {
    steps: Cell<u64>,
    bytes: Cell<u64>,
    depth: Cell<usize>,
    most_steps: Cell<u64>,
    most_bytes: Cell<u64>,
    /// Values that may contain themselves are stored here, and referred to by their number. So no memory is
    /// lost in reference cycles, and dropping a long chain of values does not recurse.
    namespaces: RefCell<Vec<Dict>>,
    loops: RefCell<Vec<Loop>>,
    /// Scopes in which macros were defined; the macros refer to them.
    scopes: RefCell<Vec<Rc<Scope>>>,
}

thread_local! {
    static RUN: Run = Run::default();
}

/// Begins the rendering of a conversation with this many bytes.
pub(super) fn begin(bytes: u64) {
    RUN.with(|run| {
        run.steps.set(0);
        run.bytes.set(0);
        run.depth.set(0);
        run.most_steps.set(MOST_STEPS.saturating_add(bytes.saturating_mul(STEPS_PER_BYTE)));
        run.most_bytes.set(MOST_BYTES.saturating_add(bytes.saturating_mul(BYTES_PER_BYTE)));
    });
}

/// Ends a rendering, and frees everything that it made.
pub(super) fn end() {
    RUN.with(|run| {
        let scopes = run.scopes.take();
        for scope in &scopes {
            let variables = scope.variables.take();
            drop(variables);
        }
        drop(scopes);
        drop(run.loops.take());
        drop(run.namespaces.take());
    });
}

/// Counts steps.
pub(super) fn steps(count: usize) -> Result<()> {
    RUN.with(|run| {
        let steps = run.steps.get().saturating_add(count as u64);
        run.steps.set(steps);
        let most = run.most_steps.get();
        if steps > most {
            return Err(Error::limit(format!("it takes more than {most} steps")));
        }
        too_many_bytes(run)
    })
}

fn too_many_bytes(run: &Run) -> Result<()> {
    let most = run.most_bytes.get();
    if run.bytes.get() > most {
        return Err(Error::limit(format!("it makes more than {} MiB of text and values", most >> 20)));
    }
    Ok(())
}

/// Counts a small object in a place that cannot return an error: if a limit is reached, the next step fails.
pub(super) fn made(count: usize) {
    RUN.with(|run| run.bytes.set(run.bytes.get().saturating_add(count as u64)));
}

/// Counts the steps of reading a text; if a limit is reached, the next step fails.
pub(super) fn looked(bytes: usize) {
    RUN.with(|run| run.steps.set(run.steps.get().saturating_add(1 + bytes as u64 / 64)));
}

/// Counts the steps of reading a text.
pub(super) fn reads(bytes: usize) -> Result<()> {
    steps(1 + bytes / 64)
}

/// Counts bytes before they are made.
pub(super) fn bytes(count: u64) -> Result<()> {
    RUN.with(|run| {
        let bytes = run.bytes.get().saturating_add(count);
        run.bytes.set(bytes);
        too_many_bytes(run)?;
        // Making many bytes takes time too.
        steps((count / 256) as usize)
    })
}

/// Counts elements of a list before they are made.
pub(super) fn elements(count: usize) -> Result<()> {
    bytes((count as u64).saturating_mul(ELEMENT))
}

/// One level of nesting, which ends when this is dropped.
pub(super) struct Level;

/// Enters a level of nesting.
pub(super) fn deeper() -> Result<Level> {
    RUN.with(|run| {
        let depth = run.depth.get() + 1;
        if depth > MOST_DEEP {
            return Err(Error::limit(format!("it goes more than {MOST_DEEP} levels deep")));
        }
        run.depth.set(depth);
        Ok(Level)
    })
}

impl Drop for Level {
    fn drop(&mut self) {
        RUN.with(|run| run.depth.set(run.depth.get() - 1));
    }
}

/// Stores a namespace and returns its number.
pub(super) fn new_namespace(attributes: Dict) -> Result<usize> {
    elements(4)?;
    RUN.with(|run| {
        let mut namespaces = run.namespaces.borrow_mut();
        namespaces.push(attributes);
        Ok(namespaces.len() - 1)
    })
}

pub(super) fn namespace<T>(number: usize, with: impl FnOnce(&mut Dict) -> T) -> Option<T> {
    RUN.with(|run| run.namespaces.borrow_mut().get_mut(number).map(with))
}

/// Stores a loop and returns its number.
pub(super) fn new_loop(of: Loop) -> Result<usize> {
    elements(3)?;
    if let Some((_, scope)) = &of.recursive {
        keep_scope(scope)?;
    }
    RUN.with(|run| {
        let mut loops = run.loops.borrow_mut();
        loops.push(of);
        Ok(loops.len() - 1)
    })
}

pub(super) fn with_loop<T>(number: usize, with: impl FnOnce(&mut Loop) -> T) -> Option<T> {
    RUN.with(|run| run.loops.borrow_mut().get_mut(number).map(with))
}

/// Stores a scope that a macro refers to.
pub(super) fn keep_scope(scope: &Rc<Scope>) -> Result<()> {
    let mut around = Some(scope);
    while let Some(of) = around.filter(|of| !of.kept.get()) {
        bytes(SCOPE.saturating_add(VARIABLE.saturating_mul(of.variables.borrow().len() as u64)))?;
        of.kept.set(true);
        RUN.with(|run| run.scopes.borrow_mut().push(Rc::clone(of)));
        around = of.parent.as_ref();
    }
    Ok(())
}

/// Counts a new variable of a scope.
pub(super) fn new_variable(scope: &Scope) -> Result<()> {
    if scope.kept.get() { bytes(VARIABLE) } else { Ok(()) }
}
