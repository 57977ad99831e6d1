//! Causal masks with windows and padding, built from numbers in the smallest form.

use std::ops::Range;

use mlx_rs::Array;
use mlx_rs::error::Exception;

use crate::{AttentionMask, sees};

/// Why no mask can be built from these numbers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MaskError {
    /// Fewer than one query.
    #[error("a mask for {queries} queries; at least 1 is needed")]
    Queries {
        /// The number of queries that was given.
        queries: i32,
    },
    /// A negative number of keys before the queries.
    #[error("{offset} keys before the queries; the number must be 0 or more")]
    Offset {
        /// The number of keys that was given.
        offset: i32,
    },
    /// A window that does not contain the query's own token.
    #[error("a window of {window} tokens; at least 1 is needed, for the token itself")]
    Window {
        /// The window that was given.
        window: i32,
    },
    /// An empty list of paddings.
    #[error("the list of paddings is empty; it needs one number for each row")]
    NoRows,
    /// Left and right padding for different numbers of rows.
    #[error("left padding for {left} rows and right padding for {right}")]
    Rows {
        /// Rows with left padding.
        left: usize,
        /// Rows with right padding.
        right: usize,
    },
    /// Padding that is negative, or longer than the row.
    #[error("row {row} has left padding {left} and right padding {right}, and {keys} keys")]
    Padding {
        /// The row of the batch, from 0.
        row: usize,
        /// Its left padding; 0 if none was given.
        left: i32,
        /// Its right padding; 0 if none was given.
        right: i32,
        /// The number of its keys, padding included.
        keys: i32,
    },
    /// More entries than an MLX array can have.
    #[error("a mask of {rows} rows for {queries} queries after {offset} keys has over 2^31 - 1 entries")]
    TooLarge {
        /// Rows of the mask; 1 if all rows of the batch share it.
        rows: usize,
        /// Queries.
        queries: i32,
        /// Keys before the queries.
        offset: i32,
    },
}

/// So that a model's `forward`, which returns MLX's error, can use `?` on a mask.
impl From<MaskError> for Exception {
    fn from(error: MaskError) -> Self {
        Self::custom(error.to_string())
    }
}

/// The numbers that describe a causal mask. The mask holds [`sees`] and
/// [`is_token`](crate::is_token) for a block of queries.
///
/// ```
/// use mlx_attn_masks::{AttentionMask, CausalMask};
///
/// # fn main() -> Result<(), mlx_attn_masks::MaskError> {
/// // Prompts of 3, 1 and 4 tokens, padded on the left to 4.
/// let prompts = CausalMask::new(4).left_padding(&[1, 3, 0]);
/// let AttentionMask::Array(visible) = prompts.build()? else { panic!() };
/// assert_eq!(visible.shape(), [3, 1, 4, 4]);
///
/// // Without padding, MLX's causal mode is enough.
/// assert!(matches!(CausalMask::new(4).left_padding(&[0, 0, 0]).build()?, AttentionMask::Causal));
/// # Ok(())
/// # }
/// ```
///
/// # Shapes
///
/// Legend: B rows of the batch, L queries, S = offset + L keys. `[L, S]` without padding,
/// `[B, 1, L, S]` with it; both broadcast to attention's `[B, H, L, S]`.
///
/// # Dtypes
///
/// Boolean, true where the query sees the key. Attention accepts it for queries of any dtype.
///
/// # Reference
///
/// `create_causal_mask` in mlx-lm 0.32.2's `models/base.py` (<https://github.com/ml-explore/mlx-lm>),
/// [`to_array`](Self::to_array) has the same shape and the same entries.
#[derive(Debug, Clone, Copy)]
pub struct CausalMask<'a> {
    queries: i32,
    offset: i32,
    window: Option<i32>,
    left: Option<&'a [i32]>,
    right: Option<&'a [i32]>,
}

impl<'a> CausalMask<'a> {
    /// A mask for `queries` tokens, each of which sees itself and every token before it.
    pub fn new(queries: i32) -> Self {
        Self { queries, offset: 0, window: None, left: None, right: None }
    }

