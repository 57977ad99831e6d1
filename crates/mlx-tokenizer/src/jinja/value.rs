//! The values of a template, which behave as Python's.

use std::cell::{Cell, RefCell};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use super::ast::{Constant, Macro};
use super::error::{Error, Result};
use super::run::{self, MOST_NESTED_VALUES};

/// Lists count their elements with this size.
const _: () = assert!(size_of::<Value>() as u64 <= run::ELEMENT);

/// A value.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    /// An undefined value, with the error message for its use.
    Undefined(Rc<str>),
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Rc<str>),
    /// Text that is escaped for HTML.
    Markup(Rc<str>),
    List(Rc<List>),
    Tuple(Rc<List>),
    Dict(Rc<Dict>),
    Range(i128, i128, i128),
    /// The keys, values or items of a dictionary.
    View(View, Rc<Dict>),
    /// The result of a filter such as `map`: its elements can be taken once.
    Iterator(Rc<Iterator>),
    /// The number of the namespace in the store; the same for `Loop`.
    Namespace(usize),
    Loop(usize),
    Function(Rc<Function>),
    Cycler(Rc<Cycler>),
    /// `self`, whose attributes are the blocks of these names.
    Blocks(Rc<[Rc<str>]>),
}

/// The elements of a list or a tuple.
#[derive(Debug, Default)]
pub(crate) struct List {
    pub(crate) items: Rc<Vec<Value>>,
    depth: u32,
    /// Whether it is a result of `groupby`, whose two elements have names.
    pub(super) group: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum View {
    Keys,
    Values,
    Items,
}

#[derive(Debug)]
pub(crate) struct Iterator {
    pub(super) name: &'static str,
    pub(super) items: RefCell<VecDeque<Value>>,
    /// The error after the last element.
    pub(super) error: RefCell<Option<Error>>,
    depth: u32,
}

#[derive(Debug)]
pub(crate) struct Cycler {
    pub(super) items: Vec<Value>,
    pub(super) at: Cell<usize>,
    depth: u32,
}

/// A value that can be called.
#[derive(Debug)]
pub(crate) enum Function {
    Global(&'static str),
    Method(Value, Rc<str>),
    Macro(Rc<Macro>, ScopeOf),
    Block(Rc<str>),
    Joiner(Value, Cell<bool>),
}

/// The variables of a block of a template.
#[derive(Default)]
pub(super) struct Scope {
    pub(super) variables: RefCell<Vec<(Rc<str>, Value)>>,
    pub(super) parent: Option<Rc<Scope>>,
    /// Whether the scope is kept until the end, so that its variables count.
    pub(super) kept: Cell<bool>,
}

/// The scope of a macro.
#[derive(Clone)]
pub(crate) struct ScopeOf(pub(super) Rc<Scope>);

impl std::fmt::Debug for ScopeOf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("..")
    }
}

/// A dictionary, in the order of insertion.
#[derive(Debug, Default, Clone)]
pub(crate) struct Dict {
    entries: Vec<(Value, Value)>,
    places: HashMap<Key, usize>,
    depth: u32,
}

/// A key of a dictionary: equal numbers are the same key, whatever their type.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    None,
    Undefined,
    Int(i128),
    Float(u64),
    Str(Rc<str>),
    Tuple(Rc<[Key]>),
    Other(u8, usize),
}

impl From<&Constant> for Value {
    fn from(constant: &Constant) -> Self {
        match constant {
            Constant::None => Self::None,
            Constant::Bool(value) => Self::Bool(*value),
            Constant::Int(value) => Self::Int(*value),
            Constant::Float(value) => Self::Float(*value),
            Constant::Str(text) => Self::Str(Rc::clone(text)),
        }
    }
}

impl From<char> for Value {
    fn from(c: char) -> Self {
        Self::from(&*c.encode_utf8(&mut [0; 4]))
    }
}

/// For short texts; see [`Value::text`].
impl From<&str> for Value {
    fn from(text: &str) -> Self {
        run::made(text.len() + run::OBJECT);
        Self::Str(text.into())
    }
}

/// A new text, which is counted.
pub(super) fn counted(text: &str) -> Result<Rc<str>> {
    run::bytes((text.len() + run::OBJECT) as u64)?;
    Ok(text.into())
}

fn deeper(deepest: u32) -> Result<u32> {
    if deepest >= MOST_NESTED_VALUES {
        return Err(Error::limit(format!("it nests more than {MOST_NESTED_VALUES} lists or dictionaries")));
    }
    Ok(deepest + 1)
}

fn new_list(mut items: Vec<Value>) -> Result<Rc<List>> {
    run::elements(items.len() + 2)?;
    items.shrink_to_fit();
    let depth = deeper(items.iter().map(Value::depth).max().unwrap_or(0))?;
    Ok(Rc::new(List { items: Rc::new(items), depth, group: false }))
}

impl Dict {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn entries(&self) -> &[(Value, Value)] {
        &self.entries
    }

