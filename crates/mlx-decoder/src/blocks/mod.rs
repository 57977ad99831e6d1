//! The blocks that several architectures have.

mod post_norm;
mod pre_norm;
mod sandwich;

pub use post_norm::PostNormBlock;
pub use pre_norm::PreNormBlock;
pub use sandwich::SandwichBlock;