    /// Sets the number of keys before the queries' own. These keys are all earlier tokens in order, or,
    /// if a cache holds fewer, the newest of them.
    #[must_use]
    pub fn offset(self, keys: i32) -> Self {
        Self { offset: keys, ..self }
    }

    /// Sets the window to this many tokens, including the query's own; `None` means no window.
    #[must_use]
    pub fn window(self, tokens: impl Into<Option<i32>>) -> Self {
        Self { window: tokens.into(), ..self }
    }

    /// Sets the number of padding keys before the tokens of each row of a batch.
    ///
    /// Queries at padding see no key; the crate's front page says what attention returns for them.
    #[must_use]
    pub fn left_padding(self, rows: &'a [i32]) -> Self {
        Self { left: Some(rows), ..self }
    }

    /// Sets the number of padding keys after the tokens of each row of a batch.
    ///
    /// Causal order already hides this padding from every token, since it comes later. The mask also
    /// hides it from the queries at padding. It is not needed if the outputs and keys of those queries
    /// are thrown away.
    #[must_use]
    pub fn right_padding(self, rows: &'a [i32]) -> Self {
        Self { right: Some(rows), ..self }
    }

    /// Builds the mask in the smallest form that is correct.
    ///
    /// Once the window has moved past the padding of every row, the mask has no batch axis: the rows no
    /// longer differ.
    ///
    /// # Errors
    ///
    /// A [`MaskError`] for fewer than one query, a negative offset, a window below 1, padding that is
    /// negative or longer than the row, left and right padding for different numbers of rows, an empty
    /// list of paddings, and masks of more than 2^31 - 1 entries.
    pub fn build(&self) -> Result<AttentionMask, MaskError> {
        let (keys, rows) = self.check()?;
        // No query's window reaches the keys before this one.
        let first_seen = self.first_seen(self.offset);
        let padded = rows.iter().any(|&[left, right]| left > first_seen || right > 0);
        if padded {
            self.array(keys, &rows, true)
        } else if sees(keys - 1, 0, self.window) {
            return Ok(AttentionMask::causal(self.queries)); // the last query sees the first key
        } else {
            self.array(keys, &[[0, 0]], false)
        }
        .map(AttentionMask::Array)
    }

    /// Builds the mask as an array in every case: `[L, S]`, or `[B, 1, L, S]` if padding was given. This is
    /// for attention that is written out in single operations.
    ///
    /// # Errors
    ///
    /// Those of [`build`](Self::build).
    pub fn to_array(&self) -> Result<Array, MaskError> {
        let (keys, rows) = self.check()?;
        self.array(keys, &rows, self.left.or(self.right).is_some())
    }

    /// Checks the numbers. Returns the number of keys, and the left and right padding of each row, or of
    /// one row if no padding was given.
    fn check(&self) -> Result<(i32, Vec<[i32; 2]>), MaskError> {
        let Self { queries, offset, window, left, right } = *self;
        if queries < 1 {
            return Err(MaskError::Queries { queries });
        }
        if offset < 0 {
            return Err(MaskError::Offset { offset });
        }
        if let Some(window) = window.filter(|&window| window < 1) {
            return Err(MaskError::Window { window });
        }
        let rows: Vec<[i32; 2]> = match (left, right) {
            (None, None) => vec![[0, 0]],
            (Some(left), None) => left.iter().map(|&left| [left, 0]).collect(),
            (None, Some(right)) => right.iter().map(|&right| [0, right]).collect(),
            (Some(left), Some(right)) if left.len() == right.len() => {
                left.iter().zip(right).map(|(&left, &right)| [left, right]).collect()
            }
            (Some(left), Some(right)) => {
                return Err(MaskError::Rows { left: left.len(), right: right.len() });
            }
        };
        if rows.is_empty() {
            return Err(MaskError::NoRows);
        }
        let Some(keys) = offset.checked_add(queries) else {
            return Err(MaskError::TooLarge { rows: rows.len(), queries, offset });
        };
        for (row, &[left, right]) in rows.iter().enumerate() {
            if left < 0 || right < 0 || left > keys || right > keys - left {
                return Err(MaskError::Padding { row, left, right, keys });
            }
        }
        Ok((keys, rows))
    }

