//! Texts from outside, as messages show them.

use std::borrow::Cow;
use std::fmt::Display;

/// A text of a file: the whole text, or the beginning and the end of a very long one.
pub(crate) fn shortened(text: &str) -> Cow<'_, str> {
    mlx_files::shortened(text, 240)
}

/// An error of MLX without its place in MLX's source.
pub(crate) fn of_mlx(e: &impl Display) -> String {
    mlx_files::without_source_place(&e.to_string())
}
