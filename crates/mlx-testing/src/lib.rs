//! What the tests of this workspace share: tensor comparison, tolerances, tiny models.
//!
//! Not published. With the feature `models` also what must hold for every language model.

#[cfg(feature = "models")]
pub mod checkpoints;
mod compare;
#[cfg(feature = "models")]
pub mod models;
mod random;

pub use compare::{Comparison, Tolerance, compare};
pub use random::RandomParameters;