    /// The array for these rows, with a batch axis if `batched`.
    fn array(&self, keys: i32, rows: &[[i32; 2]], batched: bool) -> Result<Array, MaskError> {
        let Self { queries, offset, .. } = *self;
        let entries = i32::try_from(rows.len()).ok().and_then(|batch| {
            batch.checked_mul(queries)?.checked_mul(keys)?;
            Some([batch, 1, queries, keys])
        });
        let Some(shape) = entries else {
            return Err(MaskError::TooLarge { rows: rows.len(), queries, offset });
        };

        // Ranges are filled here, in one pass; with operations of MLX it would take several.
        let mut visible = vec![false; rows.len() * queries as usize * keys as usize];
        let lines = rows.iter().flat_map(|&row| (offset..keys).map(move |query| (row, query)));
        for (line, (row, query)) in visible.chunks_exact_mut(keys as usize).zip(lines) {
            line[self.seen(query, keys, row)].fill(true);
        }
        Ok(Array::from_slice(&visible, if batched { &shape } else { &shape[2..] }))
    }

    /// The range of keys for which [`sees`] and [`is_token`](crate::is_token) are true for this query.
    fn seen(&self, query: i32, keys: i32, [left, right]: [i32; 2]) -> Range<usize> {
        let first = self.first_seen(query).max(left);
        let end = (query + 1).min(keys - right);
        first as usize..end.max(first) as usize
    }

    /// The first key in this query's window.
    fn first_seen(&self, query: i32) -> i32 {
        self.window.map_or(0, |window| (query - window).saturating_add(1).max(0))
    }
}

impl AttentionMask {
    /// The mask for the next `queries` tokens, where each sees itself and the `window - 1` tokens
    /// before it. `offset` is the number of keys before the queries' own: all earlier tokens, or, if a
    /// cache holds fewer, the newest of them.
    ///
    /// The mask is an array `[L, S]` with `S = offset + queries` if the window hides a key from a query;
    /// otherwise it is that of [`causal`](Self::causal).
    ///
    /// # Errors
    ///
    /// Those of [`CausalMask::build`].
    pub fn sliding(queries: i32, offset: i32, window: i32) -> Result<Self, MaskError> {
        CausalMask::new(queries).offset(offset).window(window).build()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::is_token;
    use proptest::prelude::*;

    /// The numbers of a mask, which owns its padding.
    #[derive(Debug, Clone)]
    struct Numbers {
        queries: i32,
        offset: i32,
        window: Option<i32>,
        left: Option<Vec<i32>>,
        right: Option<Vec<i32>>,
    }

    impl Numbers {
        fn mask(&self) -> CausalMask<'_> {
            let mut mask = CausalMask::new(self.queries).offset(self.offset).window(self.window);
            if let Some(left) = &self.left {
                mask = mask.left_padding(left);
            }
            if let Some(right) = &self.right {
                mask = mask.right_padding(right);
            }
            mask
        }

        fn keys(&self) -> i32 {
            self.offset + self.queries
        }

        /// Applies the rules entry by entry, for each row of the batch.
        fn naive(&self) -> Vec<Vec<bool>> {
            let keys = self.keys();
            let rows = self.left.as_ref().or(self.right.as_ref()).map_or(1, Vec::len);
            let padding = |side: &Option<Vec<i32>>, row: usize| side.as_ref().map_or(0, |side| side[row]);
            let row = |row| {
                let (left, right) = (padding(&self.left, row), padding(&self.right, row));
                let entry = |i, j| sees(i, j, self.window) && is_token(j, keys, left, right);
                (self.offset..keys).flat_map(|i| (0..keys).map(move |j| entry(i, j))).collect()
            };
            (0..rows).map(row).collect()
        }
    }

