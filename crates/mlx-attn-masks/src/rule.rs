//! The rule of a mask for one query and one key. The rest of this crate computes the same faster.

/// Whether the query of the token at place `query` may see the key of the token at place `key`.
///
/// True if `key <= query` and, with a window, `query - key < window`: the window includes the token
/// itself. Only the distance matters, so both places may be counted from any common token.
///
/// ```
/// use mlx_attn_masks::sees;
///
/// assert!(sees(5, 5, None) && sees(5, 0, None) && !sees(5, 6, None));
/// assert!(sees(5, 3, Some(3)) && !sees(5, 2, Some(3)));
/// ```
///
/// # Reference
///
/// Causal attention: Vaswani et al., *Attention Is All You Need*, section 3.2.3
/// (<https://arxiv.org/abs/1706.03762>). The window: Beltagy et al., *Longformer*, section 3.1
/// (<https://arxiv.org/abs/2004.05150>), on the left side only, as in Mistral 7B
/// (<https://arxiv.org/abs/2310.06825>).
pub fn sees(query: i32, key: i32, window: Option<i32>) -> bool {
    key <= query && window.is_none_or(|window| query.saturating_sub(key) < window)
}

/// Whether place `key` holds a token in a row of `keys` places, of which the first `left` and the last
/// `right` are padding.
///
/// ```
/// use mlx_attn_masks::is_token;
///
/// assert!(!is_token(1, 6, 2, 1) && is_token(2, 6, 2, 1) && is_token(4, 6, 2, 1) && !is_token(5, 6, 2, 1));
/// ```
pub fn is_token(key: i32, keys: i32, left: i32, right: i32) -> bool {
    left <= key && key < keys.saturating_sub(right)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extreme_places_do_not_overflow() {
        assert!(!sees(i32::MAX, i32::MIN, Some(i32::MAX)));
        assert!(sees(i32::MAX, i32::MIN, None));
        assert!(!is_token(0, i32::MIN, 0, i32::MAX));
    }
}
