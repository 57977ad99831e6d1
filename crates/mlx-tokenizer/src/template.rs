//! Chat templates: Jinja in the environment that transformers sets up.

use std::collections::BTreeMap;
use std::error::Error as _;

use jiff::Zoned;
use jiff::civil::DateTime;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, Value};
use minijinja::{Environment, Error, ErrorKind};

use crate::TokenizerError;
use crate::json::{Style, dumps};

/// What a template sees.
pub(crate) struct Context {
    pub(crate) variables: BTreeMap<String, Value>,
    /// The local time; without one, that of the clock.
    pub(crate) now: Option<DateTime>,
}

/// What a template says through `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

/// Renders a template, which `name` stands for in errors.
pub(crate) fn render(name: &str, source: &str, context: Context) -> Result<String, TokenizerError> {
    let failed = |error: Error| failure(name, &error);
    let source = without_generation_blocks(source);
    let environment = environment(context.now).map_err(failed)?;
    let template = environment.template_from_named_str("chat_template", &source).map_err(failed)?;
    template.render(Value::from(context.variables)).map_err(failed)
}

/// The environment of transformers' `_compile_jinja_template`.
fn environment(now: Option<DateTime>) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", to_json);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
    });
    environment.add_function("strftime_now", move |format: &str| {
        let now = now.unwrap_or_else(|| Zoned::now().datetime());
        jiff::fmt::strtime::format(format, now).map_err(|problem| {
            let problem = format!("strftime_now cannot write {format:?}: {problem}");
            Error::new(ErrorKind::InvalidOperation, problem)
        })
    });
    Ok(environment)
}

/// Python's `json.dumps`, with the arguments that transformers gives it: `ensure_ascii`, `indent`,
/// `separators`, `sort_keys`, in this order or by name. Jinja's own escapes what HTML would read.
fn to_json(value: &Value, mut arguments: Rest<Value>) -> Result<String, Error> {
    let kwargs = match arguments.pop_if(|last| last.is_kwargs()) {
        Some(kwargs) => Kwargs::try_from(kwargs)?,
        None => Kwargs::from_iter(std::iter::empty::<(String, Value)>()),
    };
    let mut positional = std::mem::take(&mut arguments.0).into_iter();
    let mut argument = |name: &str| -> Result<Option<Value>, Error> {
        let value = match positional.next() {
            Some(value) => Some(value),
            None => kwargs.get(name)?,
        };
        Ok(value.filter(|value| !value.is_none()))
    };
    let is_true = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let style = Style {
        ensure_ascii: is_true(argument("ensure_ascii")?),
        indent: match argument("indent")? {
            None => None,
            Some(indent) => Some(match indent.as_str() {
                Some(indent) => indent.to_owned(),
                None => " ".repeat(usize::try_from(indent)?),
            }),
        },
        separators: match argument("separators")? {
            None => None,
            Some(pair) => {
                let strings: Vec<String> = pair.try_iter()?.map(|value| value.to_string()).collect();
                let pair = <[String; 2]>::try_from(strings).map_err(|_| {
                    Error::new(ErrorKind::InvalidOperation, "separators of tojson must be two strings")
                })?;
                Some(pair.into())
            }
        },
        sort_keys: is_true(argument("sort_keys")?),
    };
    if positional.next().is_some() {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }
    kwargs.assert_all_used()?;
    dumps(value, &style)
}

/// `{% generation %}` marks what the model wrote, which only training asks for. Its tags become those
/// of a scope, in the same place, so that lines and white space stay as they are.
fn without_generation_blocks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start + 2);
        out += before;
        rest = tag;
        let name = tag.trim_start_matches(['-', '+']).trim_start();
        for (from, to) in [("generation", "with"), ("endgeneration", "endwith")] {
            if let Some(after) = name.strip_prefix(from)
                && after.trim_start().trim_start_matches(['-', '+']).starts_with("%}")
            {
                out += &tag[..tag.len() - name.len()];
                out += to;
                rest = after;
            }
        }
    }
    out + rest
}

/// What went wrong, with the line of the template.
fn failure(name: &str, error: &Error) -> TokenizerError {
    let line = error.line();
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(Raised(message)) = cause.downcast_ref() {
            let message = message.clone();
            return TokenizerError::ChatRefused { template: name.to_owned(), line, message };
        }
        source = cause.source();
    }
    let problem = match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    TokenizerError::ChatTemplate { template: name.to_owned(), line, problem }
}
