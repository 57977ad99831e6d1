//! What the tests of this workspace share: assertions about tensors, tolerances, random weights.
//!
//! Tests compare numbers and tensors with the macros of the crate `approx`: [`tensor`] wraps an `mlx_rs::Array` so that
//! these macros and `assert_eq!` can compare it. [`compare`] returns the difference instead of stopping the test.
//! [`assert_same_on_cpu`] and [`assert_as_recorded`] want the same bits on the CPU, and allow rounding on a GPU.
//!
//! The feature `models` adds the tests that every language model (`models`) and its loading (`checkpoints`) must pass,
//! tables of released models (`released`), and
//! checkpoints as other programs quantize them (`foreign`).
//! This crate is not published.

#[cfg(feature = "models")]
pub mod checkpoints;
mod compare;
#[cfg(feature = "models")]
pub mod decoder;
mod device;
#[cfg(feature = "models")]
pub mod foreign;
#[cfg(feature = "models")]
pub mod models;
mod random;
#[cfg(feature = "models")]
pub mod released;
mod same;
mod tensor;

pub use compare::{Comparison, Tolerance, compare, model_rounding, to_f64};
pub use device::{allocation_slack, on_cpu, on_recording_device, use_cpu, with_cpu};
pub use random::RandomParameters;
pub use same::{assert_as_recorded, assert_same_on_cpu};
pub use tensor::{Tensor, tensor};

/// Switches the kernels of `mlx-cpu` off for the whole process, so that the results have the bits of stock MLX.
pub fn stock_mlx() {
    mlx_sys::cpu_kernels::set_enabled(false);
}
