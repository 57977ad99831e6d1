//! Python's operators.

use std::cmp::Ordering;

use super::ast::{Comparison, Operator};
use super::compare::contains;
use super::error::{Error, Result};
use super::html::escape;
use super::numbers::{floats, int};
use super::texts::repeat;
use super::value::Value;
use super::{format, run};

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
            let (a, b) = (escape(a)?, escape(b)?);
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
