//! JSON values that keep the order of their keys.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::jinja::dumps::{float, write_text};
use crate::jinja::{Dict, Error, Value};

/// A JSON value that keeps the order of its keys, because templates print them: a tool, a document, a variable.
///
/// Make one from a Rust value with [`Json::new`] or `From`, or from text with `parse`.
///
/// ```
/// use mlx_tokenizer::Json;
///
/// let tool: Json = r#"{"name": "now", "description": "The time", "parameters": {}}"#.parse()?;
/// let thinking = Json::from(false);
/// # Ok::<(), mlx_tokenizer::JsonError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Json(pub(crate) Data);

/// The kinds of JSON values.
#[derive(Debug, Clone)]
pub(crate) enum Data {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(String),
    List(Vec<Data>),
    /// Without duplicate keys.
    Map(Vec<(String, Data)>),
}

/// The order of keys does not matter.
impl PartialEq for Data {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Null, Self::Null) => true,
            (Self::Bool(a), Self::Bool(b)) => a == b,
            (Self::Int(a), Self::Int(b)) => a == b,
            (Self::Float(a), Self::Float(b)) => a == b,
            (Self::Int(int), Self::Float(float)) | (Self::Float(float), Self::Int(int)) => {
                *int as f64 == *float
            }
            (Self::Text(a), Self::Text(b)) => a == b,
            (Self::List(a), Self::List(b)) => a == b,
            (Self::Map(a), Self::Map(b)) => {
                let b: HashMap<_, _> = b.iter().map(|(key, value)| (key, value)).collect();
                a.len() == b.len() && a.iter().all(|(key, value)| b.get(key).is_some_and(|of| *of == value))
            }
            _ => false,
        }
    }
}

impl Data {
    pub(crate) fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Map(entries) => entries.iter().find(|(of, _)| of == key).map(|(_, value)| value),
            _ => None,
        }
    }

    pub(crate) fn as_str(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The approximate size in bytes.
    pub(crate) fn size(&self) -> usize {
        16 + match self {
            Self::Text(text) => text.len(),
            Self::List(items) => items.iter().map(Self::size).sum(),
            Self::Map(entries) => entries.iter().map(|(key, value)| key.len() + value.size()).sum(),
            _ => 0,
        }
    }

    /// The value as a template sees it.
    pub(crate) fn to_value(&self) -> Result<Value, Error> {
        Ok(match self {
            Self::Null => Value::None,
            Self::Bool(value) => Value::Bool(*value),
            Self::Int(value) => Value::Int(*value),
            Self::Float(value) => Value::Float(*value),
            Self::Text(text) => Value::text(text.as_str())?,
            Self::List(items) => Value::list(items.iter().map(Self::to_value).collect::<Result<_, _>>()?)?,
            Self::Map(entries) => {
                let mut dict = Dict::default();
                for (key, value) in entries {
                    dict.insert(Value::text(key.as_str())?, value.to_value()?)?;
                }
                Value::dict(dict)
            }
        })
    }

    fn write(&self, out: &mut String) {
        match self {
            Self::Null => *out += "null",
            Self::Bool(value) => *out += if *value { "true" } else { "false" },
            Self::Int(value) => *out += &value.to_string(),
            Self::Float(value) => *out += &float(*value),
            Self::Text(text) => write_text(text, false, out),
            Self::List(items) => {
                out.push('[');
                for (index, item) in items.iter().enumerate() {
                    *out += if index > 0 { ", " } else { "" };
                    item.write(out);
                }
                out.push(']');
            }
            Self::Map(entries) => {
                out.push('{');
                for (index, (key, value)) in entries.iter().enumerate() {
                    *out += if index > 0 { ", " } else { "" };
                    write_text(key, false, out);
                    *out += ": ";
                    value.write(out);
                }
                out.push('}');
            }
        }
    }
}

/// The reason why a text is not a JSON value.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct JsonError(#[from] serde_json::Error);

impl Json {
    /// Converts a value to JSON; fields and keys keep their order.
    ///
    /// # Errors
    ///
    /// [`JsonError`] if the value cannot be represented in JSON, such as a map whose keys are lists.
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
        Data::deserialize(deserializer).map(Self)
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Data {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(DataVisitor)
    }
}

struct DataVisitor;

impl<'de> Visitor<'de> for DataVisitor {
    type Value = Data;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Data, E> {
        Ok(Data::Null)
    }

    fn visit_none<E>(self) -> Result<Data, E> {
        Ok(Data::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Data, D::Error> {
        Data::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Data, E> {
        Ok(Data::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Data, E> {
        Ok(Data::Int(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Data, E> {
        Ok(Data::Int(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Data, E> {
        Ok(Data::Int(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Data, E> {
        Ok(Data::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Data, E> {
        Ok(Data::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Data, E> {
        Ok(Data::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Data, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Data::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Data, A::Error> {
        let mut entries: Vec<(String, Data)> = Vec::new();
        let mut places = HashMap::new();
        // As in Python, a duplicate key keeps its first place and gets the last value.
        while let Some((key, value)) = map.next_entry::<String, Data>()? {
            match places.get(&key) {
                Some(&place) => {
                    let entry: &mut (String, Data) = &mut entries[place];
                    entry.1 = value;
                }
                None => {
                    places.insert(key.clone(), entries.len());
                    entries.push((key, value));
                }
            }
        }
        Ok(Data::Map(entries))
    }
}

impl Serialize for Data {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Int(value) => serializer.serialize_i128(*value),
            Self::Float(value) => serializer.serialize_f64(*value),
            Self::Text(text) => serializer.serialize_str(text),
            Self::List(items) => {
                let mut seq = serializer.serialize_seq(Some(items.len()))?;
                for item in items {
                    seq.serialize_element(item)?;
                }
                seq.end()
            }
            Self::Map(entries) => {
                let mut map = serializer.serialize_map(Some(entries.len()))?;
                for (key, value) in entries {
                    map.serialize_entry(key, value)?;
                }
                map.end()
            }
        }
    }
}

/// The value as JSON.
impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = String::new();
        self.0.write(&mut out);
        f.write_str(&out)
    }
}

impl From<&str> for Json {
    fn from(value: &str) -> Self {
        Self(Data::Text(value.to_owned()))
    }
}

impl From<String> for Json {
    fn from(value: String) -> Self {
        Self(Data::Text(value))
    }
}

impl From<bool> for Json {
    fn from(value: bool) -> Self {
        Self(Data::Bool(value))
    }
}

impl From<i64> for Json {
    fn from(value: i64) -> Self {
        Self(Data::Int(value.into()))
    }
}

impl From<f64> for Json {
    fn from(value: f64) -> Self {
        Self(Data::Float(value))
    }
}
