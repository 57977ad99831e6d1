//! What this crate writes to standard error: environment variables that it ignores, and the profile that
//! `MLX_CPU_PROFILE` asks for.
//!
//! Other libraries of this workspace do not print. Here there is no other way: a program that calls mlx-rs does not know
//! that there are kernels, and gives them neither a subscriber of `tracing` nor a place for warnings. All of the crate's
//! output goes through this file.

use std::io::Write;

/// Writes a line or more. A standard error that is closed is no reason to stop a program.
pub(super) fn write(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}
