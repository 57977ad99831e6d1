//! The values of a template, which behave as Python's.

use std::cell::{Cell, RefCell};
use std::cmp::Ordering;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use super::ast::Macro;
use super::run::{self, MOST_NESTED_VALUES, Scope};
use super::{Error, Result, python};

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
    /// The number of the value in the run, as for `Loop`.
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
fn counted(text: &str) -> Result<Rc<str>> {
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
            Self::Range(..) => self.length().is_ok_and(|length| length > 0),
            _ => true,
        }
    }

    /// Python's `len`.
    pub(super) fn length(&self) -> Result<usize> {
        match self {
            Self::Undefined(_) => Ok(0),
            Self::Str(text) | Self::Markup(text) => {
                run::reads(text.len())?;
                Ok(text.chars().count())
            }
            Self::List(list) | Self::Tuple(list) => Ok(list.items.len()),
            Self::Dict(dict) | Self::View(_, dict) => Ok(dict.len()),
            Self::Range(start, stop, step) => Ok(range_length(*start, *stop, *step)),
            Self::Loop(of) => Ok(run::with_loop(*of, |of| of.items.len()).unwrap_or(0)),
            _ => Err(Error::new(format!("object of type '{}' has no len()", self.type_name()))),
        }
    }

    /// The elements, as in a Python `for` loop. They are counted as steps.
    pub(super) fn iterate(&self) -> Result<Rc<Vec<Self>>> {
        let items = match self {
            Self::Undefined(_) => Vec::new(),
            Self::Str(text) | Self::Markup(text) => {
                run::reads(text.len())?;
                let count = text.chars().count() as u64;
                run::bytes(count.saturating_mul(run::ELEMENT))?;
                text.chars().map(Self::from).collect()
            }
            Self::List(list) | Self::Tuple(list) => {
                run::steps(list.items.len())?;
                return Ok(Rc::clone(&list.items));
            }
            Self::Dict(dict) | Self::View(View::Keys, dict) => {
                run::elements(dict.len())?;
                dict.entries.iter().map(|(key, _)| key.clone()).collect()
            }
            Self::View(View::Values, dict) => {
                run::elements(dict.len())?;
                dict.entries.iter().map(|(_, value)| value.clone()).collect()
            }
            Self::View(View::Items, dict) => {
                run::elements(dict.len())?;
                let pair = |(key, value): &(Self, Self)| Self::tuple(vec![key.clone(), value.clone()]);
                dict.entries.iter().map(pair).collect::<Result<_>>()?
            }
            Self::Range(start, stop, step) => {
                let length = range_length(*start, *stop, *step);
                run::elements(length)?;
                (0..length as i128).map(|index| Self::Int(start + index * step)).collect()
            }
            Self::Iterator(iterator) => {
                let items: Vec<Self> = iterator.items.take().into();
                run::elements(items.len())?;
                if let Some(error) = iterator.error.take() {
                    return Err(error);
                }
                items
            }
            Self::Loop(of) => {
                // A loop over `loop` takes its elements, as in Python.
                run::elements(2 * self.length()?)?;
                let rest = run::with_loop(*of, |of| {
                    let rest = of.items[(of.index + 1).min(of.items.len())..].to_vec();
                    of.index = of.items.len().saturating_sub(1);
                    rest
                });
                let pair = |item| Self::tuple(vec![item, self.clone()]);
                rest.unwrap_or_default().into_iter().map(pair).collect::<Result<_>>()?
            }
            _ => return Err(Error::new(format!("'{}' object is not iterable", self.type_name()))),
        };
        Ok(Rc::new(items))
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

    /// Python's `==`.
    pub(super) fn equals(&self, other: &Self) -> Result<bool> {
        run::steps(1)?;
        Ok(match (self, other) {
            (Self::Undefined(_), Self::Undefined(_))
            | (Self::None, Self::None)
            | (Self::Blocks(_), Self::Blocks(_)) => true,
            (Self::Str(a) | Self::Markup(a), Self::Str(b) | Self::Markup(b)) => {
                run::reads(a.len().min(b.len()))?;
                a == b
            }
            (Self::List(a), Self::List(b)) | (Self::Tuple(a), Self::Tuple(b)) => {
                return equal_items(&a.items, &b.items);
            }
            (Self::Dict(a), Self::Dict(b)) => return equal_dicts(a, b),
            (Self::View(of, a), Self::View(other, b)) if *of != View::Values && *other != View::Values => {
                if a.len() != b.len() {
                    return Ok(false);
                }
                for item in self.iterate()?.iter() {
                    if !contains(other_view(*other, b), item)? {
                        return Ok(false);
                    }
                }
                true
            }
            (Self::Range(..), Self::Range(..)) => {
                let (a, b) = (self.length()?, other.length()?);
                let (Self::Range(start, _, step), Self::Range(other, _, by)) = (self, other) else {
                    return Ok(false);
                };
                a == b && (a == 0 || start == other && (a == 1 || step == by))
            }
            (Self::Namespace(a), Self::Namespace(b)) | (Self::Loop(a), Self::Loop(b)) => a == b,
            (Self::Function(a), Self::Function(b)) => match (&**a, &**b) {
                (Function::Global(a), Function::Global(b)) => a == b,
                (Function::Method(a, name), Function::Method(b, other)) => name == other && a.is(b),
                _ => Rc::ptr_eq(a, b),
            },
            (Self::Cycler(a), Self::Cycler(b)) => Rc::ptr_eq(a, b),
            (Self::Iterator(a), Self::Iterator(b)) => Rc::ptr_eq(a, b),
            _ => match (self.as_int(), other.as_int()) {
                (Some(a), Some(b)) => a == b,
                _ => match (self.as_number(), other.as_number()) {
                    (Some(_), Some(_)) => compare_numbers(self, other) == Some(Ordering::Equal),
                    _ => false,
                },
            },
        })
    }

    /// Python's `is`, as far as it does not depend on Python's implementation.
    pub(super) fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Str(a), Self::Str(b)) => {
                run::looked(if a.len() == b.len() { a.len() } else { 0 });
                a == b
            }
            (Self::Markup(a), Self::Markup(b)) => Rc::ptr_eq(a, b),
            (Self::Float(a), Self::Float(b)) => a.to_bits() == b.to_bits(),
            (Self::Int(a), Self::Int(b)) => a == b,
            (Self::Bool(a), Self::Bool(b)) => a == b,
            (Self::None, Self::None) => true,
            (Self::List(a), Self::List(b)) => Rc::ptr_eq(a, b),
            (Self::Tuple(a), Self::Tuple(b)) => Rc::ptr_eq(a, b) || a.items.is_empty() && b.items.is_empty(),
            (Self::Dict(a), Self::Dict(b)) => Rc::ptr_eq(a, b),
            (Self::Function(a), Self::Function(b)) => match (&**a, &**b) {
                (Function::Global(a), Function::Global(b)) => a == b,
                _ => Rc::ptr_eq(a, b),
            },
            (Self::Undefined(a), Self::Undefined(b)) => Rc::ptr_eq(a, b),
            (Self::Namespace(a), Self::Namespace(b)) | (Self::Loop(a), Self::Loop(b)) => a == b,
            (Self::Iterator(a), Self::Iterator(b)) => Rc::ptr_eq(a, b),
            (Self::Cycler(a), Self::Cycler(b)) => Rc::ptr_eq(a, b),
            _ => false,
        }
    }

    /// The order of two values; `None` for NaN.
    pub(super) fn compare(&self, other: &Self, operator: &str) -> Result<Option<Ordering>> {
        run::steps(1)?;
        self.defined()?;
        other.defined()?;
        match (self, other) {
            (Self::Str(a) | Self::Markup(a), Self::Str(b) | Self::Markup(b)) => {
                run::reads(a.len().min(b.len()))?;
                Ok(Some(a.cmp(b)))
            }
            (Self::List(a), Self::List(b)) | (Self::Tuple(a), Self::Tuple(b)) => {
                for (a, b) in a.items.iter().zip(&*b.items) {
                    if !a.equals(b)? {
                        return a.compare(b, operator);
                    }
                }
                Ok(Some(a.items.len().cmp(&b.items.len())))
            }
            _ if self.as_number().is_some() && other.as_number().is_some() => {
                Ok(compare_numbers(self, other))
            }
            _ => Err(Error::new(format!(
                "'{operator}' not supported between instances of '{}' and '{}'",
                self.type_name(),
                other.type_name()
            ))),
        }
    }

    /// Python's `str`, which is counted.
    pub(super) fn to_text(&self) -> Result<Rc<str>> {
        match self {
            Self::Str(text) | Self::Markup(text) => Ok(Rc::clone(text)),
            Self::Undefined(_) => Ok("".into()),
            _ => counted(&self.repr()?),
        }
    }

    /// Python's `repr`, which is counted.
    pub(super) fn repr(&self) -> Result<String> {
        let mut out = String::new();
        self.write_repr(&mut out, &mut Vec::new())?;
        Ok(out)
    }

    /// `around` are the namespaces that contain this value.
    fn write_repr(&self, out: &mut String, around: &mut Vec<usize>) -> Result<()> {
        let before = out.len();
        match self {
            Self::Undefined(_) => *out += "Undefined",
            Self::None => *out += "None",
            Self::Bool(value) => *out += if *value { "True" } else { "False" },
            Self::Int(value) => *out += &value.to_string(),
            Self::Float(value) => *out += &python::float(*value),
            Self::Str(text) => {
                run::bytes(python::longest_quote(text))?;
                python::quote(text, out);
                return Ok(());
            }
            Self::Markup(text) => {
                run::bytes(python::longest_quote(text))?;
                *out += "Markup(";
                python::quote(text, out);
                out.push(')');
            }
            Self::List(list) => {
                write_all(&list.items, ["[", "]"], out, around)?;
                return Ok(());
            }
            Self::Tuple(list) => {
                write_all(&list.items, ["(", if list.items.len() == 1 { ",)" } else { ")" }], out, around)?;
                return Ok(());
            }
            Self::Dict(dict) => return write_dict(&dict.entries, out, around),
            Self::View(_, _) => {
                *out += self.type_name();
                out.push('(');
                write_all(&self.iterate()?, ["[", "]"], out, around)?;
                out.push(')');
                return Ok(());
            }
            Self::Range(start, stop, 1) => *out += &format!("range({start}, {stop})"),
            Self::Range(start, stop, step) => *out += &format!("range({start}, {stop}, {step})"),
            Self::Namespace(number) => write_namespace(*number, out, around)?,
            Self::Loop(number) => {
                let of = run::with_loop(*number, |of| (of.index + 1, of.items.len())).unwrap_or_default();
                *out += &format!("<LoopContext {}/{}>", of.0, of.1);
            }
            Self::Function(function) => write_function(function, out),
            Self::Iterator(iterator) => {
                *out += &match iterator.name {
                    "list_reverseiterator" => "<list_reverseiterator object at 0x0>".to_owned(),
                    name => format!("<generator object {name} at 0x0>"),
                }
            }
            Self::Cycler(_) => *out += "<jinja2.utils.Cycler object at 0x0>",
            Self::Blocks(_) => *out += "<TemplateReference None>",
        }
        run::steps(1)?;
        run::bytes((out.len() - before) as u64)
    }
}

