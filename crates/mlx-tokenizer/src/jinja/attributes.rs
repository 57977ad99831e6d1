//! Attributes and elements, as in Jinja2's immutable sandbox.

use std::rc::Rc;

use super::error::{Error, Result, short};
use super::value::{Function, Value};
use super::{run, sequences, store};

const TEXT: &[&str] = &[
    "capitalize",
    "casefold",
    "center",
    "count",
    "encode",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "maketrans",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "translate",
    "upper",
    "zfill",
];
const MARKUP: &[&str] = &["striptags", "unescape"];
const LIST: &[&str] = &["copy", "count", "index"];
const CHANGES_LIST: &[&str] = &["append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"];
const TUPLE: &[&str] = &["count", "index"];
const DICT: &[&str] = &["copy", "fromkeys", "get", "items", "keys", "values"];
const CHANGES_DICT: &[&str] = &["clear", "pop", "popitem", "setdefault", "update"];
const INT: &[&str] = &["bit_count", "bit_length", "conjugate", "as_integer_ratio", "is_integer"];
const FLOAT: &[&str] = &["conjugate", "is_integer", "as_integer_ratio"];

/// The error message for a missing attribute or element.
fn missing(of: &Value, name: &Value) -> Result<Value> {
    let object = match of {
        Value::None => "None".to_owned(),
        _ => format!("{} object", of.type_name()),
    };
    let problem = match name.as_str() {
        Some(name) => format!("'{object}' has no attribute '{}'", short(name)),
        None => format!("{object} has no element {}", short(&name.repr()?)),
    };
    Ok(Value::undefined(problem))
}

/// `of.name`: an attribute, or else an element.
pub(super) fn attribute(of: &Value, name: &Rc<str>) -> Result<Value> {
    run::steps(1)?;
    if let Some(found) = own_attribute(of.defined()?, name)? {
        return Ok(found);
    }
    let key = Value::Str(Rc::clone(name));
    match own_item(of, &key)? {
        Some(found) => Ok(found),
        None => missing(of, &key),
    }
}

/// `of[key]`: an element, or else an attribute.
pub(super) fn item(of: &Value, key: &Value) -> Result<Value> {
    run::steps(1)?;
    if let Some(found) = own_item(of.defined()?, key)? {
        return Ok(found);
    }
    if let Some(name) = key.as_str()
        && let Some(found) = own_attribute(of, name)?
    {
        return Ok(found);
    }
    missing(of, key)
}

/// An attribute only, as in the filter `attr`.
pub(super) fn only_attribute(of: &Value, name: &Rc<str>) -> Result<Value> {
    match own_attribute(of.defined()?, name)? {
        Some(found) => Ok(found),
        None => missing(of, &Value::Str(Rc::clone(name))),
    }
}

fn own_item(of: &Value, key: &Value) -> Result<Option<Value>> {
    match of {
        Value::Dict(dict) => match dict.get(key) {
            Ok(found) => Ok(found.cloned()),
            Err(error) if error.is_limit() => Err(error),
            Err(_) => Ok(None),
        },
        Value::Str(_) | Value::Markup(_) | Value::List(_) | Value::Tuple(_) | Value::Range(..) => {
            match key.as_int() {
                Some(place) => sequences::element(of, place),
                None => Ok(None),
            }
        }
        Value::Blocks(names) => {
            let name = key.as_str().filter(|name| names.contains(name));
            Ok(name.map(|name| Value::function(Function::Block(Rc::clone(name)))))
        }
        _ => Ok(None),
    }
}

