//! Jinja2's tests, which follow `is`.

use super::args::Args;
use super::ast::{Comparison, Operator};
use super::error::{Error, Result};
use super::value::Value;
use super::{methods, names, ops};

/// `value is name(args)`.
pub(super) fn call(name: &str, value: &Value, args: Args) -> Result<bool> {
    let comparison = match name {
        "==" | "eq" | "equalto" => Some(Comparison::Equal),
        "!=" | "ne" => Some(Comparison::Unequal),
        "<" | "lt" | "lessthan" => Some(Comparison::Less),
        "<=" | "le" => Some(Comparison::LessOrEqual),
        ">" | "gt" | "greaterthan" => Some(Comparison::Greater),
        ">=" | "ge" => Some(Comparison::GreaterOrEqual),
        "in" => Some(Comparison::In),
        _ => None,
    };
    if let Some(comparison) = comparison {
        let [other] = args.bind(name, ["seq"], 1)?;
        return ops::compare(comparison, value, &other.unwrap_or(Value::None));
    }
    match name {
        "sameas" => {
            let [other] = args.bind(name, ["other"], 1)?;
            return Ok(value.is(&other.unwrap_or(Value::None)));
        }
        "divisibleby" => {
            let [number] = args.bind(name, ["num"], 1)?;
            return rest(value, &number.unwrap_or(Value::None))?.equals(&Value::Int(0));
        }
        _ => {}
    }
    args.bind::<0>(name, [], 0)?;
    Ok(match name {
        "odd" => rest(value, &Value::Int(2))?.equals(&Value::Int(1))?,
        "even" => rest(value, &Value::Int(2))?.equals(&Value::Int(0))?,
        "defined" => !value.is_undefined(),
        "undefined" => value.is_undefined(),
        "filter" => hashable(value)?.as_str().is_some_and(|name| names::is_filter(name)),
        "test" => hashable(value)?.as_str().is_some_and(|name| names::is_test(name)),
        "none" => value.is_none(),
        "boolean" => matches!(value, Value::Bool(_)),
        "true" => matches!(value, Value::Bool(true)),
        "false" => matches!(value, Value::Bool(false)),
        "integer" => matches!(value, Value::Int(_)),
        "float" => matches!(value, Value::Float(_)),
        "number" => matches!(value, Value::Bool(_) | Value::Int(_) | Value::Float(_)),
        "string" => value.as_str().is_some(),
        "mapping" => matches!(value, Value::Dict(_)),
        "sequence" => {
            matches!(
                value,
                Value::Undefined(_) | Value::Str(_) | Value::Markup(_) | Value::List(_) | Value::Tuple(_)
            ) || matches!(value, Value::Dict(_) | Value::Range(..))
        }
        "iterable" => value.is_iterable(),
        "callable" => value.is_callable(),
        "escaped" => matches!(value, Value::Markup(_)),
        "lower" | "upper" => {
            let text = Value::Str(value.to_text()?);
            let method = if name == "lower" { "islower" } else { "isupper" };
            methods::call(&text, method, Args::default())?.is_true()
        }
        _ => return Err(Error::new(format!("no test named {name:?} found"))),
    })
}

fn rest(value: &Value, by: &Value) -> Result<Value> {
    ops::binary(Operator::Modulo, value, by)
}

fn hashable(value: &Value) -> Result<&Value> {
    match value {
        Value::List(_) | Value::Dict(_) => {
            Err(Error::new(format!("unhashable type: '{}'", value.type_name())))
        }
        _ => Ok(value),
    }
}
