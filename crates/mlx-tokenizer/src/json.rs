//! JSON values that keep the order of their keys, and how Python's `json.dumps` writes them.

use std::fmt::{self, Write as _};
use std::str::FromStr;

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A JSON value that keeps the order of its keys, which templates print: a tool, a document, a variable.
///
/// From a Rust value with [`Json::new`] or `From`, from text with `parse`.
///
/// ```
/// use mlx_tokenizer::Json;
///
/// let tool: Json = r#"{"name": "now", "description": "The time", "parameters": {}}"#.parse()?;
/// let thinking = Json::from(false);
/// # Ok::<(), mlx_tokenizer::JsonError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Json(pub(crate) Value);

/// Why a text is no JSON value.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct JsonError(#[from] serde_json::Error);

impl Json {
    /// The JSON of a value; fields and keys keep their order.
    ///
    /// # Errors
    ///
    /// [`JsonError`] where the value has no JSON, such as a map with keys that are lists.
    pub fn new(value: &(impl Serialize + ?Sized)) -> Result<Self, JsonError> {
        serde_json::to_string(value)?.parse()
    }
}

impl FromStr for Json {
    type Err = JsonError;

    fn from_str(text: &str) -> Result<Self, JsonError> {
        Ok(serde_json::from_str(text)?)
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Value::deserialize(deserializer).map(Self)
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

/// As JSON.
impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&dumps(&self.0, &Style::default()).map_err(|_| fmt::Error)?)
    }
}

macro_rules! from {
    ($($of:ty),+) => {
        $(impl From<$of> for Json {
            fn from(value: $of) -> Self {
                Self(Value::from(value))
            }
        })+
    };
}

from!(&str, String, bool, i64, f64);

/// How Python's `json.dumps` writes: its arguments of these names.
#[derive(Debug, Default)]
pub(crate) struct Style {
    pub(crate) ensure_ascii: bool,
    /// What a level is indented by; none for a single line.
    pub(crate) indent: Option<String>,
    /// Between elements and between key and value.
    pub(crate) separators: Option<(String, String)>,
    pub(crate) sort_keys: bool,
}

/// JSON that is deeper is not written: a value may hold itself many times over.
const DEEPEST: usize = 200;

/// What Python's `json.dumps` writes.
pub(crate) fn dumps(value: &Value, style: &Style) -> Result<String, Error> {
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
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > DEEPEST {
            return Err(Error::new(ErrorKind::InvalidOperation, "a value is nested too deeply for tojson"));
        }
        match value.kind() {
            ValueKind::None => self.out += "null",
            ValueKind::Bool => self.out += if value.is_true() { "true" } else { "false" },
            ValueKind::Number if value.is_integer() => self.out += &value.to_string(),
            ValueKind::Number => self.out += &float(f64::try_from(value.clone())?),
            ValueKind::String => self.string(&value.to_string()),
            ValueKind::Map => self.map(value, depth)?,
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.container(['[', ']'], items.len(), depth, |writer, index| {
                    writer.value(&items[index], depth + 1)
                })?;
            }
            kind => {
                let problem = format!("{kind} has no JSON; tojson takes what is defined");
                return Err(Error::new(ErrorKind::InvalidOperation, problem));
            }
        }
        Ok(())
    }

    fn map(&mut self, map: &Value, depth: usize) -> Result<(), Error> {
        let mut keys: Vec<Value> = map.try_iter()?.collect();
        if self.style.sort_keys {
            keys.sort();
        }
        self.container(['{', '}'], keys.len(), depth, |writer, index| {
            let key = &keys[index];
            // Keys are strings, or are written as if they were.
            if key.kind() == ValueKind::String {
                writer.string(&key.to_string());
            } else {
                writer.out.push('"');
                writer.value(key, depth + 1)?;
                writer.out.push('"');
            }
            writer.out += writer.key;
            writer.value(&map.get_item(key)?, depth + 1)
        })
    }

    fn container(
        &mut self,
        [open, close]: [char; 2],
        length: usize,
        depth: usize,
        item: impl Fn(&mut Self, usize) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        for index in 0..length {
            if index > 0 {
                self.out += self.item;
            }
            self.line(depth + 1);
            item(self, index)?;
        }
        if length > 0 {
            self.line(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.style.indent {
            self.out.push('\n');
            self.out += &indent.repeat(depth);
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for character in text.chars() {
            match character {
                '"' => self.out += "\\\"",
                '\\' => self.out += "\\\\",
                '\n' => self.out += "\\n",
                '\r' => self.out += "\\r",
                '\t' => self.out += "\\t",
                '\u{8}' => self.out += "\\b",
                '\u{c}' => self.out += "\\f",
                _ if character < ' ' || self.style.ensure_ascii && !(' '..='~').contains(&character) => {
                    for unit in character.encode_utf16(&mut [0; 2]) {
                        // Writing to a string cannot fail.
                        let _ = write!(self.out, "\\u{unit:04x}");
                    }
                }
                _ => self.out.push(character),
            }
        }
        self.out.push('"');
    }
}

/// Python's `repr` of a float: the shortest digits that read back as the same number, with an
/// exponent below 1e-4 and from 1e16 on.
fn float(number: f64) -> String {
    if !number.is_finite() {
        let sign = if number < 0.0 { "-" } else { "" };
        return if number.is_nan() { "NaN".to_owned() } else { format!("{sign}Infinity") };
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>() {
        Ok(exponent) if number != 0.0 && !(-4..16).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
        _ => format!("{number:?}"),
    }
}
