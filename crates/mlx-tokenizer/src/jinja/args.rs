//! The arguments of calls.

use std::rc::Rc;

use super::error::{Error, Result, short};
use super::run;
use super::value::Value;

/// The arguments of a call.
#[derive(Debug, Default, Clone)]
pub(super) struct Args {
    pub(super) positional: Vec<Value>,
    pub(super) named: Vec<(Rc<str>, Value)>,
}

impl Args {
    /// A copy, which is counted.
    pub(super) fn copied(&self) -> Result<Self> {
        run::elements(self.positional.len() + 2 * self.named.len())?;
        Ok(self.clone())
    }

    /// Assigns the arguments to these parameters, of which the first `required` are required.
    pub(super) fn bind<const N: usize>(
        self,
        function: &str,
        names: [&str; N],
        required: usize,
    ) -> Result<[Option<Value>; N]> {
        if self.positional.len() > N {
            let given = self.positional.len();
            return Err(Error::new(format!("{function}() takes at most {N} arguments ({given} given)")));
        }
        let mut bound = [const { None }; N];
        for (place, value) in self.positional.into_iter().enumerate() {
            bound[place] = Some(value);
        }
        for (name, value) in self.named {
            let place = names.iter().position(|of| **of == *name);
            let Some(place) = place else {
                let problem = format!("{function}() got an unexpected keyword argument '{}'", short(&name));
                return Err(Error::new(problem));
            };
            if bound[place].replace(value).is_some() {
                return Err(Error::new(format!("{function}() got multiple values for argument '{name}'")));
            }
        }
        match bound.iter().take(required).position(Option::is_none) {
            Some(place) => {
                let name = names[place];
                Err(Error::new(format!("{function}() missing required argument '{name}'")))
            }
            None => Ok(bound),
        }
    }

    /// Like [`Args::bind`], without keyword arguments.
    pub(super) fn places<const N: usize>(
        self,
        function: &str,
        required: usize,
    ) -> Result<[Option<Value>; N]> {
        if !self.named.is_empty() {
            return Err(Error::new(format!("{function}() takes no keyword arguments")));
        }
        let given = self.positional.len();
        if given > N || given < required {
            let expected = if required == N { format!("{N}") } else { format!("{required} to {N}") };
            return Err(Error::new(format!("{function}() takes {expected} arguments ({given} given)")));
        }
        let mut places = self.positional.into_iter();
        Ok([(); N].map(|()| places.next()))
    }
}