#[allow(clippy::too_many_lines, reason = "a table of the types")]
fn own_attribute(of: &Value, name: &str) -> Result<Option<Value>> {
    let method = || Some(Value::function(Function::Method(of.clone(), name.into())));
    let unsafe_one = || {
        let problem = format!("access to attribute '{name}' of '{}' object is unsafe", of.type_name());
        Some(Value::undefined(problem))
    };
    let int = |value: i128| Some(Value::Int(value));
    if name.starts_with("__") && !matches!(of, Value::Namespace(_)) {
        let known =
            ["__class__", "__init__", "__doc__", "__dict__", "__len__", "__str__", "__eq__", "__hash__"];
        return Ok(if known.contains(&name) { unsafe_one() } else { None });
    }
    Ok(match of {
        Value::Str(_) if TEXT.contains(&name) => method(),
        Value::Markup(_) if TEXT.contains(&name) || MARKUP.contains(&name) => method(),
        Value::List(_) if LIST.contains(&name) => method(),
        Value::List(_) if CHANGES_LIST.contains(&name) => unsafe_one(),
        Value::Tuple(list) if list.group && name == "grouper" => list.items.first().cloned(),
        Value::Tuple(list) if list.group && name == "list" => list.items.get(1).cloned(),
        Value::Tuple(_) if TUPLE.contains(&name) => method(),
        Value::Dict(_) if DICT.contains(&name) => method(),
        Value::Dict(_) if CHANGES_DICT.contains(&name) => unsafe_one(),
        Value::Bool(_) | Value::Int(_) => match name {
            "real" | "numerator" => int(of.index()?),
            "imag" => int(0),
            "denominator" => int(1),
            _ if INT.contains(&name) => method(),
            _ => None,
        },
        Value::Float(value) => match name {
            "real" => Some(Value::Float(*value)),
            "imag" => Some(Value::Float(0.0)),
            _ if FLOAT.contains(&name) => method(),
            _ => None,
        },
        Value::Range(start, stop, step) => match name {
            "start" => int(*start),
            "stop" => int(*stop),
            "step" => int(*step),
            "count" | "index" => method(),
            _ => None,
        },
        Value::View(_, dict) => match name {
            "mapping" => Some(Value::Dict(Rc::clone(dict))),
            "isdisjoint" => method(),
            _ => None,
        },
        Value::Namespace(number) => store::namespace(*number, |of| of.get_str(name).cloned()).flatten(),
        Value::Loop(number) => loop_attribute(of, *number, name)?,
        Value::Cycler(cycler) => match name {
            "current" => cycler.items.get(cycler.at.get()).cloned(),
            "next" | "reset" => method(),
            "items" => {
                run::elements(cycler.items.len())?;
                Some(Value::tuple(cycler.items.clone())?)
            }
            "pos" => int(cycler.at.get() as i128),
            _ => None,
        },
        Value::Function(function) => function_attribute(of, function, name)?,
        _ => None,
    })
}

fn function_attribute(of: &Value, function: &Function, name: &str) -> Result<Option<Value>> {
    Ok(match function {
        Function::Macro(of, _) => match name {
            "name" => Some(of.name.as_ref().map_or(Value::None, |name| Value::Str(Rc::clone(name)))),
            "arguments" => {
                let names = of.parameters.iter().map(|(name, _)| Value::Str(Rc::clone(name)));
                Some(Value::tuple(names.collect())?)
            }
            "catch_kwargs" => Some(Value::Bool(of.reads_kwargs)),
            "catch_varargs" => Some(Value::Bool(of.reads_varargs)),
            "caller" => Some(Value::Bool(of.reads_caller)),
            _ => None,
        },
        Function::Global("dict") if name == "fromkeys" => {
            Some(Value::function(Function::Method(of.clone(), name.into())))
        }
        Function::Joiner(separator, _) if name == "sep" => Some(separator.clone()),
        Function::Joiner(_, used) if name == "used" => Some(Value::Bool(used.get())),
        _ => None,
    })
}

fn loop_attribute(of: &Value, number: usize, name: &str) -> Result<Option<Value>> {
    let int = |value: usize| Some(Value::Int(value as i128));
    let found = store::with_loop(number, |state| {
        let (index, length) = (state.index, state.items.len());
        match name {
            "index" => int(index + 1),
            "index0" => int(index),
            "revindex" => int(length - index),
            "revindex0" => int(length - index - 1),
            "first" => Some(Value::Bool(index == 0)),
            "last" => Some(Value::Bool(index + 1 == length)),
            "length" => int(length),
            "depth" => int(state.depth + 1),
            "depth0" => int(state.depth),
            "previtem" => match index.checked_sub(1).and_then(|index| state.items.get(index)) {
                Some(item) => Some(item.clone()),
                None => Some(Value::undefined("there is no previous item")),
            },
            "nextitem" => match state.items.get(index + 1) {
                Some(item) => Some(item.clone()),
                None => Some(Value::undefined("there is no next item")),
            },
            "cycle" | "changed" => Some(Value::function(Function::Method(of.clone(), name.into()))),
            _ => None,
        }
    });
    found.ok_or_else(|| Error::new("the loop is over"))
}
