//! The kernels against MLX's own answers and against float64, for every instruction set and several
//! numbers of threads.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod fixture;
mod gates;
mod norm;
mod rope;
mod support;
