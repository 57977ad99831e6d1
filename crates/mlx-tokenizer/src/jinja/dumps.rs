//! Python's `json.dumps`.

use std::fmt::Write as _;
use std::rc::Rc;

use super::compare::sort;
use super::error::{Error, Result};
use super::value::{Dict, Value};
use super::{python, run};

/// The arguments of Python's `json.dumps` with these names.
#[derive(Debug, Default)]
pub(crate) struct Style {
    pub(crate) ensure_ascii: bool,
    /// The indentation of a level; `None` writes a single line.
    pub(crate) indent: Option<String>,
    /// The separators between elements, and between key and value.
    pub(crate) separators: Option<(String, String)>,
    pub(crate) sort_keys: bool,
}

/// Writes a template's value as Python's `json.dumps` does.
pub(crate) fn dumps_value(value: &Value, style: &Style) -> Result<String> {
    let between = if style.indent.is_some() { "," } else { ", " };
    let (item, key) = style.separators.as_ref().map_or((between, ": "), |(item, key)| (item, key));
    let mut writer = Writer { style, item, key, out: String::new() };
    writer.value(value, 0)?;
    Ok(writer.out)
}

struct Writer<'a> {
    style: &'a Style,
    item: &'a str,
    key: &'a str,
    out: String,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<()> {
        let before = self.out.len();
        match value {
            Value::None => self.out += "null",
            Value::Bool(value) => self.out += if *value { "true" } else { "false" },
            Value::Int(value) => self.out += &value.to_string(),
            Value::Float(value) => self.out += &float(*value),
            Value::Str(text) | Value::Markup(text) => {
                make_bytes(longest(text, self.style.ensure_ascii))?;
                write_text(text, self.style.ensure_ascii, &mut self.out);
            }
            Value::Dict(dict) => return self.map(dict, depth),
            Value::List(list) | Value::Tuple(list) => {
                let items = Rc::clone(&list.items);
                return self.container(['[', ']'], items.len(), depth, |writer, index| {
                    writer.value(&items[index], depth + 1)
                });
            }
            other => {
                let problem = format!("Object of type {} is not JSON serializable", other.type_name());
                return Err(Error::new(problem));
            }
        }
        make_bytes(self.out.len() - before)
    }

    fn map(&mut self, map: &Dict, depth: usize) -> Result<()> {
        make_bytes(size_of_val(map.entries()))?;
        let mut entries: Vec<(Value, Value)> = map.entries().to_vec();
        if self.style.sort_keys {
            sort(&mut entries, false)?;
        }
        self.container(['{', '}'], entries.len(), depth, |writer, index| {
            let (key, value) = &entries[index];
            // Keys that are not strings are written as strings.
            match key {
                Value::Str(_) | Value::Markup(_) => writer.value(key, depth + 1)?,
                Value::None | Value::Bool(_) | Value::Int(_) | Value::Float(_) => {
                    writer.out.push('"');
                    writer.value(key, depth + 1)?;
                    writer.out.push('"');
                }
                other => {
                    let of = other.type_name();
                    let problem = format!("keys must be str, int, float, bool or None, not {of}");
                    return Err(Error::new(problem));
                }
            }
            writer.out += writer.key;
            writer.value(value, depth + 1)
        })
    }

    fn container(
        &mut self,
        [open, close]: [char; 2],
        length: usize,
        depth: usize,
        item: impl Fn(&mut Self, usize) -> Result<()>,
    ) -> Result<()> {
        make_bytes((2 + self.item.len() + self.key.len()).saturating_mul(length + 1))?;
        self.out.push(open);
        for index in 0..length {
            if index > 0 {
                self.out += self.item;
            }
            self.line(depth + 1)?;
            item(self, index)?;
        }
        if length > 0 {
            self.line(depth)?;
        }
        self.out.push(close);
        Ok(())
    }

    fn line(&mut self, depth: usize) -> Result<()> {
        if let Some(indent) = &self.style.indent {
            make_bytes(1 + indent.len().saturating_mul(depth))?;
            self.out.push('\n');
            self.out += &indent.repeat(depth);
        }
        Ok(())
    }
}

/// The maximum number of bytes that [`write_text`] makes of a text.
fn longest(text: &str, ensure_ascii: bool) -> usize {
    let longest = |byte: u8| match byte {
        b'"' | b'\\' => 2,
        b' '..=b'~' => 1,
        // The first byte of a multi-byte character stands for all of them.
        0x80..0xc0 if ensure_ascii => 0,
        0xc0..0xf0 if ensure_ascii => 6,
        0xf0.. if ensure_ascii => 12,
        0x80.. => 1,
        _ => 6,
    };
    2 + text.bytes().map(longest).sum::<usize>()
}

/// Writes a text in quotes.
pub(crate) fn write_text(text: &str, ensure_ascii: bool, out: &mut String) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => *out += "\\\"",
            '\\' => *out += "\\\\",
            '\n' => *out += "\\n",
            '\r' => *out += "\\r",
            '\t' => *out += "\\t",
            '\u{8}' => *out += "\\b",
            '\u{c}' => *out += "\\f",
            _ if character < ' ' || ensure_ascii && !(' '..='~').contains(&character) => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    // Writing to a string cannot fail.
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            _ => out.push(character),
        }
    }
    out.push('"');
}

/// Writes a float in JSON as Python does.
pub(crate) fn float(number: f64) -> String {
    match python::float(number).as_str() {
        "nan" => "NaN".to_owned(),
        "inf" => "Infinity".to_owned(),
        "-inf" => "-Infinity".to_owned(),
        text => text.to_owned(),
    }
}

/// Counts bytes that are about to be made.
fn make_bytes(count: usize) -> Result<()> {
    run::bytes(count as u64)
}
