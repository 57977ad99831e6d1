//! Escapes text for HTML, and removes tags and entities.

use std::rc::Rc;

use super::error::Result;
use super::value::Value;
use super::{python, run};

/// Escapes a text for HTML; markup stays as it is.
pub(super) fn escape(value: &Value) -> Result<Rc<str>> {
    if let Value::Markup(text) = value {
        return Ok(Rc::clone(text));
    }
    let text = value.to_text()?;
    let escaped = |byte: u8| match byte {
        b'&' | b'\'' | b'"' => 5,
        b'<' | b'>' => 4,
        _ => 1,
    };
    let length: usize = text.bytes().map(escaped).sum();
    // The text is made, and then copied.
    run::bytes(2 * (length + run::OBJECT) as u64)?;
    let mut out = String::with_capacity(length);
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '\'' => out += "&#39;",
            '"' => out += "&#34;",
            _ => out.push(c),
        }
    }
    Ok(out.into())
}

/// The text without tags and comments, with single spaces and without entities.
pub(super) fn strip_tags(text: &str) -> Result<String> {
    run::bytes(4 * text.len() as u64)?;
    let mut out = text.to_owned();
    for (begin, end) in [("<!--", "-->"), ("<", ">")] {
        let mut stripped = String::with_capacity(out.len());
        let mut rest = &*out;
        while let Some(place) = rest.find(begin) {
            let Some(length) = rest[place..].find(end) else { break };
            stripped += &rest[..place];
            rest = &rest[place + length + end.len()..];
        }
        stripped += rest;
        out = stripped;
    }
    let mut words = String::new();
    for word in out.split(python::is_space).filter(|word| !word.is_empty()) {
        if !words.is_empty() {
            words.push(' ');
        }
        words += word;
    }
    Ok(unescape(&words))
}

/// The maximum length of an entity after the `&`, as in Python.
const LONGEST_ENTITY: usize = 34;

/// The entities that escaping produces, and numeric ones.
pub(super) fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(place) = rest.find('&') {
        out += &rest[..place];
        rest = &rest[place..];
        let near = rest.bytes().take(LONGEST_ENTITY);
        let found = near.into_iter().position(|byte| byte == b';').and_then(|end| {
            let c = match &rest[1..end] {
                "amp" => '&',
                "lt" => '<',
                "gt" => '>',
                "quot" => '"',
                "apos" => '\'',
                "nbsp" => '\u{a0}',
                name => {
                    let number = name.strip_prefix('#')?;
                    let code = match number.strip_prefix(['x', 'X']) {
                        Some(hex) => u32::from_str_radix(hex, 16).ok()?,
                        None => number.parse().ok()?,
                    };
                    char::from_u32(code)?
                }
            };
            Some((c, end + 1))
        });
        match found {
            Some((c, length)) => {
                out.push(c);
                rest = &rest[length..];
            }
            None => {
                out.push('&');
                rest = &rest[1..];
            }
        }
    }
    out + rest
}
