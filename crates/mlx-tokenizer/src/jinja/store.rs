//! Values that live as long as the rendering: namespaces, loops, and the scopes of macros.

use std::cell::RefCell;
use std::rc::Rc;

use super::ast::For;
use super::error::Result;
use super::run;
use super::value::{Dict, Scope, Value};

/// The memory of a scope with a few variables, and of each further variable.
const SCOPE: u64 = 512;
const VARIABLE: u64 = 192;

/// The state of a `loop` variable.
pub(super) struct Loop {
    pub(super) items: Rc<Vec<Value>>,
    pub(super) index: usize,
    pub(super) depth: usize,
    pub(super) changed: Option<Vec<Value>>,
    /// The `for` statement that it belongs to and the scope around it, if the loop may be called.
    pub(super) recursive: Option<(Rc<For>, Rc<Scope>)>,
}

#[derive(Default)]
struct Store {
    /// Values that may contain themselves are stored here, and referred to by their number. So no memory is
    /// lost in reference cycles, and dropping a long chain of values does not recurse.
    namespaces: RefCell<Vec<Dict>>,
    loops: RefCell<Vec<Loop>>,
    /// Scopes in which macros were defined; the macros refer to them.
    scopes: RefCell<Vec<Rc<Scope>>>,
}

thread_local! {
    static STORE: Store = Store::default();
}

/// Ends a rendering, and frees everything that it made.
pub(super) fn end() {
    STORE.with(|store| {
        let scopes = store.scopes.take();
        for scope in &scopes {
            let variables = scope.variables.take();
            drop(variables);
        }
        drop(scopes);
        drop(store.loops.take());
        drop(store.namespaces.take());
    });
}

impl Scope {
    pub(super) fn inside(parent: &Rc<Self>) -> Rc<Self> {
        Rc::new(Self { parent: Some(Rc::clone(parent)), ..Self::default() })
    }

    pub(super) fn get(&self, name: &str) -> Result<Option<Value>> {
        let mut scope = self;
        loop {
            let variables = scope.variables.borrow();
            run::steps(1 + variables.len() / 8)?;
            if let Some((_, value)) = variables.iter().find(|(of, _)| **of == *name) {
                return Ok(Some(value.clone()));
            }
            match &scope.parent {
                Some(parent) => scope = parent,
                None => return Ok(None),
            }
        }
    }

    pub(super) fn set(&self, name: &Rc<str>, value: Value) -> Result<()> {
        let mut variables = self.variables.borrow_mut();
        run::steps(variables.len() / 8)?;
        match variables.iter_mut().find(|(of, _)| of == name) {
            Some((_, of)) => *of = value,
            None => {
                new_variable(self)?;
                variables.push((Rc::clone(name), value));
            }
        }
        Ok(())
    }
}

/// Stores a namespace and returns its number.
pub(super) fn new_namespace(attributes: Dict) -> Result<usize> {
    run::elements(4)?;
    STORE.with(|store| {
        let mut namespaces = store.namespaces.borrow_mut();
        namespaces.push(attributes);
        Ok(namespaces.len() - 1)
    })
}

pub(super) fn namespace<T>(number: usize, with: impl FnOnce(&mut Dict) -> T) -> Option<T> {
    STORE.with(|store| store.namespaces.borrow_mut().get_mut(number).map(with))
}

/// Stores a loop and returns its number.
pub(super) fn new_loop(of: Loop) -> Result<usize> {
    run::elements(3)?;
    if let Some((_, scope)) = &of.recursive {
        keep_scope(scope)?;
    }
    STORE.with(|store| {
        let mut loops = store.loops.borrow_mut();
        loops.push(of);
        Ok(loops.len() - 1)
    })
}

pub(super) fn with_loop<T>(number: usize, with: impl FnOnce(&mut Loop) -> T) -> Option<T> {
    STORE.with(|store| store.loops.borrow_mut().get_mut(number).map(with))
}

/// Stores a scope that a macro refers to.
pub(super) fn keep_scope(scope: &Rc<Scope>) -> Result<()> {
    let mut around = Some(scope);
    while let Some(of) = around.filter(|of| !of.kept.get()) {
        run::bytes(SCOPE.saturating_add(VARIABLE.saturating_mul(of.variables.borrow().len() as u64)))?;
        of.kept.set(true);
        STORE.with(|store| store.scopes.borrow_mut().push(Rc::clone(of)));
        around = of.parent.as_ref();
    }
    Ok(())
}

/// Counts a new variable of a scope.
fn new_variable(scope: &Scope) -> Result<()> {
    if scope.kept.get() { run::bytes(VARIABLE) } else { Ok(()) }
}
