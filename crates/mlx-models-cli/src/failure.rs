//! What the program says when it cannot go on.

use std::error::Error;
use std::io::{self, ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use mlx_models::generate::GenerateError;
use mlx_models::text::TextError;
use mlx_models::tokenizer::TokenizerError;
use mlx_models::{CacheError, LoadError};

use crate::hub::HubError;
use crate::style::Style;

/// Anything that ends the program.
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
    /// Arguments that contradict each other or the model.
    #[error("{0}")]
    Arguments(String),
    #[error("MLX: {0}")]
    Mlx(#[from] mlx_rs::error::Exception),
    /// Arguments that make no sense for any model.
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Hub(#[from] HubError),
    #[error("there is no folder {}, and it is not a hub id either, which has the form owner/name", name.display())]
    NoModel { name: PathBuf },
    #[error("there is no folder {name} here, and as a hub id")]
    NoFolderNorModel { name: String, source: HubError },
    #[error("{doing}")]
    Io { doing: String, source: io::Error },
    #[error("writing the output")]
    Output(#[from] io::Error),
}

impl Failure {
    /// Writes the error and its causes to standard error, unless the reader of a pipe just left.
    pub(crate) fn report(&self) -> ExitCode {
        if let Self::Output(e) = self
            && e.kind() == ErrorKind::BrokenPipe
        {
            return ExitCode::SUCCESS;
        }
        // Nothing is left to do for a closed standard error.
        let _ = writeln!(io::stderr(), "{} {}", Style::Error.for_stderr("error:"), self.in_full());
        if matches!(self, Self::Usage(_)) { ExitCode::from(2) } else { ExitCode::FAILURE }
    }

    /// The error and its causes.
    pub(crate) fn in_full(&self) -> String {
        let mut message = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            message += &format!(": {error}");
            cause = error.source();
        }
        message
    }
}
