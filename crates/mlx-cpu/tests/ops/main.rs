//! The kernels against MLX's own answers and against float64, for every instruction set and several
//! numbers of threads.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod attention;
mod copy;
mod fixture;
mod gates;
mod lookup;
mod norm;
mod quantized;
mod rope;
mod softmax;
mod support;
