//! What the tests of this workspace share: tensor comparison, tolerances, tiny models.
//!
//! Not published. With the feature `models` also what must hold for every language model.

#[cfg(feature = "models")]
pub mod checkpoints;
mod compare;
#[cfg(feature = "models")]
pub mod models;
mod random;

pub use compare::{Comparison, Tolerance, compare, to_f64};
pub use random::RandomParameters;

/// Has stock MLX compute from now on, in the whole process: for what is compared with the bits of a program
/// that runs on it.
pub fn stock_mlx() {
    mlx_sys::cpu_kernels::set_enabled(false);
}
