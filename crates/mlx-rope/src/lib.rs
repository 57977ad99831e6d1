//! Rotary position embeddings: every variant that language models use, and the parser of their
//! configs.
//!
//! API: usable without the rest of this workspace. A rotary embedding rotates each pair of features of a query or key by
//! an angle that grows with the token's position. The product of two vectors that were rotated by the angles `a` and `b`
//! depends on `a - b` only. So the score of a query and a key depends on the distance of their tokens, not on their
//! positions.
//!
//! - [`Rope`] rotates queries and keys. [`Rope::new`] builds the rotation without scaling, [`initialize_rope`] every
//!   variant.
//! - [`QueryScale`] multiplies queries by a factor that grows with their position, in models that have one.
//! - [`RopeScaling`] is the typed form of a config's `rope_scaling`.
//! - [`RopeKeys`] reads all RoPE keys of a config, in the forms of transformers 4 and 5.
//!
//! ```
//! use approx::assert_abs_diff_eq;
//! use mlx_rope::{Rope, RopeLayout};
//! use mlx_rs::Array;
//!
//! let rope = Rope::new(2, 10_000.0, RopeLayout::Interleaved)?;
//! let query = Array::from_slice(&[1.0_f32, 0.0], &[1, 1, 1, 2]);
//! let turned = rope.rotate(&query, 3)?; // by 3 radians: the first frequency is 1
//! assert_abs_diff_eq!(turned.as_slice::<f32>()[0], 3.0_f32.cos(), epsilon = 1e-6);
//! assert_abs_diff_eq!(turned.as_slice::<f32>()[1], 3.0_f32.sin(), epsilon = 1e-6);
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```

mod config;
mod context;
mod error;
mod names;
mod offset;
mod periods;
mod query_scale;
mod rope;
mod rotation;
mod scaling;

pub use config::{MlxLmReads, RopeKeys, RopeSettings};
pub use error::RopeError;
pub use offset::RopeOffset;
pub use query_scale::QueryScale;
pub use rope::{Rope, initialize_rope};
pub use rotation::{RopeLayout, Rotation};
pub use scaling::{Llama3Scaling, LongRopeMode, LongRopeScaling, RopeScaling, YarnScaling};

/// Compiles the README's example.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
