//! The metadata of one architecture: typed values, and which keys have a meaning.

use std::cell::RefCell;
use std::collections::BTreeSet;

use crate::metadata::Value;
use crate::{Gguf, GgufError, Problem};

/// Keys that change nothing that a model computes, with the reason.
const WITHOUT_EFFECT: &[(&str, &str)] = &[
    ("pooling_type", "how programs for embeddings combine the outputs of tokens"),
    ("tensor_data_layout", "the same in all files of an architecture"),
    ("rope.scaling.finetuned", "how the model was trained"),
];

/// Keys that must have this value where a file has them, because the architectures here compute nothing else.
const ONLY_ZERO: &[&str] = &["expert_count", "expert_used_count", "nextn_predict_layers"];

/// The keys of a file that begin with the name of its architecture. Each that is asked for is noted.
pub(super) struct Keys<'a> {
    pub(super) file: &'a Gguf,
    architecture: &'static str,
    known: RefCell<BTreeSet<&'static str>>,
    /// The tensors that were read for the config.
    tensors: RefCell<BTreeSet<&'static str>>,
}

impl<'a> Keys<'a> {
    pub(super) fn new(file: &'a Gguf, architecture: &'static str) -> Self {
        let known = WITHOUT_EFFECT.iter().map(|(key, _)| *key).chain(ONLY_ZERO.iter().copied()).collect();
        Self { file, architecture, known: RefCell::new(known), tensors: RefCell::default() }
    }

    /// The whole key.
    pub(super) fn full(&self, key: &'static str) -> String {
        self.known.borrow_mut().insert(key);
        format!("{}.{key}", self.architecture)
    }

    /// Notes that the config has this tensor.
    pub(super) fn note_tensor(&self, name: &'static str) {
        self.tensors.borrow_mut().insert(name);
    }

    /// Whether the config has this tensor.
    pub(super) fn has_read(&self, name: &str) -> bool {
        self.tensors.borrow().contains(name)
    }

    pub(super) fn text(&self, key: &'static str) -> Result<Option<&'a str>, GgufError> {
        self.file.metadata().text(&self.full(key)).map_err(|problem| self.file.wrong(problem))
    }

    pub(super) fn bool(&self, key: &'static str) -> Result<Option<bool>, GgufError> {
        self.file.metadata().bool(&self.full(key)).map_err(|problem| self.file.wrong(problem))
    }

    /// A finite number. A float32 becomes the shortest decimal number that rounds to it, which is what configs have.
    pub(super) fn number(&self, key: &'static str) -> Result<Option<f64>, GgufError> {
        let full = self.full(key);
        let found = self.file.metadata().number(&full).map_err(|problem| self.file.wrong(problem))?;
        match found {
            Some(number) if !number.is_finite() => Err(self.wrong(key, number, "a finite number")),
            number => Ok(number.map(|number| decimal(number as f32).unwrap_or(number))),
        }
    }

    /// A number that is not 0, which stands for a missing one.
    pub(super) fn factor(&self, key: &'static str) -> Result<Option<f64>, GgufError> {
        Ok(self.number(key)?.filter(|&number| number != 0.0))
    }

    /// A number of things, at least 1. A list must have the same number for each of `layers`.
    pub(super) fn size(&self, key: &'static str, layers: Option<usize>) -> Result<Option<i64>, GgufError> {
        let full = self.full(key);
        let metadata = self.file.metadata();
        let found = match (metadata.get(&full), layers) {
            (Some(Value::Integers(all)), Some(layers)) => {
                let first = all.first().copied().unwrap_or_default();
                if all.len() != layers {
                    let needed = format!("a number for each of {layers} layers");
                    return Err(self.wrong(key, format!("a list of {} integers", all.len()), needed));
                }
                if let Some(other) = all.iter().find(|other| **other != first) {
                    let found = format!("{first} in one layer and {other} in another");
                    return Err(self.wrong(key, found, "the same in all layers"));
                }
                Some(first)
            }
            _ => metadata.integer(&full).map_err(|problem| self.file.wrong(problem))?,
        };
        match found {
            Some(..=0) => Err(self.wrong(key, found.unwrap_or_default(), "at least 1")),
            found => Ok(found),
        }
    }

    /// The value of a key that must not be missing.
    pub(super) fn needed<T>(&self, key: &'static str, found: Option<T>) -> Result<T, GgufError> {
        found.ok_or_else(|| self.file.wrong(Problem::MissingKey { key: self.full(key) }))
    }

    /// The error for a value that does not fit.
    pub(super) fn wrong(
        &self,
        key: &'static str,
        found: impl ToString,
        needed: impl Into<String>,
    ) -> GgufError {
        let (key, found) = (self.full(key), found.to_string());
        self.file.wrong(Problem::Metadata { key, found, needed: needed.into() })
    }

    /// Whether the file has a tensor of this name.
    pub(super) fn has(&self, tensor: &str) -> bool {
        self.file.tensor(tensor).is_some()
    }

    /// Checks that each key of the architecture has a meaning. The others say what the file is, how it was made, and what its
    /// tokens are, and do not change what a model computes.
    pub(super) fn finish(&self) -> Result<(), Problem> {
        let metadata = self.file.metadata();
        for &key in ONLY_ZERO {
            let key = self.full(key);
            match metadata.integer(&key)? {
                None | Some(0) => {}
                Some(found) => {
                    let (found, needed) = (found.to_string(), "0: such models cannot be loaded".to_owned());
                    return Err(Problem::Metadata { key, found, needed });
                }
            }
        }
        let known = self.known.borrow();
        let of_architecture =
            |key: &'a str| key.strip_prefix(self.architecture).and_then(|key| key.strip_prefix('.'));
        let unknown =
            metadata.iter().find(|(key, _)| of_architecture(key).is_some_and(|key| !known.contains(key)));
        let architecture = self.architecture;
        unknown.map_or(Ok(()), |(key, _)| Err(Problem::UnknownKey { key: key.to_owned(), architecture }))
    }
}

/// The shortest decimal number that rounds to this one.
pub(super) fn decimal(number: f32) -> Option<f64> {
    number.to_string().parse().ok()
}
