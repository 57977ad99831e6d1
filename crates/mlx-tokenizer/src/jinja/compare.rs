//! Compares values as Python does: `==`, `is`, `<`, `in`, and sorting.

use std::cmp::Ordering;
use std::rc::Rc;

use super::error::{Error, Result};
use super::run;
use super::value::{Dict, Function, Value, View};

impl Value {
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
    for (key, value) in a.entries() {
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
