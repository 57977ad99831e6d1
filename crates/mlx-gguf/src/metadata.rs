//! The metadata of a file: values by key.

use std::collections::BTreeMap;
use std::fmt;

use crate::Problem;

/// A value of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// An integer of any width.
    Integer(i128),
    /// A float32 or float64.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// A text.
    Text(String),
    /// Integers of any width. In models these are ids, kinds or sizes.
    Integers(Vec<i64>),
    /// float32 or float64 numbers.
    Floats(Vec<f32>),
    /// Truth values.
    Bools(Vec<bool>),
    /// Texts.
    Texts(Texts),
}

/// A list of texts, in one piece of memory: a vocabulary has hundreds of thousands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Texts {
    all: String,
    /// Where each text ends in `all`.
    ends: Vec<usize>,
}

impl Texts {
    /// A list of the texts between these ends, the first of which begins at 0. `None` where an end lies inside of a character.
    pub(crate) fn new(all: String, ends: Vec<usize>) -> Option<Self> {
        ends.iter().all(|&end| all.is_char_boundary(end)).then_some(Self { all, ends })
    }

    /// The number of texts.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are no texts.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The text at this index.
    pub fn get(&self, index: usize) -> Option<&str> {
        let end = *self.ends.get(index)?;
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        self.all.get(start..end)
    }

    /// All texts, in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        (0..self.len()).filter_map(|index| self.get(index))
    }
}

impl<T: AsRef<str>> FromIterator<T> for Texts {
    fn from_iter<I: IntoIterator<Item = T>>(texts: I) -> Self {
        let mut list = Self::default();
        for text in texts {
            list.all.push_str(text.as_ref());
            list.ends.push(list.all.len());
        }
        list
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Integer(value) => value.fmt(f),
            Self::Float(value) => value.fmt(f),
            Self::Bool(value) => value.fmt(f),
            Self::Text(value) => write!(f, "{value:?}"),
            Self::Integers(values) => write!(f, "a list of {} integers", values.len()),
            Self::Floats(values) => write!(f, "a list of {} numbers", values.len()),
            Self::Bools(values) => write!(f, "a list of {} truth values", values.len()),
            Self::Texts(values) => write!(f, "a list of {} texts", values.len()),
        }
    }
}

/// The metadata of a model. Each method gives the value of a key, `None` where the file does not have the key, and an error
/// where the value is of another type.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metadata {
    values: BTreeMap<String, Value>,
}

impl Metadata {
    pub(crate) fn insert(&mut self, key: String, value: Value) -> Result<(), Problem> {
        if self.values.contains_key(&key) {
            return Err(Problem::Twice { what: "metadata", name: key });
        }
        self.values.insert(key, value);
        Ok(())
    }

    /// All keys and values, sorted by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.values.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The value of a key, whatever its type.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// A text.
    ///
    /// # Errors
    ///
    /// [`Problem::Metadata`] where the value is no text.
    pub fn text(&self, key: &str) -> Result<Option<&str>, Problem> {
        self.typed(key, "a text", |value| match value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// An integer.
    ///
    /// # Errors
    ///
    /// [`Problem::Metadata`] where the value is no integer, or does not fit into 64 bits.
    pub fn integer(&self, key: &str) -> Result<Option<i64>, Problem> {
        self.typed(key, "an integer", |value| match *value {
            Value::Integer(value) => i64::try_from(value).ok(),
            _ => None,
        })
    }

    /// A number, also one that the file has as an integer.
    ///
    /// # Errors
    ///
    /// [`Problem::Metadata`] where the value is no number.
    pub fn number(&self, key: &str) -> Result<Option<f64>, Problem> {
        self.typed(key, "a number", |value| match *value {
            Value::Float(value) => Some(value),
            Value::Integer(value) => Some(value as f64),
            _ => None,
        })
    }

    /// A truth value.
    ///
    /// # Errors
    ///
    /// [`Problem::Metadata`] where the value is none.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, Problem> {
        self.typed(key, "true or false", |value| match *value {
            Value::Bool(value) => Some(value),
            _ => None,
        })
    }

    /// A list of integers.
    ///
    /// # Errors
    ///
    /// [`Problem::Metadata`] where the value is no such list.
    pub fn integers(&self, key: &str) -> Result<Option<&[i64]>, Problem> {
        self.typed(key, "a list of integers", |value| match value {
            Value::Integers(values) => Some(values.as_slice()),
            _ => None,
        })
    }

    /// A list of numbers.
    ///
    /// # Errors
    ///
    /// [`Problem::Metadata`] where the value is no such list.
    pub fn floats(&self, key: &str) -> Result<Option<&[f32]>, Problem> {
        self.typed(key, "a list of numbers", |value| match value {
            Value::Floats(values) => Some(values.as_slice()),
            _ => None,
        })
    }

    /// A list of texts.
    ///
    /// # Errors
    ///
    /// [`Problem::Metadata`] where the value is no such list.
    pub fn texts(&self, key: &str) -> Result<Option<&Texts>, Problem> {
        self.typed(key, "a list of texts", |value| match value {
            Value::Texts(values) => Some(values),
            _ => None,
        })
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        needed: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, Problem> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        let wrong =
            || Problem::Metadata { key: key.to_owned(), found: value.to_string(), needed: needed.to_owned() };
        read(value).map(Some).ok_or_else(wrong)
    }
}
