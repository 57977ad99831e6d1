//! Python's operators.

use std::cmp::Ordering;

use super::ast::{Comparison, Operator};
use super::value::{Value, contains};
use super::{Error, Result, filters, format, run};

/// `a + b` and the like.
pub(super) fn binary(operator: Operator, a: &Value, b: &Value) -> Result<Value> {
    let symbol = match operator {
        Operator::Add => "+",
        Operator::Subtract => "-",
        Operator::Multiply => "*",
        Operator::Divide => "/",
        Operator::FloorDivide => "//",
        Operator::Modulo => "%",
        Operator::Power => "** or pow()",
    };
    match (operator, a, b) {
        (Operator::Modulo, Value::Str(text), _) => return Value::text(format::percent(text, b, false)?),
        (Operator::Modulo, Value::Markup(text), _) => {
            return Value::markup(format::percent(text, b, true)?);
        }
        (Operator::Add, Value::Str(a), Value::Str(b)) => return Value::text(concat(&[&**a, &**b])?),
        (Operator::Add, Value::Markup(_), _) | (Operator::Add, _, Value::Markup(_))
            if a.as_str().is_some() && b.as_str().is_some() =>
        {
            let (a, b) = (filters::escape(a)?, filters::escape(b)?);
            return Value::markup(concat(&[&a, &b])?);
        }
        (Operator::Add, Value::List(a), Value::List(b)) => return Value::list(joined(&a.items, &b.items)?),
        (Operator::Add, Value::Tuple(a), Value::Tuple(b)) => {
            return Value::tuple(joined(&a.items, &b.items)?);
        }
        (Operator::Multiply, _, _) => {
            if let Some(repeated) = repeated(a, b)? {
                return Ok(repeated);
            }
            if let Some(repeated) = repeated(b, a)? {
                return Ok(repeated);
            }
        }
        _ => {}
    }
    a.defined()?;
    b.defined()?;
    if let (Some(a), Some(b)) = (a.as_int(), b.as_int()) {
        return int(operator, a, b);
    }
    let (Some(x), Some(y)) = (a.as_number(), b.as_number()) else {
        let problem = match (operator, a.as_str(), b.as_str()) {
            (Operator::Add, Some(_), None) => {
                format!("can only concatenate str (not \"{}\") to str", b.type_name())
            }
            _ => format!(
                "unsupported operand type(s) for {symbol}: '{}' and '{}'",
                a.type_name(),
                b.type_name()
            ),
        };
        return Err(Error::new(problem));
    };
    floats(operator, x, y)
}

fn floats(operator: Operator, x: f64, y: f64) -> Result<Value> {
    let by_zero = |what: &str| Error::new(format!("float {what} by zero"));
    Ok(Value::Float(match operator {
        Operator::Add => x + y,
        Operator::Subtract => x - y,
        Operator::Multiply => x * y,
        Operator::Divide if y == 0.0 => return Err(by_zero("division")),
        Operator::Divide => x / y,
        Operator::FloorDivide if y == 0.0 => return Err(by_zero("floor division")),
        Operator::FloorDivide => floor_divide(x, y),
        Operator::Modulo if y == 0.0 => return Err(by_zero("modulo")),
        Operator::Modulo => modulo(x, y),
        Operator::Power => return power(x, y),
    }))
}

fn concat(parts: &[&str]) -> Result<String> {
    run::bytes(parts.iter().map(|part| part.len() as u64).sum())?;
    Ok(parts.concat())
}

fn joined(a: &[Value], b: &[Value]) -> Result<Vec<Value>> {
    run::elements(a.len() + b.len())?;
    Ok([a, b].concat())
}

/// A sequence repeated this many times.
fn repeated(of: &Value, times: &Value) -> Result<Option<Value>> {
    let Some(times) = times.as_int() else { return Ok(None) };
    let times = usize::try_from(times.max(0)).unwrap_or(usize::MAX);
    let items = |items: &[Value]| {
        run::elements(items.len().saturating_mul(times))?;
        Ok::<_, Error>(items.iter().cycle().take(items.len() * times).cloned().collect())
    };
    Ok(Some(match of {
        Value::Str(text) => Value::text(repeat(text, times)?)?,
        Value::Markup(text) => Value::markup(repeat(text, times)?)?,
        Value::List(list) => Value::list(items(&list.items)?)?,
        Value::Tuple(list) => Value::tuple(items(&list.items)?)?,
        _ => return Ok(None),
    }))
}

