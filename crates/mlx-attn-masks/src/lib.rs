//! Attention masks: which keys each query may see. Causal order, sliding windows and padding.
//!
//! API: usable without the rest of this workspace. A mask is built from numbers, without a model or a
//! cache. A cache gives an [`AttentionMask`] to a model, which passes it to attention.
//!
//! # The rule
//!
//! A language model reads from left to right and predicts each token from the tokens before it, so a
//! query may not see later keys. With a sliding window it sees only the last `window` tokens, including
//! itself; older tokens reach it through the layers below. The function [`sees`] is this rule, with `i`
//! and `j` counted in tokens:
//!
//! ```text
//! query i sees key j   when   j <= i  and  i - j < window
//! ```
//!
//! In a batch, shorter rows are padded to the length of the longest, and no query sees a padding key
//! ([`is_token`]). Of S keys, the last L belong to the queries, so the queries have the places S - L to
//! S - 1. For L = 3, S = 5, window 3, and one padding key on the left:
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
//! The smallest form that is correct. One query that sees every key needs no mask. If the rule is
//! causal order alone, MLX's attention applies it without an array ([`AttentionMask::Causal`]).
//! Otherwise the mask is a boolean array: MLX's attention accepts boolean masks for queries of every
//! dtype, but float32 masks only for float32 queries.
//!
//! ```
//! use mlx_attn_masks::AttentionMask;
//!
//! # fn main() -> Result<(), mlx_attn_masks::MaskError> {
//! assert!(matches!(AttentionMask::causal(1), AttentionMask::None)); // the newest token sees all
//! assert!(matches!(AttentionMask::causal(7), AttentionMask::Causal));
//!
//! // Three queries after two tokens: the five tokens fit into a window of 8, but not into one of 3.
//! assert!(matches!(AttentionMask::sliding(3, 2, 8)?, AttentionMask::Causal));
//! let AttentionMask::Array(visible) = AttentionMask::sliding(3, 2, 3)? else { panic!() };
//! assert_eq!(visible.shape(), [3, 5]);
//! # Ok(())
//! # }
//! ```
//!
//! # Rows that see nothing
//!
//! A query at left padding sees no key, and a softmax over no keys is 0 / 0. MLX's CPU device returns
//! the mean of all values for such a query. The caller ignores this output, but it must be finite: it
//! becomes a key and a value of the next layer, where it gets the weight 0, and 0 * NaN is NaN. A test
//! checks that it is finite. Attention that is written out in single operations must therefore use a
//! large negative number, not minus infinity, where a mask is false.

mod causal;
mod mask;
mod rule;

pub use causal::{CausalMask, MaskError};
pub use mask::AttentionMask;
pub use rule::{is_token, sees};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
