//! Runs operations: makes slices of MLX's arrays and calls `mlx-cpu`.
//!
//! Each function has the name of its operation. `native/operations.def` lists the inputs and outputs of each operation by
//! slot, and `native/offer/` has checked their shapes and formats.

pub(super) mod attention;
mod heads;
pub(super) mod products;
pub(super) mod quantized;
pub(super) mod rows;
mod stacks;

/// An error is a message for the user.
pub(super) type Answer = Result<(), String>;