    pub(crate) fn insert(&mut self, key: Value, value: Value) -> Result<()> {
        // The first entry makes room for several. Each takes two values, a place in the table, and the memory
        // that growing needs.
        run::elements(if self.entries.is_empty() { 14 } else { 6 })?;
        self.depth = self.depth.max(deeper(key.depth().max(value.depth()))?);
        match self.places.entry(key.key()?) {
            Entry::Occupied(place) => self.entries[*place.get()].1 = value,
            Entry::Vacant(place) => {
                place.insert(self.entries.len());
                self.entries.push((key, value));
            }
        }
        Ok(())
    }

    pub(super) fn copied(&self) -> Result<Self> {
        run::elements(self.len().saturating_mul(4) + 8)?;
        Ok(self.clone())
    }

    pub(super) fn get(&self, key: &Value) -> Result<Option<&Value>> {
        Ok(self.places.get(&key.key()?).map(|&place| &self.entries[place].1))
    }

    pub(super) fn get_str(&self, key: &str) -> Option<&Value> {
        run::looked(key.len());
        run::made(key.len());
        self.places.get(&Key::Str(key.into())).map(|&place| &self.entries[place].1)
    }

    pub(super) fn from_pairs(pairs: impl IntoIterator<Item = (Value, Value)>) -> Result<Self> {
        let mut dict = Self::default();
        for (key, value) in pairs {
            dict.insert(key, value)?;
        }
        Ok(dict)
    }
}

impl Value {
    /// An undefined value, and why.
    pub(super) fn undefined(problem: impl Into<Rc<str>>) -> Self {
        let problem = problem.into();
        run::made(problem.len() + run::OBJECT);
        Self::Undefined(problem)
    }

    pub(crate) fn list(items: Vec<Self>) -> Result<Self> {
        Ok(Self::List(new_list(items)?))
    }

    pub(super) fn tuple(items: Vec<Self>) -> Result<Self> {
        Ok(Self::Tuple(new_list(items)?))
    }

    /// An element of `groupby`.
    pub(super) fn group(of: Self, items: Vec<Self>) -> Result<Self> {
        run::elements(6)?;
        let items = vec![of, Self::list(items)?];
        let depth = deeper(items.iter().map(Self::depth).max().unwrap_or(0))?;
        Ok(Self::Tuple(Rc::new(List { items: Rc::new(items), depth, group: true })))
    }

    pub(crate) fn dict(dict: Dict) -> Self {
        Self::Dict(Rc::new(dict))
    }

    /// The result of a filter that Python runs lazily. An error comes after the elements before it.
    pub(super) fn iterator(name: &'static str, items: Vec<Self>, error: Option<Error>) -> Result<Self> {
        run::elements(items.len() + 4)?;
        let depth = deeper(items.iter().map(Self::depth).max().unwrap_or(0))?;
        let (items, error) = (RefCell::new(items.into()), RefCell::new(error));
        Ok(Self::Iterator(Rc::new(Iterator { name, items, error, depth })))
    }

    pub(super) fn function(function: Function) -> Self {
        run::made(size_of::<Function>() + 2 * run::OBJECT);
        Self::Function(Rc::new(function))
    }

    pub(super) fn joiner(separator: Self) -> Result<Self> {
        deeper(separator.depth())?;
        Ok(Self::function(Function::Joiner(separator, Cell::new(false))))
    }

    pub(super) fn cycler(items: Vec<Self>) -> Result<Self> {
        run::elements(items.len() + 4)?;
        let depth = deeper(items.iter().map(Self::depth).max().unwrap_or(0))?;
        Ok(Self::Cycler(Rc::new(Cycler { items, at: Cell::new(0), depth })))
    }

    /// A new text, which is counted.
    pub(crate) fn text(text: impl AsRef<str>) -> Result<Self> {
        Ok(Self::Str(counted(text.as_ref())?))
    }

    /// Like [`Value::text`], for markup.
    pub(super) fn markup(text: impl AsRef<str>) -> Result<Self> {
        Ok(Self::Markup(counted(text.as_ref())?))
    }

    fn depth(&self) -> u32 {
        match self {
            Self::List(list) | Self::Tuple(list) => list.depth,
            Self::Dict(dict) | Self::View(_, dict) => dict.depth,
            Self::Iterator(iterator) => iterator.depth,
            Self::Cycler(cycler) => cycler.depth,
            Self::Function(function) => match &**function {
                Function::Method(of, _) | Function::Joiner(of, _) => of.depth() + 1,
                _ => 0,
            },
            _ => 0,
        }
    }

