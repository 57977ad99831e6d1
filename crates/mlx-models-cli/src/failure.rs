//! The errors that end the program, and how they are printed.

use std::error::Error;
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::process::ExitCode;

use mlx_hub::HubError;
use mlx_models::device::DeviceError;
use mlx_models::generate::GenerateError;
use mlx_models::text::TextError;
use mlx_models::tokenizer::TokenizerError;
use mlx_models::{CacheError, LoadError, WriteGgufError};
use mlx_rs::error::Exception;

use crate::style::{printable, say_error};

/// An error that ends the program.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(transparent)]
    Generate(#[from] GenerateError),
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error(transparent)]
    Text(#[from] TextError),
    /// Arguments that do not fit each other or the model.
    #[error("{0}")]
    Arguments(String),
    #[error("MLX: {}", mlx_files::without_source_place(.0.what()))]
    Mlx(Exception),
    /// Arguments that are wrong for every model.
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Device(DeviceError),
    #[error(transparent)]
    Hub(#[from] HubError),
    #[error("there is no file {}", file.display())]
    NoFile { file: PathBuf },
    #[error("there is no folder {}, and it is not a Hub id either, which has the form owner/name", name.display())]
    NoModel { name: PathBuf },
    #[error("there is no folder {name} here, and the download of this Hub id failed")]
    NoFolderNorModel { name: String, source: HubError },
    #[error("{doing}")]
    Io { doing: String, source: io::Error },
    #[error("writing the output")]
    Output(#[from] io::Error),
}

impl From<Exception> for Failure {
    fn from(error: Exception) -> Self {
        Self::Mlx(error)
    }
}

impl From<WriteGgufError> for Failure {
    fn from(error: WriteGgufError) -> Self {
        match error {
            WriteGgufError::Load(error) => error.into(),
            WriteGgufError::Tokenizer(error) => error.into(),
            other => Self::Arguments(other.to_string()),
        }
    }
}

impl Failure {
    /// Prints the error and its causes on standard error. That the reader of a pipe has left is no error.
    pub(crate) fn report(&self) -> ExitCode {
        if let Self::Output(e) = self
            && e.kind() == ErrorKind::BrokenPipe
        {
            return ExitCode::SUCCESS;
        }
        say_error(&self.in_full());
        if matches!(self, Self::Usage(_)) { ExitCode::from(2) } else { ExitCode::FAILURE }
    }

    /// The error and its causes, ready for a terminal: see [`printable`].
    pub(crate) fn in_full(&self) -> String {
        printable(&in_full(self)).into_owned()
    }
}

/// An error and its causes. A cause is left out if the error's own text ends with it.
pub(crate) fn in_full(error: &dyn Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !message.ends_with(&text) {
            message += &format!(": {text}");
        }
        cause = error.source();
    }
    message
}

#[cfg(test)]
mod tests {
    use mlx_rs::Array;

    use super::*;

    /// An error whose text includes its cause, and which has the cause as its source too.
    #[derive(Debug, thiserror::Error)]
    #[error("reading a cache: {source}")]
    struct Twice {
        source: io::Error,
    }

    #[test]
    fn a_cause_is_said_once() {
        let missing = || io::Error::from_raw_os_error(2);
        let said = in_full(&Twice { source: missing() });
        assert_eq!(said, format!("reading a cache: {}", missing()));
        let said = Failure::Io { doing: "reading x".to_owned(), source: missing() }.in_full();
        assert_eq!(said, format!("reading x: {}", missing()));
        let nested = Failure::Io {
            doing: "loading".to_owned(),
            source: io::Error::other(Twice { source: missing() }),
        };
        assert_eq!(nested.in_full(), format!("loading: reading a cache: {}", missing()));
    }

    #[test]
    fn an_error_of_mlx_is_shown_without_its_place_in_the_source() {
        let error = Array::ones::<f32>(&[2]).unwrap().add(Array::ones::<f32>(&[3]).unwrap()).unwrap_err();
        assert!(error.to_string().contains(" at /"), "{error}");
        let shown = Failure::from(error).in_full();
        assert!(shown.starts_with("MLX: [broadcast_shapes] ") && !shown.contains(" at "), "{shown}");
    }

    #[test]
    fn an_error_cannot_steer_a_terminal() {
        let failure = Failure::Arguments("no tensor \x1b[2J\u{9b}1m".to_owned());
        assert_eq!(failure.in_full(), "no tensor \\u{1b}[2J\\u{9b}1m");
    }
}