/// A text repeated this many times. It is counted before it is made.
pub(super) fn repeat(text: &str, times: usize) -> Result<String> {
    run::bytes((text.len() as u64).saturating_mul(times as u64))?;
    Ok(if text.is_empty() { String::new() } else { text.repeat(times) })
}

pub(super) fn too_large() -> Error {
    Error::limit("the result has more than 127 bits")
}

fn int(operator: Operator, a: i128, b: i128) -> Result<Value> {
    let by_zero = |what: &str| Error::new(format!("integer {what} by zero"));
    let result = match operator {
        Operator::Add => a.checked_add(b),
        Operator::Subtract => a.checked_sub(b),
        Operator::Multiply => a.checked_mul(b),
        Operator::Divide if b == 0 => return Err(Error::new("division by zero")),
        Operator::Divide => return Ok(Value::Float(quotient(a, b))),
        Operator::FloorDivide if b == 0 => return Err(by_zero("division or modulo")),
        Operator::FloorDivide => a.checked_div_euclid(b).map(|quotient| {
            // Euclid's remainder is never negative; Python's has the sign of the divisor.
            if b < 0 && a.rem_euclid(b) != 0 { quotient - 1 } else { quotient }
        }),
        Operator::Modulo if b == 0 => return Err(by_zero("modulo")),
        Operator::Modulo => {
            a.checked_rem_euclid(b).map(|rest| if b < 0 && rest != 0 { rest + b } else { rest })
        }
        Operator::Power if b < 0 => return power(a as f64, b as f64),
        Operator::Power => match (a, u32::try_from(b)) {
            (0 | 1, _) => Some(if b == 0 { 1 } else { a }),
            (-1, _) => Some(if b % 2 == 0 { 1 } else { -1 }),
            (_, Ok(b)) => a.checked_pow(b),
            _ => None,
        },
    };
    result.map(Value::Int).ok_or_else(too_large)
}

/// The float nearest to a quotient of integers, each of which may have more digits than a float.
fn quotient(a: i128, b: i128) -> f64 {
    let (top, bottom) = (a.unsigned_abs(), b.unsigned_abs());
    // The remainder becomes a bit below the significant digits, so the result is rounded only once.
    let (mut whole, mut rest, mut shift) = (top / bottom, top % bottom, 0);
    while rest != 0 && whole < 1 << 63 {
        // Both are below 2^127.
        (whole, rest) = (whole << 1, rest << 1);
        if rest >= bottom {
            (whole, rest) = (whole | 1, rest - bottom);
        }
        shift += 1;
    }
    let magnitude = (whole | u128::from(rest != 0)) as f64 * 0.5_f64.powi(shift);
    if (a < 0) != (b < 0) { -magnitude } else { magnitude }
}

fn modulo(x: f64, y: f64) -> f64 {
    let rest = x % y;
    if rest == 0.0 {
        return 0.0_f64.copysign(y);
    }
    if (rest < 0.0) == (y < 0.0) { rest } else { rest + y }
}

fn floor_divide(x: f64, y: f64) -> f64 {
    let quotient = (x - modulo(x, y)) / y;
    if quotient == 0.0 {
        return 0.0_f64.copysign(x / y);
    }
    // As in CPython: the quotient is whole except for rounding.
    let floor = quotient.floor();
    if quotient - floor > 0.5 { floor + 1.0 } else { floor }
}

fn power(x: f64, y: f64) -> Result<Value> {
    if x == 0.0 && y < 0.0 {
        return Err(Error::new("0.0 cannot be raised to a negative power"));
    }
    if x < 0.0 && x.is_finite() && y.is_finite() && y.fract() != 0.0 {
        return Err(Error::new("complex numbers are not supported"));
    }
    let result = x.powf(y);
    if result.is_infinite() && x.is_finite() && y.is_finite() {
        return Err(Error::new("(34, 'Numerical result out of range')"));
    }
    Ok(Value::Float(result))
}

pub(super) fn negative(value: &Value) -> Result<Value> {
    match value.defined()? {
        Value::Float(of) => Ok(Value::Float(-of)),
        of => match of.as_int() {
            Some(of) => of.checked_neg().map(Value::Int).ok_or_else(too_large),
            None => Err(Error::new(format!("bad operand type for unary -: '{}'", value.type_name()))),
        },
    }
}

pub(super) fn positive(value: &Value) -> Result<Value> {
    match value.defined()? {
        Value::Float(of) => Ok(Value::Float(*of)),
        of => match of.as_int() {
            Some(of) => Ok(Value::Int(of)),
            None => Err(Error::new(format!("bad operand type for unary +: '{}'", value.type_name()))),
        },
    }
}