fn equal_items(a: &[Value], b: &[Value]) -> Result<bool> {
    if a.len() != b.len() {
        return Ok(false);
    }
    for (a, b) in a.iter().zip(b) {
        if !a.equals(b)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn equal_dicts(a: &Dict, b: &Dict) -> Result<bool> {
    if a.len() != b.len() {
        return Ok(false);
    }
    for (key, value) in &a.entries {
        match b.get(key)? {
            Some(other) if value.equals(other)? => {}
            _ => return Ok(false),
        }
    }
    Ok(true)
}

fn other_view(view: View, dict: &Rc<Dict>) -> Value {
    Value::View(view, Rc::clone(dict))
}

fn write_namespace(number: usize, out: &mut String, around: &mut Vec<usize>) -> Result<()> {
    *out += "<Namespace ";
    if around.contains(&number) {
        *out += "{...}";
    } else {
        run::elements(2 * run::namespace(number, |of| of.len()).unwrap_or(0))?;
        let entries = run::namespace(number, |of| of.entries.clone()).unwrap_or_default();
        let level = run::deeper()?;
        around.push(number);
        write_dict(&entries, out, around)?;
        around.pop();
        drop(level);
    }
    out.push('>');
    Ok(())
}

fn write_function(function: &Function, out: &mut String) {
    match function {
        Function::Macro(of, _) => match &of.name {
            Some(name) => {
                *out += "<Macro ";
                python::quote(name, out);
                out.push('>');
            }
            None => *out += "<Macro anonymous>",
        },
        Function::Global(name) => *out += &format!("<function {name} at 0x0>"),
        Function::Method(of, name) => {
            *out += &format!("<built-in method {name} of {} object at 0x0>", of.type_name());
        }
        Function::Block(name) => *out += &format!("<BlockReference {name}>"),
        Function::Joiner(..) => *out += "<jinja2.utils.Joiner object at 0x0>",
    }
}

fn write_all(items: &[Value], ends: [&str; 2], out: &mut String, around: &mut Vec<usize>) -> Result<()> {
    run::bytes(2 + 2 * items.len() as u64)?;
    *out += ends[0];
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            *out += ", ";
        }
        item.write_repr(out, around)?;
    }
    *out += ends[1];
    Ok(())
}

