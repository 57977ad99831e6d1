//! Files of a folder: read within limits, and errors that name them.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::CheckpointError;
use crate::text::shortened;

/// Reads a JSON file that describes a model. `absent` makes the error for a file that is not there.
pub(crate) fn read_json(
    path: &Path,
    absent: impl FnOnce(PathBuf) -> CheckpointError,
) -> Result<Value, CheckpointError> {
    let text = read_text(path, absent)?;
    serde_json::from_str(&text).map_err(|source| CheckpointError::Json { file: path.to_path_buf(), source })
}

/// Reads the text of a JSON file that describes a model. `absent` makes the error for a file that is not there.
pub(crate) fn read_text(
    path: &Path,
    absent: impl FnOnce(PathBuf) -> CheckpointError,
) -> Result<String, CheckpointError> {
    mlx_files::read_to_string(path, mlx_files::LARGEST_CONFIG).map_err(|source| match source.kind() {
        ErrorKind::NotFound => absent(path.to_path_buf()),
        _ => CheckpointError::Io { file: path.to_path_buf(), source },
    })
}

/// Whether a regular file is there. Anything else at its place is an error.
pub(crate) fn is_present(path: &Path) -> Result<bool, CheckpointError> {
    mlx_files::is_present(path).map_err(|source| CheckpointError::Io { file: path.to_path_buf(), source })
}

/// Checks that a file is a regular file before MLX opens it by its path, since MLX opens anything.
pub(crate) fn check_regular(path: &Path) -> Result<(), CheckpointError> {
    let opened = mlx_files::open(path);
    opened.map(drop).map_err(|source| CheckpointError::Io { file: path.to_path_buf(), source })
}

/// Warns that a key of a file has no effect. `docs/differences.md` says which keys may be ignored.
pub(crate) fn warn_ignored(file: &Path, key: &str) {
    tracing::warn!("{}: {} has no use, and is ignored", file.display(), shortened(key));
}
