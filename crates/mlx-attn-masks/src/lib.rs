//! Who sees whom in attention: causal, sliding-window and padded masks, from numbers alone.
//!
//! API: usable without the rest of this workspace. [`AttentionMask`] is what a cache hands to a
//! model and a model hands to attention.
//!
//! # The rule
//!
//! A language model reads from left to right: token `i` is predicted from the tokens before it, so
//! in training and in use its query may look at no later key. With a sliding window it looks at the
//! last `window` tokens only, itself included, and what lies further back arrives through the layers
//! below. Both are one line, [`sees`], with `i` and `j` counted in tokens:
//!
//! ```text
//! query i sees key j   when   j <= i  and  i - j < window
//! ```
//!
//! In a batch, rows of fewer tokens are filled up with padding, and a key of padding is seen by
//! nobody ([`is_token`]). With S keys of which the last L belong to the queries, the queries have
//! the places S - L to S - 1. For L = 3, S = 5, window 3, and one place of padding on the left:
//!
//! ```text
//!           causal        window 3      and left padding 1
//! query 2   1 1 1 0 0     1 1 1 0 0     0 1 1 0 0
//! query 3   1 1 1 1 0     0 1 1 1 0     0 1 1 1 0
//! query 4   1 1 1 1 1     0 0 1 1 1     0 0 1 1 1
//! ```
//!
//! # What is built
//!
//! As little as is right. One query that sees everything needs no mask. Where the rule is causal
//! order alone, attention applies it by itself ([`AttentionMask::Causal`]), which reads no memory.
//! What is left becomes a boolean array: MLX's attention takes a float32 mask to be added to the
//! scores for float32 queries only, and booleans for all.
//!
//! ```
//! use mlx_attn_masks::AttentionMask;
//!
//! # fn main() -> Result<(), mlx_attn_masks::MaskError> {
//! assert!(matches!(AttentionMask::causal(1), AttentionMask::None)); // the newest token sees all
//! assert!(matches!(AttentionMask::causal(7), AttentionMask::Causal));
//!
//! // Three queries after two tokens: five tokens fit a window of 8, and not one of 3.
//! assert!(matches!(AttentionMask::sliding(3, 2, 8)?, AttentionMask::Causal));
//! let AttentionMask::Array(visible) = AttentionMask::sliding(3, 2, 3)? else { panic!() };
//! assert_eq!(visible.shape(), [3, 5]);
//! # Ok(())
//! # }
//! ```
//!
//! # Rows that see nothing
//!
//! A query that stands on left padding sees no key at all, and the softmax over nothing is 0 / 0.
//! MLX's CPU device answers such a query with the mean of all values. The answer is of no use, and
//! a caller skips the places of padding in the output; but it must be finite, on which a test
//! insists. It becomes a key and a value of the next layer, where the tokens give it the weight 0,
//! and 0 * NaN is NaN. Attention that is put together by hand must therefore put a large negative
//! number, and not minus infinity, where a mask is false.

mod causal;
mod mask;
mod rule;

pub use causal::{CausalMask, MaskError};
pub use mask::AttentionMask;
pub use rule::{is_token, sees};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