fn write_dict(entries: &[(Value, Value)], out: &mut String, around: &mut Vec<usize>) -> Result<()> {
    run::bytes(2 + 4 * entries.len() as u64)?;
    out.push('{');
    for (index, (key, value)) in entries.iter().enumerate() {
        if index > 0 {
            *out += ", ";
        }
        key.write_repr(out, around)?;
        *out += ": ";
        value.write_repr(out, around)?;
    }
    out.push('}');
    Ok(())
}

fn range_length(start: i128, stop: i128, step: i128) -> usize {
    if if step > 0 { stop <= start } else { start <= stop } {
        return 0;
    }
    let length = stop.abs_diff(start).div_ceil(step.unsigned_abs());
    usize::try_from(length).unwrap_or(usize::MAX)
}

/// Compares numbers exactly.
fn compare_numbers(a: &Value, b: &Value) -> Option<Ordering> {
    match (a.as_int(), b.as_int()) {
        (Some(a), Some(b)) => Some(a.cmp(&b)),
        (Some(a), None) => compare_int(a, b.as_number()?),
        (None, Some(b)) => compare_int(b, a.as_number()?).map(Ordering::reverse),
        (None, None) => a.as_number()?.partial_cmp(&b.as_number()?),
    }
}

fn compare_int(int: i128, float: f64) -> Option<Ordering> {
    if float.is_nan() {
        return None;
    }
    // Floats beyond these limits are whole numbers and larger.
    if float >= 1.7e38 {
        return Some(Ordering::Less);
    }
    if float <= -1.7e38 {
        return Some(Ordering::Greater);
    }
    let whole = float.trunc() as i128;
    Some(int.cmp(&whole).then_with(|| 0.0_f64.partial_cmp(&float.fract()).unwrap_or(Ordering::Equal)))
}