    /// The text, if it is one.
    pub(super) fn as_str(&self) -> Option<&Rc<str>> {
        match self {
            Self::Str(text) | Self::Markup(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn is_undefined(&self) -> bool {
        matches!(self, Self::Undefined(_))
    }

    pub(super) fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }

    /// The name of the value's type in Python.
    pub(crate) fn type_name(&self) -> &'static str {
        match self {
            Self::Undefined(_) => "Undefined",
            Self::None => "NoneType",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Str(_) => "str",
            Self::Markup(_) => "Markup",
            Self::List(_) => "list",
            Self::Tuple(_) => "tuple",
            Self::Dict(_) => "dict",
            Self::Range(..) => "range",
            Self::View(View::Keys, _) => "dict_keys",
            Self::View(View::Values, _) => "dict_values",
            Self::View(View::Items, _) => "dict_items",
            Self::Iterator(_) => "generator",
            Self::Namespace(_) => "Namespace",
            Self::Loop(_) => "LoopContext",
            Self::Function(function) => match &**function {
                Function::Macro(..) => "Macro",
                Function::Joiner(..) => "Joiner",
                Function::Block(_) => "BlockReference",
                _ => "function",
            },
            Self::Cycler(_) => "Cycler",
            Self::Blocks(_) => "TemplateReference",
        }
    }

    /// Python's truth value.
    pub(super) fn is_true(&self) -> bool {
        match self {
            Self::Undefined(_) | Self::None => false,
            Self::Bool(value) => *value,
            Self::Int(value) => *value != 0,
            Self::Float(value) => *value != 0.0,
            Self::Str(text) | Self::Markup(text) => !text.is_empty(),
            Self::List(list) | Self::Tuple(list) => !list.items.is_empty(),
            Self::Dict(dict) | Self::View(_, dict) => dict.len() > 0,
            Self::Range(start, stop, step) => range_length(*start, *stop, *step) > 0,
            _ => true,
        }
    }

    pub(super) fn is_iterable(&self) -> bool {
        !matches!(
            self,
            Self::None
                | Self::Bool(_)
                | Self::Int(_)
                | Self::Float(_)
                | Self::Namespace(_)
                | Self::Function(_)
                | Self::Cycler(_)
                | Self::Blocks(_)
        )
    }

    pub(super) fn is_callable(&self) -> bool {
        matches!(self, Self::Undefined(_) | Self::Function(_) | Self::Loop(_))
    }

    /// The value as a number in arithmetic.
    pub(super) fn as_int(&self) -> Option<i128> {
        match self {
            Self::Bool(value) => Some(i128::from(*value)),
            Self::Int(value) => Some(*value),
            _ => None,
        }
    }

    pub(super) fn as_number(&self) -> Option<f64> {
        match self {
            Self::Float(value) => Some(*value),
            _ => self.as_int().map(|value| value as f64),
        }
    }

    /// Python's `operator.index`.
    pub(super) fn index(&self) -> Result<i128> {
        self.as_int().ok_or_else(|| match self {
            Self::Undefined(problem) => Error::new(&**problem),
            _ => Error::new(format!("'{}' object cannot be interpreted as an integer", self.type_name())),
        })
    }

    /// An error if the value is undefined; most operations require this.
    pub(super) fn defined(&self) -> Result<&Self> {
        match self {
            Self::Undefined(problem) => Err(Error::new(&**problem)),
            _ => Ok(self),
        }
    }

    fn key(&self) -> Result<Key> {
        run::steps(1)?;
        Ok(match self {
            Self::None => Key::None,
            Self::Undefined(_) => Key::Undefined,
            Self::Bool(_) | Self::Int(_) => Key::Int(self.as_int().unwrap_or_default()),
            Self::Float(value) => {
                let whole = *value as i128;
                let is_whole = whole as f64 == *value && value.abs() < 1e38;
                if is_whole { Key::Int(whole) } else { Key::Float(value.to_bits()) }
            }
            Self::Str(text) | Self::Markup(text) => {
                run::reads(text.len())?;
                Key::Str(Rc::clone(text))
            }
            Self::Tuple(list) => {
                run::elements(list.items.len() + 1)?;
                Key::Tuple(list.items.iter().map(Self::key).collect::<Result<_>>()?)
            }
            Self::Range(start, stop, step) => {
                run::elements(4)?;
                Key::Tuple([Key::Other(0, 0), Key::Int(*start), Key::Int(*stop), Key::Int(*step)].into())
            }
            Self::Namespace(number) => Key::Other(1, *number),
            Self::Loop(number) => Key::Other(2, *number),
            Self::Function(function) => Key::Other(3, Rc::as_ptr(function).addr()),
            Self::Cycler(cycler) => Key::Other(4, Rc::as_ptr(cycler).addr()),
            Self::Iterator(iterator) => Key::Other(5, Rc::as_ptr(iterator).addr()),
            Self::Blocks(_) => Key::Other(6, 0),
            Self::View(_, dict) if matches!(self, Self::View(View::Values, _)) => {
                Key::Other(7, Rc::as_ptr(dict).addr())
            }
            Self::List(_) | Self::Dict(_) | Self::View(..) => {
                return Err(Error::new(format!("unhashable type: '{}'", self.type_name())));
            }
        })
    }
}

pub(super) fn range_length(start: i128, stop: i128, step: i128) -> usize {
    if if step > 0 { stop <= start } else { start <= stop } {
        return 0;
    }
    let length = stop.abs_diff(start).div_ceil(step.unsigned_abs());
    usize::try_from(length).unwrap_or(usize::MAX)
}
