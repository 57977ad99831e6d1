//! The elements at the indices of texts, lists, tuples and ranges.

use super::error::{Error, Result};
use super::numbers::too_large;
use super::run;
use super::value::Value;

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