/// Python's `in`.
pub(super) fn contains(of: Value, item: &Value) -> Result<bool> {
    match &of {
        Value::Str(text) | Value::Markup(text) => match item.defined()?.as_str() {
            Some(part) => {
                run::reads(text.len())?;
                Ok(text.contains(&**part))
            }
            None => Err(Error::new(format!(
                "'in <string>' requires string as left operand, not {}",
                item.type_name()
            ))),
        },
        Value::Dict(dict) | Value::View(View::Keys, dict) => Ok(dict.get(item)?.is_some()),
        Value::View(View::Items, dict) => match item {
            Value::Tuple(pair) if pair.items.len() == 2 => match dict.get(&pair.items[0])? {
                Some(value) => value.equals(&pair.items[1]),
                None => Ok(false),
            },
            _ => Ok(false),
        },
        Value::Range(start, stop, step) if matches!(item, Value::Int(_) | Value::Bool(_)) => {
            let item = item.as_int().unwrap_or_default();
            let inside =
                if *step > 0 { *start <= item && item < *stop } else { *stop < item && item <= *start };
            // The difference could overflow.
            Ok(inside && item.wrapping_rem_euclid(*step) == start.wrapping_rem_euclid(*step))
        }
        Value::Iterator(iterator) => {
            // Elements are taken up to the one that is found.
            loop {
                let next = iterator.items.borrow_mut().pop_front();
                match next {
                    Some(of) if of.is(item) || of.equals(item)? => return Ok(true),
                    Some(_) => {}
                    None => match iterator.error.take() {
                        Some(error) => return Err(error),
                        None => return Ok(false),
                    },
                }
            }
        }
        _ if of.is_iterable() => {
            for of in of.iterate()?.iter() {
                if of.is(item) || of.equals(item)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        _ => Err(Error::new(format!("argument of type '{}' is not iterable", of.type_name()))),
    }
}

/// Sorts as Python does: a stable sort that only uses `<`.
pub(crate) fn sort<T: Clone>(items: &mut Vec<(Value, T)>, reverse: bool) -> Result<()> {
    run::bytes((items.len() * size_of::<(Value, T)>()) as u64)?;
    if reverse {
        items.reverse();
    }
    let mut width = 1;
    while width < items.len() {
        let mut merged = Vec::with_capacity(items.len());
        for chunk in items.chunks(2 * width) {
            let (left, right) = chunk.split_at(width.min(chunk.len()));
            let (mut left, mut right) = (left.iter().peekable(), right.iter().peekable());
            while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
                let right_first = b.0.compare(&a.0, "<")? == Some(Ordering::Less);
                merged.extend(if right_first { right.next() } else { left.next() }.cloned());
            }
            merged.extend(left.cloned());
            merged.extend(right.cloned());
        }
        *items = merged;
        width *= 2;
    }
    if reverse {
        items.reverse();
    }
    Ok(())
}
