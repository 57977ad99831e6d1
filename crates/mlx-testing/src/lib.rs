//! What the tests of this workspace share: assertions about tensors, tolerances, random weights.
//!
//! Tests compare numbers with the macros of the crate `approx`, and tensors too: [`tensor`] makes of an
//! `mlx_rs::Array` what these macros and `assert_eq!` can compare. [`compare`] answers what differs instead of
//! stopping the test.
//!
//! With the feature `models` this crate also holds what must be true of every language model (`models`) and of
//! loading it (`checkpoints`). It is not published.

#[cfg(feature = "models")]
pub mod checkpoints;
mod compare;
#[cfg(feature = "models")]
pub mod models;
mod random;
mod tensor;

pub use compare::{Comparison, Tolerance, compare, model_rounding, to_f64};
pub use random::RandomParameters;
pub use tensor::{Tensor, tensor};

/// Switches the kernels of `mlx-cpu` off for the whole process, so that the results have the bits of stock MLX.
pub fn stock_mlx() {
    mlx_sys::cpu_kernels::set_enabled(false);
}