    /// Random numbers, with padding of up to four rows on either side, at most as long as the row.
    fn numbers() -> impl Strategy<Value = Numbers> {
        let sizes = (1_i32..10, 0_i32..10, prop::option::of(1_i32..14));
        let rows = prop::collection::vec((any::<u8>(), any::<u8>()), 1..5);
        (sizes, rows, any::<[bool; 3]>()).prop_map(
            |((queries, offset, window), rows, [left, right, none])| {
                let keys = offset + queries;
                let side = |given: bool, padding: Vec<i32>| given.then_some(padding);
                let lefts: Vec<i32> = rows
                    .iter()
                    .map(|&(l, _)| if none || !left { 0 } else { i32::from(l) % (keys + 1) })
                    .collect();
                let rights = rows
                    .iter()
                    .zip(&lefts)
                    .map(|(&(_, r), l)| if none { 0 } else { i32::from(r) % (keys + 1 - l) });
                let rights = rights.collect();
                Numbers { queries, offset, window, left: side(left, lefts), right: side(right, rights) }
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(600))]

        #[test]
        fn the_array_is_the_rule(numbers in numbers()) {
            let array = numbers.mask().to_array().unwrap();
            let naive = numbers.naive();
            let (queries, keys) = (numbers.queries, numbers.keys());
            let padded = numbers.left.is_some() || numbers.right.is_some();
            let shape = [naive.len() as i32, 1, queries, keys];
            prop_assert_eq!(array.shape(), if padded { &shape[..] } else { &shape[2..] });
            prop_assert_eq!(array.as_slice::<bool>(), naive.concat());
        }

        #[test]
        fn the_built_mask_is_the_rule_in_its_smallest_form(numbers in numbers()) {
            let naive = numbers.naive();
            let causal = Numbers { window: None, left: None, right: None, ..numbers.clone() }.naive().concat();
            let plain = naive.iter().all(|row| *row == causal);
            match numbers.mask().build().unwrap() {
                AttentionMask::None => prop_assert!(plain && numbers.queries == 1),
                AttentionMask::Causal => prop_assert!(plain && numbers.queries > 1),
                AttentionMask::Array(array) => {
                    prop_assert!(!plain);
                    let rows = if array.ndim() == 4 { naive.len() } else { 1 };
                    let found: Vec<&[bool]> =
                        array.as_slice::<bool>().chunks(naive[0].len()).cycle().take(naive.len()).collect();
                    prop_assert_eq!(array.size(), rows * naive[0].len());
                    prop_assert_eq!(found, naive);
                }
            }
        }

        #[test]
        fn a_window_of_at_least_the_length_is_none(queries in 1_i32..50, offset in 0_i32..50, more in 0_i32..9) {
            let window = offset + queries + more;
            let full = CausalMask::new(queries).offset(offset);
            let (windowed, all) = (full.window(window).to_array().unwrap(), full.to_array().unwrap());
            prop_assert_eq!(windowed.as_slice::<bool>(), all.as_slice::<bool>());
            let built = AttentionMask::sliding(queries, offset, window).unwrap();
            prop_assert!(built.to_sdpa().is_none() == (queries == 1));
            prop_assert!(!matches!(built, AttentionMask::Array(_)));
            if queries + offset > 1 {
                let shorter = AttentionMask::sliding(queries, offset, offset + queries - 1);
                prop_assert!(matches!(shorter, Ok(AttentionMask::Array(_))));
            }
        }

        #[test]
        fn the_split_into_calls_does_not_matter(numbers in numbers(), at in 0_i32..10) {
            // The last queries of a call see the same keys as in a separate call.
            let first = at.min(numbers.queries - 1);
            let (queries, offset) = (numbers.queries - first, numbers.offset + first);
            let rest = Numbers { queries, offset, ..numbers.clone() };
            let (whole, rest) = (numbers.mask().to_array().unwrap(), rest.mask().to_array().unwrap());
            let skipped = (first * numbers.keys()) as usize;
            let rows = whole.as_slice::<bool>().chunks((numbers.queries * numbers.keys()) as usize);
            let last: Vec<bool> = rows.flat_map(|row| row[skipped..].to_vec()).collect();
            prop_assert_eq!(last, rest.as_slice::<bool>());
        }
    }

