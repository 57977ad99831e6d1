//! What the tests of this workspace share: tensor comparison, tolerances, tiny models.
//!
//! Not published.

mod compare;
mod random;

pub use compare::{Comparison, Tolerance, compare};
pub use random::RandomParameters;
