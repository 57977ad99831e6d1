//! Operations on texts that methods, filters and operators share.

use std::rc::Rc;

use super::error::Result;
use super::value::Value;
use super::{python, run};

/// A text in upper or lower case.
pub(super) fn in_case(text: &str, with: fn(&str) -> String) -> Result<Value> {
    // Some characters become three characters.
    run::bytes(if text.is_ascii() { 1 } else { 3 } * text.len() as u64)?;
    Value::text(with(text))
}

/// A text repeated this many times. It is counted before it is made.
pub(super) fn repeat(text: &str, times: usize) -> Result<String> {
    run::bytes((text.len() as u64).saturating_mul(times as u64))?;
    Ok(if text.is_empty() { String::new() } else { text.repeat(times) })
}

pub(super) fn joined(parts: &[Rc<str>], separator: &str) -> Result<String> {
    let bytes: u64 = parts.iter().map(|part| part.len() as u64).sum();
    run::bytes(bytes.saturating_add((separator.len() as u64).saturating_mul(parts.len() as u64)))?;
    let mut out = String::new();
    for (index, part) in parts.iter().enumerate() {
        if index > 0 {
            out += separator;
        }
        out += part;
    }
    Ok(out)
}

pub(super) fn replace(of: &str, old: &str, new: &str, count: i128) -> Result<String> {
    let most = usize::try_from(count).unwrap_or(usize::MAX);
    run::reads(of.len())?;
    let found = if old.is_empty() { of.chars().count() + 1 } else { of.matches(old).count() };
    let times = found.min(most) as u64;
    run::bytes((of.len() as u64).saturating_add(times.saturating_mul(new.len() as u64)))?;
    Ok(of.replacen(old, new, most))
}

pub(super) fn justified(of: &str, width: i128, fill: &str, name: &str) -> Result<String> {
    let length = of.chars().count() as i128;
    let padding = usize::try_from(width.saturating_sub(length).max(0)).unwrap_or(usize::MAX);
    let before = match name {
        "ljust" => 0,
        "rjust" => padding,
        // As in CPython: the extra character goes to the left if the width is odd.
        _ => padding / 2 + (padding & (width as usize) & 1),
    };
    run::bytes(of.len() as u64)?;
    Ok(repeat(fill, before)? + of + &repeat(fill, padding - before)?)
}

/// `str.splitlines`.
pub(super) fn lines(of: &str, keep: bool) -> Result<Vec<&str>> {
    run::reads(of.len())?;
    let count = of.chars().filter(|c| python::ends_line(*c)).count();
    run::bytes(16 * (count as u64 + 1))?;
    let mut lines = Vec::with_capacity(count + 1);
    let mut rest = of;
    while !rest.is_empty() {
        let Some(place) = rest.find(python::ends_line) else {
            lines.push(rest);
            break;
        };
        let end = if rest[place..].starts_with("\r\n") {
            place + 2
        } else {
            place + rest[place..].chars().next().map_or(1, char::len_utf8)
        };
        lines.push(&rest[..if keep { end } else { place }]);
        rest = &rest[end..];
    }
    Ok(lines)
}
