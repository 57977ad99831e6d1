//! Chat templates: Jinja in the environment that transformers sets up.

use std::collections::BTreeMap;
use std::error::Error as _;

use jiff::Zoned;
use jiff::civil::DateTime;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, Tuple, Value, ValueKind, ValueOrKwargs, from_args};
use minijinja::{Environment, Error, ErrorKind, State};
use minijinja_contrib::pycompat::unknown_method_callback;

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
    environment.set_unknown_method_callback(method);
    // As in Python: what has a length and elements, and what a loop may go over.
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String)
    });
    environment.add_test("iterable", |value: &Value| {
        value.is_undefined()
            || !value.is_none() && value.try_iter().is_ok()
            || value.kind() == ValueKind::String
    });
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

/// The methods of Python's strings, lists and dictionaries.
fn method(state: &mut State, value: &Value, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    let Some(text) = value
        .as_str()
        .filter(|_| matches!(name, "removeprefix" | "removesuffix" | "partition" | "rpartition"))
    else {
        return unknown_method_callback(state, value, name, arguments);
    };
    let (part,): (&str,) = from_args(arguments)?;
    let parts = |found: Option<(&str, &str)>, otherwise: [&str; 3]| {
        let [before, between, after] = found.map_or(otherwise, |(before, after)| [before, part, after]);
        Value::from(Tuple::from([before, between, after].map(Value::from)))
    };
    Ok(match name {
        "removeprefix" => text.strip_prefix(part).unwrap_or(text).into(),
        "removesuffix" => text.strip_suffix(part).unwrap_or(text).into(),
        "partition" => parts(text.split_once(part), [text, "", ""]),
        _ => parts(text.rsplit_once(part), ["", "", text]),
    })
}

/// Python's `json.dumps`, with the arguments that transformers gives it: `ensure_ascii`, `indent`,
/// `separators`, `sort_keys`, in this order or by name. Jinja's own escapes what HTML would read.
fn to_json(value: &Value, arguments: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let arguments: Vec<Value> = arguments.0.into_iter().map(Value::from).collect();
    let (positional, kwargs): (&[Value], Kwargs) = from_args(&arguments)?;
    let mut positional = positional.iter().cloned();
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
    let mut raw = false;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start + 2);
        out += before;
        rest = tag;
        let inside = tag.trim_start_matches(['-', '+']).trim_start();
        let name = inside.split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or_default();
        let after = &inside[name.len()..];
        if !after.trim_start().trim_start_matches(['-', '+']).starts_with("%}") {
            continue;
        }
        let scope = match name {
            "generation" if !raw => "with",
            "endgeneration" if !raw => "endwith",
            name => {
                raw = name == "raw" || raw && name != "endraw";
                continue;
            }
        };
        out += &tag[..tag.len() - inside.len()];
        out += scope;
        rest = after;
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