pub(super) fn compare(comparison: Comparison, a: &Value, b: &Value) -> Result<bool> {
    Ok(match comparison {
        Comparison::Equal => a.equals(b)?,
        Comparison::Unequal => !a.equals(b)?,
        Comparison::Less => a.compare(b, "<")? == Some(Ordering::Less),
        Comparison::LessOrEqual => a.compare(b, "<=")?.is_some_and(Ordering::is_le),
        Comparison::Greater => a.compare(b, ">")? == Some(Ordering::Greater),
        Comparison::GreaterOrEqual => a.compare(b, ">=")?.is_some_and(Ordering::is_ge),
        Comparison::In => contains(b.clone(), a)?,
        Comparison::NotIn => !contains(b.clone(), a)?,
    })
}

pub(super) fn is_sliceable(of: &Value) -> bool {
    matches!(of, Value::Str(_) | Value::Markup(_) | Value::List(_) | Value::Tuple(_) | Value::Range(..))
}

/// `of[start:stop:step]`.
pub(super) fn slice(of: &Value, [start, stop, step]: [Option<Value>; 3]) -> Result<Value> {
    let number = |value: Option<Value>| match value {
        None | Some(Value::None) => Ok(None),
        Some(value) => value.index().map(Some),
    };
    match of.defined()? {
        _ if is_sliceable(of) => {}
        Value::Dict(_) => return Err(Error::new("unhashable type: 'slice'")),
        _ => return Err(Error::new(format!("'{}' object is not subscriptable", of.type_name()))),
    }
    let (start, stop, step) = (number(start)?, number(stop)?, number(step)?.unwrap_or(1));
    if step == 0 {
        return Err(Error::new("slice step cannot be zero"));
    }
    let length = of.length()? as i128;
    // As in Python's `slice.indices`.
    let bound = |value: i128, low: i128, high: i128| {
        let value = if value < 0 { value.saturating_add(length) } else { value };
        value.clamp(low, high)
    };
    let (low, high) = if step > 0 { (0, length) } else { (-1, length - 1) };
    let start = start.map_or(if step > 0 { low } else { high }, |start| bound(start, low, high));
    let stop = stop.map_or(if step > 0 { high } else { low }, |stop| bound(stop, low, high));
    if let Value::Range(first, _, by) = of {
        return Ok(Value::Range(
            by.checked_mul(start).and_then(|by| by.checked_add(*first)).ok_or_else(too_large)?,
            by.checked_mul(stop).and_then(|by| by.checked_add(*first)).ok_or_else(too_large)?,
            by.checked_mul(step).ok_or_else(too_large)?,
        ));
    }
    let indices = Value::Range(start, stop, step);
    let count = indices.length()?;
    let places = (0..count as i128).map(|index| (start + index * step) as usize);
    match of {
        Value::Str(text) | Value::Markup(text) => {
            run::bytes(text.len() as u64)?;
            let markup = matches!(of, Value::Markup(_));
            let sliced: String = if step == 1 {
                text.chars().skip(start as usize).take(count).collect()
            } else {
                run::elements(length as usize / 8)?;
                let chars: Vec<char> = text.chars().collect();
                places.map(|place| chars[place]).collect()
            };
            if markup { Value::markup(sliced) } else { Value::text(sliced) }
        }
        Value::List(list) | Value::Tuple(list) => {
            run::elements(count)?;
            let items = places.map(|place| list.items[place].clone()).collect();
            if matches!(of, Value::List(_)) { Value::list(items) } else { Value::tuple(items) }
        }
        _ => Err(Error::new("this cannot be sliced")),
    }
}

/// The element at an index; a negative index counts from the end.
pub(super) fn element(of: &Value, place: i128) -> Result<Option<Value>> {
    let length = match of {
        Value::Str(text) | Value::Markup(text) => {
            run::reads(text.len())?;
            if text.is_ascii() { text.len() } else { text.chars().count() }
        }
        _ => of.length()?,
    };
    let place = if place < 0 { place.saturating_add(length as i128) } else { place };
    let Some(place) = usize::try_from(place).ok().filter(|&place| place < length) else { return Ok(None) };
    Ok(match of {
        Value::Str(text) | Value::Markup(text) => {
            run::reads(place)?;
            text.chars().nth(place).map(Value::from)
        }
        Value::List(list) | Value::Tuple(list) => list.items.get(place).cloned(),
        Value::Range(start, _, step) => Some(Value::Int(start + place as i128 * step)),
        _ => None,
    })
}
