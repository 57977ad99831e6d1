//! The elements of values.

use std::rc::Rc;

use super::error::{Error, Result};
use super::value::{Value, View, range_length};
use super::{run, store};

impl Value {
    /// Python's `len`.
    pub(super) fn length(&self) -> Result<usize> {
        match self {
            Self::Undefined(_) => Ok(0),
            Self::Str(text) | Self::Markup(text) => {
                run::reads(text.len())?;
                Ok(text.chars().count())
            }
            Self::List(list) | Self::Tuple(list) => Ok(list.items.len()),
            Self::Dict(dict) | Self::View(_, dict) => Ok(dict.len()),
            Self::Range(start, stop, step) => Ok(range_length(*start, *stop, *step)),
            Self::Loop(of) => Ok(store::with_loop(*of, |of| of.items.len()).unwrap_or(0)),
            _ => Err(Error::new(format!("object of type '{}' has no len()", self.type_name()))),
        }
    }

    /// The elements, as in a Python `for` loop. They are counted as steps.
    pub(super) fn iterate(&self) -> Result<Rc<Vec<Self>>> {
        let items = match self {
            Self::Undefined(_) => Vec::new(),
            Self::Str(text) | Self::Markup(text) => {
                run::reads(text.len())?;
                let count = text.chars().count() as u64;
                run::bytes(count.saturating_mul(run::ELEMENT))?;
                text.chars().map(Self::from).collect()
            }
            Self::List(list) | Self::Tuple(list) => {
                run::steps(list.items.len())?;
                return Ok(Rc::clone(&list.items));
            }
            Self::Dict(dict) | Self::View(View::Keys, dict) => {
                run::elements(dict.len())?;
                dict.entries().iter().map(|(key, _)| key.clone()).collect()
            }
            Self::View(View::Values, dict) => {
                run::elements(dict.len())?;
                dict.entries().iter().map(|(_, value)| value.clone()).collect()
            }
            Self::View(View::Items, dict) => {
                run::elements(dict.len())?;
                let pair = |(key, value): &(Self, Self)| Self::tuple(vec![key.clone(), value.clone()]);
                dict.entries().iter().map(pair).collect::<Result<_>>()?
            }
            Self::Range(start, stop, step) => {
                let length = range_length(*start, *stop, *step);
                run::elements(length)?;
                (0..length as i128).map(|index| Self::Int(start + index * step)).collect()
            }
            Self::Iterator(iterator) => {
                let items: Vec<Self> = iterator.items.take().into();
                run::elements(items.len())?;
                if let Some(error) = iterator.error.take() {
                    return Err(error);
                }
                items
            }
            Self::Loop(of) => {
                // A loop over `loop` takes its elements, as in Python.
                run::elements(2 * self.length()?)?;
                let rest = store::with_loop(*of, |of| {
                    let rest = of.items[(of.index + 1).min(of.items.len())..].to_vec();
                    of.index = of.items.len().saturating_sub(1);
                    rest
                });
                let pair = |item| Self::tuple(vec![item, self.clone()]);
                rest.unwrap_or_default().into_iter().map(pair).collect::<Result<_>>()?
            }
            _ => return Err(Error::new(format!("'{}' object is not iterable", self.type_name()))),
        };
        Ok(Rc::new(items))
    }
}
