//! What one rendering may use, and what lives as long as it does.
//!
//! A rendering has a thread of its own (see [`super::render`]), so that this is a variable of the thread: every
//! operation on values can say what it costs without a parameter for it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::value::{Dict, Value};
use super::{Error, Result};

/// The most steps of a rendering: an expression, a statement, an element that is looked at. The largest real templates
/// take some hundred steps for a message; this is a second or two of work.
pub(super) const MOST_STEPS: u64 = 10_000_000;

/// Steps that come on top for each byte of the conversation, which the user chose to be so long.
pub(super) const STEPS_PER_BYTE: u64 = 64;

/// The most bytes that a rendering makes, its values that are gone again included.
pub(super) const MOST_BYTES: u64 = 256 << 20;

/// Bytes that come on top for each byte of the conversation.
pub(super) const BYTES_PER_BYTE: u64 = 256;

/// The most expressions, statements, calls and loops inside each other while a template runs. Python, where the limit is
/// 1000 of its own frames, allows about two hundred macros that call each other.
pub(super) const MOST_DEEP: usize = 4000;

/// The stack of the thread that renders: at [`MOST_DEEP`] levels, 32 KiB for each, which a build without optimization
/// needs. Memory is taken only for what is used.
pub(super) const STACK: usize = 128 << 20;

/// The most lists, dictionaries and the like inside each other.
pub(super) const MOST_NESTED_VALUES: u32 = 400;

/// The longest template, in bytes. The longest that models come with have some ten thousand; a tree takes up to some
/// hundred bytes for each byte of its template.
pub(super) const LONGEST_TEMPLATE: usize = 1 << 20;

/// The most parameters or arguments that are written out, and the most blocks: each is looked for among all others.
pub(super) const MOST_NAMES: usize = 1000;

/// What a list takes for each element.
pub(super) const ELEMENT: u64 = size_of::<Value>() as u64;

/// What a small object takes besides what it holds: an allocation and the counters of its references.
pub(super) const OBJECT: usize = 48;

/// What a scope of a few variables takes, and each further variable.
const SCOPE: u64 = 512;
const VARIABLE: u64 = 192;

/// Names of a block of a template.
#[derive(Default)]
pub(super) struct Scope {
    pub(super) variables: RefCell<Vec<(Rc<str>, Value)>>,
    pub(super) parent: Option<Rc<Scope>>,
    /// Whether it is kept until the end, so that its variables count.
    pub(super) kept: Cell<bool>,
}

/// The state of a `loop` variable.
pub(super) struct Loop {
    pub(super) items: Rc<Vec<Value>>,
    pub(super) index: usize,
    pub(super) depth: usize,
    pub(super) changed: Option<Vec<Value>>,
    /// The `for` that it belongs to and where that stands, if it may be called.
    pub(super) recursive: Option<(Rc<super::ast::For>, Rc<Scope>)>,
}

#[derive(Default)]
struct Run {
    steps: Cell<u64>,
    bytes: Cell<u64>,
    depth: Cell<usize>,
    most_steps: Cell<u64>,
    most_bytes: Cell<u64>,
    /// Values that may hold themselves are here, and elsewhere is their number: so nothing is lost in a circle, and
    /// no chain of them is dropped from one end to the other in one recursion.
    namespaces: RefCell<Vec<Dict>>,
    loops: RefCell<Vec<Loop>>,
    /// Scopes in which macros were defined, which hold their scope.
    scopes: RefCell<Vec<Rc<Scope>>>,
}

thread_local! {
    static RUN: Run = Run::default();
}

/// Begins a rendering of a conversation of so many bytes.
pub(super) fn begin(bytes: u64) {
    RUN.with(|run| {
        run.steps.set(0);
        run.bytes.set(0);
        run.depth.set(0);
        run.most_steps.set(MOST_STEPS.saturating_add(bytes.saturating_mul(STEPS_PER_BYTE)));
        run.most_bytes.set(MOST_BYTES.saturating_add(bytes.saturating_mul(BYTES_PER_BYTE)));
    });
}

/// Ends a rendering: all that it made goes.
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

/// Counts a small object that has no other way to say that it is too much: the next step fails.
pub(super) fn made(count: usize) {
    RUN.with(|run| run.bytes.set(run.bytes.get().saturating_add(count as u64)));
}

/// Counts the steps of looking at a text; where they are too many, the next step fails.
pub(super) fn looked(bytes: usize) {
    RUN.with(|run| run.steps.set(run.steps.get().saturating_add(1 + bytes as u64 / 64)));
}

/// Counts the steps of looking at a text.
pub(super) fn reads(bytes: usize) -> Result<()> {
    steps(1 + bytes / 64)
}

/// Counts bytes before they are made.
pub(super) fn bytes(count: u64) -> Result<()> {
    RUN.with(|run| {
        let bytes = run.bytes.get().saturating_add(count);
        run.bytes.set(bytes);
        too_many_bytes(run)?;
        // So that what makes much takes time too.
        steps((count / 256) as usize)
    })
}

/// Counts elements of a list before they are made.
pub(super) fn elements(count: usize) -> Result<()> {
    bytes((count as u64).saturating_mul(ELEMENT))
}

/// One level deeper, until it is dropped.
pub(super) struct Level;

/// Goes a level deeper.
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

/// Keeps a namespace; its number.
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

/// Keeps a loop; its number.
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

/// Keeps a scope that a macro holds.
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
