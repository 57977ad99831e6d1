//! Chat templates: Jinja in the environment that transformers sets up.

use jiff::Zoned;
use jiff::civil::DateTime;

use crate::TokenizerError;
use crate::jinja::{self, ErrorKind};
use crate::json::Data;

/// What a template sees.
pub(crate) struct Context {
    pub(crate) variables: Vec<(String, Data)>,
    /// The local time; without one, that of the clock.
    pub(crate) now: Option<DateTime>,
}

/// Renders a template, which `name` stands for in errors.
pub(crate) fn render(name: &str, source: &str, context: Context) -> Result<String, TokenizerError> {
    let Context { variables, now } = context;
    let size = variables.iter().map(|(_, value)| value.size()).sum();
    let make = move || {
        let pair = |(name, value): &(String, Data)| Ok((name.as_str().into(), value.to_value()?));
        variables.iter().map(pair).collect()
    };
    let clock = |format: &str| {
        let now = now.unwrap_or_else(|| Zoned::now().datetime());
        jiff::fmt::strtime::format(format, now).map_err(|problem| problem.to_string())
    };
    jinja::render(source, size, make, &clock).map_err(|error| {
        let (template, line) = (name.to_owned(), error.line);
        match error.kind {
            ErrorKind::Raised => TokenizerError::ChatRefused { template, line, message: error.message },
            ErrorKind::Syntax => {
                let problem = format!("syntax error: {}", error.message);
                TokenizerError::ChatTemplate { template, line, problem }
            }
            ErrorKind::Runtime | ErrorKind::Limit => {
                TokenizerError::ChatTemplate { template, line, problem: error.message }
            }
        }
    })
}