    #[test]
    fn padding_behind_the_window_needs_no_rows() {
        let mask = CausalMask::new(2).offset(6).window(3);
        for (padding, shape) in [([0, 4], vec![2, 8]), ([0, 5], vec![2, 1, 2, 8])] {
            let AttentionMask::Array(array) = mask.left_padding(&padding).build().unwrap() else { panic!() };
            assert_eq!(array.shape(), shape);
        }
    }

    #[test]
    fn a_row_of_padding_alone_is_no_error() {
        let AttentionMask::Array(array) = CausalMask::new(2).left_padding(&[2]).build().unwrap() else {
            panic!()
        };
        assert_eq!(array.as_slice::<bool>(), [false; 4]);
    }

    #[track_caller]
    fn fails(mask: CausalMask<'_>, error: MaskError, message: &str) {
        assert_eq!(mask.build().unwrap_err(), error);
        assert_eq!(mask.to_array().unwrap_err(), error);
        assert_eq!(error.to_string(), message);
        assert_eq!(Exception::from(error).what(), message);
    }

    #[test]
    fn no_queries() {
        for queries in [0, -3] {
            let message = format!("a mask for {queries} queries; at least 1 is needed");
            fails(CausalMask::new(queries), MaskError::Queries { queries }, &message);
        }
    }

    #[test]
    fn negative_offset() {
        let message = "-1 keys before the queries; the number must be 0 or more";
        fails(CausalMask::new(2).offset(-1), MaskError::Offset { offset: -1 }, message);
    }

    #[test]
    fn no_window() {
        for window in [0, -7, i32::MIN] {
            let message = format!("a window of {window} tokens; at least 1 is needed, for the token itself");
            fails(CausalMask::new(2).window(window), MaskError::Window { window }, &message);
            assert_eq!(AttentionMask::sliding(2, 3, window).unwrap_err(), MaskError::Window { window });
        }
    }

    #[test]
    fn rows_that_do_not_fit_each_other() {
        let message = "the list of paddings is empty; it needs one number for each row";
        fails(CausalMask::new(2).left_padding(&[]), MaskError::NoRows, message);
        let mask = CausalMask::new(2).left_padding(&[1]).right_padding(&[0, 1]);
        let message = "left padding for 1 rows and right padding for 2";
        fails(mask, MaskError::Rows { left: 1, right: 2 }, message);
    }

    #[test]
    fn padding_longer_than_the_keys() {
        let mask = CausalMask::new(2).offset(3);
        let padding = |left, right| MaskError::Padding { row: 1, left, right, keys: 5 };
        let message = "row 1 has left padding 6 and right padding 0, and 5 keys";
        fails(mask.left_padding(&[5, 6]), padding(6, 0), message);
        let message = "row 1 has left padding 0 and right padding 6, and 5 keys";
        fails(mask.right_padding(&[5, 6]), padding(0, 6), message);
        let message = "row 1 has left padding 3 and right padding 3, and 5 keys";
        fails(mask.left_padding(&[2, 3]).right_padding(&[3, 3]), padding(3, 3), message);
        let message = "row 1 has left padding -1 and right padding 0, and 5 keys";
        fails(mask.left_padding(&[0, -1]), padding(-1, 0), message);
        let message = "row 1 has left padding 0 and right padding -2147483648, and 5 keys";
        fails(mask.right_padding(&[0, i32::MIN]), padding(0, i32::MIN), message);
    }

    #[test]
    fn more_entries_than_can_be_counted() {
        let too_large = |rows, queries, offset| MaskError::TooLarge { rows, queries, offset };
        let message = "a mask of 1 rows for 2 queries after 2147483647 keys has over 2^31 - 1 entries";
        fails(CausalMask::new(2).offset(i32::MAX), too_large(1, 2, i32::MAX), message);
        let message = "a mask of 1 rows for 65536 queries after 0 keys has over 2^31 - 1 entries";
        fails(CausalMask::new(65536).window(9), too_large(1, 65536, 0), message);
        // A mask without an array can have any length.
        assert!(matches!(CausalMask::new(65536).build(), Ok(AttentionMask::Causal)));
        assert!(matches!(AttentionMask::sliding(1, i32::MAX - 1, i32::MAX), Ok(AttentionMask::None)));
    }
}
